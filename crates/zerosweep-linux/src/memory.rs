//! A guest's memory under the engine: what a VMM calls.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use zerosweep::{AuditError, DecreaseError, Gfn, Order, Quantities, Reconciliation, TargetError};

use crate::addr::{HostAddr, PAGE_BYTES};
use crate::domain::SharedDomain;
use crate::error::SysError;
use crate::machine::LinuxMachine;
use crate::operation::{self, consolidation, retry_in_transit};
use crate::outcome::{ConsolidateError, Lifted, Progress, SetTargetError};
use crate::placement::Placement;
use crate::recovery::lift::lift;
use crate::sys::region::Span;
use crate::threads::faults::service::FaultService;

pub(crate) mod adopt;
pub(crate) mod snapshot;

/// Superpages that are worked on before the time is checked.
const WORK_STEP: u64 = 4;
/// Time budget for reaching a new target. The guest may take pages again as fast as superpages are
/// broken: the upkeep thread does the rest.
const TARGET_TIME: Duration = Duration::from_secs(5);
/// Runs that the cache is filled with at a time.
const FILL_STEPS: u64 = 1024;
/// Superpages that are reconciled under the lock at a time.
const RECONCILE_STEP: u64 = 8;
/// Runs that are returned at a time at the end.
const TEARDOWN_STEPS: u64 = 64;
/// How long [`GuestMemory::stop`] tries to get frames back that are in use.
const STOP_TIME: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });

/// A guest's memory under the engine.
///
/// [`GuestMemory::new`] takes a range over: it maps the huge zero page everywhere and protects it
/// against writes. From then on every first write is a fault, which threads of ours answer from a
/// pool. The VMM's threads call [`GuestMemory::inflate`] and [`GuestMemory::discard`] for what the
/// guest gives back.
///
/// When something of ours cannot go on, the cap is lifted ([`GuestMemory::lift`]): the kernel
/// handles the range alone. The guest keeps every byte and goes on, without the cap, and operations
/// return [`Lifted`].
///
/// The threads keep the memory mapped: call [`GuestMemory::stop`] when the guest is gone.
///
/// ```
/// use zerosweep::{Gfn, Order};
/// use zerosweep_linux::{GuestMemory, Options, PAGE_BYTES, Region};
///
/// # if zerosweep_linux::Uffd::open().is_err() { return Ok(()) }
/// // The guest believes that it has 64 MiB; it may hold 8.
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
    pub(crate) domain: Arc<SharedDomain>,
    faults: Arc<FaultService>,
}

impl GuestMemory {
    /// Returns the addresses of the guest's memory in this process.
    #[must_use]
    pub fn range(&self) -> Range<HostAddr> {
        let guest = self.guest();
        guest.start()..guest.end()
    }

