//! All guests and their figures, as one JSON document.

use serde::Serialize;
use zerosweep_wire::Status;

/// The document.
#[derive(Debug, Serialize)]
pub struct List {
    schema: u32,
    guests: Vec<Guest>,
}

impl List {
    /// A document of these guests.
    #[must_use]
    pub fn new(guests: Vec<Guest>) -> Self {
        Self { schema: 1, guests }
    }
}

/// One guest.
#[derive(Debug, Serialize)]
pub struct Guest {
    /// Its name.
    pub name: String,
    /// The guest's figures, if its agent answers.
    pub status: Option<Status>,
    /// Why it does not answer.
    pub error: Option<String>,
    /// Whose agent it is, where that is neither this user nor root: the figures are
    /// only as good as that user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent_uid: Option<u32>,
}
