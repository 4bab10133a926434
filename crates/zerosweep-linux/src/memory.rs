//! A guest's memory under the engine.
//!
//! [`GuestMemory::new`] takes a range over: it maps the huge zero page everywhere, protects it
//! against writes, and from then on every first write is a fault that
//! the service (`service`) answers from the pool. The VMM's threads come in through
//! [`GuestMemory::inflate`] and [`GuestMemory::discard`].
//!
//! Locks: the domain's mutex is the only one that a fault needs, and nothing slow happens under it:
//! [`LinuxHost::machine`](zerosweep::Host::machine) drops it around every system call, scan and
//! clear. The frame pool's and the histogram's are held for a few instructions. Order: domain, then
//! either of the others; the journal's, where events are noted, is the third of that kind.
//!
//! Failure (INV-10): when something of ours cannot go on, [`GuestMemory::lift`] lets the kernel
//! handle the range alone. The guest keeps every byte and goes on, without the cap.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use zerosweep::{
    AuditError, Config, ConfigError, Consolidation, DecreaseError, Domain, Entry, Event, Forecast,
    FramePool, Gfn, Host, InvalidTouch, Order, OutOfTableMemory, Policy, Quantities, Session,
    Statistics, Superpage, TargetError, Upkeep,
};

use zerosweep_events::Journal;

use crate::addr::{HostAddr, PAGE_BYTES, SUPERPAGE_BYTES, SUPERPAGE_PAGES};
use crate::error::{OpenError, RegionError, SysError, Unsuitable};
use crate::machine::place::{Rescue, frame_of};
use crate::machine::{LinuxMachine, MachineRef, Parking};
use crate::outcome::{ConsolidateError, FaultLatency, Lifted, Progress, SetTargetError};
use crate::placement::Placement;
use crate::probe::defects::{self, Defect};
use crate::service::ServiceState;
use crate::sys::pagemap::Pagemap;
use crate::sys::poll::WakeEvent;
use crate::sys::region::{Region, Span};
use crate::sys::uffd::{Uffd, Watch};
use crate::threads;
use crate::upkeep::UpkeepState;

/// Superpages that are looked at under the lock at a time: some microseconds.
const SNAPSHOT_STEP: u64 = 1024;

/// Superpages that a sweep looks at before it asks whether its time is over.
const WORK_STEP: u64 = 4;
/// So long is worked for a new target. The guest may take pages again as fast as superpages are
/// broken: the rest is left to the upkeep.
const TARGET_TIME: Duration = Duration::from_secs(5);
/// As many for a consolidation, which may move each of a superpage's pages: tens of milliseconds.
const CONSOLIDATION_STEP: u64 = 1;

/// Bytes that are mapped or protected at a time when a range is taken over: the kernel holds the
/// lock of the address space meanwhile, and other threads may want it.
const WATCH_STEP: u64 = 64 << 20;

/// Runs that the cache is filled with at a time.
const FILL_STEPS: u64 = 1024;

/// So long a lift waits for operations, and as long for pages that do not move.
const LIFT_WAITS: Duration = Duration::from_millis(if cfg!(test) { 50 } else { 5000 });

/// Which thread the VMM lives by. While someone waits for a frame it is looked at: if it hangs in a
/// system call that is no wait for events, whoever waits may have what it needs, and memory is
/// borrowed after 2 seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum MainLoop {
    /// The process' first thread, as in QEMU.
    #[default]
    MainThread,
    /// The thread with this number (`gettid(2)`).
    Thread(u32),
    /// None: no thread that must go on ever waits for a virtual CPU. Right for a VMM whose first
    /// thread only waits for the others to end.
    None,
}

/// As long [`GuestMemory::stop`] tries to get frames back that somebody uses.
const STOP_TIME: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });

/// What happens when no frame can be found (rule R15).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnExhaustion {
    /// A virtual CPU waits, and so does whoever asks from outside of this process: KVM's workers,
    /// at most 64 for each virtual CPU. Other threads borrow.
    Stall,
    /// Memory beyond the target is taken, and counted.
    Borrow,
    /// The process is ended.
    Kill,
}

/// How a range is managed. Fields may be added: begin with [`Options::new`], as in
/// `Options { fault_threads: 4, ..Options::new(target) }`.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// What the guest may hold, in bytes; a multiple of 4 KiB.
    pub target_bytes: u64,
    /// How the engine decides.
    pub policy: Policy,
    /// What happens when no frame can be found.
    pub on_exhaustion: OnExhaustion,
    /// Whether parked superpages keep their memory.
    pub parking: Parking,
    /// Threads that answer faults; at least one.
    pub fault_threads: usize,
    /// The thread that the VMM lives by.
    pub main_loop: MainLoop,
}

