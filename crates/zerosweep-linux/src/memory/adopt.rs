//! Takes a range over: what a VMM may choose, what is refused, and the steps until the guest may
//! run.

use std::sync::Arc;

use zerosweep::{
    BuildError, Config, ConfigError, Domain, FramePool, InvalidTouch, Order, OutOfTableMemory,
    Policy, SUPERPAGE_PAGES, TargetError, Upkeep,
};
use zerosweep_events::Journal;

use super::GuestMemory;
use crate::addr::{HostAddr, PAGE_BYTES, SUPERPAGE_BYTES};
use crate::domain::SharedDomain;
use crate::domain::signals::Signals;
use crate::error::{OpenError, RegionError, SysError, Unsuitable};
use crate::machine::{LinuxMachine, Parking};
use crate::placement::Placement;
use crate::probe::defects::{self, Defect};
use crate::sys::pagemap::Pagemap;
use crate::sys::raw;
use crate::sys::region::{Region, Span};
use crate::sys::uffd::{Uffd, Watch};
use crate::threads::faults::exhaustion::{MainLoop, OnExhaustion};
use crate::threads::faults::service::FaultService;
use crate::threads::{faults, prefault, upkeep};
use crate::vma;

/// Bytes that are mapped or protected at a time when a range is adopted: the kernel holds the lock
/// of the address space meanwhile, and other threads may want it.
const WATCH_STEP: u64 = 64 << 20;

/// How a range is managed. Fields may be added: start from [`Options::new`], as in
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
    /// The thread that the VMM depends on.
    pub main_loop: MainLoop,
}

impl Options {
    /// Default number of fault threads; more than one, so that a slow fault does not delay the
    /// rest.
    pub const DEFAULT_FAULT_THREADS: usize = 2;

    /// Options with policy `zerosweep`, virtual CPUs that wait when no frame can be found, parked
    /// superpages that keep their memory, [`Options::DEFAULT_FAULT_THREADS`], and the main loop in
    /// the first thread.
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

/// Why a range is not managed. The range is unchanged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdoptError {
    /// The range is not memory of the right kind.
    #[error(transparent)]
    Unsuitable(#[from] Unsuitable),
    /// userfaultfd cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The pool cannot be mapped.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// The domain would be invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The target is not in whole pages.
    #[error("a target of {0} bytes is not a multiple of 4096")]
    OddTarget(u64),
    /// The range does not begin at a multiple of 2 MiB.
    #[error("guest memory begins at {0}, which is not a multiple of 2 MiB: no superpage would fit")]
    Misaligned(HostAddr),
    /// There is no memory for the engine's tables.
    #[error("{0}")]
    TableMemory(OutOfTableMemory),
    /// Huge pages are switched off for this process.
    #[error(
        "huge pages are switched off for this process (PR_SET_THP_DISABLE): start the VMM without \
         that setting"
    )]
    HugePagesDisabled,
    /// The kernel has a defect that moves of pages trigger on this host.
    #[error(
        "Linux has a defect that zerosweep would run into on this host: {0}; boot a kernel with the \
         fix, or end the cause (for swap: `swapoff -a`)"
    )]
    KernelDefect(&'static Defect),
    /// The engine refused to promise the range.
    #[error("the range cannot be promised: {0}")]
    Build(BuildError),
    /// A call failed.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
}

impl GuestMemory {
    /// Takes `guest` over, all of it promised and nothing populated: its content is lost. Starts
    /// the threads that serve it.
    ///
    /// # Errors
    /// See [`AdoptError`]; the range is unchanged.
    pub fn new(guest: Region, options: &Options) -> Result<Arc<Self>, AdoptError> {
        Self::recorded(guest, options, None)
    }

    /// Takes `guest` over as [`GuestMemory::new`] does, and notes in `journal` what happens.
    ///
    /// # Errors
    /// See [`AdoptError`]; the range is unchanged.
    pub fn recorded(
        guest: Region,
        options: &Options,
        journal: Option<Arc<Journal>>,
    ) -> Result<Arc<Self>, AdoptError> {
        // The first choice reads the environment and allocates: not in the fault thread.
        let _ = zerosweep_scan::Kernel::chosen();
        let domain = Arc::new(prepare(guest, options, journal)?);
        watch(&domain.machine)?;
        let faults = Arc::new(FaultService::new(domain.signals.faults().len()));
        let started = promise(&domain, options).and_then(|()| start(&domain, &faults, options));
        if let Err(error) = started {
            let _ = domain.machine.uffd.unregister(domain.machine.guest.all());
            domain.signals.stop();
            return Err(error);
        }
        Ok(Arc::new(Self { domain, faults }))
    }

