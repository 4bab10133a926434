//! What the page tables say: whole superpages, resident pages, zero pages.
//!
//! Asked by `PAGEMAP_SCAN` (Linux 6.7), which takes page-table locks for a short while and faults
//! nothing in. The result holds for that moment. Nothing here allocates, so a fault thread may ask.
//! A [`Pagemap`] belongs to the address space that opened it: open it after `fork`.
//!
//! Source: `Documentation/admin-guide/mm/pagemap.rst`, `include/uapi/linux/fs.h`.
//!
//! Measured on Linux 6.18: the huge zero page is reported as PRESENT|HUGE|PFNZERO, and so the
//! counts here leave it out.
//!
//! Known hole: a kernel that does not set PFNZERO on the huge zero page would have it counted as
//! whole; [`crate::probe::experiment::zero_page`] finds that out.
#![expect(unsafe_code, reason = "the scan is a request on a raw structure")]

use core::mem::{offset_of, size_of};
use std::os::fd::{AsFd, OwnedFd};

use super::raw::{self, SysResult};
use super::region::Span;
use crate::addr::{HostAddr, PAGE_BYTES, SUPERPAGE_BYTES};

/// What a page is, as bits of the kernel (`PAGE_IS_…`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Categories(u64);

impl Categories {
    /// No category.
    pub const NONE: Self = Self(0);
    /// Mapped, the zero pages included.
    pub const PRESENT: Self = Self(1 << 3);
    /// In swap.
    pub const SWAPPED: Self = Self(1 << 4);
    /// The zero page, small or huge.
    pub const ZERO: Self = Self(1 << 5);
    /// Mapped as a whole superpage.
    pub const HUGE: Self = Self(1 << 6);

    /// Both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` are in it.
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// A run of pages of one kind, as the kernel writes it (`struct page_region`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    start: u64,
    end: u64,
    categories: u64,
}

impl Run {
    const EMPTY: Self = Self { start: 0, end: 0, categories: 0 };

    /// The first address.
    #[must_use]
    pub const fn start(&self) -> HostAddr {
        HostAddr::new(self.start as usize)
    }

    /// The length in bytes.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.end - self.start
    }

    /// What all its pages are.
    #[must_use]
    pub const fn categories(&self) -> Categories {
        Categories(self.categories)
    }

    /// Whole 2 MiB-aligned superpages in it.
    const fn superpages(&self) -> u64 {
        let first = self.start.div_ceil(SUPERPAGE_BYTES);
        (self.end / SUPERPAGE_BYTES).saturating_sub(first)
    }
}

/// `struct pm_scan_arg`.
#[repr(C)]
struct ScanArgument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: u32 = 3 << 30 | (size_of::<ScanArgument>() as u32) << 16 | 0x66 << 8 | 16;

const _: () = {
    assert!(size_of::<Run>() == 24);
    assert!(size_of::<ScanArgument>() == 96);
    assert!(offset_of!(ScanArgument, walk_end) == 32);
    assert!(offset_of!(ScanArgument, category_inverted) == 64);
    assert!(offset_of!(ScanArgument, return_mask) == 88);
    assert!(PAGEMAP_SCAN == 0xc060_6610);
};

/// Runs that one request brings at most: 1.5 KiB of stack.
const RUNS: usize = 64;

/// The page tables of this process.
///
/// ```
/// # if let Ok(pagemap) = zerosweep_linux::Pagemap::open() {
/// let region = zerosweep_linux::Region::new(2 << 20)?;
/// assert_eq!(pagemap.resident_pages(region.all())?, 0);
/// region.page(0)?.store_word(0, 1)?;
/// assert!(matches!(pagemap.resident_pages(region.all())?, 1 | 512));
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Pagemap {
    fd: OwnedFd,
}

impl Pagemap {
    /// Opens the page tables of this process.
    ///
    /// # Errors
    /// `ENOENT` without /proc.
    pub fn open() -> SysResult<Self> {
        Ok(Self { fd: raw::open(c"/proc/self/pagemap", libc::O_RDONLY)? })
    }

