//! The engine's rules, one test or more each, named after them.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use zerosweep::{
    BuildError, Config, ConfigError, Consolidation, DecreaseError, Domain, Entry, Event, Fault,
    FaultError, Gate, Gfn, Hold, Host, InvalidTouch, Life, Mfn, Order, Policy, Progress, Session,
    Superpage, TargetError, Upkeep,
};
use zerosweep_sim::{Recorder, SoftwareGuest, SoftwareMachine, TouchError};

fn order(raw: u8) -> Order {
    Order::new(raw).unwrap()
}

fn guest(max: u64, target: u64, policy: Policy) -> SoftwareGuest {
    SoftwareGuest::new(Config::new(max, target, policy)).unwrap()
}

fn fill(guest: &mut SoftwareGuest, pages: std::ops::Range<u64>, value: u64) {
    for page in pages {
        guest.write(Gfn::new(page), 0, value).unwrap();
    }
}

fn state(guest: &SoftwareGuest) -> (u64, u64, u64) {
    guest.domain.audit().unwrap();
    let q = guest.domain.quantities();
    (q.entries, q.cache, q.total())
}

fn record(guest: &mut SoftwareGuest, work: impl FnOnce(&mut Session<Recorder<'_>>)) -> Vec<Event> {
    let mut session = Session::new(Recorder::new(guest));
    work(&mut session);
    std::mem::take(&mut session.host().events)
}

#[test]
fn r1_build_at_any_order_and_alignment() {
    let machine = SoftwareMachine::new(1 << 19);
    let mut domain = Domain::new(Config::new(1 << 19, 1 << 19, Policy::Zerosweep)).unwrap();
    let mut machine = machine;
    let mut session = domain.with(&mut machine);
    session.populate_on_demand(Gfn::new(0), Order::MAX).unwrap();
    // PoD over PoD does not count twice.
    session.populate_on_demand(Gfn::new(5), order(10)).unwrap();
    session.populate_on_demand(Gfn::new((1 << 18) - 3), order(3)).unwrap();
    assert_eq!(domain.quantities().entries, (1 << 18) + 5);
    let mut session = domain.with(&mut machine);
    let beyond = session.populate_on_demand(Gfn::new(1 << 18), order(18));
    assert_eq!(beyond, Ok(()));
    let beyond = session.populate_on_demand(Gfn::new((1 << 18) + 1), Order::MAX);
    assert_eq!(beyond, Err(BuildError::OutOfRange));
    domain.audit().unwrap();
}

#[test]
fn r1_ram_and_special_are_not_marked_and_nothing_changes() {
    let mut guest = guest(2048, 1024, Policy::Zerosweep);
    guest.write(Gfn::new(700), 0, 9).unwrap();
    guest.session().set_special(Gfn::new(1600), Order::PAGE).unwrap();
    let before = state(&guest);
    for gfn in [0, 512, 1500] {
        let outcome = guest.session().populate_on_demand(Gfn::new(gfn), order(9));
        assert!(matches!(outcome, Ok(()) | Err(BuildError::Busy(_))), "{outcome:?}");
    }
    assert_eq!(
        guest.session().populate_on_demand(Gfn::new(600), order(8)),
        Err(BuildError::Busy(Gfn::new(600)))
    );
    assert_eq!(state(&guest), before);
    assert_eq!(guest.read(Gfn::new(700), 0), Ok(9));
}

#[test]
fn r1_a_kernel_image_is_populated_for_real_or_not_at_all() {
    let mut guest = guest(2048, 2048, Policy::Zerosweep);
    guest.session().decrease(Gfn::new(0), order(10)).unwrap();
    assert_eq!(guest.session().populate_physmap(Gfn::new(3), order(4)), Ok(()));
    let p2m = guest.domain.p2m();
    assert!(matches!(p2m.get(Gfn::new(3)).0, Entry::Ram { .. }));
    assert_eq!(p2m.get(Gfn::new(2)).0, Entry::Invalid);
    let before = state(&guest);
    let in_the_way = guest.session().populate_physmap(Gfn::new(0), order(3));
    assert_eq!(in_the_way, Err(BuildError::Busy(Gfn::new(3))));
    let mut full = SoftwareGuest::new(Config::new(2048, 1024, Policy::Zerosweep)).unwrap();
    let outcome = full.session().populate_physmap(Gfn::new(0), Order::PAGE);
    assert_eq!(outcome, Err(BuildError::OverTarget));
    assert_eq!(state(&guest), before);
}

#[test]
fn r2_the_cache_grows_with_the_target_and_is_never_cut() {
    let mut guest = guest(4096, 1024, Policy::Xen2016);
    assert_eq!(state(&guest), (4096, 1024, 1024));
    let refused = [0, 4097, u64::MAX].map(|target| guest.session().set_target(target));
    assert!(refused.iter().all(|r| matches!(r, Err(TargetError::OutOfRange { max: 4096, .. }))));
    guest.session().set_target(512).unwrap();
    assert_eq!(state(&guest).1, 1024, "the balloon brings the rest");
    let no_frames = guest.session().set_target(4096);
    assert!(matches!(no_frames, Err(TargetError::Fill(_))), "{no_frames:?}");
    assert_eq!(guest.domain.quantities().target, 4096);
    guest.domain.audit().unwrap();
}

#[test]
fn r2_filling_can_be_interrupted() {
    let machine = SoftwareMachine::new(4096);
    let mut guest = SoftwareGuest::on(machine, Config::new(4096, 512, Policy::Zerosweep)).unwrap();
    guest.session().begin_target(4096).unwrap();
    assert_eq!(guest.session().fill(3), Ok(Progress::More));
    assert_eq!(state(&guest), (4096, 512 * 4, 512 * 4));
    while guest.session().fill(1) == Ok(Progress::More) {}
    assert_eq!(state(&guest), (4096, 4096, 4096));
}

#[test]
fn r3_a_touch_gets_a_superpage_or_a_single_and_zeros() {
    let machine = SoftwareMachine::new(1024).with_poison();
    let mut guest = SoftwareGuest::on(machine, Config::new(2048, 515, Policy::None)).unwrap();
    assert_eq!(guest.read(Gfn::new(600), 4088), Ok(0));
    let (_, first) = guest.machine.translate(Gfn::new(512)).unwrap();
    assert_eq!(first, Order::SUPERPAGE);
    let events = record(&mut guest, |session| {
        let _ = session.fault(Gfn::new(5)).unwrap();
    });
    let splinter = Event::Splinter { gfn: Gfn::new(0), fault: Gfn::new(5) };
    assert_eq!(events[0], splinter);
    assert!(matches!(events[1], Event::Populate { gfn, .. } if gfn == Gfn::new(5)), "{events:?}");
    assert_eq!(guest.machine.translate(Gfn::new(4)), None);
    assert_eq!(guest.read(Gfn::new(5), 0), Ok(0));
    guest.domain.audit().unwrap();
}

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
fn r5_the_seed_takes_a_zero_superpage_whole_and_shatters_the_others() {
    for (policy, checks_without_debt) in
        [(Policy::Rfc2011(Gate::Debt), false), (Policy::Rfc2011(Gate::Always), true)]
    {
        let mut zeros = guest(4096, 1024, policy);
        fill(&mut zeros, 0..512, 0);
        assert_eq!(zeros.session().decrease(Gfn::new(77), Order::PAGE), Ok(1));
        assert_eq!(zeros.domain.statistics().superpages_reclaimed, 1);
        assert_eq!(zeros.domain.p2m().tally(Superpage::new(0)).pod, 511);

        let mut dirty = guest(4096, 1024, policy);
        fill(&mut dirty, 0..512, 1);
        assert_eq!(dirty.session().decrease(Gfn::new(77), Order::PAGE), Ok(1));
        assert_eq!(dirty.domain.statistics().zero_checks_2m, 1);
        assert_eq!(dirty.session().decrease(Gfn::new(78), Order::PAGE), Ok(1));
        assert_eq!(dirty.domain.statistics().zero_checks_2m, 1, "never scanned again");

        let mut rich = guest(1024, 1024, policy);
        fill(&mut rich, 0..1024, 0);
        assert_eq!(rich.session().decrease(Gfn::new(77), Order::PAGE), Ok(1));
        assert_eq!(rich.domain.statistics().zero_checks_2m == 1, checks_without_debt);
    }
}

#[test]
fn r5_what_a_quick_check_misses_the_full_check_finds() {
    for policy in Policy::ALL {
        let mut guest = guest(4096, 1024, policy);
        fill(&mut guest, 0..512, 0);
        guest.write(Gfn::new(300), 4088, 0x55).unwrap();
        guest.session().decrease(Gfn::new(2), Order::PAGE).unwrap();
        fill(&mut guest, 512..1024, 0);
        for page in 1024..4096 {
            if guest.write(Gfn::new(page), 0, 0).is_err() {
                break;
            }
        }
        assert_eq!(guest.read(Gfn::new(300), 4088), Ok(0x55), "{policy}");
        guest.domain.audit().unwrap();
    }
}

#[test]
fn r7_the_sweep_is_bounded_wraps_and_reaches_both_ends() {
    let config = Config {
        fault_budget_bytes: 64 << 10,
        ..Config::new(16 * 512, 8 * 512, Policy::Zerosweep)
    };
    for zero_at in [0, 3, 7] {
        let mut guest = SoftwareGuest::new(config).unwrap();
        // Dirty deep in the page: every check that is not spared costs its bytes.
        for superpage in 0..8 {
            // More pages than are worth copying elsewhere.
            for page in (superpage * 512 + 440)..(superpage + 1) * 512 {
                let value = u64::from(superpage != zero_at);
                guest.write(Gfn::new(page), 2048, value).unwrap();
            }
        }
        let mut steps = 0;
        loop {
            let before = guest.domain.statistics().bytes_scanned;
            let fault = guest.session().fault(Gfn::new(8 * 512)).unwrap();
            let scanned = guest.domain.statistics().bytes_scanned - before;
            assert!(scanned <= (64 << 10) + (2 << 20) + (128 << 10), "{scanned} bytes at once");
            steps += 1;
            match fault {
                Fault::Again => assert!(steps < 1000),
                Fault::Present { .. } => break,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(guest.domain.p2m().whole(Superpage::new(zero_at)), Some(Entry::Pod));
        guest.domain.audit().unwrap();
    }
}

#[test]
fn r7_a_guest_that_defeats_the_hint_is_bounded_by_the_budget() {
    let budget = 1 << 20;
    let config =
        Config { fault_budget_bytes: budget, ..Config::new(64 * 512, 32 * 512, Policy::Zerosweep) };
    let mut guest = SoftwareGuest::new(config).unwrap();
    // 100 pages of each superpage are not zero, deep in the page.
    for superpage in 0..32 {
        for page in 0..100 {
            guest.write(Gfn::new(superpage * 512 + page * 5), 2048, 1).unwrap();
        }
    }
    let mut served = 0;
    for step in 0..3000 {
        // Wherever a check found something, there is nothing any more: it has moved on.
        for superpage in (0..32).map(Superpage::new) {
            if let Some(word) = guest.domain.p2m().hint(superpage) {
                let page = superpage.page(word as usize / 512);
                let offset = word as usize % 512 * 8;
                let at = if offset == 2048 { 1024 } else { 2048 };
                if let Some((mfn, _)) = guest.machine.translate(page) {
                    guest.machine.set_word(mfn, offset / 8, 0);
                    guest.machine.set_word(mfn, at / 8, 1);
                }
            }
        }
        let before = *guest.domain.statistics();
        let fault = guest.session().fault(Gfn::new(32 * 512 + served * 512)).unwrap();
        let after = *guest.domain.statistics();
        let work =
            after.bytes_scanned - before.bytes_scanned + after.bytes_copied - before.bytes_copied;
        // What is looked at last is finished: a superpage, and its copies.
        assert!(work <= budget + (3 << 20), "{work} bytes at once in step {step}");
        match fault {
            Fault::Present { .. } => served += 1,
            Fault::Again => {}
            Fault::Exhausted => break,
            Fault::InTransit => panic!("nobody else is here"),
        }
        if served == 16 {
            break;
        }
    }
    assert!(served > 0);
    guest.domain.audit().unwrap();
}

#[test]
fn r7_singles_are_found_when_no_superpage_is_zero() {
    let mut guest = guest(4096, 1024, Policy::Zerosweep);
    fill(&mut guest, 0..1024, 1);
    guest.write(Gfn::new(0), 0, 0).unwrap();
    guest.write(Gfn::new(2000), 0, 5).unwrap();
    assert_eq!(guest.domain.p2m().get(Gfn::new(0)).0, Entry::Pod, "gfn 0 too");
    assert_eq!(guest.read(Gfn::new(2000), 0), Ok(5));
    assert_eq!(guest.read(Gfn::new(1), 0), Ok(1));
}

#[test]
fn r8_a_full_sweep_takes_every_zero_superpage_in_steps() {
    let mut guest = guest(8 * 512, 8 * 512, Policy::Zerosweep);
    fill(&mut guest, 0..4096, 0);
    guest.write(Gfn::new(5 * 512), 0, 1).unwrap();
    let mut next = 0;
    let mut steps = 0;
    while guest.session().sweep_full(&mut next, 3) == Progress::More {
        steps += 1;
    }
    assert_eq!((next, steps), (8, 2));
    assert_eq!(guest.domain.statistics().superpages_reclaimed, 7);
    assert_eq!(state(&guest), (7 * 512, 7 * 512, 4096));
}

#[test]
fn r8_the_hypercall_sweeps_once_before_the_first_page_is_given_back() {
    let mut guest = guest(8 * 512, 4 * 512, Policy::Hypercall2011);
    fill(&mut guest, 0..2048, 0);
    guest.session().decrease(Gfn::new(4000), Order::PAGE).unwrap();
    assert_eq!(guest.domain.statistics().superpages_reclaimed, 4);
    fill(&mut guest, 0..512, 0);
    guest.session().decrease(Gfn::new(4001), Order::PAGE).unwrap();
    assert_eq!(guest.domain.statistics().superpages_reclaimed, 4);
}

#[test]
fn r9_without_debt_nothing_is_scanned() {
    for policy in [Policy::None, Policy::Rfc2011(Gate::Debt), Policy::Xen2012, Policy::Xen2016] {
        let mut guest = guest(4096, 4096, policy);
        fill(&mut guest, 0..4096, 0);
        for page in 0..4096 {
            guest.session().decrease(Gfn::new(page), Order::PAGE).unwrap();
        }
        assert_eq!(guest.domain.statistics().bytes_scanned, 0, "{policy}");
    }
    let mut ours = guest(4096, 4096, Policy::Zerosweep);
    fill(&mut ours, 0..4096, 0);
    ours.session().decrease(Gfn::new(9), Order::PAGE).unwrap();
    // The page itself is looked at (R12), and nothing else.
    assert_eq!(ours.domain.statistics().bytes_scanned, 4096);
    assert_eq!(ours.domain.statistics().zero_checks_2m, 0);
}

#[test]
fn r10_a_no_is_cheap_the_next_time() {
    let mut guest = guest(8 * 512, 4 * 512, Policy::Zerosweep);
    fill(&mut guest, 0..2048, 1);
    let mut next = 0;
    let _ = guest.session().sweep_full(&mut next, 4);
    let once = guest.domain.statistics().bytes_scanned;
    next = 0;
    let _ = guest.session().sweep_full(&mut next, 4);
    assert_eq!(guest.domain.statistics().bytes_scanned - once, 4 * 8, "one word each");
}

#[test]
fn r11_verified_frames_are_not_cleared_again_and_no_frame_is_handed_out_dirty() {
    let machine = SoftwareMachine::new(1024).with_poison();
    let mut ours = SoftwareGuest::on(machine, Config::new(4096, 1024, Policy::Zerosweep)).unwrap();
    let filled = ours.domain.statistics().bytes_cleared;
    for page in 0..4096 {
        assert_eq!(ours.read(Gfn::new(page), 8), Ok(0));
        ours.write(Gfn::new(page), 0, 0).unwrap();
    }
    assert_eq!(ours.domain.statistics().bytes_cleared, filled, "nothing was cleared twice");
    fill(&mut ours, 0..100, 5);
    ours.session().decrease(Gfn::new(0), Order::PAGE).unwrap();
    ours.session().discard(Gfn::new(1), 99).unwrap();
    for page in 1..4096 {
        assert_eq!(ours.read(Gfn::new(page), 0), Ok(0), "page {page}");
    }
}

#[test]
fn r3_a_frame_that_could_not_be_mapped_is_the_last_to_be_tried_again() {
    for policy in [Policy::Zerosweep, Policy::Xen2016] {
        let mut guest = guest(2048, 1536, policy);
        let superpages = |guest: &SoftwareGuest| guest.domain.cache().iter().collect::<Vec<_>>();
        let before = superpages(&guest);
        guest.machine.fail(0, 1, zerosweep_sim::Failure::Refuse);
        assert_eq!(guest.session().fault(Gfn::new(0)), Err(FaultError::Map), "{policy}");
        let after = superpages(&guest);
        assert_eq!(after[..2], before[1..], "{policy}");
        assert_eq!(after[2], before[0], "{policy}");
        assert_eq!(state(&guest), (2048, 1536, 1536));
        fill(&mut guest, 0..1, 7);
        let mapped = guest.machine.translate(Gfn::new(0));
        assert_eq!(mapped.map(|(mfn, _)| mfn), Some(before[1].0), "{policy}");
    }
}

#[test]
fn r15_exhaustion_is_a_state_that_a_page_given_back_ends() {
    for policy in Policy::ALL {
        let mut guest = guest(4096, 1024, policy);
        let mut last = 0;
        for page in 0..4096 {
            last = page;
            if guest.write(Gfn::new(page), 0, 1).is_err() {
                break;
            }
        }
        assert_eq!(last, 1024, "{policy}");
        assert_eq!(guest.write(Gfn::new(last), 0, 1), Err(TouchError::Exhausted));
        guest.domain.audit().unwrap();
        assert_eq!(guest.domain.forecast().certain, 0);
        assert!(guest.domain.forecast().short > 0);
        guest.session().decrease(Gfn::new(0), Order::PAGE).unwrap();
        assert_eq!(guest.write(Gfn::new(last), 0, 1), Ok(()), "{policy}");
    }
}

#[test]
fn r15_borrowing_exceeds_the_target_by_what_is_counted() {
    let machine = SoftwareMachine::new(4096);
    let mut guest = SoftwareGuest::on(machine, Config::new(4096, 1024, Policy::Zerosweep)).unwrap();
    fill(&mut guest, 0..1024, 1);
    for page in 1024..1030 {
        while guest.session().fault_borrowing(Gfn::new(page)) == Ok(Fault::Again) {}
        guest.write(Gfn::new(page), 0, 1).unwrap();
    }
    let q = guest.domain.quantities();
    assert_eq!((q.total(), guest.domain.statistics().borrowed), (1030, 6));
    guest.domain.audit().unwrap();
}

#[test]
fn r15_a_touch_of_a_page_that_is_out_takes_it_again_under_the_linux_rule() {
    let config = Config {
        invalid_touch: InvalidTouch::Increase,
        ..Config::new(2048, 1024, Policy::Zerosweep)
    };
    let mut guest = SoftwareGuest::new(config).unwrap();
    guest.session().decrease(Gfn::new(0), order(10)).unwrap();
    assert_eq!(guest.domain.quantities().guest(), 1024);
    guest.write(Gfn::new(3), 0, 4).unwrap();
    assert_eq!(guest.domain.quantities().guest(), 1025);
    assert_eq!(guest.read(Gfn::new(3), 0), Ok(4));
    let q = guest.domain.quantities();
    assert!(q.total() <= 1024, "{q:?}");
    guest.domain.audit().unwrap();
    let mut refusing = self::guest(2048, 1024, Policy::Zerosweep);
    refusing.session().decrease(Gfn::new(3), Order::PAGE).unwrap();
    let touch = refusing.write(Gfn::new(3), 0, 4);
    assert_eq!(touch, Err(TouchError::Fault(FaultError::Unmapped)));
}

#[test]
fn r16_special_and_pinned_pages_stay() {
    for policy in Policy::ALL {
        let mut guest = guest(4096, 1024, policy);
        guest.session().set_special(Gfn::new(40), order(2)).unwrap();
        fill(&mut guest, 512..1024, 0);
        guest.session().pin(Gfn::new(600), Hold::Pinned).unwrap();
        let (mfn, _) = guest.machine.translate(Gfn::new(600)).unwrap();
        assert_eq!(guest.session().decrease(Gfn::new(32), order(4)), Ok(12));
        assert_eq!(guest.session().decrease(Gfn::new(600), Order::PAGE), Ok(0));
        let mut next = 0;
        let _ = guest.session().sweep_full(&mut next, u64::MAX);
        assert_eq!(guest.machine.translate(Gfn::new(600)).map(|(mfn, _)| mfn), Some(mfn));
        assert_eq!(guest.domain.p2m().get(Gfn::new(41)).0, Entry::Special);
        assert_eq!(guest.write(Gfn::new(41), 0, 1), Err(TouchError::Fault(FaultError::Special)));
        guest.domain.audit().unwrap();
    }
}

#[test]
fn r18_death_returns_every_frame_in_steps() {
    for policy in Policy::ALL {
        let mut guest = guest(4096, 1024, policy);
        fill(&mut guest, 0..700, 3);
        guest.session().decrease(Gfn::new(5), order(4)).unwrap();
        let busy = guest.machine.translate(Gfn::new(650)).unwrap().0;
        guest.machine.set_busy(busy, true);
        for _ in 0..100 {
            let _ = guest.session().teardown(2);
        }
        assert_ne!(guest.domain.life(), Life::Dead, "a busy frame is waited for");
        assert_eq!(guest.session().fault(Gfn::new(3)), Err(FaultError::Dying));
        assert_eq!(guest.session().decrease(Gfn::new(3), order(0)), Err(DecreaseError::Dying));
        guest.machine.set_busy(busy, false);
        while guest.session().teardown(2) == Progress::More {}
        assert_eq!(guest.machine.pool().free_superpages(), 2, "{policy}");
        assert_eq!(guest.domain.quantities().total(), 0);
    }
}

#[test]
fn r20_events_tell_the_whole_story() {
    let mut guest = guest(2048, 1024, Policy::Rfc2011(Gate::Debt));
    let events = record(&mut guest, |session| {
        let _ = session.fault(Gfn::new(77)).unwrap();
        session.decrease(Gfn::new(2000), Order::PAGE).unwrap();
        session.decrease(Gfn::new(78), Order::PAGE).unwrap();
    });
    let mfn = Mfn::new(0);
    let superpage = Order::SUPERPAGE;
    assert_eq!(
        events,
        [
            Event::Populate { gfn: Gfn::new(0), mfn, order: superpage, fault: Gfn::new(77) },
            Event::Remove { gfn: Gfn::new(2000), order: Order::PAGE },
            Event::Reclaim { gfn: Gfn::new(0), mfn, order: superpage },
            Event::Remove { gfn: Gfn::new(78), order: Order::PAGE },
        ]
    );
}

#[test]
fn a_domain_that_cannot_be_is_refused() {
    let refused = |max, target| Domain::new(Config::new(max, target, Policy::None)).unwrap_err();
    assert_eq!(refused(0, 1), ConfigError::MaxPages(0));
    assert_eq!(refused(5, 6), ConfigError::Target { target: 6, max: 5 });
    assert_eq!(refused(5, 0), ConfigError::Target { target: 0, max: 5 });
    assert!(matches!(refused(u64::MAX, 6), ConfigError::MaxPages(_)));
}

#[test]
fn r5_a_superpage_populated_a_moment_ago_is_left_to_come_home_page_by_page() {
    let mut guest = guest(64 * 512, 32 * 512, Policy::Zerosweep);
    for page in 0..512 {
        // The guest clears each page when it allocates it, and gives it back at once.
        guest.write(Gfn::new(page), 0, 0).unwrap();
        guest.session().decrease(Gfn::new(page), Order::PAGE).unwrap();
    }
    let statistics = guest.domain.statistics();
    assert_eq!((statistics.populates_2m, statistics.populates_4k), (1, 0));
    assert_eq!((statistics.pages_retained, statistics.superpages_reclaimed), (512, 1));
    assert_eq!(statistics.unmap_flushes, 1);
    assert_eq!((guest.domain.cache().superpages(), guest.domain.cache().singles()), (32, 0));
    guest.domain.audit().unwrap();
}

/// While frames are wanted only because the host has none, what the guest gives back is not worth
/// breaking what it has.
#[test]
fn r5_a_guest_that_owes_nothing_keeps_its_superpages() {
    let mut machine = SoftwareMachine::new(32 * 512);
    let mut domain = Domain::new(Config::new(64 * 512, 64 * 512, Policy::Zerosweep)).unwrap();
    let all = || (0..64).map(|number| Superpage::new(number).first());
    for gfn in all() {
        domain.with(&mut machine).populate_on_demand(gfn, Order::SUPERPAGE).unwrap();
    }
    let filled = domain.with(&mut machine).set_target(64 * 512);
    assert!(filled.is_err(), "the host has half of that");
    for gfn in all().take(32) {
        let fault = domain.with(&mut machine).fault(gfn).unwrap();
        assert!(matches!(fault, Fault::Present { order: Order::SUPERPAGE, .. }));
        let (mfn, _) = machine.translate(gfn).unwrap();
        machine.set_word(mfn, 0, 1);
    }
    let (q, before) = (domain.quantities(), *domain.statistics());
    assert!(q.debt() > 0 && q.owed() == 0);
    assert_eq!(domain.with(&mut machine).decrease(Gfn::new(5), Order::PAGE), Ok(1));
    let now = domain.statistics();
    assert_eq!((now.pages_retained, now.zero_checks_2m), (1, before.zero_checks_2m));
}

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
fn r11_what_comes_back_dirty_is_cleared_later_and_never_handed_out_so() {
    let machine = SoftwareMachine::new(4 * 512).with_poison();
    let config =
        Config { upkeep: Upkeep::Host, ..Config::new(8 * 512, 4 * 512, Policy::Zerosweep) };
    let mut guest = SoftwareGuest::on(machine, config).unwrap();
    fill(&mut guest, 0..4 * 512, 7);
    let before = *guest.domain.statistics();
    guest.session().decrease(Gfn::new(0), Order::SUPERPAGE).unwrap();
    assert_eq!(guest.domain.statistics().bytes_cleared, before.bytes_cleared);
    assert_eq!((guest.domain.cache().dirty_pages(), guest.domain.cache().clean_pages()), (512, 0));
    assert!(guest.domain.wants_upkeep(false));
    assert_eq!(guest.read(Gfn::new(2100), 0), Ok(0), "the fault clears what it needs");
    guest.session().decrease(Gfn::new(512), Order::SUPERPAGE).unwrap();
    assert_eq!(guest.session().upkeep(10, false), Progress::Done);
    assert_eq!(guest.domain.cache().dirty_pages(), 0);
    assert_eq!(guest.read(Gfn::new(2600), 0), Ok(0));
    guest.domain.audit().unwrap();
}

#[test]
fn r12_a_page_given_back_is_zero_and_leaves_its_superpage_whole() {
    let mut guest = guest(8 * 512, 8 * 512, Policy::Zerosweep);
    fill(&mut guest, 0..512, 7);
    assert_eq!(guest.session().decrease(Gfn::new(9), Order::PAGE), Ok(1));
    assert_eq!(guest.session().decrease(Gfn::new(9), Order::PAGE), Ok(0), "given back twice");
    let q = guest.domain.quantities();
    assert_eq!((q.guest(), q.populated, q.retained, q.total()), (4095, 511, 1, 4096));
    assert!(matches!(guest.domain.p2m().whole(Superpage::new(0)), Some(Entry::Ram { .. })));
    assert_eq!(guest.domain.p2m().get(Gfn::new(9)).0, Entry::Invalid);
    assert_eq!(guest.read(Gfn::new(9), 0), Err(TouchError::Fault(FaultError::Unmapped)));
    let (mfn, _) = guest.machine.translate(Gfn::new(9)).unwrap();
    assert_eq!(guest.machine.word(mfn, 0), 0, "INV-11");
    // populate_physmap takes it again at once.
    guest.session().populate_physmap(Gfn::new(9), Order::PAGE).unwrap();
    assert_eq!(guest.read(Gfn::new(9), 0), Ok(0));
    assert_eq!(guest.domain.quantities().retained, 0);
    guest.domain.audit().unwrap();
}

#[test]
fn r12_silent_re_use_keeps_its_data() {
    let config = Config {
        invalid_touch: InvalidTouch::Increase,
        ..Config::new(8 * 512, 8 * 512, Policy::Zerosweep)
    };
    let mut guest = SoftwareGuest::new(config).unwrap();
    fill(&mut guest, 0..4096, 7);
    for page in 0..1000 {
        guest.session().decrease(Gfn::new(page), Order::PAGE).unwrap();
    }
    // The guest takes some again without a word, and then everything retained is wanted.
    fill(&mut guest, 600..700, 8);
    guest.session().set_target(2048).unwrap();
    for page in 600..700 {
        assert_eq!(guest.read(Gfn::new(page), 0), Ok(8));
    }
    assert_eq!(guest.domain.statistics().pages_retaken, 100);
    let q = guest.domain.quantities();
    assert_eq!((q.retained, q.populated), (0, 4096 - 1000 + 100));
    guest.domain.audit().unwrap();
}

#[test]
fn r12_a_guest_that_says_so_takes_its_pages_again_without_a_fault() {
    let mut guest = guest(8 * 512, 8 * 512, Policy::Zerosweep);
    fill(&mut guest, 0..512, 7);
    for page in 0..100 {
        guest.session().decrease(Gfn::new(page), Order::PAGE).unwrap();
    }
    assert_eq!(guest.session().retake(Gfn::new(50), 1000), 50);
    assert_eq!(guest.domain.quantities().retained, 50);
    assert_eq!(guest.domain.quantities().populated, 462);
    guest.domain.audit().unwrap();
}

#[test]
fn r12_when_frames_are_needed_the_fewest_live_pages_are_broken_first() {
    let mut guest = guest(8 * 512, 4 * 512, Policy::Zerosweep);
    fill(&mut guest, 0..4 * 512, 7);
    // Three, 500 and 100 live pages are left, and all of the fourth; no page is owed to anyone.
    for (superpage, live) in [(0, 3), (1, 500), (2, 100)] {
        for page in (superpage * 512 + live)..(superpage + 1) * 512 {
            guest.session().decrease(Gfn::new(page), Order::PAGE).unwrap();
        }
    }
    assert!((0..4).all(|n| guest.domain.p2m().letter(Superpage::new(n)) != b'b'));
    guest.write(Gfn::new(5 * 512), 0, 1).unwrap();
    let letters: Vec<u8> = (0..4).map(|n| guest.domain.p2m().letter(Superpage::new(n))).collect();
    // The first brought singles only; with these the next one came free whole.
    assert_eq!(letters, *b"brbW");
    assert_eq!(guest.read(Gfn::new(2), 0), Ok(7));
    guest.domain.audit().unwrap();
}

#[test]
fn r12_a_superpage_of_which_all_is_out_or_zero_is_reclaimed_in_one_step() {
    let mut guest = guest(16 * 512, 8 * 512, Policy::Zerosweep);
    fill(&mut guest, 0..512, 7);
    fill(&mut guest, 0..200, 0);
    let before = guest.domain.quantities();
    for page in 200..512 {
        guest.session().decrease(Gfn::new(page), Order::PAGE).unwrap();
    }
    let mut next = 0;
    let _ = guest.session().sweep_full(&mut next, 1);
    let after = guest.domain.quantities();
    assert_eq!((after.retained, after.populated), (0, 0));
    assert_eq!((after.entries, after.cache), (before.entries + 200, before.cache + 512));
    guest.domain.audit().unwrap();
}

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

/// Superframes of which the domain holds a page, and what rule R13 says that it should hold.
fn superpages_held(guest: &SoftwareGuest) -> (u64, u64) {
    let pool = guest.machine.pool();
    let all = pool.free_pages() + guest.domain.quantities().total();
    let held = (0..all / 512).filter(|&n| !pool.is_wholly_free(n)).count() as u64;
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
    guest.session().pin(Gfn::new(5), Hold::Pinned).unwrap();
    guest.session().pin(Gfn::new(600), Hold::Pinned).unwrap();
    guest.session().pin(Gfn::new(600), Hold::Free).unwrap();
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
    guest.session().pin(Gfn::new(500), Hold::Pinned).unwrap();
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

#[test]
fn r15_a_fruitless_sweep_is_not_repeated_at_every_fault() {
    let mut guest = guest(4096, 1024, Policy::Zerosweep);
    fill(&mut guest, 0..1024, 1);
    assert_eq!(guest.write(Gfn::new(2000), 0, 1), Err(TouchError::Exhausted));
    let scanned = guest.domain.statistics().bytes_scanned;
    for _ in 0..100 {
        assert_eq!(guest.session().fault(Gfn::new(2000)), Ok(Fault::Exhausted));
    }
    assert_eq!(guest.domain.statistics().bytes_scanned, scanned);
    // The guest made zeros of what it has: the next sweep that is allowed finds them.
    guest.write(Gfn::new(9), 0, 0).unwrap();
    guest.domain.allow_sweep();
    assert_eq!(guest.write(Gfn::new(2000), 0, 1), Ok(()));
}

/// Faults after which an instruction goes round for ever.
const FOR_EVER: u32 = 1000;

/// An instruction that needs all of these pages at once, again and again until it has them.
/// Returns what came of it, and after how many faults.
fn instruction(guest: &mut SoftwareGuest, pages: &[Gfn]) -> (Fault, u32) {
    let mut faults = 0;
    loop {
        let missing = pages.iter().find(|&&gfn| guest.machine.translate(gfn).is_none());
        let Some(&gfn) = missing else {
            return (Fault::Present { gfn: pages[0], order: Order::PAGE }, faults);
        };
        faults += 1;
        if faults == FOR_EVER {
            return (Fault::Again, faults);
        }
        match guest.session().fault(gfn).unwrap() {
            Fault::Present { .. } | Fault::Again => {}
            other => return (other, faults),
        }
    }
}

#[test]
fn r15_an_instruction_that_needs_more_zero_pages_than_there_are_frames_ends() {
    let mut guest = guest(64 * 512, 8 * 512, Policy::Zerosweep);
    fill(&mut guest, 0..8 * 512 - 1, 1);
    // One frame is left: for one of the two.
    let copy = [Gfn::new(8 * 512 - 1), Gfn::new(9 * 512)];
    let (end, _) = instruction(&mut guest, &copy);
    assert_eq!(end, Fault::Exhausted);
    // With one frame more it has both, although a search for it may find the other first.
    guest.write(Gfn::new(100), 0, 0).unwrap();
    guest.domain.allow_sweep();
    let (end, _) = instruction(&mut guest, &copy);
    assert!(matches!(end, Fault::Present { .. }), "{end:?}");
    guest.domain.audit().unwrap();
}

/// What Xen does, which the historical policies keep: one zero page is taken for the other, and back.
#[test]
fn under_xens_policies_such_an_instruction_goes_round_for_ever() {
    for policy in [Policy::Xen2012, Policy::Xen2016] {
        let mut guest = guest(64 * 512, 8 * 512, policy);
        fill(&mut guest, 0..8 * 512, 1);
        guest.write(Gfn::new(10), 0, 0).unwrap();
        let copy = [Gfn::new(10), Gfn::new(9 * 512)];
        assert_eq!(instruction(&mut guest, &copy), (Fault::Again, FOR_EVER), "{policy}");
    }
}

#[test]
fn r15_an_instruction_gets_many_zero_superpages_at_once() {
    let mut guest = guest(64 * 512, 8 * 512, Policy::Zerosweep);
    let far_apart: Vec<Gfn> = (0..14).map(|n| Gfn::new(n * 4 * 512)).collect();
    let (end, _) = instruction(&mut guest, &far_apart);
    assert!(matches!(end, Fault::Present { .. }), "{end:?}");
    guest.domain.audit().unwrap();
}

/// A host that counts everything anew each time the machine is asked for something: while it works,
/// other threads may look.
struct Auditor<'a>(&'a mut SoftwareGuest);

impl Host for Auditor<'_> {
    type Machine = SoftwareMachine;

    fn domain(&mut self) -> &mut Domain {
        &mut self.0.domain
    }

    fn machine<R>(&mut self, work: impl FnOnce(&mut SoftwareMachine) -> R) -> R {
        self.0.domain.audit().unwrap();
        let result = work(&mut self.0.machine);
        self.0.domain.audit().unwrap();
        result
    }
}

#[test]
fn r19_the_books_are_right_whenever_the_machine_works() {
    for policy in Policy::ALL {
        let mut guest = guest(2048, 1100, policy);
        let mut random = 1_u64;
        for step in 0..600 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let (gfn, what) = (Gfn::new(random >> 40 & 2047), random >> 20 & 15);
            audited_step(&mut guest, gfn, what, step);
        }
        while Session::new(Auditor(&mut guest)).teardown(1) == Progress::More {}
        guest.domain.audit().unwrap();
        assert_eq!(guest.domain.quantities().total(), 0);
    }
}

fn audited_step(guest: &mut SoftwareGuest, gfn: Gfn, what: u64, step: u64) {
    let mut session = Session::new(Auditor(guest));
    match what {
        0..=6 => audited_write(guest, gfn, if what < 3 { 0 } else { step }),
        7..=9 => drop(session.decrease(gfn, Order::PAGE)),
        10 => drop(session.decrease(gfn, order(4))),
        11 => drop(session.discard(gfn, 1)),
        12 => drop(session.set_target(700 + step)),
        13 => {
            let mut next = 0;
            while session.sweep_full(&mut next, 1) == Progress::More {}
        }
        14 => {
            let mut work = Consolidation::default();
            while session.consolidate(&mut work, 1).unwrap() == Progress::More {}
        }
        _ => drop(session.populate_on_demand(gfn, Order::PAGE)),
    }
    guest.domain.audit().unwrap();
}

/// The guest writes a word, if it can.
fn audited_write(guest: &mut SoftwareGuest, gfn: Gfn, value: u64) {
    guest.domain.allow_sweep();
    loop {
        if let Some((mfn, _)) = guest.machine.translate(gfn) {
            if !guest.domain.p2m().is_out(gfn) {
                guest.machine.set_word(mfn, 3, value);
            }
            return;
        }
        match Session::new(Auditor(guest)).fault(gfn) {
            Ok(Fault::Exhausted) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

/// What a check saw of pages that it does not reclaim.
#[test]
fn r20_looks_tell_what_checks_saw() {
    let looks = |events: Vec<Event>| {
        let look = |event| match event {
            Event::Look { gfn, looked, live } => Some((gfn.raw(), looked, live)),
            _ => None,
        };
        events.into_iter().filter_map(look).collect::<Vec<_>>()
    };
    // Ours, when it makes up a superpage of 512 pages of which three are live.
    let mut ours = guest(2048, 1024, Policy::Zerosweep);
    fill(&mut ours, 0..512, 0);
    for (gfn, value) in [(3, 1), (64, 1), (511, 1)] {
        ours.write(Gfn::new(gfn), 0, value).unwrap();
    }
    let before = *ours.domain.statistics();
    let events = record(&mut ours, |session| {
        let mut next = 0;
        while session.sweep_full(&mut next, 16) == Progress::More {}
    });
    let evacuated = events.iter().any(|event| matches!(event, Event::Evacuate { live: 3, .. }));
    let told = looks(events);
    assert!(evacuated, "{told:?}");
    let expected: Vec<_> = (0..8)
        .map(|group: u64| (group * 64, u64::MAX, [8, 1, 0, 0, 0, 0, 0, 1 << 63][group as usize]))
        .collect();
    assert_eq!(told, expected);
    assert_eq!(ours.domain.statistics().zero_checks_2m, before.zero_checks_2m + 1);
    // Xen's: the first live page is told, and that what comes before it is zero is not known while
    // the guest may write.
    let mut xen = guest(2048, 1024, Policy::Xen2016);
    fill(&mut xen, 0..512, 0);
    xen.write(Gfn::new(70), 0, 1).unwrap();
    fill(&mut xen, 512..513, 1);
    let events = record(&mut xen, |session| {
        let _ = session.fault(Gfn::new(1024));
    });
    assert!(looks(events).contains(&(64, 1 << 6, 1 << 6)));
}
