//! A fixed pool of machine frames, as a host would give them out.
//!
//! For machines to build on: it knows which frames are with the host and which are out, keeps
//! superframes whole as long as it can, and puts them together again. It holds no memory.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::error::OutOfTableMemory;
use crate::frame::{Mfn, Order, SUPERPAGE_PAGES, Superframe};
use crate::machine::OutOfFrames;
use crate::superframes::PartialSuperframes;

/// The frames of a machine, and which of them are free.
pub struct FramePool {
    /// Superframes that are wholly here, oldest first, and for each superframe whether it is one.
    whole: VecDeque<Superframe>,
    is_whole: Vec<bool>,
    /// Superframes of which some pages are here.
    partial: PartialSuperframes,
}

impl FramePool {
    /// A pool of `superpages` superframes, all here, given out in ascending order.
    ///
    /// # Errors
    /// When there is no memory for its tables.
    pub fn new(superpages: u32) -> Result<Self, OutOfTableMemory> {
        let count = superpages as usize;
        let (mut whole, mut is_whole) = (VecDeque::new(), Vec::new());
        let mut partial = PartialSuperframes::default();
        whole.try_reserve_exact(count).map_err(|_| OutOfTableMemory)?;
        is_whole.try_reserve_exact(count).map_err(|_| OutOfTableMemory)?;
        partial.reserve_partials(count)?;
        if let Some(last) = superpages.checked_sub(1) {
            partial.reserve(Superframe::new(u64::from(last)))?;
        }
        whole.extend((0..u64::from(superpages)).map(Superframe::new));
        is_whole.resize(count, true);
        Ok(Self { whole, is_whole, partial })
    }

    /// Pages that are here.
    #[must_use]
    pub fn free_pages(&self) -> u64 {
        self.free_superpages() * SUPERPAGE_PAGES + self.partial.pages()
    }

    /// Superframes that are wholly here.
    #[must_use]
    pub fn free_superpages(&self) -> u64 {
        self.whole.len() as u64
    }

    /// Superframes of which at least a page is out.
    #[must_use]
    pub fn superpages_out(&self) -> u64 {
        self.is_whole.len() as u64 - self.free_superpages()
    }

    /// Whether all of a superframe is here.
    #[must_use]
    pub fn is_wholly_free(&self, superframe: Superframe) -> bool {
        self.is_whole.get(superframe.index()).is_some_and(|&whole| whole)
    }

    /// Whether all of a superframe is out.
    #[must_use]
    pub fn is_wholly_out(&self, superframe: Superframe) -> bool {
        let is_broken = self.is_whole.get(superframe.index()).is_some_and(|&whole| !whole);
        is_broken && !self.partial.has_any_of(superframe)
    }

    /// Gives out a page or a superframe. Pages come from superframes that are broken already.
    ///
    /// # Errors
    /// When there is none of that order.
    pub fn allocate(&mut self, order: Order) -> Result<Mfn, OutOfFrames> {
        if order == Order::SUPERPAGE {
            return self.take_whole().map(Superframe::first);
        }
        if order != Order::PAGE {
            return Err(OutOfFrames);
        }
        if self.partial.pages() == 0 {
            let superframe = self.take_whole()?;
            if self.partial.put_whole(superframe).is_err() {
                self.put_whole(superframe);
            }
        }
        self.partial.take().ok_or(OutOfFrames)
    }

    /// Gives out a page of a superframe that is broken already.
    ///
    /// # Errors
    /// When none of it is here, or all.
    pub fn allocate_in(&mut self, superframe: Superframe) -> Result<Mfn, OutOfFrames> {
        self.partial.take_in(superframe).ok_or(OutOfFrames)
    }

    /// Takes a page or a superframe back. False, and nothing changes, if it was here already.
    #[must_use = "a frame that comes back twice is a defect"]
    pub fn free(&mut self, mfn: Mfn, order: Order) -> bool {
        let superframe = mfn.superframe();
        if order == Order::SUPERPAGE {
            let is_out = self.is_wholly_out(superframe);
            if is_out {
                self.put_whole(superframe);
            }
            return is_out;
        }
        let is_ours = superframe.index() < self.is_whole.len();
        if !is_ours || self.is_wholly_free(superframe) || self.partial.contains(mfn) {
            return false;
        }
        if let Some(whole) = self.partial.put(mfn) {
            self.put_whole(whole);
        }
        true
    }

    fn take_whole(&mut self) -> Result<Superframe, OutOfFrames> {
        let superframe = self.whole.pop_front().ok_or(OutOfFrames)?;
        self.is_whole[superframe.index()] = false;
        Ok(superframe)
    }

    fn put_whole(&mut self, superframe: Superframe) {
        self.is_whole[superframe.index()] = true;
        self.whole.push_back(superframe);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn singles_come_home_to_a_whole_superframe() {
        let mut pool = FramePool::new(2).unwrap();
        let singles: Vec<_> = (0..600).map(|_| pool.allocate(Order::PAGE).unwrap()).collect();
        assert_eq!(singles[0], Mfn::new(0));
        assert_eq!(pool.free_superpages(), 0);
        assert_eq!(pool.allocate(Order::SUPERPAGE), Err(OutOfFrames));
        for mfn in singles {
            assert!(pool.free(mfn, Order::PAGE));
            assert!(!pool.free(mfn, Order::PAGE), "{mfn:?} twice");
        }
        assert_eq!((pool.free_superpages(), pool.free_pages()), (2, 1024));
    }

    #[test]
    fn a_page_of_a_certain_superframe_comes_from_what_is_broken() {
        let mut pool = FramePool::new(2).unwrap();
        assert_eq!(pool.allocate_in(Superframe::new(1)), Err(OutOfFrames), "it is whole");
        let first = pool.allocate(Order::PAGE).unwrap();
        assert_eq!(pool.allocate_in(first.superframe()), Ok(Mfn::new(first.raw() + 1)));
        assert_eq!(pool.allocate_in(Superframe::new(7)), Err(OutOfFrames));
        assert_eq!(pool.free_pages(), 1022);
    }

    #[test]
    fn what_is_here_and_what_is_out_of_each_superframe() {
        let mut pool = FramePool::new(3).unwrap();
        let whole =
            |pool: &FramePool| [0, 1, 2, 99].map(|n| pool.is_wholly_free(Superframe::new(n)));
        let out = |pool: &FramePool| [0, 1, 2, 99].map(|n| pool.is_wholly_out(Superframe::new(n)));
        assert_eq!((whole(&pool), out(&pool)), ([true, true, true, false], [false; 4]));
        assert_eq!(pool.superpages_out(), 0);
        assert_eq!(pool.allocate(Order::SUPERPAGE), Ok(Mfn::new(0)));
        assert_eq!(pool.superpages_out(), 1);
        assert_eq!(pool.allocate(Order::PAGE), Ok(Mfn::new(512)));
        assert_eq!(whole(&pool), [false, false, true, false]);
        assert_eq!(out(&pool), [true, false, false, false]);
        assert_eq!(pool.superpages_out(), 2);
    }

    #[test]
    fn an_empty_pool_says_so() {
        let mut pool = FramePool::new(1).unwrap();
        let mfn = pool.allocate(Order::SUPERPAGE).unwrap();
        assert_eq!(pool.allocate(Order::PAGE), Err(OutOfFrames));
        assert!(pool.free(mfn, Order::SUPERPAGE));
        assert!(!pool.free(mfn, Order::SUPERPAGE));
        assert!(!pool.free(Mfn::new(9999), Order::PAGE));
    }
}
