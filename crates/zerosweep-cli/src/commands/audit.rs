//! `zerosweep audit NAME`: has the agent recount every figure from its tables (rule [R19]).
//!
//! [R19]: zerosweep::rules#r19

use std::process::ExitCode;

use serde::Serialize;
use zerosweep_wire::{ErrorKind, Operation, Status};

use super::ps::by_the_word_of;
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
    let mut client = super::connect(name)?;
    let audit =
        perform(&mut client).map_err(|error| Failure::work(format!("guest {name}: {error}")))?;
    let report = audit.report(name);
    print(arguments, &report, client.other_user())?;
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