    /// Returns all of the guest's memory, to access it as a guest does: an access may wait for a
    /// frame.
    #[must_use]
    pub fn guest(&self) -> Span<'_> {
        self.domain.machine.guest.all()
    }

    /// Returns the machine, for its counters and what the page tables say.
    #[must_use]
    pub fn machine(&self) -> &LinuxMachine {
        &self.domain.machine
    }

    /// The balloon inflates: the guest gives the pages `[gfn, gfn + 2^order)` back. Waits while
    /// another operation has claimed the range. Returns how many pages came back; none do past the
    /// end of the memory.
    ///
    /// # Errors
    /// [`Lifted`].
    pub fn inflate(&self, gfn: Gfn, order: Order) -> Result<u64, Lifted> {
        operation::run(&self.domain, |session| {
            retry_in_transit(session, |session| session.decrease(gfn, order))
        })?
    }

    /// The guest gives up the content of `pages` pages from `gfn` on, and keeps the pages: a free
    /// page report. Waits as [`GuestMemory::inflate`] does. Returns how many pages became PoD; none
    /// do if the range ends past the end of the memory.
    ///
    /// # Errors
    /// [`Lifted`]; pages before those that the call waited for are discarded.
    pub fn discard(&self, gfn: Gfn, pages: u64) -> Result<u64, Lifted> {
        // After a wait the discard goes on where it stopped.
        let (mut gfn, mut pages, mut discarded) = (gfn, pages, 0);
        operation::run(&self.domain, |session| {
            retry_in_transit(session, |session| match session.discard(gfn, pages) {
                Ok(rest) => Ok(discarded + rest),
                Err(error) => {
                    discarded += error.discarded;
                    pages -= error.next.raw() - gfn.raw();
                    gfn = error.next;
                    match error.reason {
                        DecreaseError::InTransit => Err(DecreaseError::InTransit),
                        DecreaseError::OutOfRange | DecreaseError::Dying => Ok(discarded),
                    }
                }
            })
        })?
    }

    /// The balloon deflates: the guest takes `pages` pages from `gfn` on again. Pages that still
    /// have their frame belong to the guest at once; the next touch populates the others. Returns
    /// how many pages still had their frame.
    ///
    /// # Errors
    /// [`Lifted`].
    pub fn deflate(&self, gfn: Gfn, pages: u64) -> Result<u64, Lifted> {
        operation::run(&self.domain, |session| session.retake(gfn, pages))
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
        let begun = operation::run(&self.domain, |session| session.begin_target(target));
        self.domain.signals.notify_upkeep();
        self.domain.signals.notify_prefault();
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
        let shrink = || operation::run(&self.domain, |session| session.shrink(WORK_STEP));
        while shrink()? == zerosweep::Progress::More && Instant::now() < until {}
        self.fill_cache()
    }

    /// Fills the cache up to the target.
    ///
    /// # Errors
    /// See [`SetTargetError`].
    pub fn fill_cache(&self) -> Result<(), SetTargetError> {
        let fill = || operation::run(&self.domain, |session| session.fill(FILL_STEPS));
        while fill()?.map_err(TargetError::Fill)? == zerosweep::Progress::More {}
        Ok(())
    }

    /// Continues a full sweep (rule [R8]) at superpage `first`, for about `time`. A sweep starts
    /// at 0.
    ///
    /// # Errors
    /// [`Lifted`].
    ///
    /// [R8]: zerosweep::rules#r8
    pub fn sweep(&self, first: u64, time: Duration) -> Result<Progress, Lifted> {
        let began = Instant::now();
        let mut next = first;
        loop {
            let step =
                operation::run(&self.domain, |session| session.sweep_full(&mut next, WORK_STEP));
            match step? {
                zerosweep::Progress::Done => return Ok(Progress::Done),
                zerosweep::Progress::More if began.elapsed() >= time => {
                    return Ok(Progress::More(next));
                }
                zerosweep::Progress::More => {}
            }
        }
    }

    /// Packs live single pages into fewer superframes (rule [R13]), for about `time`. Starts from the
    /// beginning if `first` is 0; any other number continues where the last call stopped.
    ///
    /// # Errors
    /// See [`ConsolidateError`].
    ///
    /// [R13]: zerosweep::rules#r13
    pub fn consolidate(&self, first: u64, time: Duration) -> Result<Progress, ConsolidateError> {
        consolidation::consolidate(&self.domain, first, time)
    }

    /// Makes the engine count as many pages given back as the guest's balloon has (rule [R21]).
    ///
    /// # Errors
    /// [`Lifted`].
    ///
    /// [R21]: zerosweep::rules#r21
    pub fn reconcile(&self, ballooned: u64) -> Result<(), Lifted> {
        let mut work = Reconciliation::new(ballooned);
        let mut step =
            || operation::run(&self.domain, |session| session.reconcile(&mut work, RECONCILE_STEP));
        while step()? == zerosweep::Progress::More {}
        Ok(())
    }

    /// Recounts everything (rule [R19]). Faults wait meanwhile: see [`zerosweep::Domain::audit`].
    ///
    /// # Errors
    /// The first difference.
    ///
    /// [R19]: zerosweep::rules#r19
    pub fn audit(&self) -> Result<(), AuditError> {
        self.domain.lock().audit()
    }

    /// Replaces the threads that run virtual CPUs: only these may stall.
    pub fn set_vcpus(&self, thread_ids: &[u32]) {
        self.faults.set_vcpus(thread_ids);
        self.domain.signals.notify_faults();
    }

    /// Adds a thread that runs a virtual CPU.
    pub fn add_vcpu(&self, thread_id: u32) {
        self.faults.add_vcpu(thread_id);
    }

    /// Returns the quantities of this moment, at the price of a lock.
    #[must_use]
    pub fn quantities(&self) -> Quantities {
        self.domain.lock().quantities()
    }

    /// Gives the pool the memory policy that the guest's mapping was given from outside
    /// (`mbind(2)`).
    ///
    /// # Errors
    /// As [`GuestMemory::set_placement`].
    pub fn follow_placement(&self) -> Result<(), SysError> {
        self.set_placement(&Placement::at(self.guest().start()))
    }

    /// Sets the NUMA nodes of the frames that the guest gets from now on. Frames that it has stay
    /// where they are.
    ///
    /// # Errors
    /// Those of `mbind(2)`: `EINVAL` for a node that does not exist. Mappings that were not reached
    /// keep their placement.
    pub fn set_placement(&self, placement: &Placement) -> Result<(), SysError> {
        let machine = self.machine();
        placement.apply(machine.guest.all())?;
        placement.apply(machine.pool_span())?;
        placement.apply(machine.scratch_span())?;
        // What was prefaulted lies where the old placement said.
        let _prefaulting = machine.lock_prefaulting();
        let mut prefaulted = Vec::with_capacity(machine.pool_superslots());
        {
            let domain = self.domain.lock();
            let superpages = domain.cache().iter().filter(|&(_, order)| order == Order::SUPERPAGE);
            let mfns = superpages.map(|(mfn, _)| mfn);
            prefaulted.extend(mfns.filter(|&mfn| machine.reserve_rebacking(mfn)));
        }
        for mfn in prefaulted {
            // Without memory of the host the fault thread tries again, and reports it if it must.
            let _ = machine.back(mfn);
        }
        Ok(())
    }

    /// Returns whether the cap is lifted.
    #[must_use]
    pub fn is_lifted(&self) -> bool {
        self.domain.is_lifted()
    }

    /// Lifts the cap ([INV-10]): gives the range back to the kernel with every byte in it. The guest
    /// goes on without the cap. Not to be called from within an operation.
    ///
    /// [INV-10]: zerosweep::rules#inv-10
    pub fn lift(&self, reason: &str) {
        lift(&self.domain, reason);
    }

    /// Runs work for this guest. Lifts the cap and returns `None` if it panics; the reason names
    /// `who`. For threads whose end must not go unnoticed. Not for use within an operation.
    pub fn guarded<R>(&self, who: &str, work: impl FnOnce() -> R) -> Option<R> {
        operation::guard(&self.domain, who, work)
    }

    /// Returns the frames and ends the threads. For a range of our own that nobody accesses any
    /// more. A page that stays in use stays for as long as its mapping.
    pub fn stop(&self) {
        let until = Instant::now() + STOP_TIME;
        // Once the cap is lifted nothing moves any more: the frames go with the mappings.
        while !self.domain.machine.is_closed()
            && self.domain.session().teardown(TEARDOWN_STEPS) == zerosweep::Progress::More
            && Instant::now() < until
        {}
        self.domain.signals.stop();
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
