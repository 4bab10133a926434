//! Properties of the decision, on random hosts, and its plain cases.

use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;

fn guest(target: u64, need: u64) -> Seen {
    let limits = Limits { min_bytes: 128 * MIB, max_bytes: 2048 * MIB, shares: 1 };
    Seen {
        limits,
        target_bytes: target * MIB,
        held_bytes: target * MIB,
        actual_bytes: target * MIB,
        need_bytes: need * MIB,
        is_short: false,
        following: Following::Yes,
    }
}

fn any_guest() -> impl Strategy<Value = Seen> {
    let following = prop_oneof![
        6 => Just(Following::Yes),
        1 => Just(Following::Late),
        1 => Just(Following::Impossible)
    ];
    let sizes = (1..64_u64, 0..256_u64, 1..400_u64, 0..400_u64, 0..400_u64, 0..2000_u64);
    (sizes, 1..9_u64, any::<bool>(), following).prop_map(
        |((min, more, target, held, actual, need), shares, is_short, following)| Seen {
            limits: Limits { min_bytes: min * QUANTUM, max_bytes: (min + more) * QUANTUM, shares },
            target_bytes: target * QUANTUM,
            held_bytes: held * QUANTUM + 4096,
            actual_bytes: actual * QUANTUM + 8192,
            need_bytes: need * MIB,
            is_short,
            following,
        },
    )
}

fn hosts() -> impl Strategy<Value = (u64, Vec<Seen>)> {
    (0..4000_u64, prop::collection::vec(any_guest(), 0..7))
        .prop_map(|(total, guests)| (total * QUANTUM, guests))
}

/// Every guest has done what it was asked.
fn obey(guests: &mut [Seen], decisions: &[Decision]) {
    for (guest, decision) in guests.iter_mut().zip(decisions) {
        if let Some(asked) = decision.ask_bytes {
            guest.actual_bytes = asked;
        }
        guest.target_bytes = decision.target_bytes;
        guest.held_bytes = guest.target_bytes;
    }
}

proptest! {
    #[test]
    fn what_is_given_and_what_is_held_never_pass_the_total((total, guests) in hosts()) {
        let Ok(decisions) = decide(total, &guests) else { return Ok(()) };
        let before: u64 = guests.iter().map(Seen::committed).sum();
        let after: u64 = guests.iter().zip(&decisions)
            .map(|(guest, decision)| decision.target_bytes.max(guest.held_bytes)).sum();
        prop_assert!(after <= total.max(before), "{after} of {total}, {before} before");
    }

    #[test]
    fn ideals_are_within_their_limits_and_the_total((total, mut guests) in hosts()) {
        guests.iter_mut().for_each(|guest| guest.following = Following::Yes);
        let Ok(decisions) = decide(total, &guests) else {
            let minima: u64 = guests.iter().map(|guest| guest.limits.min_bytes).sum();
            prop_assert!(minima > total);
            return Ok(());
        };
        for (guest, decision) in guests.iter().zip(&decisions) {
            prop_assert!(decision.ideal_bytes >= guest.limits.min_bytes);
            prop_assert!(decision.ideal_bytes <= guest.limits.max_bytes);
            prop_assert_eq!(decision.ideal_bytes % QUANTUM, 0);
            if let Some(asked) = decision.ask_bytes {
                prop_assert!(asked <= guest.limits.max_bytes);
                prop_assert!(asked >= guest.limits.min_bytes.min(guest.target_bytes));
            }
        }
        prop_assert!(decisions.iter().map(|decision| decision.ideal_bytes).sum::<u64>() <= total);
    }

    #[test]
    fn obedient_guests_come_to_rest_and_nothing_changes_then((total, mut guests) in hosts()) {
        for guest in &mut guests {
            (guest.following, guest.is_short) = (Following::Yes, false);
        }
        let Ok(mut decisions) = decide(total, &guests) else { return Ok(()) };
        for _ in 0..8 {
            obey(&mut guests, &decisions);
            decisions = decide(total, &guests).unwrap();
        }
        for (guest, decision) in guests.iter().zip(&decisions) {
            prop_assert_eq!(decision.target_bytes, guest.target_bytes, "{:?}", decision);
            let limits = guest.limits;
            prop_assert!((limits.min_bytes..=limits.max_bytes).contains(&guest.target_bytes));
        }
        prop_assert!(guests.iter().map(|guest| guest.target_bytes).sum::<u64>() <= total);
    }

    #[test]
    fn more_shares_are_never_less_memory((total, guests) in hosts(), more in 1..9_u64) {
        let Ok(before) = decide(total, &guests) else { return Ok(()) };
        for at in 0..guests.len() {
            let mut guests = guests.clone();
            guests[at].limits.shares += more;
            let after = decide(total, &guests).unwrap();
            // Whole quanta: what is rounded off is another's gain now and then.
            let least = before[at].ideal_bytes.saturating_sub(QUANTUM);
            prop_assert!(after[at].ideal_bytes >= least, "{:?} {:?}", before[at], after[at]);
        }
    }

    #[test]
    fn no_target_goes_below_what_the_balloon_has_left((total, guests) in hosts()) {
        let Ok(decisions) = decide(total, &guests) else { return Ok(()) };
        for (guest, decision) in guests.iter().zip(&decisions) {
            prop_assert!(decision.target_bytes >= guest.target_bytes.min(guest.actual_bytes));
            if guest.following == Following::Impossible {
                prop_assert_eq!(decision.target_bytes, guest.target_bytes);
                prop_assert_eq!(decision.ask_bytes, None);
            }
        }
    }
}

