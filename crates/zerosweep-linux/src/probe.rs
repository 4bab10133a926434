//! What this machine allows: a list of checks, each with the command that mends it.
//!
//! Most read a file of /proc or /sys; two move real huge pages ([`experiment`]). It allocates and
//! takes some 10 ms and 8 MiB: for `doctor` and for start-up, not for a fault thread.

pub mod defects;
pub mod experiment;
mod host;

use core::fmt;

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// As it should be.
    Ok,
    /// zerosweep works, but not as well as it could.
    Warn,
    /// zerosweep cannot work.
    Fail,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        })
    }
}

/// One thing looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Its name: lowercase, the same on every machine, e.g. `huge zero page`.
    pub name: &'static str,
    /// How it came out.
    pub status: Status,
    /// What was found, for people.
    pub found: String,
    /// The exact command, or the words, that mend it; `None` when nothing is to mend.
    pub mend: Option<String>,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, found: found.into(), mend: None }
    }

    fn warn(name: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { name, status: Status::Warn, found: found.into(), mend: Some(mend.into()) }
    }

    fn fail(name: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { name, status: Status::Fail, found: found.into(), mend: Some(mend.into()) }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.name, self.status, self.found)?;
        match &self.mend {
            Some(mend) => write!(f, "; {mend}"),
            None => Ok(()),
        }
    }
}

/// All that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The checks, causes before effects.
    pub checks: Vec<Check>,
}

impl Probe {
    /// Looks at everything, in this process (some settings are inherited per process).
    #[must_use]
    pub fn run() -> Self {
        let mut checks = host::checks();
        checks.extend(experiment::checks());
        Self { checks }
    }

    /// The worst of all.
    #[must_use]
    pub fn status(&self) -> Status {
        self.checks.iter().map(|check| check.status).max().unwrap_or(Status::Ok)
    }

    /// The first that makes zerosweep impossible here.
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
