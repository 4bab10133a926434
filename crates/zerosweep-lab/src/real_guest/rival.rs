//! What a real guest runs under.

use std::fmt;
use std::str::FromStr;

use zerosweep::Policy;

use crate::matrix::POLICIES;
use crate::result::PLAIN;

/// A policy, or QEMU without zerosweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rival {
    /// QEMU by itself with transparent huge pages and its balloon device; written `plain`.
    Plain,
    /// `zerosweep run` with a policy.
    Policy(Policy),
}

/// An unknown rival.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?}: {why}, and under QEMU also plain")]
pub struct RivalError {
    text: String,
    why: String,
}

impl Rival {
    /// The name of QEMU without zerosweep.
    pub const PLAIN: &'static str = PLAIN;

    /// The rivals of `all`: plain QEMU first.
    #[must_use]
    pub fn all() -> Vec<Self> {
        [Self::Plain].into_iter().chain(POLICIES.map(Self::Policy)).collect()
    }

    /// The policy, where zerosweep manages the guest.
    #[must_use]
    pub fn policy(self) -> Option<Policy> {
        match self {
            Self::Plain => None,
            Self::Policy(policy) => Some(policy),
        }
    }
}

impl fmt::Display for Rival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain => f.write_str(Self::PLAIN),
            Self::Policy(policy) => policy.fmt(f),
        }
    }
}

impl FromStr for Rival {
    type Err = RivalError;

    fn from_str(text: &str) -> Result<Self, RivalError> {
        if text == Self::PLAIN {
            return Ok(Self::Plain);
        }
        let policy = text.parse::<Policy>();
        policy
            .map(Self::Policy)
            .map_err(|error| RivalError { text: text.to_owned(), why: error.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rivals_have_the_names_that_they_are_read_by() {
        assert_eq!(Rival::all().len(), 7);
        for rival in Rival::all() {
            assert_eq!(rival.to_string().parse(), Ok(rival));
        }
        let error = "best".parse::<Rival>().unwrap_err().to_string();
        assert!(error.contains("best") && error.contains("plain"), "{error}");
    }
}
