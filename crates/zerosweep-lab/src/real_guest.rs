//! Real Linux guests under QEMU: which there are, what they say, and how much memory they hold.
//!
//! | module | what |
//! | --- | --- |
//! | [`console`] | reads what a guest says, and waits for its markers |
//! | [`cgroup`] | a memory cgroup for one VMM, of version 1 or 2 |
//! | [`account`] | whom to ask how much memory stands behind a VMM |
//! | [`held`] | how much memory the guest holds, many times a second |
//!
//! [`RealGuest`] and [`Rival`] are what `zerosweep experiment --machine qemu` runs; the program
//! starts the VMM and asks it. The tests on real guests use the same modules.

pub mod account;
pub mod cgroup;
pub mod console;
pub mod held;
mod rival;

use std::fmt;
use std::str::FromStr;

pub use account::Account;
pub use cgroup::MemoryCgroup;
pub use console::{Console, Line};
pub use held::{Held, Sampler};
pub use rival::{Rival, RivalError};

use crate::run::Experiment;

/// One real guest under one rival.
pub type RealExperiment = Experiment<RealGuest, Rival>;

/// A guest: a distribution's kernel with `zerosweep-guest` as `/init`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RealGuest {
    /// Boots, and fills an eighth of the target.
    Linux,
    /// The same with `init_on_free=1`: its kernel zeroes all memory first.
    LinuxScrub,
    /// Fills 60 % of its memory with small files and deletes three quarters of them, before it is
    /// told of its target.
    Churn,
}

/// No such guest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown guest {0:?}; under QEMU there are qemu-linux, qemu-linux-scrub, qemu-churn, and all"
)]
pub struct UnknownGuest(String);

impl RealGuest {
    /// The guests of `all`.
    pub const ALL: [Self; 3] = [Self::Linux, Self::LinuxScrub, Self::Churn];

    /// What it is called.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Linux => "qemu-linux",
            Self::LinuxScrub => "qemu-linux-scrub",
            Self::Churn => "qemu-churn",
        }
    }

    /// Whether its target is lowered while it runs, and not set from the start.
    #[must_use]
    pub fn is_told_late(self) -> bool {
        self == Self::Churn
    }

    /// Words for the kernel's command line. The guest idles at the end, for the last look.
    #[must_use]
    pub fn kernel_words(self, max_mem_bytes: u64, target_bytes: u64, seed: u64) -> String {
        let fill = (target_bytes / 8) >> 20;
        let work = match self {
            Self::Linux => format!("zs.fill={fill}M"),
            Self::LinuxScrub => format!("init_on_free=1 zs.fill={fill}M"),
            Self::Churn => format!("zs.churn={}M", (max_mem_bytes * 3 / 5) >> 20),
        };
        format!("{work} zs.seed={seed} zs.first=10 zs.settle=120 zs.end=idle")
    }
}

impl fmt::Display for RealGuest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for RealGuest {
    type Err = UnknownGuest;

    fn from_str(text: &str) -> Result<Self, UnknownGuest> {
        let unknown = || UnknownGuest(text.to_owned());
        Self::ALL.into_iter().find(|guest| guest.name() == text).ok_or_else(unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_have_the_names_that_they_are_read_by() {
        for guest in RealGuest::ALL {
            assert_eq!(guest.to_string().parse(), Ok(guest));
        }
        let error = "linux".parse::<RealGuest>().unwrap_err().to_string();
        assert!(error.contains("\"linux\"") && error.contains("qemu-churn"), "{error}");
    }

    #[test]
    fn the_command_line_says_what_to_do() {
        let words = RealGuest::Churn.kernel_words(2 << 30, 768 << 20, 7);
        assert!(words.starts_with("zs.churn=1228M zs.seed=7 "), "{words}");
        let words = RealGuest::LinuxScrub.kernel_words(2 << 30, 768 << 20, 7);
        assert!(words.starts_with("init_on_free=1 zs.fill=96M "), "{words}");
    }
}
