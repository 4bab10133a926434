//! The scrubbing guest under `xen-2016`: 4 GiB of which it may hold 1 GiB. Every figure is one
//! that Xen's own code gives for this guest.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use zerosweep::{Config, Entry, Gfn, Order, Policy, Superpage};
use zerosweep_sim::{SoftwareGuest, splitmix64};

const MAX_PAGES: u64 = 4 << 18;
const TARGET: u64 = 1 << 18;

fn boot(policy: Policy, dirty: impl Fn(u64) -> bool) -> SoftwareGuest {
    let mut guest = SoftwareGuest::new(Config::new(MAX_PAGES, TARGET, policy)).unwrap();
    for g in 0..MAX_PAGES {
        guest.write(Gfn::new(g), 0, u64::from(dirty(g))).unwrap();
    }
    guest.domain.audit().unwrap();
    guest
}

/// Superpage entries of ram, of PoD, and single ram pages.
fn entries(guest: &SoftwareGuest) -> (u64, u64, u64) {
    let p2m = guest.domain.p2m();
    let (mut ram, mut pod, mut singles) = (0, 0, 0);
    for superpage in (0..p2m.superpages()).map(Superpage::new) {
        match p2m.whole(superpage) {
            Some(Entry::Ram { .. }) => ram += 1,
            Some(Entry::Pod) => pod += 1,
            Some(_) => {}
            None => singles += p2m.tally(superpage).ram,
        }
    }
    (ram, pod, singles)
}

fn balloon(guest: &mut SoftwareGuest, gfns: impl Iterator<Item = u64>) {
    for g in gfns {
        assert_eq!(guest.session().decrease(Gfn::new(g), Order::PAGE), Ok(1));
    }
    guest.domain.audit().unwrap();
}

#[test]
fn all_zero() {
    let mut guest = boot(Policy::Xen2016, |_| false);
    let statistics = *guest.domain.statistics();
    assert_eq!((statistics.populates_2m, statistics.populates_4k), (2048, 0));
    assert_eq!(statistics.superpages_reclaimed, 2016);
    assert_eq!(entries(&guest), (32, 2016, 0));
    let cache = guest.domain.cache();
    assert_eq!((cache.superpages(), cache.singles()), (480, 0));
    balloon(&mut guest, 0x40000..0x100000);
    let cache = guest.domain.cache();
    assert_eq!((cache.superpages(), cache.singles()), (512, 0));
}

fn five_percent_clustered(g: u64) -> bool {
    splitmix64(7777 + (g >> 9)) % 100 < 5
}

#[test]
fn five_percent_of_superpages_dirty() {
    let booted = || {
        let guest = boot(Policy::Xen2016, five_percent_clustered);
        let statistics = *guest.domain.statistics();
        assert_eq!((statistics.populates_2m, statistics.populates_4k), (2048, 0));
        assert_eq!(statistics.superpages_reclaimed, 1912);
        assert_eq!(entries(&guest), (136, 1912, 0));
        let cache = guest.domain.cache();
        assert_eq!((cache.superpages(), cache.singles()), (376, 0));
        guest
    };
    let ballooned = |mut guest: SoftwareGuest, gfns: &mut dyn Iterator<Item = u64>| {
        balloon(&mut guest, gfns);
        let cache = guest.domain.cache();
        assert_eq!((cache.superpages(), cache.singles()), (406, 38_912));
        assert_eq!(complete_groups(&guest), 76);
    };
    ballooned(booted(), &mut (0x40000..0x100000));
    ballooned(booted(), &mut (0x40000..0x100000).rev());
}

/// Aligned groups of 512 singles in the cache, which Xen never rejoins.
fn complete_groups(guest: &SoftwareGuest) -> usize {
    let mut pages = std::collections::BTreeMap::new();
    for (mfn, order) in guest.domain.cache().iter() {
        if order == Order::PAGE {
            *pages.entry(mfn.raw() >> 9).or_insert(0) += 1;
        }
    }
    pages.values().filter(|&&count| count == 512).count()
}

#[test]
fn one_percent_of_pages_dirty_defeats_xen() {
    let guest = boot(Policy::Xen2016, |g| splitmix64(7777 + g) % 100 < 1);
    let statistics = guest.domain.statistics();
    assert_eq!((statistics.populates_2m, statistics.populates_4k), (514, 785_408));
    // "A million flushes", 514 times those of the guest that is all zero.
    assert_eq!(statistics.unmap_flushes / 2016, 514);
}
