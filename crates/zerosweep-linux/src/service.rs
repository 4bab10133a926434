//! The threads that answer faults.
//!
//! Each takes faults from the kernel as they come, so that one that takes long (a sweep, pages that
//! are copied) holds up nobody who wants another range. What cannot be answered now stays with the
//! thread that took it.
//!
//! A thread reads what the kernel has, hands each touch to the engine, and wakes whoever waits. A fault
//! that cannot be answered now goes to a list of its own, and is tried again when an operation has
//! ended, or after a time. The threads make raw system calls, take no lock of the VMM's,
//! and have the memory for their lists before they start.
//!
//! Exhaustion (rule R15): a virtual CPU stalls, and so does whoever is no thread of this process:
//! under KVM with the kernel's interrupt controller a worker of the kernel's asks for a virtual
//! CPU's page, in its own name. The other threads of the VMM borrow. Whoever stalls may hold what
//! the VMM's main loop needs; so while someone stalls, its thread is looked at ([`MainThread`]), and
//! if it makes no progress for [`STUCK`], memory is borrowed and counted.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use zerosweep::{FaultError, Gfn, Order, PAGE_BYTES};

use crate::error::SysError;
use crate::machine::place::frame_of;
use crate::memory::{GuestMemory, OnExhaustion};
use crate::outcome::FaultLatency;
use crate::service::main_thread::MainThread;
use crate::sys::poll::{SharedWait, WakeEvent};
use crate::sys::raw;
use crate::sys::uffd::{Fault, FaultBuffer, FaultKind};
use crate::threads;

mod main_thread;

/// The VMM's main loop may make no progress for this long while someone stalls.
const STUCK: Duration = Duration::from_secs(2);
/// How often a stalled fault is tried again without a reason to.
const RETRY_MS: u32 = 20;
/// How often a stalled guest's memory is swept again: it may have zeroed what it has.
const SWEEP_AGAIN: Duration = Duration::from_secs(1);
/// A frame may fail to be mapped for this long before the cap is lifted: the host may be short of
/// memory for a while, or a page in use, in swap or in migration.
const MAP_TIME: Duration = Duration::from_secs(10);
/// A stalled fault that came again this often is borrowed for. A thread with a pending signal does
/// not wait in a fault that the kernel takes for it: it asks again, some 80,000 times a second, and
/// gets to the signal only when it has the page. A thread that runs its handler in between comes
/// once for each signal.
const FLOOD: u32 = 4096;
/// More faults than this wait in the kernel, not here.
const MAX_PENDING: usize = 4096;
const MAX_VCPUS: usize = 1024;

/// What a fault thread shares with other threads.
struct Desk {
    wake: WakeEvent,
    pending: AtomicU32,
    /// Threads that wait for a frame. One that faults again after a signal may be at several desks.
    stalled: Mutex<Vec<u32>>,
}

impl Desk {
    fn lock_stalled(&self) -> MutexGuard<'_, Vec<u32>> {
        self.stalled.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Recent faults, whoever answered them; several may share a place.
struct LastFaults([AtomicU64; 256]);

impl LastFaults {
    /// Notes a fault; true if the thread's last one was at the same page. It may be forgotten: a
    /// thread at a hole comes again.
    fn is_second(&self, fault: &Fault) -> bool {
        let page = fault.address.as_u64() / PAGE_BYTES;
        let place = &self.0[fault.thread_id as usize % self.0.len()];
        let fault = page << 22 ^ u64::from(fault.thread_id);
        place.swap(fault, Ordering::AcqRel) == fault
    }
}

/// What the fault threads share with the others.
pub(crate) struct ServiceState {
    desks: Vec<Desk>,
    stopping: AtomicBool,
    faults: AtomicU64,
    vcpus: Mutex<Vec<u32>>,
    latency: Mutex<Option<Histogram<u32>>>,
    last: LastFaults,
}

impl ServiceState {
    /// For so many threads.
    pub(crate) fn new(threads: usize) -> Result<Self, SysError> {
        let desk = || {
            let stalled = Mutex::new(Vec::with_capacity(MAX_PENDING));
            Ok(Desk { wake: WakeEvent::new()?, pending: AtomicU32::new(0), stalled })
        };
        // 100 ns to 100 s in two digits: allocated here, never resized.
        let latency = Histogram::new_with_bounds(100, 100_000_000_000, 2).ok();
        Ok(Self {
            desks: (0..threads.max(1)).map(|_| desk()).collect::<Result<_, SysError>>()?,
            stopping: AtomicBool::new(false),
            faults: AtomicU64::new(0),
            vcpus: Mutex::new(Vec::with_capacity(MAX_VCPUS)),
            latency: Mutex::new(latency),
            last: LastFaults([const { AtomicU64::new(0) }; 256]),
        })
    }

