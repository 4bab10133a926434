//! What the engine asks of the machine around it.
//!
//! A [`Machine`] moves frames between the host and the domain, and in and out of the guest's view.
//! It knows nothing of PoD. A [`Host`] joins a machine and the domain on it. [`Exclusive`] is the
//! host of one thread that owns both. A host with many threads takes its lock in [`Host::domain`]
//! and drops it in [`Host::machine`], so that no system call, scan or copy happens under a lock
//! that a fault needs (rule [R14]).
//!
//! [R14]: crate::rules#r14

use crate::domain::Domain;
use crate::event::Event;
use crate::frame::{Gfn, Mfn, Order, Superframe};

/// The host has no frame of that order to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfFrames;

/// A run of frames from the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocated {
    /// First frame.
    pub mfn: Mfn,
    /// Whether it must be cleared.
    pub content: Content,
}

/// What may be in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Anything.
    Unknown,
    /// Zeros.
    Zero,
}

/// How a run is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapped {
    /// As one mapping of the order that was asked for.
    Whole,
    /// As single pages. The engine then keeps single entries.
    Pieces,
}

/// A run could not be mapped. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapError;

/// The outcome of an unmap.
#[must_use = "a frame that is busy is still mapped"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmapped {
    /// After the next flush the guest cannot reach the run.
    Done,
    /// A device uses the run. It is mapped as before, but perhaps as single pages.
    Busy,
}

/// What became of pages without frames that were to be read as zeros ([`Machine::show_zeros`]).
#[must_use = "what was written has to be kept"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// They are read as zeros. A write is a touch, as before.
    Zeros,
    /// Somebody wrote to one or more of them before they were protected, and they hold what was
    /// written. [`Machine::is_written`] tells which. The others are read as zeros.
    Written,
    /// The machine does not do this here. Nothing was changed.
    Unsupported,
}

/// The first 16 words of each page: what a quick check looks at.
pub const QUICK_CHECK_WORDS: u32 = 16;

/// The machine: real memory, or one made of software.
///
/// Runs have order 0 or 9. An operation that fails has changed nothing.
pub trait Machine {
    /// Takes a run from the host.
    ///
    /// # Errors
    /// When the host has none of that order.
    fn allocate(&mut self, order: Order) -> Result<Allocated, OutOfFrames>;

    /// Takes one page of the given superframe from the host. A consolidation packs live pages this
    /// way.
    ///
    /// # Errors
    /// When no page of it is free, or the machine does not support this.
    fn allocate_in(&mut self, superframe: Superframe) -> Result<Allocated, OutOfFrames> {
        let _ = superframe;
        Err(OutOfFrames)
    }

    /// Returns a run to the host. Its content is not needed any more.
    fn free(&mut self, mfn: Mfn, order: Order);

    /// Maps a run at `gfn`, where nothing is mapped.
    ///
    /// # Errors
    /// When there is no memory for page tables, or the machine refuses.
    fn map(&mut self, gfn: Gfn, mfn: Mfn, order: Order) -> Result<Mapped, MapError>;

    /// Unmaps a run. A CPU may write to it until the next [`Machine::flush`].
    fn unmap(&mut self, gfn: Gfn, mfn: Mfn, order: Order) -> Unmapped;

    /// Waits until no CPU can reach the runs that were unmapped before.
    fn flush(&mut self);

    /// Checks the first [`QUICK_CHECK_WORDS`] words of each page of a mapped run, while the guest
    /// may write: the result is a hint. Returns the offset of a non-zero word, in words of 8 bytes.
    fn quick_check(&mut self, gfn: Gfn, mfn: Mfn, order: Order) -> Option<u32>;

    /// Returns the word at `word` × 8 bytes in a mapped run, while the guest may write.
    fn peek(&mut self, gfn: Gfn, mfn: Mfn, word: u32) -> u64;

    /// Checks `pages` frames from `mfn` on. They are in one superframe, and not mapped. Returns the
    /// offset of the first non-zero word, in words of 8 bytes.
    fn zero_check(&mut self, mfn: Mfn, pages: u64) -> Option<u32>;

    /// Fills a run with zeros. It is not mapped.
    fn clear(&mut self, mfn: Mfn, order: Order);

    /// Copies one frame to another. Neither is mapped.
    fn copy(&mut self, from: Mfn, to: Mfn);

    /// Fills a mapped page that the guest has given back with zeros. Returns what was in it.
    fn scrub(&mut self, gfn: Gfn, mfn: Mfn) -> Content;

    /// Lets `pages` pages from `gfn` on, in one superpage and without frames, be read as zeros, so
    /// that the host's own reads populate nothing (rule [R22]).
    ///
    /// [R22]: crate::rules#r22
    fn show_zeros(&mut self, gfn: Gfn, pages: u64) -> Shown {
        let _ = (gfn, pages);
        Shown::Unsupported
    }

    /// After [`Shown::Written`]: whether `gfn` holds what was written. The next [`Machine::map`]
    /// of a page there keeps it: it is the content of the frame then.
    fn is_written(&mut self, gfn: Gfn) -> bool {
        let _ = gfn;
        false
    }

    /// Tells that a superframe of zeros went to the cache. The engine does not touch it until it is
    /// mapped again. The machine may free the memory behind it, or make it one huge page again.
    fn park(&mut self, superframe: Superframe) {
        let _ = superframe;
    }

    /// Takes a broken frame of the domain for good (rule [R17]): it is not mapped, and the machine
    /// never hands it out again.
    ///
    /// [R17]: crate::rules#r17
    fn retire(&mut self, mfn: Mfn) {
        let _ = mfn;
    }
}

/// A machine and the domain on it, as one thread sees them.
pub trait Host {
    /// The machine.
    type Machine: Machine;

    /// The domain. Where threads share it, this takes its lock, unless the thread has it already.
    fn domain(&mut self) -> &mut Domain;

    /// Runs `work` on the machine. Where threads share the domain, its lock is dropped before.
    fn machine<R>(&mut self, work: impl FnOnce(&mut Self::Machine) -> R) -> R;

    /// Reports an event. The domain is in the state after it.
    fn event(&mut self, event: Event) {
        let _ = event;
    }
}

impl<H: Host> Host for &mut H {
    type Machine = H::Machine;

    fn domain(&mut self) -> &mut Domain {
        (**self).domain()
    }

    fn machine<R>(&mut self, work: impl FnOnce(&mut H::Machine) -> R) -> R {
        (**self).machine(work)
    }

    fn event(&mut self, event: Event) {
        (**self).event(event);
    }
}

/// The simplest host: one thread owns domain and machine.
pub struct Exclusive<'a, M> {
    domain: &'a mut Domain,
    machine: &'a mut M,
}

impl<'a, M: Machine> Exclusive<'a, M> {
    /// Joins both.
    pub fn new(domain: &'a mut Domain, machine: &'a mut M) -> Self {
        Self { domain, machine }
    }
}

impl<M: Machine> Host for Exclusive<'_, M> {
    type Machine = M;

    fn domain(&mut self) -> &mut Domain {
        self.domain
    }

    fn machine<R>(&mut self, work: impl FnOnce(&mut M) -> R) -> R {
        work(self.machine)
    }
}
