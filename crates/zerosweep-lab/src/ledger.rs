//! What a guest knows to be in its memory, and what follows from that alone.

use std::sync::atomic::{AtomicU64, Ordering};

use zerosweep::{Gfn, PAGE_BYTES, SUPERPAGE_PAGES};

use crate::guest::{Plan, Store};

/// What must be found in a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Anything: the guest has given it back.
    GivenBack,
    /// Zeros.
    Zero,
    /// One word, and zeros.
    Word {
        /// Which one.
        word: u16,
        /// Its value.
        value: u64,
    },
}

/// The content of every page, kept by the guest's own threads: each page by one of them.
pub struct Ledger {
    pages: Vec<AtomicU64>,
}

/// Bits of a value; the word's number is above.
const VALUE_BITS: u32 = 55;
const GIVEN_BACK: u64 = u64::MAX;

impl Ledger {
    /// All pages are zero.
    #[must_use]
    pub fn new(pages: u64) -> Self {
        Self { pages: (0..pages).map(|_| AtomicU64::new(0)).collect() }
    }

    /// A word is written. Of two that are not zero only the later is remembered.
    pub fn note(&self, store: &Store) {
        let Some(page) = self.pages.get(store.gfn.raw() as usize) else { return };
        let word = u64::from(store.word) << VALUE_BITS;
        if store.value != 0 {
            page.store(word | store.value, Ordering::Relaxed);
        } else if page.load(Ordering::Relaxed) >> VALUE_BITS << VALUE_BITS == word {
            page.store(0, Ordering::Relaxed);
        }
    }

    /// A page is given back.
    pub fn give_back(&self, gfn: Gfn) {
        if let Some(page) = self.pages.get(gfn.raw() as usize) {
            page.store(GIVEN_BACK, Ordering::Relaxed);
        }
    }

    /// What must be in a page.
    #[must_use]
    pub fn expected(&self, gfn: Gfn) -> Expected {
        let page = self.pages.get(gfn.raw() as usize).map(|page| page.load(Ordering::Relaxed));
        match page {
            None | Some(GIVEN_BACK) => Expected::GivenBack,
            Some(0) => Expected::Zero,
            Some(page) => Expected::Word {
                word: (page >> VALUE_BITS) as u16,
                value: page & ((1 << VALUE_BITS) - 1),
            },
        }
    }

    /// The pages that have something in them.
    pub fn live(&self) -> impl Iterator<Item = Gfn> + '_ {
        let gfns = (0..self.pages.len() as u64).map(Gfn::new);
        gfns.filter(|&gfn| matches!(self.expected(gfn), Expected::Word { .. }))
    }
}

/// The best that any policy could have done for a guest, from what the guest itself writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limit {
    /// Superpages of the target that could be free at the end, in the cache or with the host: the
    /// pages with something in them would lie side by side. No policy that cannot move pages gets
    /// there when they are scattered.
    pub superpages_free: u64,
    /// The least number of bytes that must be scanned. Before the guest gives anything back, it
    /// writes to this much more than the target. Only a scan shows that the content is zero.
    pub bytes_scanned: u64,
}

impl Limit {
    /// For a guest that gets to its end.
    #[must_use]
    pub fn of(plan: &Plan) -> Self {
        let shape = plan.shape();
        let ledger = Ledger::new(shape.max_pages);
        let mut touched = vec![false; shape.max_pages as usize];
        for store in plan.boot() {
            touched[store.gfn.raw() as usize] = true;
            ledger.note(&store);
        }
        plan.balloon().iter().for_each(|&page| ledger.give_back(Gfn::new(page)));
        let touched = touched.into_iter().filter(|&touched| touched).count() as u64;
        let live = ledger.live().count() as u64;
        let frames = shape.target_pages.next_multiple_of(SUPERPAGE_PAGES);
        Self {
            superpages_free: frames.saturating_sub(live) / SUPERPAGE_PAGES,
            bytes_scanned: touched.saturating_sub(shape.target_pages) * PAGE_BYTES,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::{Guest, Shape};

    #[test]
    fn the_later_word_counts_and_only_its_own_zero_removes_it() {
        let ledger = Ledger::new(1);
        let gfn = Gfn::new(0);
        let store = |word, value| ledger.note(&Store { gfn, word, value });
        store(511, 1);
        store(510, 7);
        store(511, 0);
        assert_eq!(ledger.expected(gfn), Expected::Word { word: 510, value: 7 });
        store(510, 0);
        assert_eq!(ledger.expected(gfn), Expected::Zero);
        ledger.give_back(gfn);
        assert_eq!(ledger.expected(gfn), Expected::GivenBack);
        assert_eq!(ledger.expected(Gfn::new(1)), Expected::GivenBack);
    }

    #[test]
    fn limits() {
        let shape = Shape { max_pages: 1 << 20, target_pages: 1 << 18, vcpus: 1, seed: 7777 };
        let limit = |name: &str| Limit::of(&name.parse::<Guest>().unwrap().plan(&shape));
        assert_eq!(limit("scrub"), Limit { superpages_free: 512, bytes_scanned: 3 << 30 });
        // One page in each of 512 superpages is left, and fits into one.
        assert_eq!(limit("hostile").superpages_free, 511);
        assert_eq!(limit("linux").bytes_scanned, 0);
        assert_eq!(limit("linux-scrub").bytes_scanned, 3 << 30);
        assert!(limit("churn").superpages_free < limit("linux").superpages_free);
    }
}