    /// An operation has ended: what waits may be possible now.
    pub(crate) fn poke(&self) {
        let waits = |desk: &&Desk| desk.pending.load(Ordering::SeqCst) > 0;
        self.desks.iter().filter(waits).for_each(|desk| desk.wake.call());
    }

    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.desks.iter().for_each(|desk| desk.wake.call());
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    pub(crate) fn faults(&self) -> u64 {
        self.faults.load(Ordering::Relaxed)
    }

    /// How many threads wait for a frame.
    pub(crate) fn stalled(&self) -> u32 {
        // Had before a lock that a fault thread takes: the allocator may wait for the guest.
        let mut threads = Vec::with_capacity(self.desks.len() * MAX_PENDING);
        for desk in &self.desks {
            threads.extend_from_slice(&desk.lock_stalled());
        }
        threads.sort_unstable();
        threads.dedup();
        threads.len() as u32
    }

    fn is_any_stalled(&self) -> bool {
        self.desks.iter().any(|desk| !desk.lock_stalled().is_empty())
    }

    pub(crate) fn set_vcpus(&self, thread_ids: &[u32]) {
        let mut vcpus = self.vcpus.lock().unwrap_or_else(PoisonError::into_inner);
        vcpus.clear();
        vcpus.extend(thread_ids.iter().take(MAX_VCPUS));
        drop(vcpus);
        self.poke();
    }

    pub(crate) fn add_vcpu(&self, thread_id: u32) {
        let mut vcpus = self.vcpus.lock().unwrap_or_else(PoisonError::into_inner);
        if vcpus.len() < MAX_VCPUS && !vcpus.contains(&thread_id) {
            vcpus.push(thread_id);
        }
    }

    fn is_vcpu(&self, thread_id: u32) -> bool {
        let vcpus = self.vcpus.lock().unwrap_or_else(PoisonError::into_inner);
        vcpus.contains(&thread_id)
    }

    /// Returns the fault service times so far.
    pub(crate) fn latency(&self) -> FaultLatency {
        let latency = self.latency.lock().unwrap_or_else(PoisonError::into_inner);
        latency.as_ref().map_or_else(FaultLatency::default, |histogram| FaultLatency {
            p50_ns: histogram.value_at_quantile(0.5),
            p99_ns: histogram.value_at_quantile(0.99),
            max_ns: histogram.max(),
        })
    }

