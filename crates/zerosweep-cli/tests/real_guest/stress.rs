//! Everything at once: the balloon goes up and down while files are written and deleted, superpages
//! are swept and pages consolidated. No byte is lost, the books are right at every moment, and
//! every request is answered.
//!
//! `ZEROSWEEP_STRESS_SECONDS=600` lets it run for 600 seconds. `ZEROSWEEP_STRESS_SEED=7` sets the
//! seed, which is printed.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use zerosweep_wire::State;

use super::harness::{
    GUEST_BYTES, Guest, MEBIBYTE, Place, Spec, stderr, stdout, value, wait_until,
};

/// What the guest needs and a little more: its own 80 MiB, the pattern, the files.
const LEAST_BYTES: u64 = 480 << 20;
/// How often the balloon changes its direction, at least.
const TURNS: u32 = 100;
/// Between two turns: the balloon is on its way, or has just arrived.
const PAUSE: Duration = Duration::from_millis(100);
/// How often the guest writes, deletes and verifies its files after the balloon's last turn.
const ROUNDS_AFTER: usize = 2;
/// The longest wait for the status, which waits for no operation. The program waits twice this.
const ANSWER: Duration = Duration::from_secs(1);

#[test]
#[ignore = "needs QEMU, a guest image and userfaultfd: cargo xtask test sets them up"]
fn no_byte_is_lost_while_everything_goes_on_at_once() {
    let seed = number("ZEROSWEEP_STRESS_SEED").unwrap_or(1);
    let longest = Duration::from_secs(number("ZEROSWEEP_STRESS_SECONDS").unwrap_or(0));
    println!("\n  seed {seed}");
    let place = Place::new();
    let append = format!(
        "zs.fill=96M zs.rewrite=1 zs.stir=96M zs.clump=256K zs.first=30 zs.seed={seed} zs.end=idle"
    );
    let run = ["--target", "2G"];
    let qemu = ["-smp", "2"];
    let spec = Spec { run: &run, qemu: &qemu, append: &append, ..Spec::default() };
    let guest = Guest::managed(&place, &spec);
    guest.marker("balloon loaded devices=1");
    // The first turn: the guest sees its balloon at work, and goes on.
    set_target(&guest, 1 << 30);
    guest.marker("done ok");

    let done = AtomicBool::new(false);
    let (turns, works, (looks, waited)) = std::thread::scope(|scope| {
        let works = scope.spawn(|| work(&place, &done));
        let looks = scope.spawn(|| look(&guest, &done));
        // Dropped when a check fails: else the other threads would go on for ever.
        let stop = Stop(&done);
        let turns = turn(&guest, seed, longest);
        drop(stop);
        (turns, works.join().unwrap(), looks.join().unwrap())
    });

    set_target(&guest, LEAST_BYTES);
    let from = guest.console.len();
    let rounds = |from: usize| {
        let lines = guest.console.lines(from);
        lines.iter().filter(|line| line.marker().is_some_and(|m| m.starts_with("stirred"))).count()
    };
    wait_until("the guest goes on", Duration::from_secs(120), || {
        (rounds(from) >= ROUNDS_AFTER).then_some(())
    });
    check_guest(&guest);
    let rounds = rounds(0);
    assert!(rounds > ROUNDS_AFTER, "nothing was stirred while the balloon went up and down");
    check_audit(&place);
    let status = guest.status();
    let counters = &status.counters;
    println!(
        "  {turns} turns of the balloon, {works} sweeps and as many consolidations and audits, \
         {rounds} rounds of files; {looks} times the status, after {waited:.0?} at most; faults {}, \
         given back {}, retaken {}, evacuated {}, refilled {}, consolidated {}",
        counters.faults,
        counters.engine.pages_given_back,
        counters.engine.pages_retaken,
        counters.engine.evacuations,
        counters.engine.refills,
        counters.engine.pages_consolidated
    );
    if status.state != State::Managing || status.borrowed_pages != 0 {
        guest.fail("it is managed as before, and nothing was borrowed");
    }
    assert!(counters.engine.pages_given_back > 300_000, "the balloon hardly moved: {counters:#?}");
    assert!(works > 3, "{works} sweeps");
    assert!(waited < ANSWER, "a status came after {waited:?}");
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is not a number")))
}

/// Tells the other thread to end, whatever happens.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Up and down, a way and a half at random, now and then the whole way; returns how often.
fn turn(guest: &Guest, seed: u64, longest: Duration) -> u32 {
    let began = Instant::now();
    let mut state = seed;
    let mut below = |bound: u64| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % bound
    };
    let mut turns = 0;
    while turns < TURNS || began.elapsed() < longest {
        let bytes = match (turns % 2, turns % 10) {
            (0, 0) => LEAST_BYTES,
            (0, _) => LEAST_BYTES + below(256) * MEBIBYTE,
            (_, 9) => GUEST_BYTES,
            _ => LEAST_BYTES + (256 + below(512)) * MEBIBYTE,
        };
        set_target(guest, bytes);
        std::thread::sleep(PAUSE);
        check_guest(guest);
        turns += 1;
    }
    turns
}

/// The engine's target and the guest's balloon together, and nobody waits for the balloon.
fn set_target(guest: &Guest, bytes: u64) {
    // Down, the balloon comes first: the engine's target is what the guest may hold.
    guest.qmp().balloon(bytes).unwrap();
    guest.agent().set_target(bytes).unwrap();
}

/// Sweeps, consolidates and audits until `done`; returns how often.
fn work(place: &Place, done: &AtomicBool) -> usize {
    let mut works = 0;
    while !done.load(Relaxed) {
        for command in ["sweep", "consolidate"] {
            let began = Instant::now();
            let output = place.output([command, "vm"]);
            let time = began.elapsed();
            assert!(output.status.success(), "{command}, {time:?}: {}", stderr(&output));
        }
        check_audit(place);
        works += 1;
        std::thread::sleep(PAUSE);
    }
    works
}

/// Asks for the status until `done`; returns how often, and the longest time that it took.
fn look(guest: &Guest, done: &AtomicBool) -> (usize, Duration) {
    let (mut looks, mut longest) = (0, Duration::ZERO);
    while !done.load(Relaxed) {
        let began = Instant::now();
        guest.status();
        longest = longest.max(began.elapsed());
        looks += 1;
        std::thread::sleep(PAUSE / 5);
    }
    (looks, longest)
}

fn check_audit(place: &Place) {
    let output = place.output(["audit", "vm"]);
    assert!(output.status.success(), "R19: {}{}", stdout(&output), stderr(&output));
}

/// What the guest says of its pattern and its files.
fn check_guest(guest: &Guest) {
    for line in guest.console.lines(0) {
        if line.is_panic() {
            guest.fail("the guest's kernel has given up");
        }
        let Some(marker) = line.marker() else { continue };
        let tells = marker.starts_with("alive ") || marker.starts_with("stirred ");
        if marker.starts_with("damaged") || (tells && value(&line, "bad") != 0.0) {
            guest.fail("the guest is damaged");
        }
    }
}
