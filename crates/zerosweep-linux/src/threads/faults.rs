//! The threads that answer faults.
//!
//! Each takes faults from the kernel as they come, hands each touch to the engine, and wakes the
//! threads that wait there. A fault that takes long (a sweep, pages that are copied) delays nobody
//! who wants another range: another fault thread takes the next one. A fault that cannot be
//! answered now stays in the queue of the thread that took it. It is tried again when an operation
//! has ended, or after a time. The threads make raw system calls, take no lock of the VMM's, and
//! allocate nothing.
//!
//! Exhaustion (rule [R15]): a virtual CPU stalls, and so does a thread outside of this process: under
//! KVM with the kernel's interrupt controller a worker of the kernel asks for a virtual CPU's page,
//! in its own name. The other threads of the VMM borrow. A stalled thread may hold what the VMM's
//! main loop needs. So while a thread stalls, the main thread is watched ([`MainThread`]), and if
//! it makes no progress for [`STUCK_LIMIT`], memory is borrowed and counted.
//!
//! [R15]: zerosweep::rules#r15

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use zerosweep::{Fault as Answer, FaultError, Gfn, Order, PAGE_BYTES};

use self::exhaustion::{MainLoop, OnExhaustion};
use self::main_thread::{MainThread, STUCK_LIMIT};
use self::queue::{FaultQueue, Pending, PendingReason};
use self::service::FaultService;
use super::prefault;
use crate::domain::SharedDomain;
use crate::operation;
use crate::recovery;
use crate::recovery::lift::lift;
use crate::sys::poll::SharedWait;
use crate::sys::raw;
use crate::sys::uffd::{Fault, FaultBuffer, FaultKind};

pub(crate) mod exhaustion;
mod main_thread;
mod queue;
pub(crate) mod service;

/// How often the memory of a stalled guest is swept again: the guest may have zeroed what it has.
const SWEEP_AGAIN: Duration = Duration::from_secs(1);
/// A frame may fail to be mapped for this long before the cap is lifted: the host may be short of
/// memory for a while, or a page in use, in swap or in migration.
const MAP_TIME: Duration = Duration::from_secs(10);
/// A stalled fault that came again this often borrows. A thread with a pending signal does not wait
/// in a fault that the kernel takes for it: it asks again, some 80,000 times a second, and gets to
/// the signal only when it has the page. A thread that runs its handler in between comes once for
/// each signal.
const FLOOD: u32 = 4096;

/// Starts the threads, one for each signal. They end when the domain is no longer served.
pub(crate) fn start(
    domain: &Arc<SharedDomain>,
    service: &Arc<FaultService>,
    on_exhaustion: OnExhaustion,
    main_loop: MainLoop,
) -> std::io::Result<()> {
    for (number, signal) in domain.signals.faults().iter().enumerate() {
        let mut thread = FaultThread {
            number,
            wait: SharedWait::new(domain.machine.uffd.as_fd(), signal.as_fd())?,
            queue: FaultQueue::new(),
            swept: Instant::now(),
            buffer: Box::new(FaultBuffer::new()),
            service: Arc::clone(service),
            on_exhaustion,
            main_thread: MainThread::new(main_loop),
        };
        super::spawn(domain, "zs-faults", move |domain| {
            if let Err(reason) = thread.run(domain) {
                lift(domain, reason);
            }
        })?;
    }
    Ok(())
}

/// The outcome of one try to answer a fault.
enum Outcome {
    Done,
    Wait(PendingReason),
    MapFailed,
    Fatal(&'static str),
}

struct FaultThread {
    number: usize,
    wait: SharedWait,
    queue: FaultQueue,
    swept: Instant,
    buffer: Box<FaultBuffer>,
    service: Arc<FaultService>,
    on_exhaustion: OnExhaustion,
    main_thread: MainThread,
}

impl FaultThread {
    /// Runs until the domain is no longer served.
    ///
    /// # Errors
    /// The reason to lift the cap: a failure of ours must not hang the guest.
    fn run(&mut self, domain: &SharedDomain) -> Result<(), &'static str> {
        while domain.is_served() {
            let ready = self
                .wait
                .wait(self.queue.timeout_ms())
                .map_err(|_| "the fault thread cannot wait for faults")?;
            if ready.second {
                domain.signals.faults()[self.number].clear();
            }
            if ready.first {
                self.read(domain)?;
            }
            // Queued faults first; those that stall or are in transit only when something may have
            // changed.
            self.retry(domain, |reason| reason == PendingReason::Queued)?;
            let quiet = !ready.first && !ready.second;
            if ready.second || quiet || self.queue.is_overdue() {
                if self.service.is_any_stalled() && self.swept.elapsed() >= SWEEP_AGAIN {
                    domain.lock().allow_sweep();
                    self.swept = Instant::now();
                }
                self.retry(domain, |reason| reason != PendingReason::Queued)?;
                self.queue.set_tried();
            }
            self.publish(domain);
        }
        Ok(())
    }

