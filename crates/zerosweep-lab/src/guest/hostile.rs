//! `hostile`: defeats a zero check that remembers, and one that does not.
//!
//! It scrubs all of its memory, but each superpage keeps one non-zero byte where a check looks
//! last. In most superpages this is the sixteenth word of the last page, where a quick check ends.
//! In one of `deep` superpages it is the last word of all, so that a full check reads two megabytes
//! of zeros for nothing. A policy that remembers where a check failed looks there first. So with
//! every superpage that the guest touches, it moves the byte of some earlier ones to the word
//! before, or back, and leaves a zero where the byte was. Its balloon ascends. Source: the attacks
//! on Xen's emergency sweep (XSA-150) and on the hint of rule [R10]; no real guest does this.
//!
//! [R10]: zerosweep::rules#r10

use zerosweep::{PAGE_BYTES, QUICK_CHECK_WORDS, SUPERPAGE_PAGES};

use super::plan::{Plan, Shape, Split};

/// A guest that makes checks as expensive as possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hostile {
    /// How many earlier superpages change when one is touched.
    pub moves: u64,
    /// One in `deep` superpages has its byte where a full check looks last; at least 1.
    pub deep: u64,
}

impl Default for Hostile {
    fn default() -> Self {
        Self { moves: 4, deep: 8 }
    }
}

/// Where a quick check of a page looks last.
const QUICK_LAST: u16 = QUICK_CHECK_WORDS as u16 - 1;
/// Where a full check looks last.
const FULL_LAST: u16 = (PAGE_BYTES / 8 - 1) as u16;
/// Superpages between two that change together: beyond any policy's ring of recent ones.
const STRIDE: u64 = 37;

impl Hostile {
    pub(super) fn plan(&self, shape: &Shape) -> Plan {
        let mut plan = Plan::new(*shape, Split::InTurn);
        let superpages = shape.max_pages.div_ceil(SUPERPAGE_PAGES);
        let last_page = |n: u64| ((n + 1) * SUPERPAGE_PAGES).min(shape.max_pages) - 1;
        let last_word = |n: u64| match n % self.deep.max(1) {
            0 => FULL_LAST,
            _ => QUICK_LAST,
        };
        let mut words: Vec<u16> = (0..superpages).map(last_word).collect();
        for n in 0..superpages {
            plan.zero(n * SUPERPAGE_PAGES..last_page(n) + 1);
            plan.store(last_page(n), last_word(n), 1);
            for earlier in (1..=self.moves).map_while(|k| n.checked_sub(k * STRIDE)) {
                let old = words[earlier as usize];
                let new = last_word(earlier) * 2 - 1 - old;
                words[earlier as usize] = new;
                plan.store(last_page(earlier), new, 1);
                plan.store(last_page(earlier), old, 0);
            }
        }
        plan.give_back(shape.target_pages..shape.max_pages);
        plan
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn each_superpage_keeps_exactly_one_word_at_its_end() {
        let shape = Shape { max_pages: 512 * 200, target_pages: 512, vcpus: 1, seed: 0 };
        let mut words = HashMap::new();
        for store in Hostile::default().plan(&shape).boot() {
            words.insert((store.gfn.raw(), store.word), store.value);
        }
        words.retain(|_, value| *value != 0);
        assert_eq!(words.len(), 200);
        assert!(
            words
                .keys()
                .all(|&(page, word)| page % 512 == 511 && [14, 15, 510, 511].contains(&word))
        );
        let deep = words.keys().filter(|&&(_, word)| word >= 510).count();
        assert_eq!(deep, 25);
        assert!(words.keys().any(|&(_, word)| word == 14));
    }
}