    fn note(&self, since: Instant) {
        self.faults.fetch_add(1, Ordering::Relaxed);
        let ns = u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let mut latency = self.latency.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(histogram) = latency.as_mut() {
            histogram.saturating_record(ns);
        }
    }
}

/// Starts the threads.
pub(crate) fn start(memory: &Arc<GuestMemory>) -> std::io::Result<()> {
    for desk in 0..memory.service.desks.len() {
        let own = memory.service.desks[desk].wake.as_fd();
        let wait =
            SharedWait::new(memory.machine.uffd.as_fd(), own).map_err(std::io::Error::from)?;
        let mut server = Server {
            desk,
            wait,
            pending: Vec::with_capacity(MAX_PENDING),
            tried: Instant::now(),
            swept: Instant::now(),
            buffer: Box::new(FaultBuffer::new()),
            main_thread: MainThread::new(memory.main_loop),
        };
        threads::spawn(memory, "zs-faults", move |memory| {
            if let Err(reason) = server.run(memory) {
                memory.lift(reason);
            }
        })?;
    }
    Ok(())
}

/// A fault that waits for its answer. There is always one: INV-8.
#[derive(Clone, Copy)]
struct Pending {
    fault: Fault,
    since: Instant,
    why: Why,
    /// No frame was found for it yet; it counts as stalled while memory is swept once more, too.
    exhausted: bool,
    /// Since when no frame could be mapped for it.
    map_fails: Option<Instant>,
    /// How often the same thread has asked for the same page again.
    repeats: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    /// Nothing was tried yet, or the budget was used up: as soon as the others were served.
    Turn,
    /// The range is in transit, or could not be mapped: when an operation ends, or soon.
    Transit,
    /// No frame: when one comes free, or the target rises.
    Stalled,
}

/// What became of a try.
enum Answer {
    Done,
    Wait(Why),
    MapFailed,
    Fatal(&'static str),
}

struct Server {
    desk: usize,
    wait: SharedWait,
    pending: Vec<Pending>,
    /// When those that wait for more than their turn were tried last.
    tried: Instant,
    swept: Instant,
    buffer: Box<FaultBuffer>,
    main_thread: MainThread,
}

impl Server {
    /// Runs until stopped. A failure of ours is the reason to lift the cap: it does not hang the guest.
    fn run(&mut self, memory: &GuestMemory) -> Result<(), &'static str> {
        let state = &memory.service;
        while memory.is_served() {
            let ready = self
                .wait
                .wait(self.timeout_ms())
                .map_err(|_| "the fault thread cannot wait for faults")?;
            if ready.second {
                state.desks[self.desk].wake.clear();
            }
            if ready.first {
                self.read(memory)?;
            }
            // Turns first; what stalls or is in transit only when something may have changed.
            self.retry(memory, |why| why == Why::Turn)?;
            let quiet = !ready.first && !ready.second;
            if ready.second || quiet || self.is_overdue() {
                if memory.service.is_any_stalled() && self.swept.elapsed() >= SWEEP_AGAIN {
                    memory.lock().allow_sweep();
                    self.swept = Instant::now();
                }
                self.retry(memory, |why| why != Why::Turn)?;
                self.tried = Instant::now();
            }
            self.publish(state);
        }
        Ok(())
    }

    /// Whether faults come so fast that those that wait are never tried again.
    fn is_overdue(&self) -> bool {
        let waits = |pending: &Pending| pending.why != Why::Turn;
        self.pending.iter().any(waits)
            && self.tried.elapsed() >= Duration::from_millis(u64::from(RETRY_MS))
    }

    fn timeout_ms(&self) -> Option<u32> {
        self.pending
            .iter()
            .map(|pending| match pending.why {
                Why::Turn => 0,
                Why::Transit => 1,
                Why::Stalled => RETRY_MS,
            })
            .min()
    }

    fn read(&mut self, memory: &GuestMemory) -> Result<(), &'static str> {
        let now = Instant::now();
        if self.pending.len() + FaultBuffer::CAPACITY > MAX_PENDING {
            return Ok(());
        }
        // Where there are others, each takes one at a time.
        let alone = memory.service.desks.len() == 1;
        let most = if alone { FaultBuffer::CAPACITY } else { 1 };
        memory
            .machine
            .uffd
            .read_some_faults(&mut self.buffer, most)
            .map_err(|_| "the fault thread cannot read faults")?;
        for fault in self.buffer.faults() {
            // A signal makes a thread that waits fault again. One answer wakes all who wait there;
            // without this, a stalled thread under signals would fill the list.
            let page = |fault: &Fault| (fault.thread_id, fault.address.as_u64() / PAGE_BYTES);
            let same = |pending: &&mut Pending| page(&pending.fault) == page(&fault);
            if let Some(pending) = self.pending.iter_mut().find(same) {
                pending.repeats = pending.repeats.saturating_add(1);
                continue;
            }
            let (why, exhausted) = (Why::Turn, false);
            let (map_fails, repeats) = (None, 0);
            self.pending.push(Pending { fault, since: now, why, exhausted, map_fails, repeats });
        }
        Ok(())
    }