    fn read(&mut self, domain: &SharedDomain) -> Result<(), &'static str> {
        let now = Instant::now();
        if !self.queue.has_room() {
            return Ok(());
        }
        // With others each thread takes one fault at a time.
        let is_alone = domain.signals.faults().len() == 1;
        let most = if is_alone { FaultBuffer::CAPACITY } else { 1 };
        domain
            .machine
            .uffd
            .read_some_faults(&mut self.buffer, most)
            .map_err(|_| "the fault thread cannot read faults")?;
        for fault in self.buffer.faults() {
            self.queue.add(fault, now);
        }
        Ok(())
    }

    /// Tries the pending faults of some kind once each, the oldest first.
    fn retry(
        &mut self,
        domain: &SharedDomain,
        which: impl Fn(PendingReason) -> bool,
    ) -> Result<(), &'static str> {
        let mut index = 0;
        for _ in 0..self.queue.len() {
            let mut pending = self.queue.get(index);
            if !which(pending.reason) {
                index += 1;
                continue;
            }
            let Ok(outcome) = operation::track(domain, || self.answer(domain, &pending)) else {
                // The cap is being lifted: the kernel answers from then on.
                return Ok(());
            };
            match outcome {
                Outcome::Done => {
                    self.service.record(pending.since);
                    self.queue.remove(index);
                    continue;
                }
                Outcome::Wait(reason) => {
                    pending.reason = reason;
                    pending.exhausted |= reason == PendingReason::Stalled;
                }
                Outcome::MapFailed => {
                    let since = *pending.map_fails.get_or_insert_with(Instant::now);
                    if since.elapsed() >= MAP_TIME {
                        return Err("no frame could be mapped for 10 seconds");
                    }
                    pending.reason = PendingReason::InTransit;
                }
                Outcome::Fatal(reason) => return Err(reason),
            }
            self.queue.set(index, pending);
            index += 1;
        }
        Ok(())
    }

    fn answer(&mut self, domain: &SharedDomain, pending: &Pending) -> Outcome {
        let fault = &pending.fault;
        let Some(offset) = domain.machine.guest.offset_of(fault.address) else {
            return Outcome::Done;
        };
        let gfn = Gfn::new(offset / PAGE_BYTES);
        let read = if self.is_read_by_host(fault) {
            domain.session().fault_reading(gfn)
        } else {
            Ok(None)
        };
        let mut answer = match read.transpose() {
            Some(answer) => answer,
            None if self.must_not_wait(pending) => domain.session().fault_borrowing(gfn),
            None => domain.session().fault(gfn),
        };
        if answer == Ok(Answer::Exhausted) && self.is_main_thread_stuck() {
            answer = domain.session().fault_borrowing(gfn);
        }
        match answer {
            Ok(Answer::Present { gfn: first, order }) => {
                self.present(domain, fault, gfn, first, order);
                Outcome::Done
            }
            Ok(Answer::InTransit) => Outcome::Wait(PendingReason::InTransit),
            Ok(Answer::Again) => Outcome::Wait(PendingReason::Queued),
            Ok(Answer::Exhausted) => {
                if self.on_exhaustion == OnExhaustion::Kill {
                    raw::kill_self();
                }
                Outcome::Wait(PendingReason::Stalled)
            }
            Err(FaultError::Map) => Outcome::MapFailed,
            Err(FaultError::Dying) => Outcome::Done,
            Err(FaultError::Unkept) => Outcome::Fatal("no frame for a page that the guest wrote"),
            Err(FaultError::TableMemory) => Outcome::Fatal("no memory for the engine's own tables"),
            Err(FaultError::Unmapped | FaultError::Special) => {
                Outcome::Fatal("a fault outside the guest's memory")
            }
        }
    }

    /// The run of `order` at `first` is present: wakes the threads that wait there.
    fn present(&self, domain: &SharedDomain, fault: &Fault, gfn: Gfn, first: Gfn, order: Order) {
        if fault.kind == FaultKind::Missing && self.service.is_second(fault) {
            // Twice at the same page: the page is a hole although it has a frame.
            recovery::fill_hole(domain, gfn);
        }
        if let Ok(range) = domain.machine.range(first, order) {
            let _ = domain.machine.uffd.wake(range);
        }
        if order == Order::SUPERPAGE {
            prefault::notify_if_low(domain);
        }
    }

    /// Returns whether a fault that finds no frame borrows one.
    fn must_not_wait(&self, pending: &Pending) -> bool {
        match self.on_exhaustion {
            OnExhaustion::Borrow => true,
            OnExhaustion::Kill => false,
            OnExhaustion::Stall => {
                self.is_vmms(pending.fault.thread_id) || pending.repeats >= FLOOD
            }
        }
    }

    /// Returns whether the VMM reads a hole: it saves, dumps or sends its guest, or is a device.
    fn is_read_by_host(&self, fault: &Fault) -> bool {
        fault.kind == FaultKind::Missing && !fault.write && self.is_vmms(fault.thread_id)
    }

    /// Returns whether a thread is one of the VMM's that is no virtual CPU.
    fn is_vmms(&self, thread: u32) -> bool {
        !self.service.is_vcpu(thread) && raw::is_thread_of_ours(thread)
    }

    /// Returns whether a stall would hang the VMM.
    fn is_main_thread_stuck(&mut self) -> bool {
        self.on_exhaustion == OnExhaustion::Stall && self.main_thread.stuck_for() >= STUCK_LIMIT
    }

    /// Tells the others how many faults wait here, and which threads stall.
    fn publish(&mut self, domain: &SharedDomain) {
        // A fault that found no frame is queued again while memory is swept once more: the main
        // thread waits all the while.
        if self.queue.is_empty() {
            self.main_thread.forget();
        } else {
            self.main_thread.sample_again();
        }
        self.service.set_stalled(self.number, self.queue.exhausted_threads());
        domain.signals.faults()[self.number].set_pending(self.queue.len() as u32);
    }
}
