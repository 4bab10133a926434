//! [R6](zerosweep::rules#r6).

use zerosweep::{Config, Entry, Gfn, InvalidTouch, Order, Policy, Progress, Superpage, Upkeep};
use zerosweep_sim::{SoftwareGuest, SoftwareMachine};

use crate::support::{fill, guest, state};

#[test]
fn r6_a_few_live_pages_are_put_elsewhere_and_the_superpage_comes_free() {
    let mut guest = guest(64 * 512, 8 * 512, Policy::Zerosweep);
    // 5 % of every page that the guest has is not zero, scattered.
    let live = |page: u64| page.is_multiple_of(20);
    for page in 0..48 * 512 {
        guest.write(Gfn::new(page), 8, u64::from(live(page)) * page).unwrap();
    }
    let statistics = *guest.domain.statistics();
    assert_eq!((statistics.populates_2m, statistics.populates_4k), (48, 0));
    assert!(statistics.evacuations >= 40, "{statistics:?}");
    assert!(statistics.unmap_flushes <= 48);
    // Only what was copied was cleared.
    assert_eq!(statistics.bytes_copied, statistics.bytes_cleared - 8 * (2 << 20));
    guest.domain.audit().unwrap();
    for page in (0..48 * 512).filter(|&page| live(page)) {
        assert_eq!(guest.read(Gfn::new(page), 8), Ok(page));
    }
}

#[test]
fn r6_with_an_empty_cache_live_pages_stay_in_their_frames() {
    let mut guest = guest(8 * 512, 2 * 512, Policy::Zerosweep);
    fill(&mut guest, 0..3, 7);
    fill(&mut guest, 512..1024, 7);
    let before = guest.domain.p2m().get(Gfn::new(2)).0;
    guest.write(Gfn::new(3000), 0, 1).unwrap();
    assert_eq!(guest.domain.p2m().get(Gfn::new(2)).0, before, "it did not move");
    assert_eq!(guest.domain.statistics().bytes_copied, 0);
    assert_eq!(guest.domain.quantities().cache, 512 - 3 - 1);
    assert_eq!(guest.domain.p2m().tally(Superpage::new(0)).pod, 509);
    guest.domain.audit().unwrap();
}

#[test]
fn r6_a_fault_in_a_shattered_range_makes_it_a_superpage_again() {
    let config = Config {
        invalid_touch: InvalidTouch::Increase,
        ..Config::new(8 * 512, 8 * 512, Policy::Zerosweep)
    };
    let mut guest = SoftwareGuest::on(SoftwareMachine::new(9 * 512), config).unwrap();
    fill(&mut guest, 0..4096, 7);
    // Every page but one of each superpage comes back, and the target falls: all are broken.
    for page in (0..4096).filter(|page| page % 512 != 9) {
        guest.session().decrease(Gfn::new(page), Order::PAGE).unwrap();
    }
    guest.session().set_target(8).unwrap();
    assert_eq!(state(&guest), (0, 0, 8));
    assert!((0..8).all(|n| guest.domain.p2m().whole(Superpage::new(n)).is_none()));
    assert_eq!(guest.machine.pool().free_superpages(), 8, "the live ones are together");
    // The guest takes everything back: a fault a superpage, not one a page.
    guest.session().set_target(4096).unwrap();
    let before = *guest.domain.statistics();
    for page in 0..4096 {
        assert_eq!(guest.read(Gfn::new(page), 0), Ok(if page % 512 == 9 { 7 } else { 0 }));
    }
    let after = *guest.domain.statistics();
    // While pages are copied both frames are held: the last one does not fit into the target.
    assert_eq!(after.populates_4k - before.populates_4k, 511);
    assert_eq!((after.populates_2m - before.populates_2m, after.refills), (7, 7));
    assert!((0..7).all(|n| guest.domain.p2m().whole(Superpage::new(n)).is_some()));
    guest.domain.audit().unwrap();
}

#[test]
fn r6_a_superpage_is_checked_again_when_its_ring_has_gone_round() {
    for (policy, places) in [(Policy::Xen2012, 128), (Policy::Zerosweep, 16)] {
        let config = Config::new(160 * 512, 140 * 512, policy);
        let mut guest = SoftwareGuest::new(config).unwrap();
        for superpage in 0..places {
            assert_eq!(guest.read(Superpage::new(superpage).first(), 0), Ok(0));
        }
        assert_eq!(guest.domain.statistics().eager_checks, 0, "{policy}");
        assert_eq!(guest.read(Superpage::new(places).first(), 0), Ok(0));
        assert_eq!(guest.domain.statistics().eager_checks, 1, "{policy}");
        let first = guest.domain.p2m().whole(Superpage::new(0));
        assert_eq!(first, Some(Entry::Pod), "{policy}: it was zero");
        guest.domain.audit().unwrap();
    }
}