    /// Tries the pending faults of some kind once each, the oldest first.
    fn retry(
        &mut self,
        memory: &GuestMemory,
        which: impl Fn(Why) -> bool,
    ) -> Result<(), &'static str> {
        let mut index = 0;
        let mut left = self.pending.len();
        while left > 0 {
            left -= 1;
            let mut pending = self.pending[index];
            if !which(pending.why) {
                index += 1;
                continue;
            }
            let Ok(answer) = memory.track(|| self.answer(memory, &pending)) else {
                // The cap is being lifted: the kernel answers from then on.
                return Ok(());
            };
            match answer {
                Answer::Done => {
                    memory.service.note(pending.since);
                    self.pending.remove(index);
                    continue;
                }
                Answer::Wait(why) => {
                    pending.why = why;
                    pending.exhausted |= why == Why::Stalled;
                }
                Answer::MapFailed => {
                    let since = *pending.map_fails.get_or_insert_with(Instant::now);
                    if since.elapsed() >= MAP_TIME {
                        return Err("no frame could be mapped for 10 seconds");
                    }
                    pending.why = Why::Transit;
                }
                Answer::Fatal(reason) => return Err(reason),
            }
            self.pending[index] = pending;
            index += 1;
        }
        Ok(())
    }

    fn answer(&mut self, memory: &GuestMemory, pending: &Pending) -> Answer {
        let fault = &pending.fault;
        let Some(offset) = memory.machine.guest.offset_of(fault.address) else {
            return Answer::Done;
        };
        let gfn = Gfn::new(offset / PAGE_BYTES);
        let mut outcome = memory.session().fault(gfn);
        if outcome == Ok(zerosweep::Fault::Exhausted) && self.must_borrow(memory, pending) {
            outcome = memory.session().fault_borrowing(gfn);
        }
        match outcome {
            Ok(zerosweep::Fault::Present { gfn: first, order }) => {
                self.present(memory, fault, gfn, first, order);
                Answer::Done
            }
            Ok(zerosweep::Fault::InTransit) => Answer::Wait(Why::Transit),
            Ok(zerosweep::Fault::Again) => Answer::Wait(Why::Turn),
            Ok(zerosweep::Fault::Exhausted) => {
                if memory.on_exhaustion == OnExhaustion::Kill {
                    raw::kill_self();
                }
                Answer::Wait(Why::Stalled)
            }
            Err(FaultError::Map) => Answer::MapFailed,
            Err(FaultError::Dying) => Answer::Done,
            Err(FaultError::TableMemory) => Answer::Fatal("no memory for the engine's own tables"),
            Err(FaultError::Unmapped | FaultError::Special) => {
                Answer::Fatal("a fault outside the guest's memory")
            }
        }
    }

    fn present(&self, memory: &GuestMemory, fault: &Fault, gfn: Gfn, first: Gfn, order: Order) {
        let machine = &memory.machine;
        if fault.kind == FaultKind::Missing && memory.service.last.is_second(fault) {
            // Twice at the same place: the page is a hole although it has a frame.
            memory.session().settle(gfn, |_| {
                if let Some(mfn) = frame_of(memory, gfn) {
                    machine.fill_hole(gfn, mfn);
                }
            });
        }
        if let Ok(range) = machine.range(first, order) {
            let _ = machine.uffd.wake(range);
        }
        if order == Order::SUPERPAGE {
            memory.ahead_if_low();
        }
    }

    /// Whether a fault that found no frame may not wait.
    fn must_borrow(&mut self, memory: &GuestMemory, pending: &Pending) -> bool {
        match memory.on_exhaustion {
            OnExhaustion::Borrow => true,
            OnExhaustion::Kill => false,
            OnExhaustion::Stall => {
                let thread = pending.fault.thread_id;
                let is_device = !memory.service.is_vcpu(thread) && raw::is_thread_of_ours(thread);
                is_device || pending.repeats >= FLOOD || self.main_thread.stuck_for() >= STUCK
            }
        }
    }

    fn publish(&mut self, state: &ServiceState) {
        // A fault that found no frame is at its turn again while memory is swept once more: the main
        // thread waits all the while.
        match self.pending.is_empty() {
            true => self.main_thread.forget(),
            false => self.main_thread.look_again(),
        }
        let desk = &state.desks[self.desk];
        let mut stalled = desk.lock_stalled();
        stalled.clear();
        let waits = self.pending.iter().filter(|pending| pending.exhausted);
        stalled.extend(waits.map(|pending| pending.fault.thread_id).take(MAX_PENDING));
        drop(stalled);
        desk.pending.store(self.pending.len() as u32, Ordering::SeqCst);
    }
}
