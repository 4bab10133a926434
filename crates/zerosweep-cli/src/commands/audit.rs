//! `zerosweep audit NAME`: has the agent recount every figure from its tables (rule R19).

use std::process::ExitCode;

use serde::Serialize;
use zerosweep_wire::{ErrorKind, Operation, Status};

use crate::cli::GuestArguments;
use crate::client::{Client, ClientError};
use crate::error::Failure;
use crate::output;

/// What `--json` prints.
#[derive(Debug, Serialize)]
pub(super) struct Report<'a> {
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
    let audit = perform(&mut super::connect(name)?)
        .map_err(|error| Failure::work(format!("guest {name}: {error}")))?;
    let report = audit.report(name);
    print(arguments, &report)?;
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// What the agent counted.
#[derive(Debug)]
pub(super) enum Audit {
    /// Every figure agrees with the tables.
    Right(Box<Status>),
    /// The first that does not.
    Wrong(String),
}

impl Audit {
    /// What came of it, for the guest `name`.
    pub(super) fn report<'a>(&'a self, name: &'a str) -> Report<'a> {
        match self {
            Self::Right(status) => {
                Report { name, ok: true, difference: None, status: Some(status) }
            }
            Self::Wrong(difference) => {
                Report { name, ok: false, difference: Some(difference), status: None }
            }
        }
    }
}

/// Has the agent count.
pub(super) fn perform(client: &mut Client) -> Result<Audit, ClientError> {
    match client.request(Operation::Audit) {
        Ok(status) => Ok(Audit::Right(Box::new(status))),
        Err(ClientError::Refused(body)) if body.kind == ErrorKind::AuditFailed => {
            Ok(Audit::Wrong(body.message))
        }
        Err(error) => Err(error),
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