/// Eight superpages have frames, all of their pages live but those of one, and the cache has three.
fn three_singles(upkeep: Upkeep) -> SoftwareGuest {
    let config = Config { upkeep, ..Config::new(16 * 512, 8 * 512 + 3, Policy::Zerosweep) };
    let machine = SoftwareMachine::new(9 * 512);
    let mut guest = SoftwareGuest::on(machine, config).unwrap();
    fill(&mut guest, (0..8 * 512).filter(|page| page / 512 != 2), 7);
    fill(&mut guest, [1024, 1100, 1535], 7);
    assert_eq!(guest.domain.cache().singles(), 3);
    guest
}

fn swept(guest: &mut SoftwareGuest) -> (u64, u64) {
    let mut next = 0;
    while guest.session().sweep_full(&mut next, 3) == Progress::More {}
    guest.domain.audit().unwrap();
    for page in [1024, 1100, 1535, 0, 2000] {
        assert_eq!(guest.read(Gfn::new(page), 0), Ok(7));
    }
    (guest.domain.statistics().bytes_copied, guest.domain.cache().superpages())
}

#[test]
fn r6_as_many_singles_as_there_are_live_pages_are_enough() {
    let mut guest = three_singles(Upkeep::Inline);
    assert_eq!(swept(&mut guest), (3 * 4096, 1));
    // One live page more, and they stay where they are.
    let mut guest = three_singles(Upkeep::Inline);
    fill(&mut guest, [1025], 7);
    assert_eq!(swept(&mut guest), (0, 0));
}

#[test]
fn r6_singles_that_are_still_to_be_cleared_are_enough_too() {
    let mut guest = three_singles(Upkeep::Host);
    // Nobody looks for a superpage for a range that can be none.
    guest.session().set_special(Gfn::new(5100), Order::PAGE).unwrap();
    fill(&mut guest, [5000, 5001, 5002], 7);
    assert_eq!(guest.domain.quantities().cache, 0);
    for page in [5000, 5001, 5002] {
        assert_eq!(guest.session().decrease(Gfn::new(page), Order::PAGE), Ok(1));
    }
    let cache = guest.domain.cache();
    assert_eq!((cache.clean_pages(), cache.dirty_pages()), (0, 3));
    assert_eq!(swept(&mut guest), (3 * 4096, 1));
}

#[test]
fn r6_in_search_of_a_superpage_no_other_one_is_broken() {
    let config = Config::new(16 * 512, 8 * 512 + 3, Policy::Zerosweep);
    let mut guest = SoftwareGuest::on(SoftwareMachine::new(9 * 512), config).unwrap();
    // More live pages than are worth copying, and some that are zero.
    for page in 0..8 * 512 {
        guest.write(Gfn::new(page), 0, u64::from(page % 512 >= 12)).unwrap();
    }
    assert_eq!(guest.domain.cache().singles(), 3);
    fill(&mut guest, [8 * 512], 7);
    let statistics = guest.domain.statistics();
    assert_eq!((statistics.populates_2m, statistics.populates_4k), (8, 1));
    assert_eq!((statistics.shatters, statistics.zero_checks_4k), (0, 0));
    guest.domain.audit().unwrap();
}

#[test]
fn r6_a_superpage_is_looked_for_in_all_of_memory_while_there_are_singles() {
    for zero in [0, 3, 7] {
        let config = Config::new(16 * 512, 8 * 512 + 3, Policy::Zerosweep);
        let mut guest = SoftwareGuest::on(SoftwareMachine::new(9 * 512), config).unwrap();
        for page in 0..8 * 512 {
            guest.write(Gfn::new(page), 0, u64::from(page / 512 != zero)).unwrap();
        }
        fill(&mut guest, [8 * 512], 7);
        let statistics = guest.domain.statistics();
        assert_eq!((statistics.populates_2m, statistics.populates_4k), (9, 0), "{zero}");
        assert_eq!(guest.domain.p2m().whole(Superpage::new(zero)), Some(Entry::Pod));
        guest.domain.audit().unwrap();
    }
}
