//! Every call of the machine that can fail does so once, alone and with all that follow, in every
//! operation, from several states: after each failure the books add up, no byte and no frame is
//! lost, and the same operation and any other work.

use zerosweep::{Config, Gate, InvalidTouch, Policy, Upkeep};
use zerosweep_sim::Failure;

use crate::both::Both;
use crate::steps::Step;

const PAGES: u64 = 2 * 512 + 37;
/// Every call of an operation is failed, or this many of them, evenly, if there are more.
const MOST_CALLS: u64 = 128;

/// What the guest and its balloon did before.
fn states() -> Vec<Vec<Step>> {
    use Step::*;
    let mixed = vec![Scrub(0, 1), Write(40, 1), Write(512, 1), Write(700, 2), Decrease(8, 3)];
    let broken = vec![
        Write(3, 1),
        Write(515, 2),
        Scrub(0, 600),
        Decrease(16, 4),
        Decrease(600, 3),
        Target(300),
        Upkeep(true),
    ];
    let pinned = vec![Write(5, 1), Write(514, 1), Pin(5, true), Busy(515, true)];
    let borrowed = vec![Target(64), Write(2, 1), Borrow(900), Borrow(1040), Write(900, 1)];
    let given_back = vec![Target(PAGES), Decrease(0, 9), Decrease(512, 9)];
    vec![vec![], mixed, broken, pinned, borrowed, given_back]
}

/// The operations, one or two of each kind.
fn operations() -> Vec<Step> {
    use Step::*;
    vec![
        Write(41, 1),
        Write(1060, 1),
        Read(13),
        ReadByHost(1000, 1),
        Scrub(508, 8),
        Borrow(20),
        Decrease(40, 0),
        Decrease(0, 9),
        Decrease(512, 5),
        Promise(8, 4),
        Physmap(8, 2),
        Physmap(0, 9),
        Physmap(0, 10),
        Special(1050, 1),
        Discard(500, 40),
        Retake(8, 16),
        Pin(700, true),
        Offline(512),
        Target(700),
        TargetInSteps(PAGES, 2),
        Sweep(u64::MAX),
        Consolidate(u64::MAX),
        Upkeep(true),
        Reconcile(300, 4),
    ]
}

fn configs() -> Vec<Config> {
    let mut configs = Vec::new();
    for policy in [Policy::Zerosweep, Policy::Rfc2011(Gate::Debt), Policy::Xen2016] {
        for invalid_touch in [InvalidTouch::Refuse, InvalidTouch::Increase] {
            let upkeep = match invalid_touch {
                InvalidTouch::Refuse => Upkeep::Inline,
                InvalidTouch::Increase => Upkeep::Host,
            };
            configs.push(Config { invalid_touch, upkeep, ..Config::new(PAGES, 700, policy) });
        }
    }
    configs
}

fn prepared(config: Config, steps: &[Step]) -> Both {
    let mut both = Both::new(config).watch();
    for step in steps {
        both.step(step);
    }
    both
}

/// How many calls that can fail a sequence makes.
fn calls(config: Config, state: &[Step], sequence: &[Step]) -> u64 {
    let mut both = prepared(config, state);
    let before = both.guest.machine.fallible_calls();
    for step in sequence {
        both.step(step);
    }
    both.guest.machine.fallible_calls() - before
}

#[derive(Default)]
struct Tried {
    runs: usize,
    /// Operations in which a call failed.
    failed: u64,
}

impl Tried {
    /// Fails each call of a sequence in turn; then does the sequence again, and something else.
    fn fail_each(&mut self, config: Config, state: &[Step], sequence: &[Step]) {
        let plans =
            [(1, Failure::Refuse), (u64::MAX, Failure::Refuse), (u64::MAX, Failure::Pieces)];
        let others = operations();
        let calls = calls(config, state, sequence);
        let count = calls.min(MOST_CALLS);
        for (nth, (more, how)) in (0..count).flat_map(|nth| plans.map(|plan| (nth, plan))) {
            let mut both = prepared(config, state);
            both.step(&Step::Fail(nth * calls / count, more, how));
            let mut failed = false;
            for step in sequence {
                failed |= both.step(step);
            }
            both.guest.machine.fail_no_more();
            for step in sequence.iter().chain([&others[self.runs % others.len()]]) {
                both.step(step);
            }
            both.tear_down();
            self.runs += 1;
            self.failed += u64::from(failed);
        }
    }

    fn tell(&self) {
        println!("{} runs, in {} of them a call failed", self.runs, self.failed);
        assert!(self.failed > 2000, "too few: {}", self.failed);
    }
}

#[test]
fn every_call_of_every_operation_fails() {
    let mut tried = Tried::default();
    for config in configs() {
        for state in states() {
            for operation in operations() {
                tried.fail_each(config, &state, &[operation]);
            }
        }
    }
    tried.tell();
}

/// As on Linux, from the state that has most in it; with `ZEROSWEEP_FAILURES=all` under every
/// policy and from every state.
#[test]
fn every_call_of_two_operations_fails() {
    let all = std::env::var("ZEROSWEEP_FAILURES").is_ok_and(|which| which == "all");
    let mut tried = Tried::default();
    let configs = configs();
    let (configs, states) = match all {
        true => (&configs[..], states()),
        false => (&configs[1..2], vec![states().swap_remove(2)]),
    };
    for &config in configs {
        for state in &states {
            for first in operations() {
                for second in operations() {
                    tried.fail_each(config, state, &[first.clone(), second]);
                }
            }
        }
    }
    tried.tell();
}