    /// Calls `visit` with each run of pages in `span` that are all of `all` and none of `none`,
    /// in the order of addresses. Neighbouring runs may be one run that was cut.
    ///
    /// # Errors
    /// `ENOTTY` before Linux 6.7, `ENOMEM`.
    pub fn scan(
        &self,
        span: Span<'_>,
        all: Categories,
        none: Categories,
        mut visit: impl FnMut(&Run),
    ) -> SysResult<()> {
        let mut runs = [Run::EMPTY; RUNS];
        let end = span.start().as_u64() + span.bytes();
        let mut start = span.start().as_u64();
        while start < end {
            let (found, walked) = self.scan_once(start, end, all, none, &mut runs)?;
            runs[..found].iter().for_each(&mut visit);
            if walked <= start {
                break;
            }
            start = walked;
        }
        Ok(())
    }

    /// Makes one request. Returns how many runs there are, and the address where it stopped.
    fn scan_once(
        &self,
        start: u64,
        end: u64,
        all: Categories,
        none: Categories,
        runs: &mut [Run; RUNS],
    ) -> SysResult<(usize, u64)> {
        let mut argument = ScanArgument {
            size: size_of::<ScanArgument>() as u64,
            flags: 0,
            start,
            end,
            walk_end: 0,
            vec: runs.as_mut_ptr().expose_provenance() as u64,
            vec_len: RUNS as u64,
            max_pages: 0,
            category_inverted: none.0,
            category_mask: all.0 | none.0,
            category_anyof_mask: 0,
            return_mask: all.0 | none.0 | Categories::HUGE.0,
        };
        let pointer = core::ptr::from_mut(&mut argument).cast();
        let call = "ioctl(PAGEMAP_SCAN)";
        // SAFETY: the structure of this request; it writes to our array, within its length.
        let found = unsafe { raw::ioctl(call, self.fd.as_fd(), PAGEMAP_SCAN, pointer) }?;
        Ok((found.min(RUNS), argument.walk_end))
    }

    /// Returns the bytes of `span` in pages that are all of `all` and none of `none`.
    ///
    /// # Errors
    /// As [`Self::scan`].
    pub fn bytes_of(&self, span: Span<'_>, all: Categories, none: Categories) -> SysResult<u64> {
        let mut bytes = 0;
        self.scan(span, all, none, |run| bytes += run.bytes())?;
        Ok(bytes)
    }

    /// Returns how many superpages of `span` are mapped whole with a frame of their own; the huge
    /// zero page does not count.
    ///
    /// # Errors
    /// As [`Self::scan`].
    pub fn whole_superpages(&self, span: Span<'_>) -> SysResult<u64> {
        let mut superpages = 0;
        let whole = Categories::PRESENT.and(Categories::HUGE);
        self.scan(span, whole, Categories::ZERO, |run| superpages += run.superpages())?;
        Ok(superpages)
    }

    /// Returns how many superpages of `span` are the huge zero page.
    ///
    /// # Errors
    /// As [`Self::scan`].
    pub fn zero_superpages(&self, span: Span<'_>) -> SysResult<u64> {
        let mut superpages = 0;
        let zero = Categories::PRESENT.and(Categories::HUGE).and(Categories::ZERO);
        self.scan(span, zero, Categories::NONE, |run| superpages += run.superpages())?;
        Ok(superpages)
    }

    /// Returns whether all of `span` is mapped in whole superpages with frames of their own.
    ///
    /// # Errors
    /// As [`Self::scan`].
    pub fn is_whole(&self, span: Span<'_>) -> SysResult<bool> {
        Ok(self.whole_superpages(span)? * SUPERPAGE_BYTES == span.bytes())
    }

    /// Returns how many 4 KiB pages of `span` are mapped with a frame, parts of superpages
    /// included, zero pages not.
    ///
    /// # Errors
    /// As [`Self::scan`].
    pub fn resident_pages(&self, span: Span<'_>) -> SysResult<u64> {
        Ok(self.bytes_of(span, Categories::PRESENT, Categories::ZERO)? / PAGE_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_whole_superpages_of_a_run() {
        let run = |start, end| Run { start, end, categories: 0 }.superpages();
        assert_eq!(run(0, 2 * SUPERPAGE_BYTES), 2);
        assert_eq!(run(PAGE_BYTES, 2 * SUPERPAGE_BYTES), 1);
        assert_eq!(run(PAGE_BYTES, SUPERPAGE_BYTES + PAGE_BYTES), 0);
        assert_eq!(run(PAGE_BYTES, 2 * PAGE_BYTES), 0);
    }
}
