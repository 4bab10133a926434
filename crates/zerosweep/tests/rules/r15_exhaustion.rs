//! [R15](zerosweep::rules#r15).

use zerosweep::{Config, Event, Fault, FaultError, Gfn, InvalidTouch, Order, Policy, Session};
use zerosweep_sim::{Recorder, SoftwareGuest, SoftwareMachine, TouchError};

use crate::support::{borrow, borrow_and_write, fill, guest, order};

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
/// Returns the last answer, and the number of faults.
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

/// What Xen does, which the historical policies keep: one zero page is taken for the other, and
/// back.
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

/// A thread of the VMM reads what is promised, and leaves it zero, while a virtual CPU waits for a
/// frame, so that all memory may be swept again every now and then. Each sweep finds what was read
/// since the last one, and hardly anything else.
#[test]
fn r15_who_borrows_does_not_sweep_all_memory_for_a_few_pages() {
    let held = 40 * 512;
    let machine = SoftwareMachine::new(2 * held);
    let config = Config::new(2 * held, held, Policy::Zerosweep);
    let mut guest = SoftwareGuest::on(machine, config).unwrap();
    fill(&mut guest, 0..held, 1);
    let reads = 4096;
    for page in held..held + reads {
        if page % 64 == 0 {
            guest.domain.allow_sweep();
        }
        let read = borrow(&mut guest.session(), Gfn::new(page));
        assert!(matches!(read, Ok(Fault::Present { .. })), "{read:?}");
    }
    let looks = guest.domain.statistics().zero_checks_4k;
    assert!(looks <= 2 * held + 32 * reads, "{} looks for each page", looks / reads);
    guest.domain.audit().unwrap();
}
