//! Runs every test that this machine allows, and says at the end what was run, what was left out and
//! why, how to get it, and where the time went.
//!
//! A test that needs more than cargo is ignored, and says all that it needs in the reason
//! ([`crate::need`]). Tests that need the same are a group.

mod program;
mod reasons;
mod summary;

use std::collections::BTreeMap;
use std::fs;
use std::time::Instant;

use anyhow::{Context, Result};

use self::program::{Program, build};
use self::reasons::Reasons;
use self::summary::Summary;
use crate::cargo::{CHECKED, Outcome, RELEASE, cargo, start, workspace};
use crate::need::{self, Missing, Need, Needs};

/// Whether tests on real guests are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RealGuests {
    /// Set up what they need, and run them.
    Run,
    /// Do not, and install nothing.
    LeftOut,
}

/// Tests of a program, by what they need.
type Tests = BTreeMap<Needs, Vec<String>>;

/// The program whose tests start what users have: the release build.
const REAL_GUEST: &str = "real_guest";
/// What they start.
const STARTED: [&str; 6] = ["build", RELEASE, "-p", "zerosweep-cli", "-p", "zerosweep-agent"];
/// The module of its tests that compare times.
const TIMED: &str = "boot_time::";

/// Runs the tests; whether none failed, and nothing was left out that could have been installed.
pub(crate) fn run(real_guests: RealGuests) -> Result<bool> {
    let began = Instant::now();
    let mut summary = Summary::default();
    let wanted = wanted()?;
    let (missing, checked) = std::thread::scope(|scope| {
        let installing = scope.spawn(|| match real_guests {
            RealGuests::Run => need::obtain(&wanted),
            RealGuests::LeftOut => left_out(&wanted),
        });
        let all = [&CHECKED[..], &["--workspace"]].concat();
        let checked = summary.building("build of the tests", || build(&all));
        (installing.join().expect("installing does not panic"), checked)
    });
    let Some(checked) = checked? else { return Ok(false) };
    let checked: Vec<_> = checked.into_iter().filter(|program| !program.is(REAL_GUEST)).collect();
    for program in &checked {
        if program.ordinary()? > 0 {
            let ran = program.run(&[])?;
            summary.ran(&Needs::new(), &ran, |failed| program.command(&CHECKED, failed));
        }
    }
    let documentation = [&["test"], &CHECKED[..], &["--workspace", "--doc"]].concat();
    summary.documentation(|| cargo(&documentation, &[]))?;
    // Most of the others wait for something: the build for real guests goes on meanwhile.
    let guests = !missing.iter().any(|missing| missing.need == Need::GuestImage);
    let release = guests.then(|| start(&[&STARTED[..], &["--bins"]].concat())).transpose()?;
    for program in &checked {
        for (needs, tests) in program.needing()? {
            some(&mut summary, &missing, (program, &CHECKED), &needs, &tests, &[])?;
        }
    }
    release.map(|mut build| build.wait()).transpose()?;
    on_real_guests(&mut summary, &missing)?;
    println!("{}", summary.shown(began.elapsed(), &missing));
    let failed_to_install =
        real_guests == RealGuests::Run && missing.iter().any(Missing::is_installable);
    Ok(summary.passed() && !failed_to_install)
}

/// All that any test needs.
fn wanted() -> Result<Needs> {
    let crates = workspace().join("crates");
    let mut needs = Needs::new();
    for package in fs::read_dir(&crates).with_context(|| format!("reading {}", crates.display()))? {
        needs.extend(Reasons::of_package(&package?.path())?.needs().flatten());
    }
    Ok(needs)
}

/// What is missing if nothing is installed, and no real guest wanted.
fn left_out(wanted: &Needs) -> Vec<Missing> {
    let missing = wanted.iter().filter_map(|need| need.missing());
    let mut missing: Vec<_> = missing.filter(|missing| missing.need != Need::GuestImage).collect();
    missing.push(Missing { need: Need::GuestImage, what: "--quick leaves them out".to_owned() });
    missing
}

/// Runs tests of a program that need the same, or writes down why not.
fn some(
    summary: &mut Summary,
    missing: &[Missing],
    (program, profile): (&Program, &[&str]),
    needs: &Needs,
    tests: &[String],
    arguments: &[&str],
) -> Result<()> {
    if missing.iter().any(|missing| needs.contains(&missing.need)) {
        summary.left_out(needs, tests.len());
        return Ok(());
    }
    let names = tests.iter().map(String::as_str);
    let all = ["--include-ignored", "--exact"].into_iter().chain(names);
    let all: Vec<_> = all.chain(arguments.iter().copied()).collect();
    summary.ran(needs, &program.run(&all)?, |failed| program.command(profile, failed));
    Ok(())
}

fn on_real_guests(summary: &mut Summary, missing: &[Missing]) -> Result<()> {
    if missing.iter().any(|missing| missing.need == Need::GuestImage) {
        let tests = workspace().join("crates/zerosweep-cli/tests").join(REAL_GUEST);
        let left_out = Reasons::below(&tests)?;
        left_out.needs().for_each(|needs| summary.left_out(needs, 1));
        return Ok(());
    }
    let profile = [RELEASE];
    let arguments = [RELEASE, "-p", "zerosweep-cli", "-p", "zerosweep-agent", "--test", REAL_GUEST];
    let programs = summary.building("release build for real guests", || {
        // The tests start the program, which preloads the agent: both have to be there.
        if cargo(&STARTED, &[])? == Outcome::Failed {
            return Ok(None);
        }
        build(&arguments)
    })?;
    for program in programs.iter().flatten() {
        let (mut timed, mut others) = (Tests::new(), Tests::new());
        for (needs, tests) in program.needing()? {
            let (alone, beside) =
                tests.into_iter().partition(|name: &String| name.starts_with(TIMED));
            timed.insert(needs.clone(), alone);
            others.insert(needs, beside);
        }
        // Those that compare times have the machine to themselves.
        for (tests, threads) in [(timed, "1"), (others, "2")] {
            let arguments = ["--nocapture", "--test-threads", threads];
            for (needs, tests) in tests.iter().filter(|(_, tests)| !tests.is_empty()) {
                some(summary, missing, (program, &profile), needs, tests, &arguments)?;
            }
        }
    }
    Ok(())
}
