//! [R13](zerosweep::rules#r13).

use zerosweep::{
    Config, Consolidation, Entry, Gfn, Order, Policy, Progress, Superframe, Superpage,
};
use zerosweep_sim::{SoftwareGuest, SoftwareMachine};

use crate::support::{fill, guest};

#[test]
fn r13_singles_in_the_cache_rejoin_when_all_of_a_superpage_are_home() {
    let mut ours = guest(4096, 1024, Policy::Zerosweep);
    let mut xen = guest(4096, 1024, Policy::Xen2016);
    for guest in [&mut ours, &mut xen] {
        fill(guest, 0..512, 7);
        for page in (0..512).rev() {
            guest.session().decrease(Gfn::new(page), Order::PAGE).unwrap();
        }
        guest.domain.audit().unwrap();
    }
    assert_eq!((ours.domain.cache().superpages(), ours.domain.cache().singles()), (2, 0));
    assert_eq!((xen.domain.cache().superpages(), xen.domain.cache().singles()), (1, 512));
}

/// Superframes of which the domain holds a page, and what rule [R13] says that it should hold.
///
/// [R13]: zerosweep::rules#r13
fn superpages_held(guest: &SoftwareGuest) -> (u64, u64) {
    let pool = guest.machine.pool();
    let all = pool.free_pages() + guest.domain.quantities().total();
    let held = (0..all / 512).filter(|&n| !pool.is_wholly_free(Superframe::new(n))).count() as u64;
    let p2m = guest.domain.p2m();
    let (mut whole, mut singles) = (0, 0);
    for superpage in (0..p2m.superpages()).map(Superpage::new) {
        match p2m.whole(superpage) {
            Some(Entry::Ram { .. }) => whole += 1,
            Some(_) => {}
            None => singles += p2m.tally(superpage).ram,
        }
    }
    (held, whole + singles.div_ceil(512))
}

#[test]
fn r13_consolidation_holds_no_more_superframes_than_it_must() {
    for policy in [Policy::Zerosweep, Policy::None, Policy::Xen2016] {
        let config = Config::new(64 * 512, 64 * 512, policy);
        let machine = SoftwareMachine::new(65 * 512).with_poison();
        let mut guest = SoftwareGuest::on(machine, config).unwrap();
        fill(&mut guest, 0..64 * 512, 7);
        let live = |page: u64| page % 512 < 3 + page / 512 * 6;
        for page in (0..64 * 512).filter(|&page| !live(page)) {
            guest.session().decrease(Gfn::new(page), Order::PAGE).unwrap();
        }
        let target = (0..64 * 512).filter(|&page| live(page)).count() as u64;
        guest.session().set_target(target).unwrap();
        let before = superpages_held(&guest);
        let mut work = Consolidation::default();
        while guest.session().consolidate(&mut work, 5).unwrap() == Progress::More {
            guest.domain.audit().unwrap();
            assert!(guest.domain.quantities().total() <= target);
        }
        let (held, wanted) = superpages_held(&guest);
        assert_eq!(held, wanted, "{policy}: {before:?} before");
        assert_eq!(work.moved(), guest.domain.statistics().pages_consolidated);
        assert!(policy == Policy::Zerosweep || before.0 > held, "{policy}: it was so already");
        for page in (0..64 * 512).filter(|&page| live(page)) {
            assert_eq!(guest.read(Gfn::new(page), 0), Ok(7), "{policy}");
        }
    }
}

#[test]
fn r13_pinned_pages_stay_and_a_range_that_is_all_live_is_a_superpage_again() {
    let mut guest = guest(8 * 512, 8 * 512, Policy::Zerosweep);
    fill(&mut guest, 0..1024, 7);
    guest.session().pin(Gfn::new(5)).unwrap();
    guest.session().pin(Gfn::new(600)).unwrap();
    guest.session().unpin(Gfn::new(600)).unwrap();
    let pinned = guest.domain.p2m().get(Gfn::new(5)).0;
    let mut work = Consolidation::default();
    while guest.session().consolidate(&mut work, 100).unwrap() == Progress::More {}
    assert_eq!(guest.domain.p2m().get(Gfn::new(5)).0, pinned);
    assert!(guest.domain.p2m().whole(Superpage::new(0)).is_none());
    assert!(guest.domain.p2m().whole(Superpage::new(1)).is_some());
    guest.domain.audit().unwrap();
}

#[test]
fn r13_what_is_pinned_is_where_the_others_are_brought() {
    let mut guest = guest(8 * 512, 8 * 512, Policy::Xen2016);
    fill(&mut guest, 0..1024, 7);
    // A superframe of which little is left, and one of which there is more.
    for page in (0..412).chain(512..824) {
        guest.session().decrease(Gfn::new(page), Order::PAGE).unwrap();
    }
    guest.session().pin(Gfn::new(500)).unwrap();
    let (pinned, _) = guest.machine.translate(Gfn::new(500)).unwrap();
    let mut work = Consolidation::default();
    while guest.session().consolidate(&mut work, 3).unwrap() == Progress::More {}
    assert_eq!(work.moved(), 200);
    for page in (412..512).chain(824..1024) {
        let (mfn, _) = guest.machine.translate(Gfn::new(page)).unwrap();
        assert_eq!(mfn.raw() / 512, pinned.raw() / 512, "page {page}");
        assert_eq!(guest.read(Gfn::new(page), 0), Ok(7));
    }
    assert_eq!(guest.machine.translate(Gfn::new(500)).unwrap().0, pinned);
    guest.domain.audit().unwrap();
}
