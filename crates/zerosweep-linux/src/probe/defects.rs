//! Defects of Linux that moves of pages trigger, by version and by fix.
//!
//! Mainline versions are those in which the fix appeared; stable series are named where a series
//! has it too. A distribution's kernel that hides its patch level (`6.8.0-45-generic`) may have a
//! fix or not: `doctor` warns, and nothing is refused for it. `docs/hosts.md` has the same table,
//! with those defects that are only worked around.

use core::fmt;
use std::fs;

use crate::kernel_version::KernelVersion;
use crate::sys::running_kernel;

/// When a defect can do harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Always.
    Always,
    /// While swap is in use.
    Swap,
    /// While a device uses a page of a superpage.
    InUse,
    /// With more than one NUMA node, while something migrates huge pages: an administrator's
    /// `migrate_pages`, a cpuset that changes, memory that goes offline. Automatic balancing leaves
    /// guest memory alone.
    Migration,
}

/// What is done where it can do harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// No guest is managed.
    Refuse,
    /// `doctor` tells.
    Warn,
}

/// One defect.
#[derive(Debug)]
pub struct Defect {
    /// The title of its fix.
    pub fix: &'static str,
    /// What happens.
    pub effect: &'static str,
    /// When.
    pub when: When,
    /// The first mainline version with the fix.
    pub fixed_in: KernelVersion,
    /// Patch levels of older series that have the fix, too.
    pub also_fixed_in: &'static [(KernelVersion, u32)],
    /// What is done about it.
    pub action: Action,
}

/// The known defects. The first version that can move pages is older than each fix.
pub const DEFECTS: [Defect; 6] = [
    Defect {
        fix: "userfaultfd: fix checks for huge PMDs",
        effect: "the host may crash when khugepaged works at the same page table",
        when: When::Always,
        fixed_in: KernelVersion::new(6, 11),
        also_fixed_in: &[(KernelVersion::new(6, 10), 10)],
        action: Action::Refuse,
    },
    Defect {
        fix: "mm: fix kernel BUG when userfaultfd_move encounters swapcache",
        effect: "the host may crash when a page that moves is in the swap cache",
        when: When::Swap,
        fixed_in: KernelVersion::new(6, 14),
        also_fixed_in: &[(KernelVersion::new(6, 12), 20)],
        action: Action::Refuse,
    },
    Defect {
        fix: "mm: userfaultfd: fix race of userfaultfd_move and swap cache",
        effect: "a page that moves while it is swapped in may be lost",
        when: When::Swap,
        fixed_in: KernelVersion::new(6, 16),
        also_fixed_in: &[(KernelVersion::new(6, 12), 37)],
        action: Action::Refuse,
    },
    Defect {
        fix: "userfaultfd: fix a crash in UFFDIO_MOVE when PMD is a migration entry",
        effect: "the host may crash when a huge page moves that is just migrating",
        when: When::Migration,
        fixed_in: KernelVersion::new(6, 17),
        also_fixed_in: &[(KernelVersion::new(6, 12), 43)],
        action: Action::Warn,
    },
    Defect {
        fix: "userfaultfd: wait on source PMD during UFFDIO_MOVE",
        effect: "the host may crash when a huge page moves that is just migrating",
        when: When::Migration,
        fixed_in: KernelVersion::new(7, 2),
        also_fixed_in: &[],
        action: Action::Warn,
    },
    SPINS,
];

/// A move of a page out of a superpage is tried again, in the kernel, until no device uses any page
/// of the superpage.
pub const SPINS: Defect = Defect {
    fix: "userfaultfd: fix UFFDIO_MOVE livelock on large folio with extra references",
    effect: "a thread of the VMM keeps a CPU busy while a device uses a page of a superpage",
    when: When::InUse,
    fixed_in: KernelVersion::new(7, 4),
    also_fixed_in: &[
        (KernelVersion::new(7, 3), 4),
        (KernelVersion::new(6, 18), 44),
        (KernelVersion::new(6, 12), 118),
    ],
    action: Action::Warn,
};

/// Whether a kernel has a defect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It has it.
    Present,
    /// Its name does not tell.
    Unknown,
    /// It has the fix.
    Fixed,
}

/// A kernel's version and patch level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Release {
    /// The version.
    pub version: KernelVersion,
    /// The patch level of its series; `None` where a distribution's name hides it.
    pub patch: Option<u32>,
}

impl Release {
    /// Returns the release that runs, or `None` if the kernel's name is no version.
    #[must_use]
    pub fn running() -> Option<Self> {
        running_kernel::with_release(Self::parse)
    }

    /// Reads `6.12.43+deb13-amd64`. A third number of 0 with more behind it is a distribution's.
    fn parse(release: &[u8]) -> Option<Self> {
        let version = KernelVersion::parse(release)?;
        let text = core::str::from_utf8(release).ok()?;
        let third = text.splitn(3, '.').nth(2).unwrap_or("0");
        let digits = third.find(|c: char| !c.is_ascii_digit()).unwrap_or(third.len());
        let (number, rest) = third.split_at(digits);
        let number: u32 = number.parse().unwrap_or(0);
        let is_hidden = number == 0 && !rest.is_empty() && !rest.starts_with("-rc");
        Some(Self { version, patch: (!is_hidden).then_some(number) })
    }
}

