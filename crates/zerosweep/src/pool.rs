//! A fixed pool of machine frames, as a host would give them out.
//!
//! For machines to build on: it knows which frames are with the host and which are out, keeps
//! superframes whole as long as it can, and puts them together again. It holds no memory.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::error::OutOfTableMemory;
use crate::frame::{Mfn, Order, SUPERPAGE_PAGES, Superframe};
use crate::machine::OutOfFrames;
use crate::page_bits::PageBits;

/// The frames of a machine, and which of them are free.
pub struct FramePool {
    /// Superframes that are wholly here, oldest first.
    whole: VecDeque<u32>,
    /// Superframes of which some pages are here, in no order.
    partial: Vec<u32>,
    frames: Vec<Entry>,
    free_pages: u64,
}

#[derive(Clone, Copy)]
struct Entry {
    /// The frames that are here, and how many these are.
    here: PageBits,
    count: u16,
    /// Its index in `partial`, or [`NOWHERE`].
    slot: u32,
}

impl Entry {
    const EMPTY: Self = Self { here: PageBits::EMPTY, count: 0, slot: NOWHERE };
    const WHOLE: Self = Self { here: PageBits::ALL, count: 512, slot: NOWHERE };
}

const NOWHERE: u32 = u32::MAX;

impl FramePool {
    /// A pool of `superpages` superframes, all here, given out in ascending order.
    ///
    /// # Errors
    /// When there is no memory for its tables.
    pub fn new(superpages: u32) -> Result<Self, OutOfTableMemory> {
        let count = superpages as usize;
        let (mut whole, mut partial, mut frames) = (VecDeque::new(), Vec::new(), Vec::new());
        whole.try_reserve_exact(count).map_err(|_| OutOfTableMemory)?;
        partial.try_reserve_exact(count).map_err(|_| OutOfTableMemory)?;
        frames.try_reserve_exact(count).map_err(|_| OutOfTableMemory)?;
        whole.extend(0..superpages);
        frames.resize(count, Entry::WHOLE);
        let free_pages = u64::from(superpages) * SUPERPAGE_PAGES;
        Ok(Self { whole, partial, frames, free_pages })
    }

    /// Pages that are here.
    #[must_use]
    pub fn free_pages(&self) -> u64 {
        self.free_pages
    }

    /// Superframes that are wholly here.
    #[must_use]
    pub fn free_superpages(&self) -> u64 {
        self.whole.len() as u64
    }

    /// Superframes of which at least a page is out.
    #[must_use]
    pub fn superpages_out(&self) -> u64 {
        self.frames.len() as u64 - self.free_superpages()
    }

    /// Whether all of a superframe is here.
    #[must_use]
    pub fn is_wholly_free(&self, superframe: Superframe) -> bool {
        self.frames.get(superframe.index()).is_some_and(|f| f.count == 512)
    }

    /// Whether all of a superframe is out.
    #[must_use]
    pub fn is_wholly_out(&self, superframe: Superframe) -> bool {
        self.frames.get(superframe.index()).is_some_and(|f| f.count == 0)
    }

    /// Gives out a page or a superframe. Pages come from superframes that are broken already.
    ///
    /// # Errors
    /// When there is none of that order.
    pub fn allocate(&mut self, order: Order) -> Result<Mfn, OutOfFrames> {
        if order == Order::SUPERPAGE {
            let n = self.whole.pop_front().ok_or(OutOfFrames)?;
            self.frames[n as usize] = Entry::EMPTY;
            self.free_pages -= SUPERPAGE_PAGES;
            return Ok(Superframe::new(u64::from(n)).first());
        }
        if order != Order::PAGE {
            return Err(OutOfFrames);
        }
        if self.partial.is_empty() {
            let n = self.whole.pop_front().ok_or(OutOfFrames)?;
            self.add_partial(n);
        }
        let n = *self.partial.last().ok_or(OutOfFrames)?;
        self.take_page(n)
    }

    /// Gives out a page of a superframe that is broken already.
    ///
    /// # Errors
    /// When none of it is here, or all.
    pub fn allocate_in(&mut self, superframe: Superframe) -> Result<Mfn, OutOfFrames> {
        let n = u32::try_from(superframe.number()).map_err(|_| OutOfFrames)?;
        match self.frames.get(n as usize) {
            Some(frame) if frame.slot != NOWHERE => self.take_page(n),
            _ => Err(OutOfFrames),
        }
    }

    fn take_page(&mut self, n: u32) -> Result<Mfn, OutOfFrames> {
        let frame = &mut self.frames[n as usize];
        let index = frame.here.take_first().ok_or(OutOfFrames)?;
        frame.count -= 1;
        if frame.count == 0 {
            self.remove_partial(n);
        }
        self.free_pages -= 1;
        Ok(Superframe::new(u64::from(n)).frame(index))
    }

    /// Takes a page or a superframe back. False, and nothing changes, if it was here already.
    #[must_use = "a frame that comes back twice is a defect"]
    pub fn free(&mut self, mfn: Mfn, order: Order) -> bool {
        let Some(frame) = self.frames.get_mut(mfn.superframe().index()) else { return false };
        let n = mfn.superframe().number() as u32;
        if order == Order::SUPERPAGE {
            if frame.count != 0 {
                return false;
            }
            *frame = Entry::WHOLE;
            self.whole.push_back(n);
            self.free_pages += SUPERPAGE_PAGES;
            return true;
        }
        if !frame.here.insert(mfn.index_in_superframe()) {
            return false;
        }
        frame.count += 1;
        self.free_pages += 1;
        match frame.count {
            1 => self.add_partial(n),
            512 => {
                self.remove_partial(n);
                self.whole.push_back(n);
            }
            _ => {}
        }
        true
    }

    fn add_partial(&mut self, n: u32) {
        self.frames[n as usize].slot = self.partial.len() as u32;
        self.partial.push(n);
    }

    fn remove_partial(&mut self, n: u32) {
        let slot = core::mem::replace(&mut self.frames[n as usize].slot, NOWHERE);
        if slot == NOWHERE {
            return;
        }
        self.partial.swap_remove(slot as usize);
        if let Some(&moved) = self.partial.get(slot as usize) {
            self.frames[moved as usize].slot = slot;
        }
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
