//! The attacks on Xen's populate on demand, replayed: one test for each advisory, named after it.
//! What is promised against whom is in docs/security.md.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use zerosweep::{
    BuildError, Config, ConfigError, DecreaseError, Domain, Entry, Fault, FaultError, Gfn,
    InvalidTouch, Order, Policy, TargetError,
};
use zerosweep_sim::{Failure, SoftwareGuest, SoftwareMachine, TouchError};

const PAGE: Order = Order::PAGE;
const SUPERPAGE: Order = Order::SUPERPAGE;

fn guest(max: u64, target: u64, policy: Policy) -> SoftwareGuest {
    SoftwareGuest::new(Config::new(max, target, policy)).unwrap()
}

fn scrub(guest: &mut SoftwareGuest, pages: std::ops::Range<u64>) {
    pages.for_each(|page| guest.write(Gfn::new(page), 0, 0).unwrap());
}

fn assert_sound(guest: &SoftwareGuest) {
    guest.domain.audit().unwrap();
    let superpages = guest.domain.p2m().superpages();
    let left =
        (0..superpages).filter(|&n| guest.domain.p2m().in_transit(zerosweep::Superpage::new(n)));
    assert_eq!(left.count(), 0, "a range was left claimed");
}

/// A domain without a table got a target.
#[test]
fn xsa_014_a_domain_without_guest_memory_gets_no_target() {
    let none = Domain::new(Config::new(0, 0, Policy::Zerosweep));
    assert_eq!(none.unwrap_err(), ConfigError::MaxPages(0));
    let too_much = Domain::new(Config::new(u64::MAX, 1, Policy::Zerosweep));
    assert_eq!(too_much.unwrap_err(), ConfigError::MaxPages(u64::MAX));
    let mut guest = guest(1024, 512, Policy::Zerosweep);
    for target in [0, 1025, u64::MAX] {
        let outcome = guest.session().set_target(target);
        assert_eq!(outcome, Err(TargetError::OutOfRange { target, max: 1024 }));
    }
    assert_eq!(guest.domain.quantities().target, 512);
    assert_sound(&guest);
}

/// Marking PoD over ram took an error path that kept a lock.
#[test]
fn xsa_030_promising_over_ram_is_refused_and_keeps_no_claim() {
    for policy in Policy::ALL {
        let mut guest = guest(2048, 1024, policy);
        guest.write(Gfn::new(700), 0, 7).unwrap();
        let before = guest.domain.quantities();
        for order in [0, 1, 9, 10, 11] {
            let order = Order::new(order).unwrap();
            let first = Gfn::new(700).align_down(order);
            let outcome = guest.session().populate_on_demand(first, order);
            assert!(matches!(outcome, Err(BuildError::Busy(_))), "{outcome:?}");
            assert_eq!(guest.domain.quantities(), before);
            assert_sound(&guest);
        }
        // The next call works, there and elsewhere.
        guest.write(Gfn::new(701), 0, 8).unwrap();
        assert_eq!(guest.session().decrease(Gfn::new(1500), PAGE), Ok(1));
        assert_eq!(guest.read(Gfn::new(700), 0), Ok(7));
        assert_sound(&guest);
    }
}

/// A huge order made a loop that came to no end.
#[test]
fn xsa_031_orders_above_the_maximum_are_refused_at_once() {
    for raw in [19, 20, 31, 32, 52, 63, 64, 127, 255] {
        assert_eq!(Order::new(raw), None, "{raw}");
    }
    let mut guest = guest(1024, 512, Policy::Zerosweep);
    let before = (guest.domain.quantities(), guest.machine.counters());
    for first in [0, 1, 1023, 1024, u64::MAX - 1, u64::MAX] {
        let first = Gfn::new(first);
        assert_eq!(guest.session().decrease(first, Order::MAX), Err(DecreaseError::OutOfRange));
        assert_eq!(
            guest.session().populate_physmap(first, Order::MAX),
            Err(BuildError::OutOfRange)
        );
        assert_eq!(
            guest.session().populate_on_demand(first, Order::MAX),
            Err(BuildError::OutOfRange)
        );
        assert_eq!(guest.session().set_special(first, Order::MAX), Err(BuildError::OutOfRange));
        let refused = guest.session().discard(first, u64::MAX).unwrap_err();
        assert_eq!((refused.reason, refused.next), (DecreaseError::OutOfRange, first));
        assert_eq!(guest.session().retake(first, u64::MAX), 0);
    }
    assert_eq!(guest.session().fault(Gfn::new(u64::MAX)), Err(FaultError::Unmapped));
    assert_eq!((guest.domain.quantities(), guest.machine.counters()), before, "nothing was done");
    assert_sound(&guest);
}

