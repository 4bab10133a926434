//! `zerosweep sweep NAME` and `zerosweep consolidate NAME`: work on a running guest's memory.
//!
//! The agent works for a moment at each request and says where to go on: Ctrl-C ends it between
//! two of them, and what was done stays.

use std::process::ExitCode;
use std::time::Instant;

use serde::Serialize;
use zerosweep_wire::{Operation, Status};

use crate::cli::GuestArguments;
use crate::client::{Client, ClientError};
use crate::console::{Console, Terminal, Verbosity};
use crate::error::Failure;
use crate::output;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Rule [R8].
    ///
    /// [R8]: zerosweep::rules#r8
    Sweep,
    /// Rule [R13].
    ///
    /// [R13]: zerosweep::rules#r13
    Consolidate,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
pub(super) struct Report<'a> {
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
    let console = Console::new(Verbosity::Normal, Terminal::Ours);
    let step = || console.waiting(&format!("guest {name}: {}", work.doing()));
    let done = perform(work, &mut client, step)
        .map_err(|error| Failure::work(format!("guest {name}: {error}")))?;
    console.clear();
    let report = done.report(name);
    if arguments.json {
        output::json(&report)?;
    } else {
        output::text(&report.told(work))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Work that came to its end.
#[derive(Debug)]
pub(super) struct Done {
    seconds: f64,
    before: Status,
    after: Status,
}

impl Done {
    /// What came of it, for the guest `name`.
    pub(super) fn report<'a>(&'a self, name: &'a str) -> Report<'a> {
        Report::new(name, self.seconds, &self.before, &self.after)
    }
}

/// Works until it is done; `step` is called before each request.
pub(super) fn perform(
    work: Work,
    client: &mut Client,
    mut step: impl FnMut(),
) -> Result<Done, ClientError> {
    let before = client.request(Operation::Status)?;
    let began = Instant::now();
    let mut first = 0;
    let after = loop {
        step();
        let operation = match work {
            Work::Sweep => Operation::Sweep { first },
            Work::Consolidate => Operation::Consolidate { first },
        };
        let status = client.request(operation)?;
        match status.next {
            Some(next) => first = next,
            None => break status,
        }
    };
    Ok(Done { seconds: began.elapsed().as_secs_f64(), before, after })
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

    /// For a person.
    pub(super) fn told(&self, work: Work) -> String {
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