impl Defect {
    /// Returns whether a kernel has it.
    #[must_use]
    pub fn presence(&self, release: Release) -> Presence {
        if release.version >= self.fixed_in {
            return Presence::Fixed;
        }
        let Some(patch) = release.patch else { return Presence::Unknown };
        let is_fixed =
            |&(series, fixed): &(KernelVersion, u32)| series == release.version && patch >= fixed;
        match self.also_fixed_in.iter().any(is_fixed) {
            true => Presence::Fixed,
            false => Presence::Present,
        }
    }
}

/// Returns whether a defect with this presence is a reason to manage no guest.
pub(super) fn is_refused(&(defect, has): &(&Defect, Presence)) -> bool {
    defect.action == Action::Refuse && has == Presence::Present
}

impl fmt::Display for Defect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (fixed in Linux {}", self.effect, self.fixed_in)?;
        for (series, patch) in self.also_fixed_in {
            write!(f, " and {series}.{patch}")?;
        }
        write!(f, ": \"{}\")", self.fix)
    }
}

impl When {
    /// Returns whether it applies to this host now.
    fn is_now(self) -> bool {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        match self {
            Self::Always | Self::InUse => true,
            Self::Swap => read("/proc/swaps").lines().count() > 1,
            Self::Migration => {
                read("/sys/devices/system/node/has_memory").trim().contains(['-', ','])
            }
        }
    }
}

/// Returns the defects that this host's kernel has, or may have, and that can do harm here now.
#[must_use]
pub fn harmful() -> Vec<(&'static Defect, Presence)> {
    let Some(release) = Release::running() else { return Vec::new() };
    harmful_in(release, When::is_now)
}

fn harmful_in(release: Release, is: impl Fn(When) -> bool) -> Vec<(&'static Defect, Presence)> {
    let found = DEFECTS.iter().map(|defect| (defect, defect.presence(release)));
    found.filter(|&(defect, has)| has != Presence::Fixed && is(defect.when)).collect()
}

/// Returns the first defect that is a reason to manage no guest on this host now.
#[must_use]
pub fn refused() -> Option<&'static Defect> {
    harmful().into_iter().find(is_refused).map(|(defect, _)| defect)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release(text: &str) -> Release {
        Release::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn patch_levels_are_read_where_a_name_has_them() {
        let patch = |text| release(text).patch;
        assert_eq!(patch("6.12.43+deb13-amd64"), Some(43));
        assert_eq!(patch("6.18.44-fc-v769"), Some(44));
        assert_eq!(patch("7.2.0"), Some(0));
        assert_eq!(patch("7.0-rc1"), Some(0));
        assert_eq!(patch("7.0.0-rc1"), Some(0));
        assert_eq!(patch("6.8.0-45-generic"), None);
        assert_eq!(patch("6.12.0-55.9.1.el10_0.x86_64"), None);
        assert_eq!(release("6.12.43+deb13-amd64").version, KernelVersion::new(6, 12));
        assert_eq!(Release::parse(b"linux"), None);
        assert!(Release::running().is_some());
    }

    fn fixes(text: &str, is: impl Fn(When) -> bool, wanted: Presence) -> Vec<usize> {
        let found = harmful_in(release(text), is);
        let number = |defect: &Defect| DEFECTS.iter().position(|d| d.fix == defect.fix).unwrap();
        let of = found.into_iter().filter(|&(_, has)| has == wanted);
        of.map(|(defect, _)| number(defect)).collect()
    }

    #[test]
    fn defects_are_known_by_version_by_fix_and_by_what_the_host_does() {
        let all = |_| true;
        assert_eq!(fixes("6.10.9", all, Presence::Present), [0, 1, 2, 3, 4, 5]);
        assert_eq!(fixes("6.10.10", all, Presence::Present), [1, 2, 3, 4, 5]);
        assert_eq!(fixes("6.12.19", all, Presence::Present), [1, 2, 3, 4, 5]);
        assert_eq!(fixes("6.12.20", all, Presence::Present), [2, 3, 4, 5]);
        assert_eq!(fixes("6.12.117+deb13-amd64", all, Presence::Present), [4, 5]);
        assert_eq!(fixes("6.18.44-fc-v769", all, Presence::Present), [4]);
        assert_eq!(fixes("7.3.4", all, Presence::Present), [0; 0]);
        // Without swap and with one node.
        assert_eq!(fixes("6.12.19", |when| when == When::Always, Presence::Present), [0; 0]);
        assert_eq!(fixes("6.9.1", |when| when == When::Always, Presence::Present), [0]);
        // Ubuntu and Red Hat mend without telling.
        assert_eq!(fixes("6.8.0-45-generic", all, Presence::Unknown), [0, 1, 2, 3, 4, 5]);
        assert_eq!(fixes("6.8.0-45-generic", all, Presence::Present), [0; 0]);
    }

    #[test]
    fn the_table_in_the_documents_is_this_one() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/hosts.md");
        let Ok(text) = fs::read_to_string(page) else {
            eprintln!("skipped: the package has no docs/hosts.md");
            return;
        };
        for defect in &DEFECTS {
            let row = text.lines().find(|line| line.starts_with('|') && line.contains(defect.fix));
            let row = row.unwrap_or_else(|| panic!("docs/hosts.md does not name: {}", defect.fix));
            let mut fixed = vec![defect.fixed_in.to_string()];
            let also = defect.also_fixed_in.iter();
            fixed.extend(also.map(|(series, patch)| format!("{series}.{patch}")));
            assert!(row.contains(&format!("| {} |", fixed.join(", "))), "{row}");
            let action = if defect.action == Action::Refuse { "refused" } else { "warned of" };
            assert!(row.contains(action), "{row}");
        }
    }
}
