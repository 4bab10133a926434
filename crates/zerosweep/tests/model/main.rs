//! Random operations against a naive model that knows pages and nothing of superpages: the same
//! answers, the same bytes, and books that add up after every step; the machine refuses calls now
//! and then, and frames are busy, pinned or broken. In one case of four, and wherever a call fails
//! (`failures`), each call is one at which the cap might be lifted: every page that the step may
//! not change is then where the guest reaches it, or in the frame that its entry names.
//!
//! A million steps, half of them under our own policy, or as many as `ZEROSWEEP_STEPS` says. The
//! seed is fixed, or `ZEROSWEEP_SEED`; what fails is made as small as it gets and printed.
//!
//! The fuzz target `engine` (`fuzz/`) has the same model, and steps out of bytes; what it found
//! worth keeping is done here too.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod both;
mod bytes;
#[path = "../../../../fuzz/corpus.rs"]
mod corpus;
mod failures;
mod random;
mod steps;

use std::cell::Cell;
use std::panic;
use std::sync::Once;

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};
use zerosweep::{Gate, Policy};

use crate::both::Both;

const STEPS: u64 = 1_000_000;
const SEED: u64 = 20_110_309;
/// One case in this many takes each call of the machine for one at which the cap might be lifted.
const WATCH_EVERY: u64 = 4;

fn number(variable: &str, default: u64) -> u64 {
    match std::env::var(variable) {
        Ok(value) => value.parse().expect("a number"),
        Err(_) => default,
    }
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work`, whose panics are told by its outcome: not one by one while a failure is made small.
fn quietly<T>(work: impl FnOnce() -> T) -> T {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let told = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                told(info);
            }
        }));
    });
    QUIET.set(true);
    let outcome = work();
    QUIET.set(false);
    outcome
}

/// Does this share of all steps, in twentieths, under a policy.
fn agree(policy: Policy, twentieths: u64) {
    let steps = number("ZEROSWEEP_STEPS", STEPS) * twentieths / 20;
    let seed = number("ZEROSWEEP_SEED", SEED);
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    // Failures are printed, not kept in a file: the seed finds them again.
    let config =
        Config { failure_persistence: None, max_shrink_iters: 20_000, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, rng);
    let strategy = random::case(policy);
    let (mut done, mut cases) = (0, 0_u64);
    while done < steps {
        let tree = strategy.new_tree(&mut runner).unwrap();
        let count = Cell::new(0);
        let watches = cases % WATCH_EVERY == 0;
        let outcome = quietly(|| {
            runner.run_one(tree, |case| {
                let both = Both::new(case.config);
                let both = if watches { both.watch() } else { both };
                count.set(both.run_steps(&case));
                Ok(())
            })
        });
        match outcome {
            Ok(_) => (done, cases) = (done + count.get(), cases + 1),
            Err(TestError::Fail(reason, case)) => {
                panic!("{policy}, seed {seed}, case {cases}: {reason}\n{case:#?}")
            }
            Err(TestError::Abort(reason)) => panic!("{policy}, seed {seed}: {reason}"),
        }
    }
    println!("{policy}, seed {seed}: {done} steps in {cases} cases");
}

#[test]
fn zerosweep_agrees() {
    agree(Policy::Zerosweep, 10);
}

#[test]
fn none_agrees() {
    agree(Policy::None, 2);
}

#[test]
fn rfc_2011_agrees() {
    agree(Policy::Rfc2011(Gate::Debt), 2);
}

#[test]
fn hypercall_2011_agrees() {
    agree(Policy::Hypercall2011, 2);
}

#[test]
fn xen_2012_agrees() {
    agree(Policy::Xen2012, 2);
}

#[test]
fn xen_2016_agrees() {
    agree(Policy::Xen2016, 2);
}

/// What the fuzz target found worth keeping, and what is near it.
#[test]
fn the_corpus_agrees() {
    let run = |input: &[u8]| {
        Both::run(&bytes::case(input));
    };
    let told = corpus::each("engine", run, |input| format!("{:#?}", bytes::case(input)));
    println!("{told}");
}
