//! The ordinary tests for another architecture, emulated ([`crate::aarch64`]). Those that need
//! something of the machine are not run.

use std::env;
use std::path::Path;
use std::process::Child;
use std::time::Instant;

use anyhow::Result;

use super::program::{self, On, Program, build};
use super::summary::Summary;
use super::{Job, PROGRAMS, side_by_side};
use crate::aarch64;
use crate::cargo::CHECKED;
use crate::need::{self, Missing, Need, Needs};

/// What can be emulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Emulated {
    /// 64-bit Arm.
    Aarch64,
}

/// What `cargo xtask test` runs: what an architecture decides (the zero-scan kernels, the layout of
/// what is in files and on sockets), and the engine's rules.
const SOME: [&str; 19] = [
    "-p",
    "zerosweep",
    "-p",
    "zerosweep-events",
    "-p",
    "zerosweep-scan",
    "-p",
    "zerosweep-sim",
    "-p",
    "zerosweep-wire",
    "--lib",
    "--test",
    "rules",
    "--test",
    "model",
    "--test",
    "journal",
    "--test",
    "kernels",
];
/// What is about the kernel, its files in `/proc` and its signals, is left out: the emulator has its
/// own in their place.
const ALL: [&str; 6] =
    ["--workspace", "--exclude", "xtask", "--exclude", "zerosweep-linux", "--tests"];
/// This program is left out too: it filters system calls, and preloads what it was built with into
/// programs of this machine.
const NOT: &str = "cli";
/// Of this program only this test, the others take minutes.
const PART: (&str, &str) = ("model", "zerosweep_agrees");
/// What the tests find in the environment, where nothing else is there.
const VARIABLES: [(&str, &str); 3] = [
    // Lengths of tests that go on for as long as they are told: their own take hours.
    ("ZEROSWEEP_STEPS", "20000"),
    ("ZEROSWEEP_SCHEDULES", "50"),
    // Tests that compile C.
    ("CC", aarch64::LINKER),
];

/// Starts the build of what [`run_some`] runs, if that can be run.
pub(super) fn start_build(missing: &[Missing]) -> Result<Option<Child>> {
    let is_missing = missing.iter().any(|missing| missing.need == Need::Aarch64);
    let start = || program::start_build(&[&CHECKED[..], &SOME].concat(), On::Emulator);
    (!is_missing).then(start).transpose()
}

/// Runs some of the tests whose programs for this machine are `programs`. Where something is
/// missing, the summary says that they are left out.
pub(super) fn run_some(
    programs: &[Program],
    missing: &[Missing],
    summary: &mut Summary,
) -> Result<()> {
    if missing.iter().any(|missing| missing.need == Need::Aarch64) {
        let some = programs.iter().filter(|program| is_selected(program));
        let count = |program: &Program| match program.is(PART.0) {
            true => Ok(1),
            false => Ok(program.ordinary()?.len()),
        };
        let tests = some.map(count).sum::<Result<usize>>()?;
        summary.left_out(&needs(), tests);
        return Ok(());
    }
    run("what was left of the build for aarch64", &SOME, Some(PART), summary)
}

/// Runs all of them, and nothing else. Returns whether none failed.
///
/// # Errors
/// When something that this needs is missing, and cannot be installed.
pub(crate) fn run_all() -> Result<bool> {
    let began = Instant::now();
    if let Some(missing) = need::obtain(&needs()).first() {
        anyhow::bail!("{missing}");
    }
    let mut summary = Summary::default();
    run("build of tests for aarch64", &ALL, None, &mut summary)?;
    println!("{}", summary.shown(began.elapsed(), &[]));
    Ok(summary.passed())
}

fn run(
    building: &'static str,
    selected: &[&str],
    part: Option<(&str, &str)>,
    summary: &mut Summary,
) -> Result<()> {
    let arguments = [&CHECKED[..], selected].concat();
    let built = summary.building(building, || build(&arguments, On::Emulator))?;
    let programs = built.unwrap_or_default();
    let mut jobs = Vec::new();
    for program in programs.iter().filter(|program| !program.is(NOT)) {
        if !program.ordinary()?.is_empty() {
            let part = part.filter(|(name, _)| program.is(name));
            let tests = part.map(|(_, test)| test.to_owned()).into_iter().collect();
            jobs.push(Job { program, needs: needs(), tests });
        }
    }
    let unset = VARIABLES.iter().filter(|(variable, _)| env::var_os(variable).is_none());
    let variables: Vec<_> = unset.map(|&(variable, value)| (variable, Path::new(value))).collect();
    side_by_side(PROGRAMS, jobs, summary, &variables, || {})
}

fn needs() -> Needs {
    Needs::from([Need::Aarch64])
}

/// Whether cargo builds this program for [`SOME`].
fn is_selected(program: &Program) -> bool {
    let name = program.name();
    let Some((package, target)) = name.split_once(' ') else { return false };
    let has = |option, value| SOME.windows(2).any(|words| words == [option, value]);
    has("-p", package) && (target == "lib" || has("--test", target))
}