/// No zero page anywhere: the sweep went over all of memory in one go.
#[test]
fn xsa_150_a_sweep_that_finds_nothing_is_bounded_and_others_are_served() {
    let budget = 1 << 20;
    let config =
        Config { fault_budget_bytes: budget, ..Config::new(64 * 512, 32 * 512, Policy::Zerosweep) };
    let mut guest = SoftwareGuest::new(config).unwrap();
    // The last word of each page: every check that is made is made in full.
    for page in 0..32 * 512 - 512 {
        guest.write(Gfn::new(page), 4088, 1).unwrap();
    }
    guest.write(Gfn::new(31 * 512), 4088, 1).unwrap();
    let other = Gfn::new(31 * 512 + 1);
    let mut turns = 0;
    loop {
        let before = guest.domain.statistics().bytes_scanned;
        let fault = guest.session().fault(Gfn::new(32 * 512)).unwrap();
        let scanned = guest.domain.statistics().bytes_scanned - before;
        assert!(scanned <= budget + (2 << 20), "INV-9: {scanned} bytes in one turn");
        match fault {
            // Faults of other virtual CPUs are served in between.
            Fault::Again => assert!(guest.read(other, 0).is_ok()),
            Fault::Exhausted | Fault::Present { .. } => break,
            Fault::InTransit => panic!("nobody else is here"),
        }
        turns += 1;
        assert!(turns < 10_000, "it comes to no end");
    }
    assert!(turns >= 5, "{turns} turns: nothing was to be done");
    assert_sound(&guest);
}

/// The balloon stopped a little short of the target, and the guest then touched all it had.
#[test]
fn xsa_153_a_balloon_that_stops_short_is_survived() {
    for short in [1, 7, 511, 512, 600] {
        for policy in Policy::ALL {
            let mut guest = guest(8 * 512, 4 * 512, policy);
            for page in 4 * 512 + short..8 * 512 {
                assert_eq!(guest.session().decrease(Gfn::new(page), PAGE), Ok(1));
            }
            let mut refused = 0;
            for page in 0..4 * 512 + short {
                match guest.write(Gfn::new(page), 0, page + 1) {
                    Ok(()) => {}
                    Err(TouchError::Exhausted) => refused += 1,
                    Err(error) => panic!("{policy}: {error}"),
                }
            }
            assert_eq!(refused, short, "{policy}: just what it owes has no frame");
            assert_sound(&guest);
            // It is a state: what it does give back ends it.
            let last = Gfn::new(4 * 512 + short - 1);
            assert_eq!(guest.session().decrease(Gfn::new(0), PAGE), Ok(1));
            assert_eq!(guest.write(last, 0, 9), Ok(()), "{policy}");
            assert_eq!(guest.read(Gfn::new(1), 0), Ok(2), "{policy}");
            assert_sound(&guest);
        }
    }
}

// XSA-246 (table memory exhausted, endless retry) is in table_memory.rs, which fails every
// allocation in turn; and here what the caller sees when the machine has no memory for its tables.
#[test]
fn xsa_246_a_mapping_that_cannot_be_made_is_an_error_and_not_a_loop() {
    for policy in Policy::ALL {
        let mut guest = guest(2048, 1024, policy);
        guest.machine.fail(0, u64::MAX, Failure::Refuse);
        let calls = guest.machine.fallible_calls();
        assert_eq!(guest.session().fault(Gfn::new(5)), Err(FaultError::Map));
        assert!(guest.machine.fallible_calls() - calls <= 4, "{policy}: it was retried");
        assert_sound(&guest);
        guest.machine.fail_no_more();
        assert_eq!(guest.write(Gfn::new(5), 0, 1), Ok(()));
        assert_sound(&guest);
    }
}

