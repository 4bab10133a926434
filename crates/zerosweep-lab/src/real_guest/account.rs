//! Whom to ask how much memory stands behind a VMM.

use std::sync::atomic::{AtomicU32, Ordering};

use super::cgroup::{Charge, MemoryCgroup};
use crate::host::rss_anon_bytes;

/// The kernel's account of one VMM.
#[derive(Debug)]
pub enum Account {
    /// Its cgroup's: nothing is missing there.
    Cgroup(MemoryCgroup),
    /// The process' own, `RssAnon`: without what stays behind half-discarded huge pages. The
    /// number is 0 until the process is known.
    Process(AtomicU32),
}

impl Account {
    /// The best there is here: a cgroup of its own, else the process.
    #[must_use]
    pub fn new() -> Self {
        MemoryCgroup::create().map_or_else(|_| Self::Process(AtomicU32::new(0)), Self::Cgroup)
    }

    /// Says which process it is. A cgroup knows that by itself.
    pub fn know(&self, process: u32) {
        if let Self::Process(known) = self {
            known.store(process, Ordering::Relaxed);
        }
    }

    /// The cgroup, if it is one.
    #[must_use]
    pub fn cgroup(&self) -> Option<&MemoryCgroup> {
        match self {
            Self::Cgroup(cgroup) => Some(cgroup),
            Self::Process(_) => None,
        }
    }

    /// The VMM, once there is one.
    #[must_use]
    pub fn process(&self) -> Option<u32> {
        match self {
            Self::Cgroup(cgroup) => cgroup.processes().first().copied(),
            Self::Process(known) => Some(known.load(Ordering::Relaxed)).filter(|&pid| pid != 0),
        }
    }

    /// What it is charged now.
    pub(super) fn charge(&self) -> Option<Charge> {
        match self {
            Self::Cgroup(cgroup) => cgroup.charge().ok(),
            Self::Process(_) => {
                let usage = rss_anon_bytes(self.process()?)?;
                Some(Charge { usage, ..Charge::default() })
            }
        }
    }

    /// The highest usage there ever was, where that is known.
    pub(super) fn peak(&self) -> Option<u64> {
        self.cgroup().and_then(MemoryCgroup::peak)
    }
}

impl Default for Account {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_cgroup_the_process_is_asked() {
        let account = Account::Process(AtomicU32::new(0));
        assert_eq!((account.process(), account.charge()), (None, None));
        account.know(std::process::id());
        let charge = account.charge().unwrap();
        assert!(charge.anonymous() > 4096 && charge.cache == 0, "{charge:?}");
    }
}
