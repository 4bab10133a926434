//! The engine's machine on Linux memory.
//!
//! A frame's number is the number of its slot in the pool, a mapping of our own. To map a frame is
//! to move the page from its slot to the guest's address (`UFFDIO_MOVE`), to unmap it is to move it
//! back. Content is neither copied nor cleared, and a page at its slot is out of the guest's reach,
//! so that a check of it is the truth. The guest's range is registered for missing pages and for
//! writes to protected ones, the pool only for the latter: the kernel fills holes in the pool
//! itself, and a stray read of one does not hang.
//!
//! A page that the kernel or a device uses at the moment cannot move. That is an ordinary result
//! ([`zerosweep::Unmapped::Busy`]) after a bounded number of tries, and what had moved goes back.
//!
//! | module | what |
//! | --- | --- |
//! | `slots`, `gate`, `readers`, `scratch`, `backoff` | tables and flags, each on its own |
//! | `moves` | moves there and back, on the gate |
//! | `backing` | memory behind slots, ahead of the guest or during a fault |
//! | `mapping`, `content` | what the engine asks for |
//! | `zeros` | what the host's own reads see where there is no frame |
//! | `misplaced` | pages that are not where the engine thinks they are |
//! | `engine` | the engine's trait |
//!
//! Known holes: pages that the kernel uses without pinning them move ([`crate::references`]).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use zerosweep::{FramePool, Gfn, Mfn, Order};

use self::gate::MoveGate;
use self::readers::Readers;
use self::scratch::ScratchPages;
use self::slots::Slots;
use crate::addr::{PAGE_BYTES, SUPERPAGE_BYTES};
use crate::error::{SpanError, SysError};
use crate::kernel_version::KernelVersion;
use crate::sys::pagemap::Pagemap;
use crate::sys::region::{Region, Span};
use crate::sys::uffd::Uffd;

mod backing;
mod backoff;
mod content;
pub(crate) mod engine;
mod gate;
#[cfg(test)]
mod hold;
mod mapping;
mod misplaced;
pub(crate) mod moves;
pub(crate) mod readers;
mod scratch;
mod slots;
mod zeros;

/// Whether parked superpages keep their memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parking {
    /// All do.
    Lazy,
    /// Superpages beyond this many return it to the host at once.
    Eager(u64),
}

/// Counters of the machine; each only grows.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct MachineCounters {
    /// Moves that the kernel refused because a page was in use.
    pub busy: AtomicU64,
    /// Moves that had to be asked for again.
    pub repeats: AtomicU64,
    /// Moves whose pages the kernel did not count.
    pub forgotten: AtomicU64,
    /// Superslots for which the host had single pages only.
    pub small_backing: AtomicU64,
    /// Superslots that got memory during a fault, because none was prefaulted.
    pub late_backing: AtomicU64,
}

/// The memory of a guest and the pool behind it.
pub struct LinuxMachine {
    pub(crate) guest: Region,
    pool: Region,
    scratch: ScratchPages,
    pub(crate) uffd: Uffd,
    pagemap: Pagemap,
    frames: Mutex<FramePool>,
    slots: Slots,
    parking: Parking,
    /// Superslots with a huge page at home: cleared and ready for the guest, or being checked.
    prefaulted: AtomicU64,
    /// Held while superslots get memory ahead of the guest. No fault needs it.
    prefaulting: Mutex<()>,
    counters: MachineCounters,
    /// Whether the kernel drops page tables that are empty.
    drops_tables: bool,
    /// Pages that were written before they were protected, and have no frame yet.
    written: AtomicU64,
    gate: MoveGate,
    readers: Readers,
    #[cfg(test)]
    pub(crate) hold: hold::Hold,
    /// Between zeros that are shown and their protection.
    #[cfg(test)]
    pub(crate) hold_shown: hold::Hold,
}

impl LinuxMachine {
    /// The length of the scratch region that [`LinuxMachine::new`] takes.
    pub(crate) const SCRATCH_BYTES: u64 = ScratchPages::BYTES;

    pub(crate) fn new(
        guest: Region,
        pool: Region,
        scratch: Region,
        uffd: Uffd,
        pagemap: Pagemap,
        frames: FramePool,
        parking: Parking,
    ) -> Self {
        let slots = Slots::new((pool.bytes() / SUPERPAGE_BYTES) as usize);
        Self {
            guest,
            pool,
            scratch: ScratchPages::new(scratch),
            uffd,
            pagemap,
            frames: Mutex::new(frames),
            slots,
            parking,
            prefaulted: AtomicU64::new(0),
            prefaulting: Mutex::new(()),
            counters: MachineCounters::default(),
            drops_tables: KernelVersion::running()
                .is_some_and(|version| version >= KernelVersion::WITH_TABLE_RECLAIM),
            written: AtomicU64::new(0),
            gate: MoveGate::default(),
            readers: Readers::new(),
            #[cfg(test)]
            hold: hold::Hold::default(),
            #[cfg(test)]
            hold_shown: hold::Hold::default(),
        }
    }

    pub(crate) fn pool_span(&self) -> Span<'_> {
        self.pool.all()
    }

    pub(crate) fn scratch_span(&self) -> Span<'_> {
        self.scratch.span()
    }

    pub(crate) fn pool_superslots(&self) -> usize {
        (self.pool.bytes() / SUPERPAGE_BYTES) as usize
    }

    pub(crate) fn pagemap(&self) -> &Pagemap {
        &self.pagemap
    }

    pub(crate) fn readers(&self) -> &Readers {
        &self.readers
    }

    /// Keeps others from getting memory for superslots ahead of the guest.
    pub(crate) fn lock_prefaulting(&self) -> MutexGuard<'_, ()> {
        self.prefaulting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn frames(&self) -> MutexGuard<'_, FramePool> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the counters.
    #[must_use]
    pub fn counters(&self) -> &MachineCounters {
        &self.counters
    }

    /// Returns how many superslots have a huge page at home: cleared and ready for the guest, or
    /// being checked.
    #[must_use]
    pub fn prefaulted(&self) -> u64 {
        self.prefaulted.load(Ordering::Relaxed)
    }

    /// Returns how many superframes of the pool the domain holds a page of.
    #[must_use]
    pub fn superframes_held(&self) -> u64 {
        self.frames().superpages_out()
    }

    /// Returns how many superpages of the guest are whole in the page tables.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn whole_superpages(&self) -> Result<u64, SysError> {
        self.pagemap.whole_superpages(self.guest.all())
    }

    /// Returns how many pages of guest and pool have a frame in the page tables.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn resident_pages(&self) -> Result<u64, SysError> {
        let guest = self.pagemap.resident_pages(self.guest.all())?;
        Ok(guest + self.pagemap.resident_pages(self.pool.all())?)
    }

    /// Returns the slots of a run.
    pub(crate) fn slot(&self, mfn: Mfn, order: Order) -> Result<Span<'_>, SpanError> {
        self.pool.span(mfn.raw() * PAGE_BYTES, order.bytes())
    }

    /// Returns the guest's addresses of a run.
    pub(crate) fn range(&self, gfn: Gfn, order: Order) -> Result<Span<'_>, SpanError> {
        self.guest.span(gfn.raw() * PAGE_BYTES, order.bytes())
    }
}
