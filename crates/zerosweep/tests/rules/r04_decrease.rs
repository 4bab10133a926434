//! [R4](zerosweep::rules#r4).

use zerosweep::{
    Config, Consolidation, DecreaseError, Entry, Event, Gfn, Order, Policy, Progress, Session,
    Upkeep,
};
use zerosweep_sim::{Recorder, SoftwareGuest};

use crate::support::{fill, guest, order, state};

#[test]
fn r4_a_page_given_back_twice_or_never_owned_changes_nothing() {
    let mut guest = guest(2048, 1024, Policy::Zerosweep);
    fill(&mut guest, 0..600, 7);
    assert_eq!(guest.session().decrease(Gfn::new(100), order(2)), Ok(4));
    let before = state(&guest);
    assert_eq!(guest.session().decrease(Gfn::new(100), order(2)), Ok(0));
    assert_eq!(state(&guest), before);
    let beyond = guest.session().decrease(Gfn::new(2047), order(1));
    assert_eq!(beyond, Err(DecreaseError::OutOfRange));
    assert_eq!(guest.session().decrease(Gfn::new(98), order(3)), Ok(4), "two, a hole, two");
}

#[test]
fn r4_every_alignment_and_order_is_taken_page_by_page() {
    for policy in Policy::ALL {
        // Little that is populated while frames are wanted, and superpages that are wholly so.
        for (target, populated) in [(1024, 500..520), (4096, 0..2048)] {
            for raw in 0..=10 {
                for start in [0, 1, 3, 8, 255, 256, 511, 512, 700] {
                    let mut guest = guest(4096, target, policy);
                    fill(&mut guest, populated.clone(), 3);
                    let pages = order(raw).pages();
                    assert_eq!(guest.session().decrease(Gfn::new(start), order(raw)), Ok(pages));
                    let p2m = guest.domain.p2m();
                    for page in 0..4096 {
                        let out = (start..start + pages).contains(&page);
                        let entry = p2m.get(Gfn::new(page)).0;
                        assert_eq!(entry == Entry::Invalid, out, "{policy} {raw} {start} {page}");
                    }
                    guest.domain.audit().unwrap();
                }
            }
        }
    }
}

#[test]
fn r4_a_superpage_that_is_given_back_whole_is_kept_whole_by_the_newer_policies() {
    for (policy, kept) in
        [(Policy::Xen2012, (0, 512)), (Policy::Xen2016, (1, 0)), (Policy::Zerosweep, (1, 0))]
    {
        let mut guest = guest(4096, 1024, policy);
        fill(&mut guest, 0..1024, 3);
        assert_eq!(guest.session().decrease(Gfn::new(512), Order::SUPERPAGE), Ok(512));
        while guest.session().upkeep(1, true) == Progress::More {}
        let cache = guest.domain.cache();
        assert_eq!((cache.superpages(), cache.singles()), kept, "{policy}");
        assert_eq!(guest.domain.statistics().pages_stolen, 512);
        guest.domain.audit().unwrap();
    }
}

#[test]
fn r4_content_is_given_up_to_the_last_page_and_not_beyond() {
    for policy in Policy::ALL {
        let mut guest = guest(2048, 2048, policy);
        fill(&mut guest, 0..2048, 3);
        for (gfn, pages, now) in [(2047, 1, 0), (2000, 48, 0), (1536, 512, 0), (2047, 2, 3)] {
            fill(&mut guest, 2000..2048, 3);
            let done = guest.session().discard(Gfn::new(gfn), pages);
            assert_eq!(done.is_ok(), now == 0, "{policy} {gfn} {pages}");
            assert_eq!(guest.read(Gfn::new(2047), 0), Ok(now), "{policy} {gfn} {pages}");
            assert_eq!(guest.read(Gfn::new(1535), 0), Ok(3), "{policy} {gfn} {pages}");
        }
        guest.domain.audit().unwrap();
    }
}

#[test]
fn r4_without_debt_whole_superpages_go_back_and_singles_stay() {
    let mut ours = guest(2048, 2048, Policy::Zerosweep);
    ours.session().decrease(Gfn::new(0), order(9)).unwrap();
    ours.session().decrease(Gfn::new(512), Order::PAGE).unwrap();
    assert_eq!(state(&ours), (1535, 1536, 1536), "one single is kept");
    let mut xen = guest(2048, 2048, Policy::Xen2016);
    xen.session().decrease(Gfn::new(0), order(9)).unwrap();
    // Xen gives 512 too many back one by one, out of a superpage that it breaks.
    assert_eq!(state(&xen), (1536, 1536, 1536));
    assert_eq!(xen.domain.statistics().pages_returned_4k, 512);
    assert_eq!(ours.domain.statistics().superpages_returned, 1);
}

