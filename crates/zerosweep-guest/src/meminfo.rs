//! `/proc/meminfo`, the three lines of it that matter here.

use crate::failure::Failure;

/// Figures of `/proc/meminfo`, in KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemInfo {
    /// `MemTotal`: falls as the balloon inflates.
    pub(crate) total_kib: u64,
    /// `MemFree`.
    pub(crate) free_kib: u64,
    /// `MemAvailable`: what can be allocated without running dry.
    pub(crate) available_kib: u64,
}

impl MemInfo {
    /// The figures of this moment.
    pub(crate) fn read() -> Result<Self, Failure> {
        let text = std::fs::read_to_string("/proc/meminfo")
            .map_err(|e| Failure::new("meminfo", format_args!("/proc/meminfo: {e}")))?;
        Self::parse(&text).ok_or_else(|| Failure::new("meminfo", "/proc/meminfo lacks a line"))
    }

    /// Reads the text of `/proc/meminfo`; nothing if a line is missing.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.trim().strip_suffix("kB")?.trim().parse().ok()
        };
        Some(Self {
            total_kib: field("MemTotal")?,
            free_kib: field("MemFree")?,
            available_kib: field("MemAvailable")?,
        })
    }

    /// Bytes that a program may take without driving the kernel into a corner.
    pub(crate) fn spare_bytes(self) -> u64 {
        /// Left to the kernel for page tables, slabs and its own buffers.
        const RESERVE_KIB: u64 = 12 << 10;
        let kib = self.available_kib.min(self.free_kib).saturating_sub(RESERVE_KIB);
        // A page of page table for every 512 pages.
        (kib - kib / 512) << 10
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "MemTotal:        2031248 kB\nMemFree:         1999992 kB\n\
                        MemAvailable:    1970000 kB\nBuffers:               0 kB\n";

    #[test]
    fn the_three_lines_are_read() {
        let info = MemInfo::parse(TEXT).unwrap();
        assert_eq!(info, MemInfo { total_kib: 2031248, free_kib: 1999992, available_kib: 1970000 });
        assert!(info.spare_bytes() < 1970000 << 10);
        assert!(info.spare_bytes() > 1950000 << 10);
    }

    #[test]
    fn a_missing_or_broken_line_is_noticed() {
        assert_eq!(MemInfo::parse("MemTotal: 1 kB\nMemFree: 1 kB\n"), None);
        assert_eq!(MemInfo::parse(&TEXT.replace("1999992", "many")), None);
        assert_eq!(MemInfo::parse(""), None);
    }

    #[test]
    fn nothing_is_spare_when_little_is_free() {
        let info = MemInfo { total_kib: 100, free_kib: 50, available_kib: 40 };
        assert_eq!(info.spare_bytes(), 0);
    }
}
