//! Runs every test that this machine allows, and says at the end what was run, what was left out and
//! why, how to get it, and where the time went.
//!
//! A test that needs more than cargo is ignored, and says all that it needs in the reason
//! ([`crate::need`]). Tests that need the same are a group.

mod emulated;
pub(crate) mod program;
mod reasons;
mod summary;

use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context, Result};

pub(crate) use self::emulated::{Emulated, run_all as run_emulated};
use self::program::{On, Program, Ran, build};
use self::reasons::Reasons;
use self::summary::Summary;
use crate::cargo::{CHECKED, Outcome, RELEASE, cargo, start, target, workspace};
use crate::hosts;
use crate::need::{self, Missing, Need, Needs};

/// Whether tests on real guests are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RealGuests {
    /// Set up what they need, and run them.
    Run,
    /// Do not, and install nothing.
    LeftOut,
}

/// The test program whose tests start the release build, which users have.
const REAL_GUEST: &str = "real_guest";
/// The variable with the path of that build.
pub(crate) const PROGRAM: &str = "ZEROSWEEP_PROGRAM";
const BUILD: [&str; 6] = ["build", RELEASE, "-p", "zerosweep-cli", "-p", "zerosweep-agent"];
/// The module of them that compares times.
const TIMED: &str = "boot_time::";
/// Test programs that run at once: while one waits, or has one long test left, another goes on.
const PROGRAMS: usize = 2;
/// Real guests that run at once. With three, time limits passed on a machine with other work.
const GUESTS: usize = 2;

/// Tests of one program that need the same, or all those that need nothing.
struct Job<'a> {
    program: &'a Program,
    needs: Needs,
    tests: Vec<String>,
}

/// Runs the tests. Returns whether none failed, and none was left out for want of something that
/// can be installed.
pub(crate) fn run(real_guests: RealGuests) -> Result<bool> {
    let began = Instant::now();
    let mut summary = Summary::default();
    let mut wanted = wanted()?;
    wanted.insert(Need::Aarch64);
    let (missing, programs) = std::thread::scope(|scope| {
        let installing = scope.spawn(|| match real_guests {
            RealGuests::Run => need::obtain(&wanted),
            RealGuests::LeftOut => left_out(&wanted),
        });
        let all = [&CHECKED[..], &["--workspace"]].concat();
        let programs = summary.building("build of the tests", || build(&all, On::Machine));
        (installing.join().expect("installing does not panic"), programs)
    });
    let Some(programs) = programs? else { return Ok(false) };
    let (guests, others): (Vec<_>, Vec<_>) = jobs(&programs, &missing, &mut summary)?
        .into_iter()
        .partition(|job| job.program.is(REAL_GUEST));
    let (timed, guests): (Vec<_>, Vec<_>) = guests
        .into_iter()
        .flat_map(Job::one_by_one)
        .partition(|job| job.tests[0].starts_with(TIMED));
    // Much of the tests' time is spent waiting: the build for real guests goes on meanwhile, and
    // then that for another architecture.
    let is_needed = !(timed.is_empty() && guests.is_empty());
    std::thread::scope(|scope| -> Result<()> {
        let builds = scope.spawn(|| -> Result<()> {
            if is_needed {
                start(&BUILD, &[])?.wait()?;
            }
            if let Some(mut build) = emulated::start_build(&missing)? {
                build.wait()?;
            }
            Ok(())
        });
        side_by_side(PROGRAMS, others, &mut summary, &[], || {})?;
        builds.join().expect("a build does not panic")
    })?;
    let real_guest = programs.iter().find(|program| program.is(REAL_GUEST));
    let lacks = |need| missing.iter().any(|missing| missing.need == need);
    // Where KVM has no processor's help, a host is booted that has.
    let in_host = real_guest.filter(|_| {
        real_guests == RealGuests::Run
            && lacks(Need::HardwareKvm)
            && need::can_install()
            && !lacks(Need::Qemu)
            && !lacks(Need::GuestImage)
    });
    let zerosweep = target().join("checked/zerosweep");
    let is_built = is_needed
        && summary
            .building("what was left of the release build", || {
                Ok((cargo(&BUILD, &[])? == Outcome::Passed).then_some(()))
            })?
            .is_some();
    let release = target().join("release/zerosweep");
    let variables = [(PROGRAM, release.as_path())];
    let (timed, guests) = if is_built { (timed, guests) } else { (Vec::new(), Vec::new()) };
    // Those that compare times have the machine to themselves.
    side_by_side(1, timed, &mut summary, &variables, || {})?;
    let mut ran_in_host = None;
    std::thread::scope(|scope| -> Result<()> {
        let in_host = in_host.map(|program| scope.spawn(|| hosts::run_one(program, &zerosweep)));
        let documentation = [&["test"], &CHECKED[..], &["--workspace", "--doc"]].concat();
        summary.documentation(|| cargo(&documentation, &[]))?;
        emulated::run_some(&programs, &missing, &mut summary)?;
        side_by_side(GUESTS, guests, &mut summary, &variables, || {
            ran_in_host = in_host.map(|host| host.join().expect("a host does not panic"));
        })
    })?;
    note_host(ran_in_host, &mut summary);
    println!("{}", summary.shown(began.elapsed(), &missing));
    let failed_to_install =
        real_guests == RealGuests::Run && missing.iter().any(Missing::is_installable);
    Ok(summary.passed() && !failed_to_install)
}

