//! Rings of what was populated recently: for eager checks, and for what a sweep leaves alone.

use crate::frame::{Gfn, Order, Superpage};

/// A range that was populated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Recent {
    pub(crate) gfn: Gfn,
    pub(crate) order: Order,
}

/// `N` places that are overwritten in turn.
pub(crate) struct Ring<const N: usize> {
    slots: [Option<Recent>; N],
    next: usize,
}

impl<const N: usize> Default for Ring<N> {
    fn default() -> Self {
        Self { slots: [None; N], next: 0 }
    }
}

impl<const N: usize> Ring<N> {
    pub(crate) const LEN: usize = N;

    /// Writes to the next place, and returns what was there.
    pub(crate) fn record(&mut self, recent: Recent) -> Option<Recent> {
        let old = self.slots[self.next].replace(recent);
        self.next = (self.next + 1) % N;
        old
    }

    /// Whether a range that begins at `gfn` is here.
    pub(crate) fn contains(&self, gfn: Gfn) -> bool {
        self.slots.iter().flatten().any(|recent| recent.gfn == gfn)
    }

    /// Empties the place `ahead` of the one that the next record will overwrite.
    pub(crate) fn take(&mut self, ahead: usize) -> Option<Recent> {
        self.slots[(self.next + ahead) % N].take()
    }
}

/// The pages that the last faults populated.
///
/// One instruction may need several pages at once, and all of them may be zero (it copies zeros,
/// say). If the search for a frame took one of them for the next, the guest would go round for ever
/// where it should have been told that there is nothing left. So when a page is missed again that
/// was populated a moment ago, these are left alone for a while.
#[derive(Default)]
pub(crate) struct Touched {
    pages: [Gfn; Self::LEN],
    count: usize,
    /// They are left alone until this count of populated pages.
    guarded_until: usize,
}

impl Touched {
    const LEN: usize = 16;

    pub(crate) fn record(&mut self, gfn: Gfn) {
        self.pages[self.count % Self::LEN] = gfn;
        self.count += 1;
    }

    /// A page is to be populated.
    pub(crate) fn note_miss(&mut self, gfn: Gfn) {
        if self.pages().contains(&gfn) {
            self.guarded_until = self.count + Self::LEN;
        }
    }

    /// Whether a search must leave this page alone.
    pub(crate) fn guards(&self, gfn: Gfn) -> bool {
        self.is_on_guard() && self.pages().contains(&gfn)
    }

    /// Whether a search must leave a page of this superpage alone.
    pub(crate) fn guards_any_of(&self, superpage: Superpage) -> bool {
        self.is_on_guard() && self.pages().iter().any(|gfn| gfn.superpage() == superpage)
    }

    pub(crate) fn forget(&mut self) {
        *self = Self::default();
    }

    fn is_on_guard(&self) -> bool {
        self.count < self.guarded_until
    }

    fn pages(&self) -> &[Gfn] {
        &self.pages[..self.count.min(Self::LEN)]
    }
}

/// Each policy's ring.
#[derive(Default)]
pub(crate) struct Rings {
    pub(crate) xen_2012: Ring<128>,
    pub(crate) xen_2016: Ring<32>,
    pub(crate) zerosweep: Ring<16>,
    pub(crate) touched: Touched,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_comes_out() {
        let mut ring = Ring::<2>::default();
        let recent = |n| Recent { gfn: Gfn::new(n), order: Order::PAGE };
        assert_eq!(ring.record(recent(1)), None);
        assert_eq!(ring.record(recent(2)), None);
        assert_eq!(ring.record(recent(3)), Some(recent(1)));
        assert_eq!(ring.take(0), Some(recent(2)));
        assert_eq!(ring.take(0), None);
        assert_eq!(ring.take(1), Some(recent(3)));
    }

    #[test]
    fn a_page_that_is_missed_again_puts_the_last_ones_on_guard() {
        let mut touched = Touched::default();
        (0..20).for_each(|n| touched.record(Gfn::new(n * 1000)));
        touched.note_miss(Gfn::new(3000));
        assert!(!touched.guards(Gfn::new(19_000)), "it was long ago");
        touched.note_miss(Gfn::new(4000));
        assert!(!touched.guards(Gfn::new(3000)) && touched.guards(Gfn::new(4000)));
        assert!(touched.guards_any_of(Gfn::new(19_001).superpage()));
        assert!(!touched.guards_any_of(Gfn::new(0).superpage()));
        (20..36).for_each(|n| touched.record(Gfn::new(n * 1000)));
        assert!(!touched.guards(Gfn::new(35_000)), "for a while");
        touched.note_miss(Gfn::new(35_000));
        touched.forget();
        assert!(!touched.guards(Gfn::new(35_000)));
    }
}