/// An unmap or a map failed inside a check: the frame was cached and mapped, a counter fell below
/// 0.
#[test]
fn xsa_247_a_check_that_fails_half_way_leaves_each_frame_in_one_place() {
    for policy in Policy::ALL {
        for nth in 0..40 {
            let mut guest = guest(4 * 512, 2 * 512, policy);
            scrub(&mut guest, 0..1024);
            guest.write(Gfn::new(513), 2048, 5).unwrap();
            guest.machine.fail(nth, 1, Failure::Refuse);
            // Checks on a decrease, on a fault without a frame, and a full sweep.
            let _ = guest.session().decrease(Gfn::new(8), PAGE);
            assert_sound(&guest);
            let _ = guest.session().fault(Gfn::new(1024));
            assert_sound(&guest);
            let _ = guest.session().sweep_full(&mut 0, u64::MAX);
            assert_sound(&guest);
            guest.machine.fail_no_more();
            assert_eq!(guest.read(Gfn::new(513), 2048), Ok(5), "{policy}, call {nth}");
            while guest.session().teardown(9) == zerosweep::Progress::More {}
            assert_eq!(guest.machine.pool().free_pages(), 1024, "{policy}, call {nth}");
        }
    }
}

/// An early exit kept a lock.
#[test]
fn xsa_277_a_decrease_of_anything_keeps_no_claim() {
    for policy in Policy::ALL {
        let mut guest = guest(8 * 512, 6 * 512, policy);
        guest.session().set_special(Gfn::new(3 * 512), SUPERPAGE).unwrap();
        guest.session().set_special(Gfn::new(5), PAGE).unwrap();
        scrub(&mut guest, 512..1536);
        guest.write(Gfn::new(513), 0, 1).unwrap();
        guest.session().pin(Gfn::new(514)).unwrap();
        guest.session().decrease(Gfn::new(2048), SUPERPAGE).unwrap();
        guest.write(Gfn::new(1030), 0, 1).unwrap();
        let (mfn, _) = guest.machine.translate(Gfn::new(1030)).unwrap();
        guest.machine.set_busy(mfn, true);
        // PoD, ram, zero ram, pinned, busy, special, out, a mixture, beyond the end, dying.
        for (first, order) in [
            (3000, 0),
            (513, 0),
            (600, 0),
            (514, 0),
            (1030, 0),
            (1536, 0),
            (2048, 0),
            (5, 0),
            (0, 9),
            (512, 9),
            (1024, 9),
            (1536, 9),
            (2048, 9),
            (0, 11),
            (4095, 1),
            (1 << 40, 9),
        ] {
            let order = Order::new(order).unwrap();
            let _ = guest.session().decrease(Gfn::new(first), order);
            assert_sound(&guest);
            guest.write(Gfn::new(7 * 512 + 1), 0, first).unwrap();
            assert_sound(&guest);
        }
        guest.machine.set_busy(mfn, false);
        let _ = guest.session().teardown(1);
        assert_eq!(guest.session().decrease(Gfn::new(9), PAGE), Err(DecreaseError::Dying));
        assert_sound(&guest);
    }
}

/// A misaligned gfn with an order above 0; orders between 0 and 9.
#[test]
fn xsa_388_every_alignment_and_order_is_what_it_is_page_by_page() {
    for policy in Policy::ALL {
        for order in (0..=9).map(|raw| Order::new(raw).unwrap()) {
            // All alignments under our policy, some under the historical ones.
            let stride = if policy == Policy::Zerosweep { 1 } else { 37 };
            let mut at = 0;
            while at < 512 {
                let mut run = guest(3 * 512, 2 * 512, policy);
                let mut singly = guest(3 * 512, 2 * 512, policy);
                for guest in [&mut run, &mut singly] {
                    guest.write(Gfn::new(3), 0, 1).unwrap();
                    guest.write(Gfn::new(700), 0, 1).unwrap();
                    guest.session().set_special(Gfn::new(1100), PAGE).unwrap();
                    guest.session().decrease(Gfn::new(520), Order::new(2).unwrap()).unwrap();
                }
                let first = Gfn::new(at);
                let given = run.session().decrease(first, order).unwrap();
                let each = (0..order.pages())
                    .map(|i| singly.session().decrease(first.offset(i), PAGE).unwrap());
                assert_eq!(given, each.sum(), "{policy} {first:?} {order:?}");
                for page in 0..3 * 512 {
                    let gone = |guest: &SoftwareGuest| {
                        guest.domain.p2m().get(Gfn::new(page)).0 == Entry::Invalid
                    };
                    assert_eq!(gone(&run), gone(&singly), "{policy} {first:?} {order:?}: {page}");
                }
                assert_sound(&run);
                assert_eq!(run.domain.quantities().guest(), singly.domain.quantities().guest());
                at += stride;
            }
        }
    }
}

