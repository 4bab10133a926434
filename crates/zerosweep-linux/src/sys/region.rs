//! Memory that no Rust reference points into: the pool's slots and the guest's RAM.
//!
//! A [`Region`] is a mapping that is ours ([`Region::new`], unmapped on drop) or the VMM's
//! ([`Region::adopt`], left alone on drop). A [`Span`] is a checked part of one. All that reads or
//! writes contents goes through raw pointers, because a guest may write at any time, and pages come
//! and go by `UFFDIO_MOVE`. So spans may be moved, dropped and cleared by safe code: no reference
//! can be invalidated by it.
//!
//! Invariant: a region's addresses stay mapped, private, anonymous, readable and writable for as
//! long as the region lives. There are none on a kernel whose pages are not 4 KiB.
//!
//! Touching a hole of memory that is registered with a userfaultfd waits for its fault thread: that
//! thread itself must touch only what it knows to be populated.
#![expect(unsafe_code, reason = "maps memory and reads and writes it by address")]

use core::marker::PhantomData;

use super::raw;
use crate::addr::{HostAddr, PAGE_BYTES, SUPERPAGE_BYTES};
use crate::error::{RegionError, SpanError, SysError};
use crate::geometry::HostPages;

/// Words of a page that [`Span::load_head`] reads: Xen's quick zero check.
pub const HEAD_WORDS: usize = 16;

/// Who unmaps a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Us,
    Vmm,
}

/// A private anonymous mapping. See the module.
#[derive(Debug)]
pub struct Region {
    start: HostAddr,
    bytes: u64,
    owner: Owner,
}