/// Puts what a guest in a host of its own did into the summary.
fn note_host(ran: Option<Result<Ran>>, summary: &mut Summary) {
    let needs = Needs::from([Need::HardwareKvm]);
    match ran {
        Some(Ok(ran)) => {
            let again = "cargo xtask hosts --kernel 6.12 --scenario guest";
            summary.ran(&needs, &ran, |_| again.to_owned());
        }
        // Its packages may be out of reach.
        Some(Err(error)) => {
            eprintln!("no host could be built: {error:#}");
            summary.left_out(&needs, 1);
        }
        None => {}
    }
}

/// Returns everything that any test needs.
fn wanted() -> Result<Needs> {
    let crates = workspace().join("crates");
    let mut needs = Needs::new();
    for package in fs::read_dir(&crates).with_context(|| format!("reading {}", crates.display()))? {
        needs.extend(Reasons::of_package(&package?.path())?.needs().flatten());
    }
    Ok(needs)
}

/// Returns what is missing if nothing is installed, and no real guest is run.
fn left_out(wanted: &Needs) -> Vec<Missing> {
    let missing = wanted.iter().filter_map(|need| need.missing());
    let by_choice = [Need::GuestImage, Need::Aarch64];
    let mut missing: Vec<_> = missing.filter(|m| !by_choice.contains(&m.need)).collect();
    let what = "--quick leaves them out";
    missing.extend(by_choice.map(|need| Missing { need, what: what.to_owned() }));
    missing
}

/// Returns the jobs that can be run. The summary lists the others as left out.
fn jobs<'a>(
    programs: &'a [Program],
    missing: &[Missing],
    summary: &mut Summary,
) -> Result<Vec<Job<'a>>> {
    let mut jobs = Vec::new();
    for program in programs {
        if !program.ordinary()?.is_empty() {
            jobs.push(Job { program, needs: Needs::new(), tests: Vec::new() });
        }
        for (needs, tests) in program.needing()? {
            if missing.iter().any(|missing| needs.contains(&missing.need)) {
                summary.left_out(&needs, tests.len());
            } else {
                jobs.push(Job { program, needs, tests });
            }
        }
    }
    Ok(jobs)
}

/// Runs jobs, `lanes` of them at once. One of the lanes does something else first.
fn side_by_side(
    lanes: usize,
    jobs: Vec<Job<'_>>,
    summary: &mut Summary,
    variables: &[(&str, &Path)],
    first: impl FnOnce(),
) -> Result<()> {
    let (jobs, summary) = (Mutex::new(jobs.into_iter()), Mutex::new(summary));
    let lane = || -> Result<()> {
        loop {
            let next = jobs.lock().expect("a lane does not panic").next();
            let Some(job) = next else { return Ok(()) };
            let ran = job.run(variables)?;
            let mut summary = summary.lock().expect("a lane does not panic");
            summary.ran(&job.needs, &ran, |failed| job.program.command(&CHECKED, failed));
        }
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..lanes).map(|_| scope.spawn(lane)).collect();
        first();
        lane()?;
        others.into_iter().try_for_each(|lane| lane.join().expect("a lane does not panic"))
    })
}

impl Job<'_> {
    /// A job for each of its tests.
    fn one_by_one(self) -> impl Iterator<Item = Self> {
        let Self { program, needs, tests } = self;
        tests.into_iter().map(move |test| Self { program, needs: needs.clone(), tests: vec![test] })
    }

    fn run(&self, variables: &[(&str, &Path)]) -> Result<Ran> {
        self.program.run(&self.tests, variables)
    }
}