    /// Returns how many superpages of addresses the pool of a guest with `guest_bytes` of memory
    /// has. Addresses cost nothing: there are twice as many slots as pages, so that singles
    /// scattered over superslots never use up the whole ones.
    #[must_use]
    pub const fn superslots(guest_bytes: u64) -> u64 {
        guest_bytes.div_ceil(SUPERPAGE_BYTES) * 2 + 64
    }
}

fn prepare(
    guest: Region,
    options: &Options,
    journal: Option<Arc<Journal>>,
) -> Result<SharedDomain, AdoptError> {
    if !options.target_bytes.is_multiple_of(PAGE_BYTES) {
        return Err(AdoptError::OddTarget(options.target_bytes));
    }
    if !guest.start().is_superpage_aligned() {
        return Err(AdoptError::Misaligned(guest.start()));
    }
    if raw::prctl_get(libc::PR_GET_THP_DISABLE).unwrap_or(0) != 0 {
        return Err(AdoptError::HugePagesDisabled);
    }
    if let Some(defect) = defects::refused() {
        return Err(AdoptError::KernelDefect(defect));
    }
    // QEMU offers guest RAM to samepage merging by default. Merged pages cannot move. Nothing has
    // been merged yet, so the offer is taken back.
    let _ = guest.all().forbid_merging();
    vma::check(guest.start(), guest.bytes())?;
    let max_pages = guest.bytes() / PAGE_BYTES;
    let mut domain = Domain::new(Config {
        invalid_touch: InvalidTouch::Increase,
        upkeep: Upkeep::Host,
        ..Config::new(max_pages, options.target_bytes / PAGE_BYTES, options.policy)
    })?;
    let superslots = GuestMemory::superslots(guest.bytes());
    let count = u32::try_from(superslots)
        .map_err(|_| AdoptError::Config(ConfigError::MaxPages(max_pages)))?;
    domain.expect_frames(superslots * SUPERPAGE_PAGES).map_err(AdoptError::TableMemory)?;
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
    let signals = Signals::new(options.fault_threads)?;
    Ok(SharedDomain::new(domain, machine, signals, journal))
}

/// Maps zero pages everywhere and makes writes to them faults. Without the huge zero page a read
/// would take frames for everything: the range keeps holes then, whose first touch of any kind is a
/// fault.
fn watch(machine: &LinuxMachine) -> Result<(), AdoptError> {
    let guest = machine.guest.all();
    guest.ask_for_huge_pages().map_err(|_| RegionError::NoHugePages)?;
    guest.discard()?;
    let placement = Placement::at(guest.start());
    placement.apply(guest)?;
    placement.apply(machine.pool_span())?;
    placement.apply(machine.scratch_span())?;
    let zero_mapped = maps_zero_without_frames(machine)?;
    if zero_mapped {
        in_steps(guest, |part| part.map_zero())?;
    }
    let uffd = &machine.uffd;
    uffd.register(guest, Watch::MissingAndProtected)?;
    uffd.register(machine.pool_span(), Watch::Protected)?;
    uffd.register(machine.scratch_span(), Watch::Protected)?;
    if zero_mapped {
        in_steps(guest, |part| uffd.protect(part))?;
    }
    Ok(())
}

/// Returns whether a read of memory takes no frames. Tries it with the first superpage, and leaves
/// that empty.
fn maps_zero_without_frames(machine: &LinuxMachine) -> Result<bool, AdoptError> {
    let guest = machine.guest.all();
    let first = guest.part(0, SUPERPAGE_BYTES.min(guest.bytes())).map_err(RegionError::from)?;
    first.map_zero()?;
    let frames = machine.pagemap().resident_pages(first)?;
    first.discard()?;
    Ok(frames == 0)
}

/// Promises all of the range, and sets the target.
fn promise(domain: &SharedDomain, options: &Options) -> Result<(), AdoptError> {
    let mut session = domain.session();
    for (gfn, order) in Order::runs(domain.machine.guest.bytes() / PAGE_BYTES) {
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

/// Starts the threads.
fn start(
    domain: &Arc<SharedDomain>,
    service: &Arc<FaultService>,
    options: &Options,
) -> Result<(), AdoptError> {
    faults::start(domain, service, options.on_exhaustion, options.main_loop)
        .and_then(|()| prefault::start(domain))
        .and_then(|()| upkeep::start(domain))
        .map_err(AdoptError::Thread)?;
    domain.signals.notify_prefault();
    Ok(())
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
