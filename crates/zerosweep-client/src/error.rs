//! The one error type of the commands: a message for a person and an exit status for a program.

use std::fmt;
use std::process::ExitCode;

/// Why a command did not do what was asked.
#[derive(Debug)]
pub struct Failure {
    kind: Kind,
    message: String,
}

/// The kind of failure; decides the exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The work failed: exit status 1.
    Work,
    /// Wrong usage: exit status 2, and nothing was started.
    Usage,
}

impl Failure {
    /// The work failed (exit status 1).
    pub fn work(message: impl fmt::Display) -> Self {
        Self { kind: Kind::Work, message: message.to_string() }
    }

    /// Wrong usage (exit status 2).
    pub fn usage(message: impl fmt::Display) -> Self {
        Self { kind: Kind::Usage, message: message.to_string() }
    }

    /// The exit status that belongs to it.
    pub fn exit_code(&self) -> ExitCode {
        match self.kind {
            Kind::Work => ExitCode::from(1),
            Kind::Usage => ExitCode::from(2),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}