#[test]
fn r4_xens_excess_goes_back_whole_while_it_is_more_than_a_superpage() {
    for policy in [Policy::None, Policy::Xen2012] {
        let mut guest = SoftwareGuest::new(Config::new(4096, 2048, policy)).unwrap();
        guest.session().set_target(1024).unwrap();
        guest.session().decrease(Gfn::new(0), Order::new(11).unwrap()).unwrap();
        guest.session().decrease(Gfn::new(2048), Order::new(10).unwrap()).unwrap();
        assert_eq!(guest.domain.quantities().cache, 1024);
        let statistics = guest.domain.statistics();
        let returned = (statistics.superpages_returned, statistics.pages_returned_4k);
        assert_eq!(returned, (1, 512), "{policy}");

        // What was stolen superpage by superpage is singles in these caches.
        let mut guest = SoftwareGuest::new(Config::new(4096, 2048, policy)).unwrap();
        fill(&mut guest, 0..2048, 7);
        guest.session().decrease(Gfn::new(0), Order::new(10).unwrap()).unwrap();
        let cache = guest.domain.cache();
        assert_eq!((cache.superpages(), cache.singles()), (0, 1024), "{policy}");
        guest.session().decrease(Gfn::new(2048), Order::new(11).unwrap()).unwrap();
        assert_eq!(guest.domain.quantities().cache, 0, "{policy}");
        guest.domain.audit().unwrap();
    }
}

/// Sixteen superpages without the first 95 pages of each, whose frames are still there.
fn retained_everywhere(upkeep: Upkeep) -> SoftwareGuest {
    let config = Config { upkeep, ..Config::new(16 * 512, 16 * 512, Policy::Zerosweep) };
    let mut guest = SoftwareGuest::new(config).unwrap();
    fill(&mut guest, 0..16 * 512, 7);
    for page in (0..16 * 512).filter(|page| page % 512 < 95) {
        assert_eq!(guest.session().decrease(Gfn::new(page), Order::PAGE), Ok(1));
    }
    assert_eq!(guest.domain.quantities().retained, 1520);
    guest
}

fn singles_returned(guest: &mut SoftwareGuest, work: impl FnOnce(&mut SoftwareGuest)) -> u64 {
    let before = guest.domain.statistics().pages_returned_4k;
    work(guest);
    guest.domain.audit().unwrap();
    guest.domain.statistics().pages_returned_4k - before
}

#[test]
fn r4_where_the_host_does_what_can_wait_no_operation_gives_back_much_at_once() {
    const TARGET: u64 = 16 * 417;
    // With nobody else to do it, all of it goes back at once.
    let mut guest = retained_everywhere(Upkeep::Inline);
    let at_once = singles_returned(&mut guest, |guest| guest.session().set_target(TARGET).unwrap());
    assert_eq!((at_once, guest.domain.quantities().total()), (1520 % 512, TARGET));
    assert!(!guest.domain.wants_upkeep(false));

    let mut work = Consolidation::default();
    let mut ways: [&mut dyn FnMut(&mut SoftwareGuest) -> Progress; 4] = [
        &mut |guest| guest.session().shrink(1),
        &mut |guest| guest.session().upkeep(1, false),
        // Behind the last superpage, where nothing is looked at.
        &mut |guest| {
            let mut session = Session::new(Recorder::new(guest));
            let progress = session.sweep_full(&mut 16, 1);
            let is_return = |event: &Event| matches!(event, Event::Return { .. });
            assert!(session.host().events.iter().all(is_return));
            progress
        },
        &mut |guest| guest.session().consolidate(&mut work, 16).unwrap(),
    ];
    for work in &mut ways {
        let mut guest = retained_everywhere(Upkeep::Host);
        let mut all = singles_returned(&mut guest, |guest| {
            guest.session().set_target(TARGET).unwrap();
        });
        assert_eq!(all, 64);
        while guest.domain.wants_upkeep(false) {
            let mut progress = Progress::Done;
            let some = singles_returned(&mut guest, |guest| progress = work(guest));
            assert!(some <= 64, "{some}");
            assert!(progress == Progress::More || !guest.domain.wants_upkeep(false));
            all += some;
        }
        assert_eq!((all, guest.domain.quantities().total()), (at_once, TARGET));
    }
}

#[test]
fn r4_a_single_that_a_device_uses_is_left_alone_and_counted() {
    for policy in Policy::ALL {
        let mut guest = guest(2048, 1024, policy);
        fill(&mut guest, 0..512, 1);
        // The superpage is broken, and the guest owes pages: a single goes to the cache.
        guest.session().pin(Gfn::new(5)).unwrap();
        let (used, _) = guest.machine.translate(Gfn::new(7)).unwrap();
        guest.machine.set_busy(used, true);
        let before = guest.domain.statistics().busy;
        assert_eq!(guest.session().decrease(Gfn::new(7), Order::PAGE), Ok(0), "{policy}");
        assert!(guest.domain.statistics().busy > before, "{policy}");
        assert_eq!(guest.read(Gfn::new(7), 0), Ok(1), "{policy}");
        guest.machine.set_busy(used, false);
        assert_eq!(guest.session().decrease(Gfn::new(7), Order::PAGE), Ok(1), "{policy}");
        guest.domain.audit().unwrap();
    }
}