impl Options {
    /// As many threads answer faults: one that takes long does not hold up the others.
    pub const DEFAULT_FAULT_THREADS: usize = 2;

    /// Our policy, virtual CPUs that wait when no frame can be found, memory that comes and goes
    /// as it is needed, [`Options::DEFAULT_FAULT_THREADS`], the main loop in the first thread.
    #[must_use]
    pub const fn new(target_bytes: u64) -> Self {
        Self {
            target_bytes,
            policy: Policy::Zerosweep,
            on_exhaustion: OnExhaustion::Stall,
            parking: Parking::Lazy,
            fault_threads: Self::DEFAULT_FAULT_THREADS,
            main_loop: MainLoop::MainThread,
        }
    }
}

/// Why a range is not managed. It is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdoptError {
    /// It is not memory of the right kind.
    #[error(transparent)]
    Unsuitable(#[from] Unsuitable),
    /// userfaultfd cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The pool cannot be had.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// Such a domain cannot be.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The target is not in whole pages.
    #[error("a target of {0} bytes is not a multiple of 4096")]
    OddTarget(u64),
    /// The range does not begin at a multiple of 2 MiB.
    #[error("guest memory begins at {0}, which is not a multiple of 2 MiB: no superpage would fit")]
    Misaligned(HostAddr),
    /// No memory for our own tables.
    #[error("{0}")]
    TableMemory(OutOfTableMemory),
    /// The kernel has switched huge pages off for this process.
    #[error(
        "huge pages are switched off for this process (PR_SET_THP_DISABLE): start the VMM without \
         that setting"
    )]
    HugePagesDisabled,
    /// The kernel has a defect that moves of pages can run into on this host.
    #[error(
        "Linux has a defect that zerosweep would run into on this host: {0}; boot a kernel with the \
         fix, or end the cause (for swap: `swapoff -a`)"
    )]
    KernelDefect(&'static Defect),
    /// The engine refused to promise the range.
    #[error("the range cannot be promised: {0}")]
    Build(zerosweep::BuildError),
    /// A call failed.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
}

/// Figures of one moment.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Snapshot {
    /// The engine's quantities.
    pub quantities: Quantities,
    /// What the engine did.
    pub statistics: Statistics,
    /// What the guest can still touch.
    pub forecast: Forecast,
    /// Superpages that are whole in the guest, by the engine.
    pub superpages_in_guest: u64,
    /// Ranges that are broken and hold a frame.
    pub broken: u64,
    /// Superpages in the cache.
    pub superpages_in_cache: u64,
    /// Superpages that are ready.
    pub ready: u64,
    /// Faults answered.
    pub faults: u64,
    /// Threads that wait for a frame.
    pub stalled: u32,
    /// Pages held beyond the target because no frame could be found.
    pub borrowed: u64,
    /// Fault service times.
    pub fault_latency: FaultLatency,
    /// Why the cap is lifted.
    pub lifted: Option<String>,
}

/// A guest's memory under the engine. See the module's text.
///
/// Its threads keep it alive: call [`GuestMemory::stop`] when the guest is gone.
///
/// ```
/// use zerosweep::{Gfn, Order};
/// use zerosweep_linux::{GuestMemory, Options, PAGE_BYTES, Region};
///
/// # if zerosweep_linux::Uffd::open().is_err() { return Ok(()) }
/// // Told that it has 64 MiB; may hold 8.
/// let memory = GuestMemory::new(Region::new(64 << 20)?, &Options::new(8 << 20))?;
/// // What the guest does: it writes something, and clears more than it may hold.
/// let ram = memory.guest();
/// ram.store_word(0, 7)?;
/// for page in 512..16_384 {
///     ram.store_word(page * PAGE_BYTES, 0)?;
/// }
/// assert_eq!(ram.load_word(0)?, 7);
/// assert!(memory.quantities().total() <= (8 << 20) / PAGE_BYTES);
/// // Its balloon gives a page back: gfns count pages from the beginning of the memory.
/// memory.inflate(Gfn::new(1000), Order::PAGE)?;
/// memory.audit()?;
/// memory.stop();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct GuestMemory {
    pub(crate) machine: LinuxMachine,
    pub(crate) domain: Mutex<Domain>,
    pub(crate) service: ServiceState,
    pub(crate) ahead: WakeEvent,
    /// Held while superslots get memory ahead of the guest. No fault needs it.
    pub(crate) backing: Mutex<()>,
    pub(crate) upkeep: UpkeepState,
    consolidation: Mutex<Consolidation>,
    pub(crate) on_exhaustion: OnExhaustion,
    pub(crate) main_loop: MainLoop,
    lifted: AtomicBool,
    lift_reason: Mutex<Option<String>>,
    pub(crate) running: AtomicU32,
    journal: Option<Arc<Journal>>,
    /// The thread of ours that is to panic.
    #[cfg(test)]
    pub(crate) panics_in: Mutex<Option<&'static str>>,
}

