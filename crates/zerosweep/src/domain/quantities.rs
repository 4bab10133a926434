//! What a domain holds and owes.
//!
//! The symbols are those of the [glossary](crate::glossary#quantities).

/// The quantities of a domain, in pages.
///
/// `populated + entries` is B, what the guest has; `populated + cache + retained` is the total,
/// what the domain holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Quantities {
    /// M.
    pub max: u64,
    /// T.
    pub target: u64,
    /// P: pages with a frame.
    pub populated: u64,
    /// B − P: pages promised without one.
    pub entries: u64,
    /// Frames that back nothing.
    pub cache: u64,
    /// R: pages out whose frame stays in its superpage.
    pub retained: u64,
}

impl Quantities {
    /// P + cache + R.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.populated + self.cache + self.retained
    }

    /// B: what the guest has not given back.
    #[must_use]
    pub fn guest(&self) -> u64 {
        self.populated + self.entries
    }

    /// entries − cache − R: what must be found before everything promised is backed.
    #[must_use]
    pub fn debt(&self) -> i64 {
        self.entries as i64 - self.cache as i64 - self.retained as i64
    }

    /// Frames in the cache that back no promised page.
    #[must_use]
    pub fn excess(&self) -> u64 {
        (self.cache + self.retained).saturating_sub(self.entries).min(self.cache)
    }

    /// How far the total is above the target once the [excess](Quantities::excess) is returned.
    #[must_use]
    pub fn above_target(&self) -> u64 {
        (self.total() - self.excess()).saturating_sub(self.target)
    }

    /// B − T: pages that the guest has still to give back.
    #[must_use]
    pub fn owed(&self) -> i64 {
        self.guest() as i64 - self.target as i64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_what_their_equations_say() {
        let quantities = |target, populated, entries, cache, retained| Quantities {
            max: 100,
            target,
            populated,
            entries,
            cache,
            retained,
        };
        let in_debt = quantities(40, 20, 30, 12, 5);
        assert_eq!((in_debt.total(), in_debt.guest(), in_debt.debt()), (37, 50, 13));
        assert_eq!((in_debt.excess(), in_debt.above_target(), in_debt.owed()), (0, 0, 10));
        let in_excess = quantities(24, 20, 10, 12, 5);
        assert_eq!((in_excess.debt(), in_excess.excess()), (-7, 7));
        assert_eq!((in_excess.above_target(), in_excess.owed()), (6, 6));
        let all_of_the_cache = quantities(80, 20, 3, 12, 5);
        assert_eq!((all_of_the_cache.excess(), all_of_the_cache.owed()), (12, -57));
    }
}