/// A partial success left counters out of step.
#[test]
fn xsa_389_a_partial_success_is_counted_as_far_as_it_went() {
    for policy in Policy::ALL {
        for nth in 0..80 {
            let machine = SoftwareMachine::new(6 * 512);
            let mut guest =
                SoftwareGuest::on(machine, Config::new(4 * 512, 3 * 512, policy)).unwrap();
            guest.write(Gfn::new(1030), 0, 3).unwrap();
            guest.session().decrease(Gfn::new(0), SUPERPAGE).unwrap();
            let before = guest.domain.quantities();
            // The k-th page of a run of 64 that the host is to back.
            guest.machine.fail(nth, 1, Failure::Refuse);
            let outcome = guest.session().populate_physmap(Gfn::new(0), Order::new(5).unwrap());
            guest.machine.fail_no_more();
            assert_sound(&guest);
            if outcome.is_err() {
                let after = guest.domain.quantities();
                assert_eq!(after.guest(), before.guest(), "{policy}, call {nth}: all or nothing");
                assert_eq!(after.total(), before.total(), "{policy}, call {nth}");
            }
            // A decrease that goes half way says how far.
            let had = guest.domain.quantities().guest();
            guest.machine.fail(nth % 20, 3, Failure::Refuse);
            let given = guest.session().decrease(Gfn::new(1024), Order::new(6).unwrap()).unwrap();
            guest.machine.fail_no_more();
            assert_eq!(guest.domain.quantities().guest(), had - given, "{policy}, call {nth}");
            assert_sound(&guest);
        }
    }
}

/// A decrease on a special page stole it for the cache.
#[test]
fn xsa_507_a_special_page_never_enters_the_cache_at_any_order() {
    for policy in Policy::ALL {
        for order in [0, 1, 3, 8, 9, 10, 11] {
            let order = Order::new(order).unwrap();
            let mut guest = guest(8 * 512, 4 * 512, policy);
            let special = [Gfn::new(17), Gfn::new(600), Gfn::new(1024)];
            special.iter().for_each(|&gfn| guest.session().set_special(gfn, PAGE).unwrap());
            scrub(&mut guest, 1536..1600);
            for first in special.map(|gfn| gfn.align_down(order)) {
                let given = guest.session().decrease(first, order).unwrap();
                assert!(given < order.pages(), "{policy} {order:?}: a special page was given back");
            }
            for gfn in special {
                assert_eq!(guest.domain.p2m().get(gfn).0, Entry::Special, "{policy} {order:?}");
                assert_eq!(guest.session().fault(gfn), Err(FaultError::Special));
            }
            assert_sound(&guest);
        }
    }
}

/// cc950c49ae: a count was read outside the lock. The concurrency test checks the quantities at
/// every moment; this one, that what a caller is told is of one moment.
#[test]
fn quantities_are_of_one_moment() {
    let mut guest = guest(4 * 512, 2 * 512, Policy::Zerosweep);
    scrub(&mut guest, 0..512);
    let q = guest.domain.quantities();
    assert_eq!((q.total(), q.guest()), (q.populated + q.cache + q.retained, 4 * 512));
}

/// 7867181b2a: a partial decrease must say how many pages it did.
#[test]
fn a_partial_decrease_says_how_many_pages_it_did() {
    for policy in Policy::ALL {
        let config =
            Config { invalid_touch: InvalidTouch::Refuse, ..Config::new(2048, 2048, policy) };
        let mut guest = SoftwareGuest::new(config).unwrap();
        guest.write(Gfn::new(512), 0, 1).unwrap();
        guest.session().pin(Gfn::new(520)).unwrap();
        guest.session().decrease(Gfn::new(530), PAGE).unwrap();
        guest.session().set_special(Gfn::new(1030), PAGE).unwrap();
        let given = guest.session().decrease(Gfn::new(512), Order::new(10).unwrap()).unwrap();
        assert_eq!(
            given,
            1024 - 3,
            "{policy}: all but the pinned, the special, the one that was out"
        );
        assert_eq!(guest.domain.quantities().guest(), 2048 - 1 - 1 - given, "{policy}");
        assert_sound(&guest);
    }
}
