//! Linux' page allocator, as far as it decides which page comes next.
//!
//! Free lists a power of two from 4 KiB to 4 MiB (`MAX_PAGE_ORDER` is 10). At boot memblock hands
//! all free memory over in ascending blocks that go to the tails of the lists
//! (`__free_pages_core`, `FPI_TO_TAIL`). A page comes from the smallest block that is there; a
//! larger one is halved, its upper half goes to the list below, its lower half is halved on
//! (`expand`). A page that is freed merges with its buddy as far as it can and goes to the head of
//! its list (`__free_one_page`): the page freed last is used first.
//!
//! Left out: zones, migration types, the per-CPU lists (they only batch what is the same order),
//! and compaction.

use std::collections::VecDeque;
use std::ops::Range;

/// The order of the largest blocks.
const MAX_ORDER: u8 = 10;
/// No free block begins at this page.
const NONE: u8 = u8::MAX;

/// Who has which page of a guest.
pub(super) struct Buddy {
    /// The order of the free block that begins at a page.
    free: Vec<u8>,
    /// First pages, next first; an entry counts only if `free` says the same.
    lists: [VecDeque<u64>; MAX_ORDER as usize + 1],
}

impl Buddy {
    /// All `pages` are in use.
    pub(super) fn new(pages: u64) -> Self {
        Self { free: vec![NONE; pages as usize], lists: Default::default() }
    }

    /// Hands a range over at boot.
    pub(super) fn release(&mut self, range: Range<u64>) {
        let mut at = range.start;
        while at < range.end {
            let fits = |order: &u8| at.is_multiple_of(1 << order) && at + (1 << order) <= range.end;
            let order = (0..=MAX_ORDER).rev().find(fits).unwrap_or(0);
            self.free[at as usize] = order;
            self.lists[order as usize].push_back(at);
            at += 1 << order;
        }
    }

    /// The next page, if one is free.
    pub(super) fn allocate(&mut self) -> Option<u64> {
        let (first, order) = (0..=MAX_ORDER).find_map(|order| Some((self.pop(order)?, order)))?;
        for half in (0..order).rev() {
            let upper = first + (1 << half);
            self.free[upper as usize] = half;
            self.lists[half as usize].push_front(upper);
        }
        Some(first)
    }

    /// A page is no longer used.
    pub(super) fn free(&mut self, page: u64) {
        let (mut first, mut order) = (page, 0);
        while order < MAX_ORDER {
            let buddy = first ^ (1 << order);
            if self.free.get(buddy as usize) != Some(&order) {
                break;
            }
            self.free[buddy as usize] = NONE;
            first = first.min(buddy);
            order += 1;
        }
        self.free[first as usize] = order;
        self.lists[order as usize].push_front(first);
    }

    fn pop(&mut self, order: u8) -> Option<u64> {
        while let Some(first) = self.lists[order as usize].pop_front() {
            if self.free[first as usize] == order {
                self.free[first as usize] = NONE;
                return Some(first);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fresh_memory_comes_in_ascending_order() {
        let mut buddy = Buddy::new(5000);
        buddy.release(0..5000);
        // The odd end is in smaller blocks, and smaller blocks come first.
        let all: Vec<u64> = std::iter::from_fn(|| buddy.allocate()).collect();
        assert_eq!(all.len(), 5000);
        assert_eq!(all[..8], [4992, 4993, 4994, 4995, 4996, 4997, 4998, 4999]);
        assert!(all[904..].iter().copied().eq(0..4096));
    }

    #[test]
    fn the_page_freed_last_is_used_first() {
        let mut buddy = Buddy::new(1024);
        buddy.release(0..1024);
        let taken: Vec<u64> = (0..8).filter_map(|_| buddy.allocate()).collect();
        buddy.free(taken[2]);
        buddy.free(taken[5]);
        assert_eq!(buddy.allocate(), Some(5));
        assert_eq!(buddy.allocate(), Some(2));
        assert_eq!(buddy.allocate(), Some(8));
    }

    #[test]
    fn buddies_merge_to_whole_blocks() {
        let mut buddy = Buddy::new(2048);
        buddy.release(0..2048);
        let taken: Vec<u64> = std::iter::from_fn(|| buddy.allocate()).collect();
        for &page in taken.iter().rev() {
            buddy.free(page);
        }
        assert_eq!(buddy.free[0], MAX_ORDER);
        assert_eq!(std::iter::from_fn(|| buddy.allocate()).count(), 2048);
    }
}
