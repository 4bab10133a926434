//! `zerosweep sweep NAME` and `zerosweep consolidate NAME`: work on a running guest's memory.
//!
//! The agent works for a moment at each request and says where to go on: Ctrl-C ends it between
//! two of them, and what was done stays.

use std::process::ExitCode;

use zerosweep_client::error::Failure;
use zerosweep_client::output;
use zerosweep_client::work::{Work, perform};

use crate::cli::GuestArguments;
use crate::console::{Console, Terminal, Verbosity};

/// Works until it is done, and prints the result.
pub(super) fn execute(work: Work, arguments: &GuestArguments) -> Result<ExitCode, Failure> {
    let name = arguments.name.as_str();
    let mut client = super::connect(name)?;
    let console = Console::new(Verbosity::Normal, Terminal::Ours);
    let step = || console.waiting(&format!("guest {name}: {}", doing(work)));
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

fn doing(work: Work) -> &'static str {
    match work {
        Work::Sweep => "looking for zeros",
        Work::Consolidate => "moving pages together",
    }
}
