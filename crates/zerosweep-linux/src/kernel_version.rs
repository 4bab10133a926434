//! A version of Linux. Which one runs is asked in [`crate::sys`].

use core::fmt;

/// A version of Linux, `major.minor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelVersion {
    major: u32,
    minor: u32,
}

impl KernelVersion {
    /// The oldest that can move pages (`UFFDIO_MOVE`) and report about them (`PAGEMAP_SCAN`).
    pub const OLDEST: Self = Self::new(6, 8);
    /// The first whose `MADV_DONTNEED` drops empty page tables (`PT_RECLAIM`): 6.14 on x86-64, 7.0 on
    /// aarch64.
    pub const WITH_TABLE_RECLAIM: Self =
        if cfg!(target_arch = "x86_64") { Self::new(6, 14) } else { Self::new(7, 0) };

    /// Version `major.minor`.
    #[must_use]
    pub const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }

    /// Parses `6.18.44-something`; returns `None` for a name that is no version.
    pub(crate) fn parse(release: &[u8]) -> Option<Self> {
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
        assert!(KernelVersion::new(7, 1) > KernelVersion::WITH_TABLE_RECLAIM);
    }
}