impl Region {
    /// A new mapping of `bytes` bytes (a multiple of 4 KiB, not 0), starting at a multiple of
    /// 2 MiB, empty, with huge pages asked for, not inherited by children, left out of core dumps,
    /// not offered for merging. It reserves no memory.
    ///
    /// # Errors
    /// See [`RegionError`]; nothing stays mapped.
    ///
    /// ```
    /// let region = zerosweep_linux::Region::new(4 << 20)?;
    /// let page = region.page(8192)?;
    /// page.store_word(0, 7)?;
    /// assert_eq!(page.load_word(0)?, 7);
    /// page.discard()?;
    /// assert_eq!(page.load_word(0)?, 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn new(bytes: u64) -> Result<Self, RegionError> {
        Self::new_on(HostPages::running(), bytes)
    }

    fn new_on(host: HostPages, bytes: u64) -> Result<Self, RegionError> {
        fits(host, HostAddr::new(0), bytes)?;
        let out_of_memory = RegionError::OutOfMemory { bytes };
        let reserved = bytes.checked_add(SUPERPAGE_BYTES).ok_or(out_of_memory)?;
        let first = match raw::map_anonymous(reserved as usize) {
            Err(error) if error.is(libc::ENOMEM) => return Err(out_of_memory),
            other => other?,
        };
        let start = first.next_multiple_of(SUPERPAGE_BYTES as usize);
        let before = start - first;
        let behind = SUPERPAGE_BYTES as usize - before;
        let region = Self { start: HostAddr::new(start), bytes, owner: Owner::Us };
        // SAFETY: both ends lie in the mapping just made, outside of the region.
        unsafe {
            if before > 0 {
                raw::munmap(first, before)?;
            }
            raw::munmap(start + bytes as usize, behind)?;
        }
        let all = region.all();
        all.ask_for_huge_pages().map_err(|error| match error.is(libc::EINVAL) {
            true => RegionError::NoHugePages,
            false => error.into(),
        })?;
        all.keep_from_children()?;
        // A kernel without samepage merging says EINVAL, and has nothing to leave out.
        let _ = all.forbid_merging();
        Ok(region)
    }

    /// Adopts memory that the VMM mapped. Check it with [`crate::vma`] first. It is not unmapped on
    /// drop.
    ///
    /// # Errors
    /// [`RegionError::Span`] unless start and length are multiples of 4 KiB, not 0 and within the
    /// address space. [`RegionError::Pages`].
    ///
    /// # Safety
    /// For as long as the region lives, the range stays mapped as private anonymous memory,
    /// readable and writable, and no Rust reference points into it. Its contents may be moved,
    /// dropped and cleared from now on.
    pub unsafe fn adopt(start: HostAddr, bytes: u64) -> Result<Self, RegionError> {
        fits(HostPages::running(), start, bytes)?;
        if start.checked_add(bytes).is_none() {
            let within = u64::MAX - start.as_u64();
            return Err(SpanError::OutOfBounds { offset: 0, bytes, within }.into());
        }
        Ok(Self { start, bytes, owner: Owner::Vmm })
    }

    /// Returns the first address.
    #[must_use]
    pub const fn start(&self) -> HostAddr {
        self.start
    }

    /// Returns the length in bytes.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns how far into the region `address` lies, in bytes, or `None` outside.
    #[must_use]
    pub fn offset_of(&self, address: HostAddr) -> Option<u64> {
        address.offset_from(self.start).filter(|&offset| offset < self.bytes)
    }

    /// Returns all of it.
    #[must_use]
    pub fn all(&self) -> Span<'_> {
        Span { start: self.start, bytes: self.bytes, region: PhantomData }
    }

    /// Returns `bytes` bytes from `offset` on, both multiples of 4 KiB.
    ///
    /// # Errors
    /// [`SpanError`] when misaligned, empty or past the end.
    pub fn span(&self, offset: u64, bytes: u64) -> Result<Span<'_>, SpanError> {
        self.all().part(offset, bytes)
    }

    /// Returns the 4 KiB page at `offset`, a multiple of 4 KiB.
    ///
    /// # Errors
    /// [`SpanError`] when misaligned or past the end.
    pub fn page(&self, offset: u64) -> Result<Span<'_>, SpanError> {
        self.span(offset, PAGE_BYTES)
    }

    /// Returns the 2 MiB at `offset`, whose address must be a multiple of 2 MiB.
    ///
    /// # Errors
    /// [`SpanError`] when misaligned or past the end.
    pub fn superpage(&self, offset: u64) -> Result<Span<'_>, SpanError> {
        let span = self.span(offset, SUPERPAGE_BYTES)?;
        match span.start.is_superpage_aligned() {
            true => Ok(span),
            false => Err(SpanError::Misaligned {
                offset,
                bytes: SUPERPAGE_BYTES,
                align: SUPERPAGE_BYTES,
            }),
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if self.owner == Owner::Us {
            // SAFETY: we mapped it, spans cannot outlive the region, and references never exist.
            let unmapped = unsafe { raw::munmap(self.start.get(), self.bytes as usize) };
            debug_assert!(unmapped.is_ok(), "{unmapped:?}");
        }
    }
}

/// A part of a [`Region`] in whole 4 KiB pages. Copying it is free; it owns nothing.
#[derive(Clone, Copy, Debug)]
pub struct Span<'region> {
    start: HostAddr,
    bytes: u64,
    region: PhantomData<&'region Region>,
}

impl<'region> Span<'region> {
    /// Returns the first address.
    #[must_use]
    pub const fn start(self) -> HostAddr {
        self.start
    }

    /// Returns the address after the last byte.
    #[must_use]
    pub const fn end(self) -> HostAddr {
        // A region ends within the address space.
        HostAddr::new(self.start.get() + self.bytes as usize)
    }

