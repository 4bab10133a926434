//! The pattern in memory: every 8-byte word depends on seed, generation, page and position, so
//! that a page that is lost, moved, doubled or out of date cannot pass for the right one.

/// 8-byte words in a page.
pub(crate) const WORDS: usize = 512;

/// The finaliser of Sebastiano Vigna's splitmix64.
pub(crate) fn splitmix64(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The words of one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PagePattern {
    base: u64,
}

impl PagePattern {
    /// The pattern of page number `page` in pass `generation`.
    pub(crate) fn new(seed: u64, generation: u64, page: u64) -> Self {
        Self { base: splitmix64(splitmix64(splitmix64(seed) ^ generation) ^ page) }
    }

    /// The word number `index` of the page.
    pub(crate) fn word(self, index: usize) -> u64 {
        splitmix64(self.base ^ index as u64)
    }
}

/// A small generator for sizes and orders.
#[derive(Debug)]
pub(crate) struct Generator {
    state: u64,
}

impl Generator {
    /// A generator that gives the same numbers for the same seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self { state: splitmix64(seed) }
    }

    /// A number below `bound`, which is not zero.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        splitmix64(self.state) % bound
    }

    /// Brings `items` into a random order.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_hash_is_splitmix64() {
        assert_eq!(splitmix64(0), 0xe220_a839_7b1d_cdaf);
        assert_eq!(splitmix64(7777), 0x62cc_b525_6c6f_ec02);
    }

    #[test]
    fn every_word_differs_by_seed_generation_page_and_position() {
        let mut seen = HashSet::new();
        for (seed, generation, page) in
            [(1, 0, 0), (2, 0, 0), (1, 1, 0), (1, 0, 1), (1, 0, 2), (2, 1, 0)]
        {
            let pattern = PagePattern::new(seed, generation, page);
            for index in 0..WORDS {
                assert!(seen.insert(pattern.word(index)), "{seed} {generation} {page} {index}");
            }
        }
        assert!(!seen.contains(&0));
    }

    #[test]
    fn a_shuffle_keeps_every_item_and_follows_the_seed() {
        let shuffled = |seed| {
            let mut items: Vec<u32> = (0..100).collect();
            Generator::new(seed).shuffle(&mut items);
            items
        };
        assert_eq!(shuffled(3), shuffled(3));
        assert_ne!(shuffled(3), shuffled(4));
        let mut sorted = shuffled(3);
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
    }
}
