//! The locking protocol of `zerosweep::session` under every order of events that a scheduler thinks
//! of: guests that write, read, give back and take again, while sweeps, upkeep, consolidations and
//! changes of the target run, on few superpages.
//!
//! `ZEROSWEEP_SCHEDULES` says how many schedules (per kind; 2000), `ZEROSWEEP_SEED` which is the
//! first (1). A failure prints the seed of its schedule and the program that ran.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod guest;
mod program;
mod seen;
mod shared;

use std::sync::Arc;

use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, FailurePersistence, MaxSteps, Runner, thread};

use crate::guest::Guest;
use crate::program::Program;
use crate::shared::{GUESTS, Shared};

/// Schedules of one program under the scheduler that changes priorities; the first is for length.
const PRIORITY_SCHEDULES: u64 = 10;
/// Changes of priority in such a schedule, and one more.
const DEPTH: usize = 4;

#[test]
fn any_order_of_events_keeps_the_books_and_the_bytes() {
    for seed in seeds(2000) {
        run(seed, RandomScheduler::new_from_seed(seed, 1));
    }
    println!("{:#?}", seen::all());
}

#[test]
fn busy_frames_and_failing_calls_lose_nothing() {
    for seed in seeds(800) {
        let scheduler = RandomScheduler::new_from_seed(seed, 1);
        run_program(Program::hindered(seed), scheduler);
    }
    println!("{:#?}", seen::all());
}

/// A thread of the host reads all over the guest, and the guests write to what it is shown before
/// that is protected.
#[test]
fn a_guest_that_is_read_out_keeps_the_books_and_the_bytes() {
    for seed in seeds(400) {
        let scheduler = RandomScheduler::new_from_seed(seed, 1);
        run_program(Program::read_out(seed), scheduler);
    }
    println!("{:#?}", seen::all());
}

/// Schedules that once found a defect: sweeps that waited for each other's ranges for ever, and a
/// frame that was looked up before a split that moved it.
const FOUND: [u64; 3] = [579, 888, 13027];

#[test]
fn schedules_that_once_found_a_defect() {
    FOUND.into_iter().for_each(|seed| run(seed, RandomScheduler::new_from_seed(seed, 1)));
}

#[test]
fn long_runs_of_one_thread_before_another_keep_the_books_and_the_bytes() {
    for seed in seeds(2000).step_by(PRIORITY_SCHEDULES as usize) {
        run(seed, PctScheduler::new_from_seed(seed, DEPTH, PRIORITY_SCHEDULES as usize));
    }
    println!("{:#?}", seen::all());
}

fn seeds(count: u64) -> std::ops::Range<u64> {
    let number = |name| Some(std::env::var(name).ok()?.parse::<u64>().expect(name));
    let first = number("ZEROSWEEP_SEED").unwrap_or(1);
    first..first + number("ZEROSWEEP_SCHEDULES").unwrap_or(count)
}

fn run(seed: u64, scheduler: impl Scheduler + 'static) {
    run_program(Program::new(seed), scheduler);
}

fn run_program(program: Program, scheduler: impl Scheduler + 'static) {
    let mut config = Config::new();
    // Sets of frames lie on the stack.
    config.stack_size = 1 << 18;
    config.failure_persistence = FailurePersistence::None;
    // INV-8: shuttle reports a waiter that nobody wakes, and this one that is woken for ever.
    config.max_steps = MaxSteps::FailAfter(4_000_000);
    let program = Arc::new(program);
    let said = OnPanic(Arc::clone(&program));
    Runner::new(scheduler, config).run(move || schedule(&program));
    drop(said);
}

/// Says what ran when a schedule fails.
struct OnPanic(Arc<Program>);

impl Drop for OnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{:?}", self.0);
        }
    }
}

fn schedule(program: &Arc<Program>) {
    let is_hindered = !program.hindrances.is_empty();
    let shared = Arc::new(Shared::new(program.target, is_hindered));
    let guests: Vec<Guest> = (0..GUESTS)
        .map(|number| {
            let mut guest = Guest::new(Arc::clone(&shared), number);
            let (count, step) = program.boots[number];
            guest.boot(count, step);
            guest
        })
        .collect();
    let keeper = {
        let (shared, program) = (Arc::clone(&shared), Arc::clone(program));
        thread::spawn(move || program.keeper.iter().for_each(|&task| shared.keep(task)))
    };
    let device = is_hindered.then(|| {
        let (shared, program) = (Arc::clone(&shared), Arc::clone(program));
        thread::spawn(move || {
            for &hindrance in &program.hindrances {
                shared.hinder(hindrance);
                // For a while.
                (0..20).for_each(|_| shared.rest());
            }
        })
    });
    let reader = (!program.reads.is_empty()).then(|| {
        let (shared, program) = (Arc::clone(&shared), Arc::clone(program));
        thread::spawn(move || program.reads.iter().for_each(|&page| shared.read_by_host(page)))
    });
    let run = |(number, mut guest): (usize, Guest)| {
        let program = Arc::clone(program);
        thread::spawn(move || {
            program.guests[number].iter().for_each(|&step| guest.act(step));
            guest
        })
    };
    let guests: Vec<_> = guests.into_iter().enumerate().map(run).collect();
    keeper.join().unwrap();
    if let Some(device) = device {
        device.join().unwrap();
    }
    if let Some(reader) = reader {
        reader.join().unwrap();
    }
    let guests: Vec<Guest> = guests.into_iter().map(|guest| guest.join().unwrap()).collect();
    shared.settle();
    guests.into_iter().for_each(Guest::verify);
    shared.settle();
    shared.end();
}
