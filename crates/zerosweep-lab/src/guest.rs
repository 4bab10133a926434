//! Guest models.
//!
//! [`Scrub`] is the one with which Xen's figures were made: it touches every page in ascending
//! order and leaves zeros, or a 1 at the start of those pages that stay dirty; then its balloon
//! gives everything above the target back, 4 KiB at a time.

use std::fmt;

/// A guest that scrubs all of its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scrub {
    /// How many of a hundred pages stay dirty.
    pub dirty_percent: u64,
    /// Whether whole superpages are dirty or clean, rather than each page for itself.
    pub clustered: bool,
    /// Which ones: 7777 in the published figures.
    pub seed: u64,
}

impl Scrub {
    /// The seed of the published figures.
    pub const SEED: u64 = 7777;

    /// What the guest leaves in the first word of a page.
    #[must_use]
    pub fn value(&self, page: u64) -> u64 {
        let drawn = if self.clustered { page >> 9 } else { page };
        u64::from(splitmix64(self.seed + drawn) % 100 < self.dirty_percent)
    }
}

impl fmt::Display for Scrub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "scrub:dirty_percent={}", self.dirty_percent)?;
        if self.clustered { f.write_str(",clustered") } else { Ok(()) }
    }
}

/// Steele, Lea and Flood's generator, one step from `x`.
#[must_use]
pub fn splitmix64(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitmix64_is_the_published_one() {
        assert_eq!(splitmix64(7777), 0x62cc_b525_6c6f_ec02);
    }

    #[test]
    fn a_clustered_guest_dirties_whole_superpages() {
        let guest = Scrub { dirty_percent: 5, clustered: true, seed: Scrub::SEED };
        assert!((0..1 << 20).all(|page| guest.value(page) == guest.value(page >> 9 << 9)));
        assert_eq!((0..2048).filter(|n| guest.value(n << 9) == 1).count(), 106);
        assert_eq!(guest.to_string(), "scrub:dirty_percent=5,clustered");
    }
}
