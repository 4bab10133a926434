//! Which kernel runs: its version, and its release as text (`uname(2)`).

use super::raw;
use crate::kernel_version::KernelVersion;

impl KernelVersion {
    /// Returns the version that runs, or `None` if the kernel's name is no version.
    #[must_use]
    pub fn running() -> Option<Self> {
        with_release(Self::parse)
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
}
