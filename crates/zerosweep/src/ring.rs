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
/// One instruction may need several pages at once, and all of them may be zero (it copies zeros, say).
/// If the search for a frame took one of them for the next, the guest would go round for ever
/// where it should have been told that there is nothing left.
#[derive(Default)]
pub(crate) struct Touched {
    pages: [Gfn; 16],
    count: usize,
}

impl Touched {
    pub(crate) fn record(&mut self, gfn: Gfn) {
        self.pages[self.count % self.pages.len()] = gfn;
        self.count += 1;
    }

    pub(crate) fn contains(&self, gfn: Gfn) -> bool {
        self.pages().contains(&gfn)
    }

    pub(crate) fn any_in(&self, superpage: Superpage) -> bool {
        self.pages().iter().any(|gfn| gfn.superpage() == superpage)
    }

    pub(crate) fn forget(&mut self) {
        self.count = 0;
    }

    fn pages(&self) -> &[Gfn] {
        &self.pages[..self.count.min(self.pages.len())]
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
    fn the_last_touches_are_known() {
        let mut touched = Touched::default();
        (0..20).for_each(|n| touched.record(Gfn::new(n * 1000)));
        assert!(!touched.contains(Gfn::new(3000)) && touched.contains(Gfn::new(4000)));
        assert!(touched.any_in(Gfn::new(19_001).superpage()));
        assert!(!touched.any_in(Gfn::new(0).superpage()));
        touched.forget();
        assert!(!touched.contains(Gfn::new(19_000)));
    }
}
