//! The sizes of pages: the engine's, and what those of a host must be.
//!
//! Every size in this crate comes from here. The engine's pages are 4 KiB and its superpages 2 MiB,
//! and the kernel moves whole pages and whole huge pages only: so the host's must be the same. They
//! are on x86-64. On aarch64 they follow from the kernel's configuration, which has pages of 4, 16
//! or 64 KiB. What a host has is asked in [`crate::sys`].

use core::fmt;

pub use zerosweep::{PAGE_BYTES, SUPERPAGE_BYTES, SUPERPAGE_PAGES};

const _: () = assert!(usize::BITS == 64, "addresses are 64 bits wide");

/// The page sizes of a kernel: its pages, and the huge pages that one page table's worth of them
/// is (`HPAGE_PMD_SIZE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostPages {
    page_bytes: u64,
}

impl HostPages {
    /// What the engine can work with: 4 KiB and 2 MiB.
    pub const SUITABLE: Self = Self::new(PAGE_BYTES);

    /// Those of a kernel whose pages have `page_bytes` bytes.
    #[must_use]
    pub const fn new(page_bytes: u64) -> Self {
        Self { page_bytes }
    }

    /// Bytes in a page.
    #[must_use]
    pub const fn page_bytes(self) -> u64 {
        self.page_bytes
    }

    /// Bytes in a huge page: a page table fills a page, and an entry has 8 bytes.
    #[must_use]
    pub const fn huge_page_bytes(self) -> u64 {
        self.page_bytes.saturating_mul(self.page_bytes / 8)
    }

    /// Whether the engine can work with them.
    ///
    /// # Errors
    /// [`UnsuitablePages`] for every other size.
    pub const fn check(self) -> Result<(), UnsuitablePages> {
        if self.page_bytes == Self::SUITABLE.page_bytes {
            Ok(())
        } else {
            Err(UnsuitablePages { found: self })
        }
    }
}

const _: () = assert!(HostPages::SUITABLE.huge_page_bytes() == SUPERPAGE_BYTES);

impl fmt::Display for HostPages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (pages, huge) = (Binary(self.page_bytes), Binary(self.huge_page_bytes()));
        write!(f, "pages of {pages} and huge pages of {huge}")
    }
}

/// A host whose kernel has pages of another size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this kernel has {found}: zerosweep needs {}; {}",
    HostPages::SUITABLE,
    UnsuitablePages::MEND
)]
pub struct UnsuitablePages {
    /// What the kernel has.
    pub found: HostPages,
}

impl UnsuitablePages {
    /// What to do.
    pub const MEND: &str = "boot a kernel with 4 KiB pages (distributions: the one without `16k` or \
                            `64k` in its name; built by hand: CONFIG_ARM64_4K_PAGES=y)";
}

/// A number of bytes in the largest unit of which it is a whole number.
struct Binary(u64);

impl fmt::Display for Binary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
        let fits = |&&(bits, _): &&(u32, _)| self.0 > 0 && self.0.is_multiple_of(1 << bits);
        match units.iter().find(fits) {
            Some((bits, unit)) => write!(f, "{} {unit}", self.0 >> bits),
            None => write!(f, "{} bytes", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_sizes_are_refused_with_what_they_are_and_what_to_do() {
        assert_eq!(HostPages::new(4096).check(), Ok(()));
        for (kib, shown) in [
            (16, "pages of 16 KiB and huge pages of 32 MiB"),
            (64, "pages of 64 KiB and huge pages of 512 MiB"),
            (1, "pages of 1 KiB and huge pages of 128 KiB"),
        ] {
            let error = HostPages::new(kib << 10).check().unwrap_err().to_string();
            let expected = format!(
                "this kernel has {shown}: zerosweep needs pages of 4 KiB and huge pages of 2 MiB"
            );
            assert!(error.starts_with(&expected), "{error}");
            assert!(error.contains("boot a kernel with 4 KiB pages"), "{error}");
        }
        assert!(HostPages::new(0).check().is_err(), "a size that could not be read");
    }
}