impl GuestMemory {
    /// Takes `guest` over, all of it promised and nothing populated: what is in it is lost. Starts
    /// the threads that serve it.
    ///
    /// # Errors
    /// See [`AdoptError`]; the range is as it was.
    pub fn new(guest: Region, options: &Options) -> Result<Arc<Self>, AdoptError> {
        Self::recorded(guest, options, None)
    }

    /// As [`GuestMemory::new`]; what happens from then on is noted in `journal`.
    ///
    /// # Errors
    /// See [`AdoptError`]; the range is as it was.
    pub fn recorded(
        guest: Region,
        options: &Options,
        journal: Option<Arc<Journal>>,
    ) -> Result<Arc<Self>, AdoptError> {
        // The first choice reads the environment and allocates: not in the fault thread.
        let _ = zerosweep_scan::Kernel::chosen();
        let memory = Arc::new(Self::prepare(guest, options, journal)?);
        memory.watch()?;
        let started = memory.promise(options).and_then(|()| memory.start());
        if let Err(error) = started {
            let _ = memory.machine.uffd.unregister(memory.machine.guest.all());
            memory.stop_threads();
            return Err(error);
        }
        Ok(memory)
    }

    fn prepare(
        guest: Region,
        options: &Options,
        journal: Option<Arc<Journal>>,
    ) -> Result<Self, AdoptError> {
        if !options.target_bytes.is_multiple_of(PAGE_BYTES) {
            return Err(AdoptError::OddTarget(options.target_bytes));
        }
        if !guest.start().is_superpage_aligned() {
            return Err(AdoptError::Misaligned(guest.start()));
        }
        if crate::sys::raw::prctl_get(libc::PR_GET_THP_DISABLE).unwrap_or(0) != 0 {
            return Err(AdoptError::HugePagesDisabled);
        }
        if let Some(defect) = defects::refused() {
            return Err(AdoptError::KernelDefect(defect));
        }
        // QEMU offers guest RAM to samepage merging unless told otherwise. Merged pages cannot
        // move; nothing has been merged yet, so the offer is taken back.
        let _ = guest.all().forbid_merging();
        crate::vma::check(guest.start(), guest.bytes())?;
        let max_pages = guest.bytes() / PAGE_BYTES;
        let mut domain = Domain::new(Config {
            invalid_touch: InvalidTouch::Increase,
            upkeep: Upkeep::Host,
            ..Config::new(max_pages, options.target_bytes / PAGE_BYTES, options.policy)
        })?;
        // Addresses cost nothing: twice as many slots as pages, so that singles scattered over
        // superslots never keep a whole one from being had.
        let superslots = guest.bytes().div_ceil(SUPERPAGE_BYTES) * 2 + 64;
        let count = u32::try_from(superslots)
            .map_err(|_| AdoptError::Config(ConfigError::MaxPages(max_pages)))?;
        domain.expect_frames(superslots * 512).map_err(AdoptError::TableMemory)?;
        let pool = Region::new(superslots * SUPERPAGE_BYTES)?;
        let scratch = Region::new(LinuxMachine::SCRATCH_BYTES)?;
        scratch.all().forbid_huge_pages()?;
        let frames = FramePool::new(count).map_err(AdoptError::TableMemory)?;
        let machine = LinuxMachine::new(
            guest,
            pool,
            scratch,
            Uffd::open()?,
            Pagemap::open()?,
            frames,
            options.parking,
        );
        Ok(Self {
            machine,
            domain: Mutex::new(domain),
            service: ServiceState::new(options.fault_threads)?,
            ahead: WakeEvent::new()?,
            backing: Mutex::new(()),
            upkeep: UpkeepState::new()?,
            consolidation: Mutex::new(Consolidation::default()),
            on_exhaustion: options.on_exhaustion,
            main_loop: options.main_loop,
            lifted: AtomicBool::new(false),
            lift_reason: Mutex::new(None),
            running: AtomicU32::new(0),
            journal,
            #[cfg(test)]
            panics_in: Mutex::new(None),
        })
    }

