//! The PoD cache: the domain's own frames that back no gfn yet.
//!
//! Two first-in first-out lists, as Xen keeps them: superpages, and singles. A superpage is broken
//! only when a single is wanted and there is none.
//!
//! Invariant (INV-4): whoever puts a frame here has cleared it or has just found it zero.

use alloc::collections::VecDeque;

use crate::frame::{Mfn, Order, SUPERPAGE_PAGES};
use crate::p2m::OutOfTableMemory;

/// The frames that a domain holds and has not handed out.
#[derive(Default)]
pub struct Cache {
    superpages: VecDeque<Mfn>,
    singles: VecDeque<Mfn>,
}

impl Cache {
    /// Pages in the cache.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.superpages() * SUPERPAGE_PAGES + self.singles()
    }

    /// Whole superpages in the cache.
    #[must_use]
    pub fn superpages(&self) -> u64 {
        self.superpages.len() as u64
    }

    /// Singles in the cache.
    #[must_use]
    pub fn singles(&self) -> u64 {
        self.singles.len() as u64
    }

    /// Makes sure that `superpages` and `singles` more can be put in without asking for memory.
    ///
    /// # Errors
    /// When the memory cannot be had; nothing is changed then.
    pub fn reserve(&mut self, superpages: u64, singles: u64) -> Result<(), OutOfTableMemory> {
        let grow = |list: &mut VecDeque<Mfn>, more: u64| {
            usize::try_from(more).ok().and_then(|more| list.try_reserve(more).ok())
        };
        grow(&mut self.superpages, superpages)
            .and_then(|()| grow(&mut self.singles, singles))
            .ok_or(OutOfTableMemory)
    }

    /// Puts in a run: superpages of an order ≥ 9, singles of a smaller one.
    ///
    /// The caller has [reserved](Cache::reserve) room where it cannot do without.
    pub fn put(&mut self, mfn: Mfn, order: Order) {
        if order >= Order::SUPERPAGE {
            debug_assert!(mfn.is_aligned(Order::SUPERPAGE));
            let steps = order.pages() / SUPERPAGE_PAGES;
            self.superpages.extend((0..steps).map(|i| mfn.offset(i * SUPERPAGE_PAGES)));
        } else {
            self.singles.extend((0..order.pages()).map(|i| mfn.offset(i)));
        }
    }

    /// Takes the oldest superpage.
    pub fn take_superpage(&mut self) -> Option<Mfn> {
        self.superpages.pop_front()
    }

    /// Takes the oldest single; breaks the oldest superpage if there is none.
    pub fn take_single(&mut self) -> Option<Mfn> {
        if self.singles.is_empty() && self.singles.try_reserve(SUPERPAGE_PAGES as usize).is_ok() {
            let broken = self.superpages.pop_front()?;
            self.singles.extend((0..SUPERPAGE_PAGES).map(|i| broken.offset(i)));
        }
        self.singles.pop_front()
    }

    /// Every run in the cache, with its order.
    pub fn iter(&self) -> impl Iterator<Item = (Mfn, Order)> + '_ {
        let superpages = self.superpages.iter().map(|&mfn| (mfn, Order::SUPERPAGE));
        superpages.chain(self.singles.iter().map(|&mfn| (mfn, Order::PAGE)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_superpage_is_broken_only_for_want_of_a_single_and_in_ascending_order() {
        let mut cache = Cache::default();
        cache.put(Mfn::new(512), Order::SUPERPAGE);
        cache.put(Mfn::new(7), Order::PAGE);
        assert_eq!(cache.take_single(), Some(Mfn::new(7)));
        assert_eq!(cache.take_single(), Some(Mfn::new(512)));
        assert_eq!(cache.take_single(), Some(Mfn::new(513)));
        assert_eq!(cache.take_superpage(), None);
        assert_eq!(cache.pages(), 510);
    }

    #[test]
    fn runs_go_to_the_list_of_their_size() {
        let mut cache = Cache::default();
        cache.put(Mfn::new(0), Order::new(10).unwrap());
        cache.put(Mfn::new(2048), Order::new(3).unwrap());
        assert_eq!((cache.superpages(), cache.singles()), (2, 8));
        assert_eq!(cache.iter().count(), 10);
    }
}
