//! Where one behaviour ends and the next begins: the exact number, the full round, the last frame.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use zerosweep::{
    Config, Consolidation, Entry, Event, Fault, FaultError, Gfn, Hold, Host, InvalidTouch, Order,
    Policy, Progress, Session, Superpage, Upkeep,
};
use zerosweep_sim::{Recorder, SoftwareGuest, SoftwareMachine, TouchError};

fn fill(guest: &mut SoftwareGuest, pages: impl IntoIterator<Item = u64>, value: u64) {
    for page in pages {
        guest.write(Gfn::new(page), 0, value).unwrap();
    }
}

/// What a fault comes to when nobody says meanwhile that a sweep is worth another try.
fn borrow<H: Host>(session: &mut Session<H>, gfn: Gfn) -> Result<Fault, FaultError> {
    loop {
        match session.fault_borrowing(gfn) {
            Ok(Fault::Again) => {}
            other => return other,
        }
    }
}

fn borrow_and_write(guest: &mut SoftwareGuest, page: u64) {
    let gfn = Gfn::new(page);
    assert!(matches!(borrow(&mut guest.session(), gfn), Ok(Fault::Present { .. })));
    let (mfn, _) = guest.machine.translate(gfn).unwrap();
    guest.machine.set_word(mfn, 0, 1);
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

#[test]
fn r9_what_is_promised_and_backed_by_singles_needs_no_search() {
    let mut guest = SoftwareGuest::new(Config::new(4096, 1024, Policy::Zerosweep)).unwrap();
    fill(&mut guest, 0..1024, 7);
    for superpage in 2..7 {
        let gfn = Superpage::new(superpage).first();
        assert_eq!(guest.session().decrease(gfn, Order::SUPERPAGE), Ok(512));
    }
    // Half of each superpage that it has; neither is whole, for one pinned page.
    for first in [0, 512] {
        guest.session().pin(Gfn::new(first + 511), Hold::Pinned).unwrap();
        for page in first..first + 256 {
            assert_eq!(guest.session().decrease(Gfn::new(page), Order::PAGE), Ok(1));
        }
    }
    while guest.session().upkeep(1, false) == Progress::More {}
    let cache = guest.domain.cache();
    assert_eq!((cache.superpages(), cache.singles()), (0, 512));
    assert_eq!((guest.domain.quantities().debt(), guest.domain.quantities().entries), (0, 512));
    let before = *guest.domain.statistics();
    fill(&mut guest, 7 * 512..8 * 512, 7);
    let now = guest.domain.statistics();
    assert_eq!((now.emergency_sweeps, now.splinters), (before.emergency_sweeps, 1));
    assert_eq!(now.bytes_scanned, before.bytes_scanned);
    guest.domain.audit().unwrap();
}

#[test]
fn r10_what_is_told_of_a_look_is_what_was_looked_at() {
    let mut guest = SoftwareGuest::new(Config::new(2048, 2048, Policy::Zerosweep)).unwrap();
    let mut looks = |values: [(u64, u64); 3]| {
        for (page, value) in values {
            // Deeper than a quick check looks.
            guest.write(Gfn::new(page), 2048, value).unwrap();
        }
        let mut session = Session::new(Recorder::new(&mut guest));
        let _ = session.sweep_full(&mut 0, 1);
        let (mut looked, mut live) = (Vec::new(), Vec::new());
        for event in &session.host().events {
            if let Event::Look { gfn, looked: l, live: v } = event {
                looked.extend((0..64).filter(|bit| l >> bit & 1 == 1).map(|bit| gfn.raw() + bit));
                live.extend((0..64).filter(|bit| v >> bit & 1 == 1).map(|bit| gfn.raw() + bit));
            }
        }
        (looked, live)
    };
    assert_eq!(looks([(100, 1), (0, 0), (511, 0)]), ((0..=100).collect(), vec![100]));
    // It begins where something was found the last time, and goes round.
    assert_eq!(looks([(100, 0), (50, 1), (300, 1)]), ((100..=300).collect(), vec![300]));
    let round = (0..=50).chain(300..512).collect();
    assert_eq!(looks([(300, 0), (50, 1), (20, 0)]), (round, vec![50]));
}

#[test]
fn r12_frames_for_pages_that_were_taken_again_come_from_the_host() {
    let config = Config { upkeep: Upkeep::Host, ..Config::new(2048, 2048, Policy::Zerosweep) };
    let mut guest = SoftwareGuest::new(config).unwrap();
    fill(&mut guest, 0..1536, 7);
    // Half of each of two superpages, which stay whole.
    for page in (0..256).chain(512..768) {
        guest.session().decrease(Gfn::new(page), Order::PAGE).unwrap();
    }
    while guest.session().upkeep(1, false) == Progress::More {}
    let before = guest.domain.quantities();
    assert_eq!((before.cache, before.entries, before.retained), (0, 512, 512));
    assert!(!guest.domain.wants_upkeep(false), "what is out backs what is promised");
    assert_eq!(guest.session().retake(Gfn::new(1), 1000), 511);
    assert!(!guest.domain.wants_upkeep(false), "less than a superpage is wanted");
    assert_eq!(guest.session().retake(Gfn::new(0), 1), 1);
    assert!(guest.domain.wants_upkeep(false));
    while guest.session().upkeep(1, false) == Progress::More {}
    assert_eq!(guest.domain.cache().superpages(), 1);
    guest.domain.audit().unwrap();
}

#[test]
fn r19_memory_for_tables_is_there_before_a_range_is_broken() {
    let mut guest = SoftwareGuest::new(Config::new(2048, 2048, Policy::Zerosweep)).unwrap();
    let mut operations: [&mut dyn FnMut(&mut SoftwareGuest); 3] = [
        &mut |guest| assert_eq!(guest.read(Gfn::new(0), 0), Ok(0)),
        // These two break a range, and so use up what is there.
        &mut |guest| assert_eq!(guest.session().decrease(Gfn::new(600), Order::PAGE), Ok(1)),
        &mut |guest| assert_eq!(guest.session().decrease(Gfn::new(1100), Order::PAGE), Ok(1)),
    ];
    for operation in &mut operations {
        operation(&mut guest);
        // Nothing to serve: it only makes ready.
        let present = Fault::Present { gfn: Gfn::new(0), order: Order::SUPERPAGE };
        assert_eq!(guest.session().fault(Gfn::new(0)), Ok(present));
        assert!(!guest.domain.p2m().wants_spare());
    }
}

#[test]
fn r15_a_page_that_is_out_is_the_guests_again_only_where_it_may_be() {
    for (invalid_touch, wanted) in [
        (InvalidTouch::Refuse, Err(FaultError::Unmapped)),
        (InvalidTouch::Increase, Ok(Fault::Present { gfn: Gfn::new(0), order: Order::SUPERPAGE })),
    ] {
        let config = Config { invalid_touch, ..Config::new(2048, 2048, Policy::Zerosweep) };
        let mut guest = SoftwareGuest::new(config).unwrap();
        fill(&mut guest, 0..512, 7);
        assert_eq!(guest.session().decrease(Gfn::new(5), Order::PAGE), Ok(1));
        assert!(guest.domain.p2m().is_out(Gfn::new(5)));
        assert_eq!(guest.session().fault(Gfn::new(5)), wanted);
        assert_eq!(guest.session().fault_borrowing(Gfn::new(5)), wanted);
        assert_eq!(guest.domain.p2m().is_out(Gfn::new(5)), wanted.is_err());
        guest.domain.audit().unwrap();
    }
}

#[test]
fn r15_who_borrows_is_told_when_the_host_has_nothing_either() {
    let config = Config {
        invalid_touch: InvalidTouch::Increase,
        ..Config::new(4096, 1024, Policy::Zerosweep)
    };
    let mut guest = SoftwareGuest::on(SoftwareMachine::new(1536), config).unwrap();
    fill(&mut guest, 0..1024, 1);
    // Pages that are promised, of which the first breaks its superpage, and one that is not.
    guest.session().decrease(Gfn::new(2048), Order::new(4).unwrap()).unwrap();
    let mut session = Session::new(Recorder::new(&mut guest));
    for page in [1024, 1025, 2050] {
        let gfn = Gfn::new(page);
        assert_eq!(borrow(&mut session, gfn), Ok(Fault::Present { gfn, order: Order::PAGE }));
    }
    let splinters = |events: &[Event]| {
        let splinters = events.iter().filter(|event| matches!(event, Event::Splinter { .. }));
        splinters.copied().collect::<Vec<_>>()
    };
    let wanted = [Event::Splinter { gfn: Gfn::new(1024), fault: Gfn::new(1024) }];
    assert_eq!(splinters(&session.host().events), wanted);
    drop(session);
    for page in 1026..1024 + 512 - 1 {
        borrow_and_write(&mut guest, page);
    }
    for page in [1024, 1025, 2050] {
        fill(&mut guest, [page], 1);
    }
    assert_eq!(guest.machine.pool().free_pages(), 0);
    let before = guest.domain.statistics().exhaustions;
    assert_eq!(borrow(&mut guest.session(), Gfn::new(3000)), Ok(Fault::Exhausted));
    assert_eq!(guest.domain.statistics().exhaustions, before + 1);
    assert_eq!(guest.domain.statistics().borrowed, 512);
    guest.domain.audit().unwrap();
}

#[test]
fn r15_a_sweep_that_found_nothing_rests_in_proportion_to_what_it_looked_at() {
    for (superpages, rest) in [(2_u64, 512), (40, 640)] {
        let held = superpages * 512;
        let machine = SoftwareMachine::new(held + 1024);
        let config = Config::new(held + 2048, held, Policy::Zerosweep);
        let mut guest = SoftwareGuest::on(machine, config).unwrap();
        // What was found before says nothing of what is left.
        fill(&mut guest, 512..held + 512, 0);
        fill(&mut guest, 0..held, 1);
        assert_eq!(guest.write(Gfn::new(held), 0, 1), Err(TouchError::Exhausted));
        assert_eq!((guest.domain.forecast().likely, guest.domain.forecast().certain), (0, 0));
        let sweeps = guest.domain.statistics().emergency_sweeps;
        for page in held..held + rest {
            borrow_and_write(&mut guest, page);
        }
        assert_eq!(guest.domain.statistics().emergency_sweeps, sweeps, "{superpages}");
        let _ = borrow(&mut guest.session(), Gfn::new(held + rest));
        assert!(guest.domain.statistics().emergency_sweeps > sweeps, "{superpages}");
        guest.domain.audit().unwrap();
    }
}
