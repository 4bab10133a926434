//! What the engine asks of the machine around it.
//!
//! A [`Machine`] moves frames: between the host and the domain, in and out of the guest's view. It
//! knows nothing of PoD. A [`Host`] is a machine together with the domain on it, and decides what
//! lies between them: [`Exclusive`] is one thread that owns both; a host with many threads takes
//! its lock in [`Host::domain`] and drops it in [`Host::machine`], so that no system call, scan or
//! copy ever happens under a lock that a fault needs (rule [R14]).
//!
//! [R14]: crate::rules#r14

use crate::domain::Domain;
use crate::event::Event;
use crate::frame::{Gfn, Mfn, Order};

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
    /// As that many single pages; the engine then keeps single entries.
    Pieces,
}

/// A run could not be mapped. It is where it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapError;

/// What came of an unmap.
#[must_use = "a frame that is busy is still mapped"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmapped {
    /// The guest cannot reach the run any more (once flushed).
    Done,
    /// Someone outside uses it; it is mapped as before, though perhaps as single pages.
    Busy,
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

    /// Takes a page of the superframe at `superframe` from the host, so that pages that are in use
    /// come together there.
    ///
    /// # Errors
    /// When the host has none of it, or cannot tell.
    fn allocate_in(&mut self, superframe: Mfn) -> Result<Allocated, OutOfFrames> {
        let _ = superframe;
        Err(OutOfFrames)
    }

    /// Gives a run back to the host. Its content is of no interest any more.
    fn free(&mut self, mfn: Mfn, order: Order);

    /// Lets the guest have a run at `gfn`, where nothing may be mapped.
    ///
    /// # Errors
    /// When the tables for it cannot be had, or the machine refused.
    fn map(&mut self, gfn: Gfn, mfn: Mfn, order: Order) -> Result<Mapped, MapError>;

    /// Takes a run out of the guest's view; content counts as still only after [`Machine::flush`].
    fn unmap(&mut self, gfn: Gfn, mfn: Mfn, order: Order) -> Unmapped;

    /// Waits until no CPU can reach what was unmapped before.
    fn flush(&mut self);

    /// Looks at the first [`QUICK_CHECK_WORDS`] words of each page while the guest may write:
    /// a hint, never the truth. Returns the offset in words of 8 bytes of something non-zero.
    fn quick_check(&mut self, gfn: Gfn, mfn: Mfn, order: Order) -> Option<u32>;

    /// Looks at one word, `word` × 8 bytes into the run, while the guest may write.
    fn peek(&mut self, gfn: Gfn, mfn: Mfn, word: u32) -> u64;

    /// Looks at `pages` frames from `mfn`, all of one superframe, which are not mapped. Returns the
    /// offset in words of 8 bytes of the first one that is not zero.
    fn zero_check(&mut self, mfn: Mfn, pages: u64) -> Option<u32>;

    /// Fills a run that is not mapped with zeros.
    fn clear(&mut self, mfn: Mfn, order: Order);

    /// Copies a frame to another; neither is mapped.
    fn copy(&mut self, from: Mfn, to: Mfn);

    /// Makes a page zero that is mapped and that the guest has given back. Says whether it was.
    fn scrub(&mut self, gfn: Gfn, mfn: Mfn) -> Content;

    /// A superpage that is all zero goes to the cache: until it is mapped again nobody looks at it,
    /// and the machine may take back what stands behind it, or make it whole again.
    fn park(&mut self, mfn: Mfn) {
        let _ = mfn;
    }

    /// A frame of the domain's that nothing maps is broken (rule [R17]): it is nobody's from now
    /// on, and never given out again.
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

    /// The domain. Where threads share it, this takes the lock if the thread has not got it.
    fn domain(&mut self) -> &mut Domain;

    /// Works on the machine. Where threads share the domain, its lock is not held meanwhile.
    fn machine<R>(&mut self, work: impl FnOnce(&mut Self::Machine) -> R) -> R;

    /// Something happened. Called with the domain in the state after it.
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
    /// Brings both together.
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
