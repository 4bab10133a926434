//! Which kernel runs: its version, its release as text (`uname(2)`), and the sizes of its pages.

use super::raw;
use crate::geometry::HostPages;
use crate::kernel_version::KernelVersion;

impl KernelVersion {
    /// Returns the version that runs, or `None` if the kernel's name is no version.
    #[must_use]
    pub fn running() -> Option<Self> {
        with_release(Self::parse)
    }
}

impl HostPages {
    /// Returns those of the kernel that runs.
    #[must_use]
    pub fn running() -> Self {
        Self::new(raw::page_bytes())
    }
}

/// Calls `read` with the release of the running kernel, e.g. `6.18.44-something`.
pub(crate) fn with_release<R>(read: impl FnOnce(&[u8]) -> Option<R>) -> Option<R> {
    let release = raw::release().ok()?;
    read(release.split(|&byte| byte == 0).next()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_kernel_has_a_version() {
        assert!(KernelVersion::running().is_some());
    }

    #[test]
    fn the_size_of_a_page_is_that_of_the_process_memory() {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let line = smaps.lines().find_map(|line| line.strip_prefix("KernelPageSize:")).unwrap();
        let kib: u64 = line.trim().strip_suffix(" kB").unwrap().parse().unwrap();
        assert_eq!(HostPages::running(), HostPages::new(kib << 10));
    }
}
