//! `zerosweep sweep NAME` and `zerosweep consolidate NAME`: work on a running guest's memory.
//!
//! The agent works for a moment at each request and says where to go on: Ctrl-C ends it between
//! two of them, and what was done stays.

use std::process::ExitCode;
use std::time::Instant;

use serde::Serialize;
use zerosweep_wire::{Operation, Status};

use super::ask;
use crate::cli::GuestArguments;
use crate::console::{Console, Terminal, Verbosity};
use crate::error::Failure;
use crate::output;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Rule R8.
    Sweep,
    /// Rule R13.
    Consolidate,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report<'a> {
    name: &'a str,
    seconds: f64,
    superpages_reclaimed: u64,
    superpages_returned: u64,
    evacuations: u64,
    refills: u64,
    pages_moved: u64,
    bytes_scanned: u64,
    /// The guest's figures afterwards.
    status: &'a Status,
}

/// Works until it is done, and says what came of it.
pub(super) fn execute(work: Work, arguments: &GuestArguments) -> Result<ExitCode, Failure> {
    let name = arguments.name.as_str();
    let mut client = super::connect(name)?;
    let before = ask(&mut client, name, Operation::Status)?;
    let console = Console::new(Verbosity::Normal, Terminal::Ours);
    let began = Instant::now();
    let mut first = 0;
    let after = loop {
        console.waiting(&format!("guest {name}: {}", work.doing()));
        let operation = match work {
            Work::Sweep => Operation::Sweep { first },
            Work::Consolidate => Operation::Consolidate { first },
        };
        let status = ask(&mut client, name, operation)?;
        match status.next {
            Some(next) => first = next,
            None => break status,
        }
    };
    console.clear();
    let seconds = began.elapsed().as_secs_f64();
    let report = Report::new(name, seconds, &before, &after);
    if arguments.json {
        output::json(&report)?;
    } else {
        output::text(&report.told(work))?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Work {
    fn doing(self) -> &'static str {
        match self {
            Self::Sweep => "looking for zeros",
            Self::Consolidate => "moving pages together",
        }
    }
}

impl<'a> Report<'a> {
    fn new(name: &'a str, seconds: f64, before: &Status, after: &'a Status) -> Self {
        let (old, new) = (&before.counters, &after.counters);
        Self {
            name,
            seconds,
            superpages_reclaimed: new.superpages_reclaimed - old.superpages_reclaimed,
            superpages_returned: new.superpages_returned - old.superpages_returned,
            evacuations: new.evacuations - old.evacuations,
            refills: new.refills - old.refills,
            pages_moved: new.pages_consolidated - old.pages_consolidated,
            bytes_scanned: new.bytes_scanned - old.bytes_scanned,
            status: after,
        }
    }

    fn told(&self, work: Work) -> String {
        let Self { name, seconds, superpages_reclaimed, superpages_returned, .. } = self;
        let back = format!("{superpages_returned} superpages went back to the host");
        match work {
            Work::Sweep => format!(
                "{name}: {superpages_reclaimed} zero superpages taken back, {} emptied of the last \
                 live pages, in {seconds:.2} s; {back}\n",
                self.evacuations
            ),
            Work::Consolidate => format!(
                "{name}: {} pages moved together, {} ranges are superpages again, in {seconds:.2} \
                 s; {back}\n",
                self.pages_moved, self.refills
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::sample_status;

    #[test]
    fn what_was_done_is_the_difference() {
        let (before, mut after) = (sample_status("vm"), sample_status("vm"));
        after.counters.superpages_reclaimed += 3;
        after.counters.pages_consolidated += 70;
        let report = Report::new("vm", 0.5, &before, &after);
        assert_eq!((report.superpages_reclaimed, report.pages_moved), (3, 70));
        assert!(report.told(Work::Sweep).starts_with("vm: 3 zero superpages"));
        assert!(report.told(Work::Consolidate).starts_with("vm: 70 pages moved together"));
    }
}
