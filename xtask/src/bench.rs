//! Runs the benches that this machine allows, and writes a record for comparison.
//!
//! Times are criterion's medians; instructions are counted by callgrind, and do not depend on what
//! else the machine does. docs/benchmarks.md says what each case is.

mod compare;
mod counts;
mod medians;
mod record;

use std::path::Path;
use std::time::SystemTime;

use anyhow::Result;

use crate::cargo::{Outcome, cargo};
use crate::machine;
use crate::need::Need;
pub(crate) use compare::compare;
use record::{Record, Row};

/// How long the benches take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    Full,
    /// A third of the time, for a first look.
    Quick,
}

/// A bench of criterion's.
struct Bench {
    package: &'static str,
    name: &'static str,
}

const SCAN: Bench = Bench { package: "zerosweep-scan", name: "scan" };
const ENGINE: Bench = Bench { package: "zerosweep", name: "engine" };
const REAL: Bench = Bench { package: "zerosweep-linux", name: "real" };

/// Runs all benches. Returns whether none failed.
pub(crate) fn run(pace: Pace) -> Result<bool> {
    let record = Record::begin()?;
    println!("load before: {}", machine::load());
    if let Some(warning) = record.warning() {
        println!("{warning}");
    }
    let mut benches = vec![SCAN, ENGINE];
    match Need::Userfaultfd.missing() {
        None => benches.push(REAL),
        Some(missing) => println!("left out: bench {}: {missing}", REAL.name),
    }
    let mut rows = Vec::new();
    for bench in benches {
        let since = SystemTime::now();
        if time(&bench, pace)? == Outcome::Failed {
            return Ok(false);
        }
        let medians = medians::written_since(since)?;
        rows.extend(medians.into_iter().map(|(case, median_ns)| Row {
            bench: bench.name.to_owned(),
            case,
            median_ns: Some(median_ns),
            instructions: None,
        }));
    }
    rows.extend(count()?);
    let path = record.write(&rows)?;
    println!("load after: {}", machine::load());
    println!("{} figures in {}", rows.len(), shown(&path));
    Ok(true)
}

fn time(bench: &Bench, pace: Pace) -> Result<Outcome> {
    let mut arguments = vec!["bench", "-p", bench.package, "--bench", bench.name];
    if pace == Pace::Quick {
        arguments.extend(["--", "--warm-up-time", "0.1", "--measurement-time", "0.3"]);
        // At least ten are asked for; the scan's own default is a hundred.
        arguments.extend(["--sample-size", "10"]);
    }
    cargo(&arguments, &[])
}

fn count() -> Result<Vec<Row>> {
    let Some(valgrind) = machine::program("valgrind") else {
        println!(
            "no instructions are counted: valgrind is not installed (apt-get install valgrind)"
        );
        return Ok(Vec::new());
    };
    let row = |(case, instructions)| Row {
        bench: "instructions".to_owned(),
        case,
        median_ns: None,
        instructions: Some(instructions),
    };
    Ok(counts::count(&valgrind)?.into_iter().map(row).collect())
}

fn shown(path: &Path) -> String {
    path.strip_prefix(crate::cargo::workspace()).unwrap_or(path).display().to_string()
}
