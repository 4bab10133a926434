//! Makes the agent recount every figure from its tables (rule [R19]).
//!
//! [R19]: zerosweep::rules#r19

use serde::Serialize;
use zerosweep_wire::{ErrorKind, Operation, Status};

use crate::agent::{Client, ClientError};

/// The outcome as a JSON document.
#[derive(Debug, Serialize)]
pub struct Report<'a> {
    /// The guest.
    pub name: &'a str,
    /// Whether every figure agrees with the tables.
    pub ok: bool,
    /// The first difference.
    pub difference: Option<&'a str>,
    /// The guest's figures, when they are right.
    pub status: Option<&'a Status>,
}

/// What the agent counted.
#[derive(Debug)]
pub enum Audit {
    /// Every figure agrees with the tables.
    Right(Box<Status>),
    /// The first that does not.
    Wrong(String),
}

impl Audit {
    /// The outcome for the guest `name`.
    pub fn report<'a>(&'a self, name: &'a str) -> Report<'a> {
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

/// Makes the agent recount its figures.
///
/// # Errors
/// When it does not answer, or cannot count now.
pub fn perform(client: &mut Client) -> Result<Audit, ClientError> {
    match client.request(Operation::Audit) {
        Ok(status) => Ok(Audit::Right(Box::new(status))),
        Err(ClientError::Refused(body)) if body.kind == ErrorKind::AuditFailed => {
            Ok(Audit::Wrong(body.message))
        }
        Err(error) => Err(error),
    }
}
