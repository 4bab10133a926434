//! `zerosweep audit NAME`: has the agent recount every figure from its tables (rule R19).

use std::process::ExitCode;

use serde::Serialize;
use zerosweep_wire::{ErrorKind, Operation, Status};

use crate::cli::GuestArguments;
use crate::client::ClientError;
use crate::error::Failure;
use crate::output;

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report<'a> {
    name: &'a str,
    ok: bool,
    /// The first difference.
    difference: Option<&'a str>,
    /// The guest's figures, when they are right.
    status: Option<&'a Status>,
}

/// Prints the outcome; exit status 1 if a figure is wrong.
pub(super) fn execute(arguments: &GuestArguments) -> Result<ExitCode, Failure> {
    let name = arguments.name.as_str();
    match super::connect(name)?.request(Operation::Audit) {
        Ok(status) => {
            let report = Report { name, ok: true, difference: None, status: Some(&status) };
            print(arguments, &report)?;
            Ok(ExitCode::SUCCESS)
        }
        Err(ClientError::Refused(body)) if body.kind == ErrorKind::AuditFailed => {
            let difference = Some(body.message.as_str());
            print(arguments, &Report { name, ok: false, difference, status: None })?;
            Ok(ExitCode::from(1))
        }
        Err(error) => Err(Failure::work(format!("guest {name}: {error}"))),
    }
}

fn print(arguments: &GuestArguments, report: &Report<'_>) -> Result<(), Failure> {
    if arguments.json {
        return output::json(report);
    }
    match report.difference {
        None => output::text(&format!("{}: every figure agrees with the tables\n", report.name)),
        Some(difference) => output::text(&format!("{}: a difference: {difference}\n", report.name)),
    }
}
