//! Steps and domains by chance.

use proptest::prelude::*;
use zerosweep::{Config, InvalidTouch, Policy, Upkeep};
use zerosweep_sim::Failure;

use crate::steps::{Case, MOST_PAGES, Step};

fn step() -> impl Strategy<Value = Step> {
    let page = 0..MOST_PAGES;
    // Orders that are too large for the guest are tried too.
    let order = prop_oneof![6 => Just(0_u8), 3 => 0..=9_u8, 1 => 10..=18_u8];
    let at = (page.clone(), order);
    let run = (page.clone(), 1..700_u64);
    let how = prop_oneof![4 => Just(Failure::Refuse), 1 => Just(Failure::Pieces)];
    prop_oneof![
        8 => page.clone().prop_map(Step::Read),
        16 => (page.clone(), 1..3_u64).prop_map(|(page, value)| Step::Write(page, value)),
        2 => (page.clone(), 0..3_u64).prop_map(|(page, value)| Step::ReadByHost(page, value)),
        8 => run.clone().prop_map(|(page, count)| Step::Scrub(page, count)),
        2 => page.clone().prop_map(Step::Borrow),
        16 => at.clone().prop_map(|(page, order)| Step::Decrease(page, order)),
        4 => at.clone().prop_map(|(page, order)| Step::Promise(page, order)),
        4 => at.prop_map(|(page, order)| Step::Physmap(page, order)),
        1 => (page.clone(), 0..4_u8).prop_map(|(page, order)| Step::Special(page, order)),
        4 => (page.clone(), 1..1200_u64).prop_map(|(page, count)| Step::Discard(page, count)),
        4 => run.prop_map(|(page, count)| Step::Retake(page, count)),
        1 => (page.clone(), any::<bool>()).prop_map(|(page, pin)| Step::Pin(page, pin)),
        2 => (page.clone(), any::<bool>()).prop_map(|(mfn, busy)| Step::Busy(mfn, busy)),
        1 => page.clone().prop_map(Step::Offline),
        1 => page.clone().prop_map(Step::Settle),
        4 => (1..=MOST_PAGES).prop_map(Step::Target),
        2 => (1..=MOST_PAGES, 0..3_u64).prop_map(|(pages, n)| Step::TargetInSteps(pages, n)),
        4 => prop_oneof![Just(u64::MAX), 1..4_u64].prop_map(Step::Sweep),
        3 => prop_oneof![Just(u64::MAX), 1..6_u64].prop_map(Step::Consolidate),
        4 => any::<bool>().prop_map(Step::Upkeep),
        2 => (0..MOST_PAGES, 1..9_u64).prop_map(|(pages, steps)| Step::Reconcile(pages, steps)),
        2 => (0..12_u64, 1..4_u64, how).prop_map(|(after, count, how)| Step::Fail(after, count, how)),
    ]
}

fn config(policy: Policy) -> impl Strategy<Value = Config> {
    // With a partial last superpage, and without.
    let pages = prop::sample::select(vec![512 + 37, 2 * 512, 2 * 512 + 37, MOST_PAGES]);
    let budget = prop::sample::select(vec![64 << 10, Config::DEFAULT_FAULT_BUDGET_BYTES]);
    (pages, 0..MOST_PAGES, any::<bool>(), any::<bool>(), budget).prop_map(
        move |(pages, target, increase, inline, fault_budget_bytes)| Config {
            invalid_touch: if increase { InvalidTouch::Increase } else { InvalidTouch::Refuse },
            upkeep: if inline { Upkeep::Inline } else { Upkeep::Host },
            fault_budget_bytes,
            ..Config::new(pages, (64 + target).min(pages), policy)
        },
    )
}

pub(crate) fn case(policy: Policy) -> impl Strategy<Value = Case> {
    (config(policy), prop::collection::vec(step(), 1..120))
        .prop_map(|(config, steps)| Case { config, steps })
}
