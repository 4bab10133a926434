//! `zerosweep audit NAME`: has the agent recount every figure from its tables (rule [R19]).
//!
//! [R19]: zerosweep::rules#r19

use std::process::ExitCode;

use zerosweep_client::audit::{Report, perform};
use zerosweep_client::error::Failure;
use zerosweep_client::output;

use super::ps::by_the_word_of;
use crate::cli::GuestArguments;

/// Prints the outcome; exit status 1 if a figure is wrong.
pub(super) fn execute(arguments: &GuestArguments) -> Result<ExitCode, Failure> {
    let name = arguments.name.as_str();
    let mut client = super::connect(name)?;
    let audit =
        perform(&mut client).map_err(|error| Failure::work(format!("guest {name}: {error}")))?;
    let report = audit.report(name);
    print(arguments, &report, client.other_user())?;
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn print(
    arguments: &GuestArguments,
    report: &Report<'_>,
    other_user: Option<u32>,
) -> Result<(), Failure> {
    if arguments.json {
        return output::json(report);
    }
    if let Some(user) = other_user {
        output::text(&format!("{}: {}:\n", report.name, by_the_word_of(user)))?;
    }
    match report.difference {
        None => output::text(&format!("{}: every figure agrees with the tables\n", report.name)),
        Some(difference) => output::text(&format!("{}: a difference: {difference}\n", report.name)),
    }
}