    /// Maps zero pages everywhere and makes writes to them faults. Where the kernel has no huge zero
    /// page a read would take frames for all of it: holes are left instead, whose first touch of
    /// any kind is a fault.
    fn watch(&self) -> Result<(), AdoptError> {
        let guest = self.machine.guest.all();
        guest.ask_for_huge_pages().map_err(|_| RegionError::NoHugePages)?;
        guest.discard()?;
        let placement = Placement::at(guest.start());
        placement.apply(guest)?;
        self.place_pool(&placement)?;
        let zero_mapped = self.maps_zero_without_frames(guest)?;
        if zero_mapped {
            in_steps(guest, |part| part.map_zero())?;
        }
        let uffd = &self.machine.uffd;
        uffd.register(guest, Watch::MissingAndProtected)?;
        uffd.register(self.machine.pool_span(), Watch::Protected)?;
        uffd.register(self.machine.scratch_span(), Watch::Protected)?;
        if zero_mapped {
            in_steps(guest, |part| uffd.protect(part))?;
        }
        Ok(())
    }

    /// Whether reading memory takes no frames, tried with the first superpage. It is empty then.
    fn maps_zero_without_frames(&self, guest: Span<'_>) -> Result<bool, AdoptError> {
        let first = guest.part(0, SUPERPAGE_BYTES.min(guest.bytes())).map_err(RegionError::from)?;
        first.map_zero()?;
        let frames = self.machine.pagemap().resident_pages(first)?;
        first.discard()?;
        Ok(frames == 0)
    }

    fn place_pool(&self, placement: &Placement) -> Result<(), SysError> {
        placement.apply(self.machine.pool_span())?;
        placement.apply(self.machine.scratch_span())
    }

    /// Has pool and guest have the policy that the guest's mapping has been given from outside
    /// (`mbind(2)`), as [`GuestMemory::place`] does.
    ///
    /// # Errors
    /// As there.
    pub fn follow_placement(&self) -> Result<(), SysError> {
        self.place(&Placement::at(self.machine.guest.start()))
    }

    /// Has the frames that the guest gets from now on come from other NUMA nodes. Frames that it
    /// has stay where they are.
    ///
    /// # Errors
    /// Those of `mbind(2)`: `EINVAL` for nodes that are not there. The placement is as it was for
    /// what was not reached.
    pub fn place(&self, placement: &Placement) -> Result<(), SysError> {
        placement.apply(self.machine.guest.all())?;
        self.place_pool(placement)?;
        // What was got ready ahead of the guest lies where it was asked for before.
        let _quiet = self.backing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut ready = Vec::with_capacity(self.machine.pool_superslots());
        {
            let domain = self.lock();
            let superpages = domain.cache().iter().filter(|&(_, order)| order == Order::SUPERPAGE);
            ready.extend(superpages.map(|(mfn, _)| mfn).filter(|&mfn| self.machine.retract(mfn)));
        }
        for mfn in ready {
            // Without host memory the fault thread tries again, and says so if it must.
            let _ = self.machine.back(mfn);
        }
        Ok(())
    }

    fn promise(&self, options: &Options) -> Result<(), AdoptError> {
        let mut session = self.session();
        for (gfn, order) in Order::runs(self.machine.guest.bytes() / PAGE_BYTES) {
            session.populate_on_demand(gfn, order).map_err(AdoptError::Build)?;
        }
        let target = options.target_bytes / PAGE_BYTES;
        match session.set_target(target) {
            Ok(()) => Ok(()),
            Err(TargetError::OutOfRange { target, max }) => {
                Err(ConfigError::Target { target, max }.into())
            }
            Err(_) => Err(AdoptError::TableMemory(OutOfTableMemory)),
        }
    }

    fn start(self: &Arc<Self>) -> Result<(), AdoptError> {
        crate::service::start(self).map_err(AdoptError::Thread)?;
        crate::ahead::start(self).map_err(AdoptError::Thread)?;
        crate::upkeep::start(self).map_err(AdoptError::Thread)?;
        self.ahead.call();
        Ok(())
    }

    /// Returns the addresses of the guest's memory in this process.
    #[must_use]
    pub fn range(&self) -> Range<HostAddr> {
        let guest = self.machine.guest.all();
        guest.start()..guest.end()
    }