#[test]
fn memory_goes_first_from_the_one_and_then_to_the_other() {
    let mut guests = [guest(400, 900), guest(400, 150), guest(400, 150)];
    let first = decide(1200 * MIB, &guests).unwrap();
    assert_eq!(first[0].why, Why::Waits, "nobody has given anything back yet");
    assert_eq!((first[1].why, first[1].target_bytes), (Why::Shrinks, 400 * MIB));
    guests[1].actual_bytes = 200 * MIB;
    let second = decide(1200 * MIB, &guests).unwrap();
    assert_eq!(second[0].why, Why::Waits, "its target is lower, but it holds the memory yet");
    assert_eq!(second[1].target_bytes, 200 * MIB);
    (guests[1].target_bytes, guests[1].held_bytes) = (200 * MIB, 200 * MIB);
    let third = decide(1200 * MIB, &guests).unwrap();
    assert_eq!((third[0].why, third[0].target_bytes), (Why::GrowsInPart, 600 * MIB));
}

#[test]
fn a_guest_that_does_not_follow_keeps_others_from_its_memory() {
    let mut guests = [guest(600, 900), guest(600, 150)];
    guests[1].following = Following::Late;
    let decisions = decide(1200 * MIB, &guests).unwrap();
    assert_eq!(decisions[0].why, Why::Near, "there is nothing else to have");
    assert_eq!((decisions[1].why, decisions[1].target_bytes), (Why::Late, 600 * MIB));
    assert_eq!(decisions[1].ask_bytes, Some(152 * MIB), "it is asked all the same");
}

#[test]
fn scarce_memory_goes_by_shares_and_who_is_short_comes_first() {
    let mut guests = [guest(128, 2000), guest(128, 2000)];
    guests[0].limits.shares = 3;
    let decisions = decide(1280 * MIB, &guests).unwrap();
    assert_eq!(decisions[0].target_bytes, (128 + 768) * MIB);
    assert_eq!(decisions[1].target_bytes, (128 + 256) * MIB);
    let mut guests = [guest(500, 600), guest(500, 600)];
    guests[1].is_short = true;
    let decisions = decide(1080 * MIB, &guests).unwrap();
    assert_eq!(decisions[1].target_bytes, 540 * MIB);
    guests[0].target_bytes = 520 * MIB;
    let decisions = decide(1080 * MIB, &guests).unwrap();
    assert_eq!(decisions[1].target_bytes - 500 * MIB, 40 * MIB);
}

#[test]
fn a_small_difference_is_no_reason() {
    let guests = [guest(600, 620), guest(600, 580)];
    let decisions = decide(1200 * MIB, &guests).unwrap();
    assert!(decisions.iter().all(|decision| decision.why == Why::Near), "{decisions:?}");
}

/// Each target is near its ideal, but the sum is above the total.
#[test]
fn a_sum_above_the_total_does_not_stay() {
    let guests = [guest(604, 600), guest(604, 600)];
    let decisions = decide(1200 * MIB, &guests).unwrap();
    assert!(decisions.iter().all(|decision| decision.why == Why::Shrinks), "{decisions:?}");
}

#[test]
fn a_total_below_the_minima_is_an_error() {
    let guests = [guest(600, 600), guest(600, 600)];
    assert_eq!(decide(255 * MIB, &guests), Err(TooSmall { least_bytes: 256 * MIB }));
    assert!(decide(256 * MIB, &guests).is_ok());
    assert_eq!(decide(0, &[]), Ok(Vec::new()));
}