    /// Returns the length in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.bytes
    }

    /// Returns the first address as a pointer, for kernels that scan live memory.
    #[must_use]
    pub fn as_ptr(self) -> *const u8 {
        core::ptr::with_exposed_provenance(self.start.get())
    }

    fn as_mut_ptr(self) -> *mut u8 {
        core::ptr::with_exposed_provenance_mut(self.start.get())
    }

    /// Returns `bytes` bytes from `offset` on, both multiples of 4 KiB.
    ///
    /// # Errors
    /// [`SpanError`] when misaligned, empty or past the end.
    pub fn part(self, offset: u64, bytes: u64) -> Result<Self, SpanError> {
        if bytes == 0 || !offset.is_multiple_of(PAGE_BYTES) || !bytes.is_multiple_of(PAGE_BYTES) {
            return Err(SpanError::Misaligned { offset, bytes, align: PAGE_BYTES });
        }
        let within = self.bytes;
        let outside = SpanError::OutOfBounds { offset, bytes, within };
        if offset.checked_add(bytes).is_none_or(|end| end > within) {
            return Err(outside);
        }
        let start = self.start.checked_add(offset).ok_or(outside)?;
        Ok(Self { start, bytes, region: PhantomData })
    }

    fn advise(self, call: &'static str, advice: i32) -> Result<(), SysError> {
        // SAFETY: the span lies in a region, into which no reference points.
        unsafe { raw::madvise(call, self.start.get(), self.bytes as usize, advice) }
    }

    /// `MADV_HUGEPAGE`.
    ///
    /// # Errors
    /// `EINVAL` when the kernel has no transparent huge pages.
    pub fn ask_for_huge_pages(self) -> Result<(), SysError> {
        self.advise("madvise(MADV_HUGEPAGE)", libc::MADV_HUGEPAGE)
    }

    /// `MADV_NOHUGEPAGE`.
    ///
    /// # Errors
    /// `EINVAL` when the kernel has no transparent huge pages.
    pub fn forbid_huge_pages(self) -> Result<(), SysError> {
        self.advise("madvise(MADV_NOHUGEPAGE)", libc::MADV_NOHUGEPAGE)
    }

    /// `MADV_DONTFORK` and `MADV_DONTDUMP`.
    ///
    /// # Errors
    /// `ENOMEM` when the process has too many mappings.
    pub fn keep_from_children(self) -> Result<(), SysError> {
        self.advise("madvise(MADV_DONTFORK)", libc::MADV_DONTFORK)?;
        self.advise("madvise(MADV_DONTDUMP)", libc::MADV_DONTDUMP)
    }

    /// `MADV_UNMERGEABLE`: pages merged by the kernel cannot be moved.
    ///
    /// # Errors
    /// `EINVAL` when the kernel has no samepage merging.
    pub fn forbid_merging(self) -> Result<(), SysError> {
        self.advise("madvise(MADV_UNMERGEABLE)", libc::MADV_UNMERGEABLE)
    }

    /// Gives every page a frame (`MADV_POPULATE_WRITE`), huge ones where the alignment allows.
    /// Contents stay; new pages are zero. Not for registered memory: it would fault there.
    ///
    /// # Errors
    /// `ENOMEM` when memory runs out (part of it may have frames then).
    pub fn populate(self) -> Result<(), SysError> {
        retry_interrupted(|| self.advise("madvise(MADV_POPULATE_WRITE)", libc::MADV_POPULATE_WRITE))
    }

    /// Maps the zero page, the huge one for each whole empty superpage of a mapping that asks for
    /// huge pages (`MADV_POPULATE_READ`). It takes 4 KiB of page table for 2 MiB and no frames.
    /// Not for registered memory: it would fault there.
    ///
    /// # Errors
    /// `ENOMEM` when memory for page tables runs out.
    pub fn map_zero(self) -> Result<(), SysError> {
        retry_interrupted(|| self.advise("madvise(MADV_POPULATE_READ)", libc::MADV_POPULATE_READ))
    }

    /// Drops contents and frames (`MADV_DONTNEED`); pages read as zero afterwards, or fault where
    /// they are registered. On a whole superpage's empty range it also drops an empty page table
    /// (Linux 6.14 and newer), without which the next huge page moved there falls in 512 pieces.
    ///
    /// On a part of a huge page it unmaps, but gives the host nothing back until reclaim.
    ///
    /// # Errors
    /// `EINVAL` on locked memory.
    pub fn discard(self) -> Result<(), SysError> {
        self.advise("madvise(MADV_DONTNEED)", libc::MADV_DONTNEED)
    }

    fn word(self, offset: u64) -> Result<*mut u64, SpanError> {
        let bytes = size_of::<u64>() as u64;
        if !offset.is_multiple_of(bytes) {
            return Err(SpanError::Misaligned { offset, bytes, align: bytes });
        }
        if offset >= self.bytes {
            return Err(SpanError::OutOfBounds { offset, bytes, within: self.bytes });
        }
        Ok(self.as_mut_ptr().wrapping_add(offset as usize).cast())
    }

    /// Reads the word at `offset` bytes, a multiple of 8. A guest may change it at any time.
    ///
    /// # Errors
    /// [`SpanError`] when misaligned or past the end.
    pub fn load_word(self, offset: u64) -> Result<u64, SpanError> {
        let word = self.word(offset)?;
        // SAFETY: within the region, aligned, mapped and readable; volatile as others write here.
        Ok(unsafe { word.read_volatile() })
    }

    /// Reads the first [`HEAD_WORDS`] words of the page at `offset` bytes, a multiple of 4 KiB. A
    /// hint only: a guest may change them at any time.
    ///
    /// # Errors
    /// [`SpanError`] when misaligned or past the end.
    pub fn load_head(self, offset: u64) -> Result<[u64; HEAD_WORDS], SpanError> {
        let first = self.part(offset, PAGE_BYTES)?.word(0)?;
        let mut head = [0; HEAD_WORDS];
        for (index, word) in head.iter_mut().enumerate() {
            // SAFETY: within a page of the region, aligned, mapped and readable; volatile as others
            // write here.
            *word = unsafe { first.wrapping_add(index).read_volatile() };
        }
        Ok(head)
    }

    /// Writes the word at `offset` bytes, a multiple of 8, as a guest does.
    ///
    /// # Errors
    /// [`SpanError`] when misaligned or past the end.
    pub fn store_word(self, offset: u64, value: u64) -> Result<(), SpanError> {
        let word = self.word(offset)?;
        // SAFETY: within the region, aligned, mapped and writable; volatile as others read here.
        unsafe { word.write_volatile(value) };
        Ok(())
    }

    /// Returns the index of the first word of 8 bytes that is not zero. The truth for memory that
    /// nobody else writes to, a slot of the pool; a hint where a guest may write.
    #[must_use]
    pub fn first_nonzero(self) -> Option<usize> {
        let words = (self.bytes / 8) as usize;
        // SAFETY: within the region, aligned to a page, mapped and readable.
        unsafe { zerosweep_scan::first_nonzero_live(self.as_ptr().cast::<u64>(), words) }
    }

    /// Writes zeros over all of it. For memory that only the caller holds, such as a slot of the
    /// pool. What a guest writes meanwhile may be lost.
    pub fn clear(self) {
        // SAFETY: within the region, mapped and writable, and no reference points there.
        unsafe { self.as_mut_ptr().write_bytes(0, self.bytes as usize) };
    }

    /// Copies `from` here; both of one length. For memory that only the caller holds, on both
    /// sides. They may overlap.
    ///
    /// # Errors
    /// [`SpanError::Unequal`].
    pub fn copy_from(self, from: Span<'_>) -> Result<(), SpanError> {
        if self.bytes != from.bytes {
            return Err(SpanError::Unequal { to_bytes: self.bytes, from_bytes: from.bytes });
        }
        // SAFETY: both lie in regions, are mapped, readable and writable, of this length; no
        // reference points there.
        unsafe { self.as_mut_ptr().copy_from(from.as_ptr(), self.bytes as usize) };
        Ok(())
    }
}