    /// All of the guest's memory, to touch it as a guest would: accesses may wait for a frame.
    #[must_use]
    pub fn guest(&self) -> Span<'_> {
        self.machine.guest.all()
    }

    /// The machine.
    #[must_use]
    pub fn machine(&self) -> &LinuxMachine {
        &self.machine
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Domain> {
        self.domain.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn session(&self) -> Session<LinuxHost<'_>> {
        Session::new(LinuxHost {
            memory: self,
            guard: None,
            machine: MachineRef::new(&self.machine),
        })
    }

    /// Calls the thread that gets huge pages ready, if few are left.
    pub(crate) fn ahead_if_low(&self) {
        if self.machine.ready() < self.machine.stock() / 2 {
            self.ahead.call();
        }
    }

    /// Runs `work` as an operation that [`GuestMemory::lift`] waits for. Lifts the cap if `work`
    /// panics, or if the machine could not take back a move.
    pub(crate) fn track<R>(&self, work: impl FnOnce() -> R) -> Result<R, Lifted> {
        self.running.fetch_add(1, Ordering::SeqCst);
        let outcome = (!self.is_lifted()).then(|| threads::catch(work));
        self.running.fetch_sub(1, Ordering::SeqCst);
        if let Some(Err(message)) = &outcome {
            self.lift(&format!("an operation of zerosweep's panicked: {message}"));
        }
        if self.machine.is_closed() {
            self.lift("a move of pages could neither be finished nor taken back");
        }
        outcome.and_then(Result::ok).ok_or(Lifted)
    }

    /// Does work for this guest; a panic in it lifts the cap and gives `None`. `who` is named in the
    /// reason. For threads that must not end without a word. Not for use within an operation.
    pub fn guarded<R>(&self, who: &str, work: impl FnOnce() -> R) -> Option<R> {
        let outcome = threads::catch(work);
        if let Err(message) = &outcome {
            self.lift(&format!("{who} panicked: {message}"));
        }
        outcome.ok()
    }

    /// Whether the threads have work: neither stopped nor lifted.
    pub(crate) fn is_served(&self) -> bool {
        #[cfg(test)]
        if std::thread::current().name() == *self.panics_in.lock().unwrap() {
            *self.panics_in.lock().unwrap() = None;
            panic!("a defect");
        }
        !self.service.is_stopping() && !self.is_lifted()
    }

    /// Runs an operation for a thread that answers no faults, then lets waiting faults try again.
    pub(crate) fn operate<R>(
        &self,
        work: impl FnOnce(&mut Session<LinuxHost<'_>>) -> R,
    ) -> Result<R, Lifted> {
        let result = self.track(|| work(&mut self.session()));
        self.service.poke();
        result
    }

    /// Runs an operation as [`GuestMemory::operate`] does, and calls the upkeep thread if the
    /// operation left work for it.
    fn run_operation<R>(
        &self,
        work: impl FnOnce(&mut Session<LinuxHost<'_>>) -> R,
    ) -> Result<R, Lifted> {
        let (result, wants_upkeep) = self.operate(|session| {
            let result = work(session);
            (result, session.host().domain().wants_upkeep(false))
        })?;
        if wants_upkeep {
            self.upkeep.call();
        }
        Ok(result)
    }

    /// The balloon inflates: the guest gives the pages `[gfn, gfn + 2^order)` back. Waits while
    /// another operation has claimed the range. Returns how many pages came back; none do past the
    /// end of the memory.
    ///
    /// # Errors
    /// [`Lifted`].
    pub fn inflate(&self, gfn: Gfn, order: Order) -> Result<u64, Lifted> {
        self.run_operation(|session| {
            retry_in_transit(session, |session| session.decrease(gfn, order))
        })?
    }

    /// The guest gives up the content of `pages` pages from `gfn` on, and keeps the pages: a free
    /// page report. Waits as [`GuestMemory::inflate`] does. Returns how many pages became PoD; none
    /// do if the range ends past the end of the memory.
    ///
    /// # Errors
    /// [`Lifted`]; superpages before the one that the call waited for are discarded.
    pub fn discard(&self, gfn: Gfn, pages: u64) -> Result<u64, Lifted> {
        let end = gfn.offset(pages);
        if end.raw() > self.machine.guest.bytes() / PAGE_BYTES {
            return if self.is_lifted() { Err(Lifted) } else { Ok(0) };
        }
        self.run_operation(|session| {
            // One superpage at a time: a wait in the middle does not lose the count so far.
            let (mut at, mut discarded) = (gfn, 0);
            while at < end {
                let next = at.superpage().first().offset(SUPERPAGE_PAGES).min(end);
                let pages = next.raw() - at.raw();
                discarded += retry_in_transit(session, |session| session.discard(at, pages))?;
                at = next;
            }
            Ok(discarded)
        })?
    }

    /// The balloon deflates: the guest takes `pages` pages from `gfn` on again. Pages that still
    /// have their frame belong to the guest at once; the next touch populates the others. Returns
    /// how many pages still had their frame.
    ///
    /// # Errors
    /// [`Lifted`].
    pub fn deflate(&self, gfn: Gfn, pages: u64) -> Result<u64, Lifted> {
        self.operate(|session| session.retake(gfn, pages))
    }

    /// Sets the target, and works until it is reached as far as that is possible without the guest.
    ///
    /// # Errors
    /// See [`SetTargetError`].
    pub fn set_target(&self, bytes: u64) -> Result<(), SetTargetError> {
        self.begin_target(bytes)?;
        self.reach_target()
    }

    /// Sets the target and returns at once. The upkeep thread starts to work for it.
    ///
    /// # Errors
    /// See [`SetTargetError`].
    pub fn begin_target(&self, bytes: u64) -> Result<(), SetTargetError> {
        let target = bytes / PAGE_BYTES;
        let begun = self.operate(|session| session.begin_target(target));
        self.upkeep.call();
        self.ahead.call();
        Ok(begun??)
    }

    /// Breaks superpages with retained pages while the total is above the target, returns what the
    /// cache holds in excess, and fills the cache. Works in steps, so that a lift does not wait for
    /// all of it, and for five seconds at most.
    ///
    /// # Errors
    /// See [`SetTargetError`].
    pub fn reach_target(&self) -> Result<(), SetTargetError> {
        let until = Instant::now() + TARGET_TIME;
        while self.operate(|session| session.shrink(WORK_STEP))? == zerosweep::Progress::More
            && Instant::now() < until
        {}
        self.fill_cache()
    }

    /// Fills the cache up to the target.
    ///
    /// # Errors
    /// See [`SetTargetError`].
    pub fn fill_cache(&self) -> Result<(), SetTargetError> {
        loop {
            let filled = self.run_operation(|session| session.fill(FILL_STEPS))?;
            if filled.map_err(TargetError::Fill)? == zerosweep::Progress::Done {
                return Ok(());
            }
        }
    }

    /// Continues a full sweep (rule R8) at superpage `first`, for about `time`. A sweep starts
    /// at 0.
    ///
    /// # Errors
    /// [`Lifted`].
    pub fn sweep(&self, first: u64, time: Duration) -> Result<Progress, Lifted> {
        let began = Instant::now();
        let mut next = first;
        loop {
            let progress =
                self.run_operation(|session| session.sweep_full(&mut next, WORK_STEP))?;
            if progress == zerosweep::Progress::Done {
                return Ok(Progress::Done);
            }
            if began.elapsed() >= time {
                return Ok(Progress::More(next));
            }
        }
    }

    /// Packs live single pages into fewer superframes (rule R13), for about `time`. Starts from the
    /// beginning if `first` is 0; any other number continues where the last call stopped.
    ///
    /// # Errors
    /// See [`ConsolidateError`].
    pub fn consolidate(&self, first: u64, time: Duration) -> Result<Progress, ConsolidateError> {
        let work = self.consolidation.lock().unwrap_or_else(PoisonError::into_inner);
        self.consolidate_with(work, first, time)
    }

    /// Consolidates as [`GuestMemory::consolidate`] does; returns `None` and does nothing while
    /// another thread consolidates.
    pub(crate) fn consolidate_if_alone(
        &self,
        first: u64,
        time: Duration,
    ) -> Option<Result<Progress, ConsolidateError>> {
        let work = match self.consolidation.try_lock() {
            Ok(work) => work,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        Some(self.consolidate_with(work, first, time))
    }

    fn consolidate_with(
        &self,
        mut work: MutexGuard<'_, Consolidation>,
        first: u64,
        time: Duration,
    ) -> Result<Progress, ConsolidateError> {
        let began = Instant::now();
        if first == 0 {
            *work = Consolidation::default();
        }
        loop {
            let step = |session: &mut Session<LinuxHost<'_>>| {
                session.consolidate(&mut work, CONSOLIDATION_STEP)
            };
            let progress = self.run_operation(step)?.map_err(ConsolidateError::TableMemory)?;
            if progress == zerosweep::Progress::Done {
                return Ok(Progress::Done);
            }
            if began.elapsed() >= time {
                return Ok(Progress::More(work.moved() + 1));
            }
        }
    }

    /// Recounts everything (rule R19). Faults wait meanwhile: see [`Domain::audit`].
    ///
    /// # Errors
    /// The first difference.
    pub fn audit(&self) -> Result<(), AuditError> {
        self.lock().audit()
    }

    /// Says which threads run virtual CPUs: only these may stall.
    pub fn set_vcpus(&self, thread_ids: &[u32]) {
        self.service.set_vcpus(thread_ids);
    }

    /// Adds a thread to those that may stall.
    pub fn add_vcpu(&self, thread_id: u32) {
        self.service.add_vcpu(thread_id);
    }

    /// The quantities of this moment, at the price of a lock.
    #[must_use]
    pub fn quantities(&self) -> Quantities {
        self.lock().quantities()
    }

    /// Figures of this moment. Superpages are counted in steps, so that faults are served meanwhile.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let (mut whole, mut broken) = (0, 0);
        self.for_each_superpage(0, u64::MAX, |letter, _| match letter {
            b'W' | b'r' => whole += 1,
            b'b' => broken += 1,
            _ => {}
        });
        let domain = self.lock();
        let quantities = domain.quantities();
        let statistics = *domain.statistics();
        let superpages_in_cache = domain.cache().superpages();
        let borrowed = domain.borrowed();
        let forecast = domain.forecast();
        drop(domain);
        Snapshot {
            quantities,
            statistics,
            forecast,
            superpages_in_guest: whole,
            broken,
            superpages_in_cache,
            ready: self.machine.ready(),
            faults: self.service.faults(),
            stalled: self.service.stalled(),
            borrowed,
            fault_latency: self.service.latency(),
            lifted: self.lifted_because(),
        }
    }

    /// A letter for each superpage of the guest: `W` whole, `r` whole with pages that are out, `b`
    /// broken, `p` promised, `.` out.
    #[must_use]
    pub fn map_letters(&self) -> Vec<u8> {
        let superpages = self.machine.guest.bytes().div_ceil(SUPERPAGE_BYTES);
        let mut letters = Vec::with_capacity(superpages as usize);
        self.for_each_superpage(0, u64::MAX, |letter, _| letters.push(letter));
        letters
    }

    /// Calls `visit` with the letter of each of `count` superpages from `first` on, and how many of
    /// its pages the guest has that hold a frame. The lock is held for 1,024 of them at a time.
    pub fn for_each_superpage(&self, first: u64, count: u64, mut visit: impl FnMut(u8, u64)) {
        let superpages = self.machine.guest.bytes().div_ceil(SUPERPAGE_BYTES);
        let last = first.saturating_add(count).min(superpages);
        for first in (first..last).step_by(SNAPSHOT_STEP as usize) {
            let domain = self.lock();
            let p2m = domain.p2m();
            for superpage in (first..(first + SNAPSHOT_STEP).min(last)).map(Superpage::new) {
                visit(p2m.letter(superpage), p2m.tally(superpage).ram - p2m.outs(superpage));
            }
        }
    }

    /// Whether the cap is lifted.
    #[must_use]
    pub fn is_lifted(&self) -> bool {
        self.lifted.load(Ordering::SeqCst)
    }

    fn lifted_because(&self) -> Option<String> {
        self.lift_reason.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Gives the range back to the kernel (INV-10): every byte stays, and the guest goes on without
    /// the cap. Not to be called from within an operation.
    pub fn lift(&self, reason: &str) {
        if self.lifted.swap(true, Ordering::SeqCst) {
            return;
        }
        *self.lift_reason.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned());
        let mut rescue = Rescue::new();
        self.wait_for_running(&mut rescue);
        // Operations that are left end soon now, as nothing moves for them any more.
        self.machine.close();
        self.wait_for_running(&mut rescue);
        let lost = self.put_in_place();
        if lost > 0 {
            let reason = format!("{reason}; {lost} pages could not be put back and read as zero");
            *self.lift_reason.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
        }
        // Until here every waiting thread is still held; this lets all of them go on.
        let _ = self.machine.uffd.unregister(self.machine.guest.all());
        let cached: Vec<_> = self.lock().cache().iter().collect();
        cached.into_iter().for_each(|(mfn, order)| self.machine.drop_memory(mfn, order));
        // Nothing will come for them any more.
        self.stop_threads();
    }

    /// Waits until no operation runs, for a bounded time.
    fn wait_for_running(&self, rescue: &mut Rescue) {
        let deadline = Instant::now() + LIFT_WAITS;
        while self.running.load(Ordering::SeqCst) > 0 && Instant::now() < deadline {
            rescue.look(self);
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// Moves every page to the guest that has a frame and is at its slot: what a failed check left
    /// unmapped, what a move left half-way, what an operation that still runs holds. Returns how
    /// many pages are lost.
    fn put_in_place(&self) -> u64 {
        let until = Instant::now() + LIFT_WAITS;
        let superpages = self.machine.guest.bytes().div_ceil(SUPERPAGE_BYTES);
        let mut lost = 0;
        for superpage in (0..superpages).map(Superpage::new) {
            let whole = self.lock().p2m().whole(superpage);
            if let Some(entry) = whole {
                if let Entry::Ram { mfn, .. } = entry {
                    let (gfn, order) = (superpage.first(), Order::SUPERPAGE);
                    lost += self.machine.put_in_place(gfn, mfn, order, until);
                }
                continue;
            }
            for gfn in (0..512).map(|index| superpage.page(index)) {
                if let Some(mfn) = frame_of(self, gfn) {
                    lost += self.machine.put_in_place(gfn, mfn, Order::PAGE, until);
                }
            }
        }
        lost
    }

    /// Gives the frames back and ends the threads. For a range of our own that nobody touches any
    /// more. A page that somebody uses for good stays for as long as its mapping.
    pub fn stop(&self) {
        let until = Instant::now() + STOP_TIME;
        // Once the cap is lifted nothing moves any more: all goes with the mappings.
        while !self.machine.is_closed()
            && self.session().teardown(64) == zerosweep::Progress::More
            && Instant::now() < until
        {}
        self.stop_threads();
    }

    fn stop_threads(&self) {
        self.service.stop();
        self.ahead.call();
        self.upkeep.call();
    }
}

impl core::fmt::Debug for GuestMemory {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("GuestMemory")
            .field("range", &self.range())
            .field("lifted", &self.is_lifted())
            .finish_non_exhaustive()
    }
}

/// Works on a span a part at a time.
fn in_steps(
    all: Span<'_>,
    mut work: impl FnMut(Span<'_>) -> Result<(), SysError>,
) -> Result<(), AdoptError> {
    for at in (0..all.bytes()).step_by(WATCH_STEP as usize) {
        let part = all.part(at, WATCH_STEP.min(all.bytes() - at)).map_err(RegionError::from)?;
        work(part)?;
    }
    Ok(())
}

/// Repeats `operation` while another operation has claimed its range. Returns 0 for a range that
/// the engine refuses. The lock is not held between two tries: the other operation needs it.
///
/// # Errors
/// [`Lifted`] if the cap is lifted meanwhile: the other operation may never end.
fn retry_in_transit<'a>(
    session: &mut Session<LinuxHost<'a>>,
    mut operation: impl FnMut(&mut Session<LinuxHost<'a>>) -> Result<u64, DecreaseError>,
) -> Result<u64, Lifted> {
    let mut pause = Duration::from_micros(10);
    loop {
        match operation(session) {
            Ok(pages) => return Ok(pages),
            Err(DecreaseError::OutOfRange | DecreaseError::Dying) => return Ok(0),
            Err(DecreaseError::InTransit) if session.host().memory.is_lifted() => {
                return Err(Lifted);
            }
            Err(DecreaseError::InTransit) => {
                session.host().machine(|_| std::thread::sleep(pause));
            }
        }
        pause = (pause * 2).min(Duration::from_millis(1));
    }
}

/// One thread's way to domain and machine: the lock is taken when the domain is asked for, and
/// dropped before the machine works.
pub struct LinuxHost<'a> {
    memory: &'a GuestMemory,
    guard: Option<MutexGuard<'a, Domain>>,
    machine: MachineRef<'a>,
}

impl<'a> Host for LinuxHost<'a> {
    type Machine = MachineRef<'a>;

    fn domain(&mut self) -> &mut Domain {
        self.guard.get_or_insert_with(|| self.memory.lock())
    }

    fn machine<R>(&mut self, work: impl FnOnce(&mut MachineRef<'a>) -> R) -> R {
        self.guard = None;
        work(&mut self.machine)
    }

    fn event(&mut self, event: Event) {
        if let Some(journal) = &self.memory.journal {
            journal.record(event, self.domain());
        }
    }
}
