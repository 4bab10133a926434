//! Why a stage failed: a short name for programs and a sentence for people.

use std::fmt;

/// A failed stage.
#[derive(Debug)]
pub(crate) struct Failure {
    /// One word for `done failed reason=…`.
    pub(crate) reason: &'static str,
    /// What happened, for the `error` line.
    pub(crate) detail: String,
}

impl Failure {
    /// A failure of the stage `reason`.
    pub(crate) fn new(reason: &'static str, detail: impl fmt::Display) -> Self {
        Self { reason, detail: detail.to_string() }
    }
}
