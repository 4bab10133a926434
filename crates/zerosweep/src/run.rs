//! Runs of frames that an operation holds.
//!
//! A frame is in one place ([INV-1]): with the host, in the cache, in an entry of the table, or in
//! the hands of one operation. The last is a [`Run`]: not `Copy`, and the compiler warns where one
//! is dropped. What was unmapped and not yet flushed is [`Unflushed`]: a CPU may still write to it,
//! so nobody can scan, copy or clear it before a flush.
//!
//! ```text
//!  entry ──unmap──► Unflushed ──flush──► Run ──put──► cache
//!    ▲                                    │ ├─free──► host
//!    └────────────────map─────────────────┘ ◄─take, allocate── cache, host
//! ```
//!
//! [INV-1]: crate::rules#inv-1

use crate::frame::{Mfn, Order, SUPERPAGE_PAGES, Superframe};

/// A run in an operation's hands: mapped nowhere, and no CPU can reach it.
#[must_use = "a run in hand goes to the cache, to the host or to an entry"]
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Run {
    mfn: Mfn,
    order: Order,
}

impl Run {
    /// A run that was just taken from where it was.
    pub(crate) fn new(mfn: Mfn, order: Order) -> Self {
        debug_assert!(mfn.is_aligned(order.min(Order::SUPERPAGE)), "{mfn:?}");
        Self { mfn, order }
    }

    /// One frame that was just taken from where it was.
    pub(crate) fn page(mfn: Mfn) -> Self {
        Self::new(mfn, Order::PAGE)
    }

    /// A superframe that was just taken from where it was.
    pub(crate) fn superframe(superframe: Superframe) -> Self {
        Self::new(superframe.first(), Order::SUPERPAGE)
    }

    /// Its first frame.
    pub(crate) fn mfn(&self) -> Mfn {
        self.mfn
    }

    /// Its size.
    pub(crate) fn order(&self) -> Order {
        self.order
    }

    /// How many pages it has.
    pub(crate) fn pages(&self) -> u64 {
        self.order.pages()
    }

    /// Its frames, one by one.
    pub(crate) fn frames(&self) -> impl Iterator<Item = Mfn> + use<> {
        let mfn = self.mfn;
        (0..self.order.pages()).map(move |index| mfn.offset(index))
    }

    /// Breaks it up.
    pub(crate) fn into_pages(self) -> impl Iterator<Item = Self> {
        self.frames().map(Self::page)
    }

    /// Breaks one of several superpages up into superframes.
    pub(crate) fn into_superframes(self) -> impl Iterator<Item = Superframe> {
        (0..self.order.pages() / SUPERPAGE_PAGES)
            .map(move |index| self.mfn.offset(index * SUPERPAGE_PAGES).superframe())
    }

    /// It goes to an entry of the table, or into a list that is the operation's own.
    pub(crate) fn into_mfn(self) -> Mfn {
        self.mfn
    }
}

/// A run that was unmapped. A CPU may reach it until the next flush.
#[must_use = "a run that was unmapped is to be flushed, and is in hand then"]
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unflushed(Run);

/// The proof of a flush: what was unmapped before it is out of every CPU's reach.
#[must_use = "what was unmapped before is in hand now"]
pub(crate) struct Flushed(());

impl Unflushed {
    /// A run that was just unmapped.
    pub(crate) fn new(mfn: Mfn, order: Order) -> Self {
        Self(Run::new(mfn, order))
    }

    /// The run, once no CPU can reach it.
    pub(crate) fn after(self, _: &Flushed) -> Run {
        self.0
    }

    /// Its first frame.
    pub(crate) fn mfn(&self) -> Mfn {
        self.0.mfn
    }

    /// Its size.
    pub(crate) fn order(&self) -> Order {
        self.0.order
    }
}

impl Flushed {
    /// Just after a flush of the machine.
    pub(crate) fn now() -> Self {
        Self(())
    }
}
