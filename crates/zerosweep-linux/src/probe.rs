//! What this host allows: a list of checks, each with the command that mends it.
//!
//! Most read a file of /proc or /sys; two move real huge pages ([`experiment`]). It allocates and
//! takes some 10 ms and 8 MiB: for `doctor` and for start-up, not for a fault thread.

mod check;
pub mod defects;
pub mod experiment;
mod host;

pub use self::check::{Check, Status};

/// The results of all checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The checks, causes before effects.
    pub checks: Vec<Check>,
}

impl Probe {
    /// Runs all checks in this process (some settings are inherited per process).
    #[must_use]
    pub fn run() -> Self {
        let mut checks = host::checks();
        checks.extend(experiment::checks());
        Self { checks }
    }

    /// Returns the worst status.
    #[must_use]
    pub fn status(&self) -> Status {
        self.checks.iter().map(|check| check.status).max().unwrap_or(Status::Ok)
    }

    /// Returns the first check that makes zerosweep impossible here.
    #[must_use]
    pub fn first_failure(&self) -> Option<&Check> {
        self.checks.iter().find(|check| check.status == Status::Fail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_without_privilege_and_advises() {
        let probe = Probe::run();
        for check in &probe.checks {
            println!("{check}");
            assert_eq!(check.status == Status::Ok, check.mend.is_none(), "{check}");
            assert!(!check.found.is_empty());
        }
        let names: std::collections::BTreeSet<_> = probe.checks.iter().map(|c| c.name).collect();
        assert_eq!(names.len(), probe.checks.len());
    }
}
