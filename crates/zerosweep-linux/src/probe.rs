//! What this machine allows: a list of checks, each with the command that mends it.
//!
//! Most read a file of /proc or /sys; two move real huge pages ([`experiment`]). It allocates and
//! takes some 10 ms and 8 MiB: for `doctor` and for start-up, not for a fault thread.

pub mod defects;
pub mod experiment;
mod host;

use core::fmt;

use crate::sys::raw;

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

/// A version of Linux, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelVersion {
    major: u32,
    minor: u32,
}

impl KernelVersion {
    /// The oldest that can move pages (`UFFDIO_MOVE`) and be asked about them (`PAGEMAP_SCAN`).
    pub const OLDEST: Self = Self::new(6, 8);
    /// The first whose `MADV_DONTNEED` drops empty page tables (`PT_RECLAIM`, x86-64).
    pub const WITH_TABLE_RECLAIM: Self = Self::new(6, 14);

    /// Version `major.minor`.
    #[must_use]
    pub const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }

    /// The one that runs; `None` when its name cannot be read as a version.
    #[must_use]
    pub fn running() -> Option<Self> {
        let release = raw::release().ok()?;
        Self::parse(release.split(|&byte| byte == 0).next()?)
    }

    /// Reads `6.18.44-something`.
    fn parse(release: &[u8]) -> Option<Self> {
        let mut numbers = release.split(|byte| !byte.is_ascii_digit()).map(|digits| {
            let number = core::str::from_utf8(digits).ok()?;
            number.parse::<u32>().ok()
        });
        Some(Self::new(numbers.next()??, numbers.next()??))
    }
}

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_versions() {
        let version = |text: &str| KernelVersion::parse(text.as_bytes());
        assert_eq!(version("6.18.44-fc-v669"), Some(KernelVersion::new(6, 18)));
        assert_eq!(version("6.8"), Some(KernelVersion::OLDEST));
        assert_eq!(version("7.0-rc1"), Some(KernelVersion::new(7, 0)));
        assert_eq!(version("linux"), None);
        assert!(KernelVersion::new(6, 2) < KernelVersion::OLDEST);
        assert!(KernelVersion::new(7, 0) > KernelVersion::WITH_TABLE_RECLAIM);
        assert!(KernelVersion::running().is_some());
    }

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
