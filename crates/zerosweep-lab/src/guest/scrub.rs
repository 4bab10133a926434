//! `scrub`: the guest with which Xen's figures were made.
//!
//! It touches every page in ascending order and leaves zeros, or a 1 at the start of those pages
//! that stay dirty; then its balloon gives everything above the target back, ascending. With
//! `clustered` whole superpages are dirty or clean. Source: this project's measurements of Xen's
//! own code, which assert every figure; nothing in it is random but which pages stay dirty.

use zerosweep_sim::splitmix64;

use super::plan::{Plan, Shape, Split};

/// A guest that scrubs all of its memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scrub {
    /// How many of a hundred pages stay dirty.
    pub dirty_percent: u64,
    /// Whether whole superpages are dirty or clean, rather than each page for itself.
    pub clustered: bool,
}

impl Scrub {
    /// Whether a page stays dirty.
    #[must_use]
    pub fn is_dirty(&self, seed: u64, page: u64) -> bool {
        let drawn = if self.clustered { page >> 9 } else { page };
        splitmix64(seed.wrapping_add(drawn)) % 100 < self.dirty_percent
    }

    pub(super) fn plan(&self, shape: &Shape) -> Plan {
        let mut plan = Plan::new(*shape, Split::Ranges);
        for page in 0..shape.max_pages {
            if self.is_dirty(shape.seed, page) {
                plan.store(page, 0, 1);
            } else {
                plan.zero(page..page + 1);
            }
        }
        plan.give_back(shape.target_pages..shape.max_pages);
        plan
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clustered_guest_dirties_whole_superpages() {
        let guest = Scrub { dirty_percent: 5, clustered: true };
        let dirty = |page| guest.is_dirty(7777, page);
        assert!((0..1 << 20).all(|page| dirty(page) == dirty(page >> 9 << 9)));
        assert_eq!((0..2048).filter(|n| dirty(n << 9)).count(), 106);
    }
}