/// Whether a range is in whole pages, on a host that has pages of that size.
fn fits(host: HostPages, start: HostAddr, bytes: u64) -> Result<(), RegionError> {
    host.check()?;
    if bytes == 0 || !bytes.is_multiple_of(PAGE_BYTES) || !start.is_page_aligned() {
        let offset = start.as_u64();
        return Err(SpanError::Misaligned { offset, bytes, align: PAGE_BYTES }.into());
    }
    Ok(())
}

/// Repeats a call that a signal ended. To populate goes on where it stopped.
fn retry_interrupted(mut call: impl FnMut() -> Result<(), SysError>) -> Result<(), SysError> {
    loop {
        match call() {
            Err(error) if error.is(libc::EINTR) || error.is(libc::EAGAIN) => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_region_is_aligned_and_reads_zero() {
        for bytes in [PAGE_BYTES, SUPERPAGE_BYTES, 3 * SUPERPAGE_BYTES + PAGE_BYTES] {
            let region = Region::new(bytes).unwrap();
            assert!(region.start().is_superpage_aligned());
            assert_eq!(region.bytes(), bytes);
            assert_eq!(region.all().load_head(bytes - PAGE_BYTES).unwrap(), [0; HEAD_WORDS]);
        }
        assert!(matches!(Region::new(0), Err(RegionError::Span(_))));
        assert!(matches!(Region::new(u64::MAX - 4095), Err(RegionError::OutOfMemory { .. })));
    }

    /// What is in whole pages of 4 KiB is refused all the same, also if it is in whole pages there.
    #[test]
    fn there_are_none_on_kernels_with_other_pages() {
        for kib in [16, 64] {
            let host = HostPages::new(kib << 10);
            for bytes in [PAGE_BYTES, SUPERPAGE_BYTES, 512 << 20] {
                let refused = RegionError::Pages(host.check().unwrap_err());
                assert_eq!(Region::new_on(host, bytes).unwrap_err(), refused);
                assert_eq!(fits(host, HostAddr::new(512 << 20), bytes), Err(refused));
            }
        }
        // SAFETY: it is refused, and nothing is adopted.
        let odd = unsafe { Region::adopt(HostAddr::new(4097), PAGE_BYTES) }.unwrap_err();
        assert!(matches!(odd, RegionError::Span(SpanError::Misaligned { offset: 4097, .. })));
    }

    #[test]
    fn parts_are_checked() {
        let region = Region::new(2 * SUPERPAGE_BYTES).unwrap();
        assert!(region.superpage(SUPERPAGE_BYTES).is_ok());
        assert!(matches!(region.superpage(PAGE_BYTES), Err(SpanError::Misaligned { .. })));
        assert!(matches!(region.page(4 * 1024 * 1024), Err(SpanError::OutOfBounds { .. })));
        assert!(matches!(region.page(u64::MAX - 4095), Err(SpanError::OutOfBounds { .. })));
        assert!(matches!(region.span(0, 0), Err(SpanError::Misaligned { .. })));
        let page = region.page(0).unwrap();
        assert!(matches!(page.load_word(4096), Err(SpanError::OutOfBounds { .. })));
        assert!(matches!(page.load_word(4), Err(SpanError::Misaligned { .. })));
        let end = region.start().checked_add(region.bytes()).unwrap();
        assert_eq!(region.offset_of(end), None);
        assert_eq!(region.offset_of(region.page(4096).unwrap().start()), Some(4096));
    }

    #[test]
    fn contents_are_copied_cleared_and_dropped() {
        let region = Region::new(SUPERPAGE_BYTES).unwrap();
        let (one, two) = (region.page(0).unwrap(), region.page(PAGE_BYTES).unwrap());
        one.store_word(120, 5).unwrap();
        two.copy_from(one).unwrap();
        assert_eq!(two.load_head(0).unwrap()[15], 5);
        one.clear();
        assert_eq!(one.load_word(120).unwrap(), 0);
        two.discard().unwrap();
        assert_eq!(two.load_word(120).unwrap(), 0);
        assert!(matches!(region.all().copy_from(one), Err(SpanError::Unequal { .. })));
    }

    #[test]
    fn an_adopted_region_stays_mapped() {
        let region = Region::new(SUPERPAGE_BYTES).unwrap();
        region.all().store_word(0, 9).unwrap();
        // SAFETY: the region outlives the adopted one.
        let adopted = unsafe { Region::adopt(region.start(), region.bytes()) }.unwrap();
        drop(adopted);
        assert_eq!(region.all().load_word(0).unwrap(), 9);
    }
}
