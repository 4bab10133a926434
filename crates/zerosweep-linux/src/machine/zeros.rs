//! Pages without frames are read as zeros: the small zero page, protected.
//!
//! The kernel maps it unprotected. What the guest writes before it is protected gets a page of the
//! kernel's own, which is found afterwards and becomes the memory of a frame. Until then nothing may
//! drop what is there ([`LinuxMachine::empty`]).

use std::sync::atomic::Ordering;

use zerosweep::{Gfn, MapError, Mfn, Order, PAGE_BYTES, SUPERPAGE_PAGES, Shown};

use super::LinuxMachine;
use super::backoff::Backoff;
use super::moves::ZeroPage;
use crate::sys::raw::SysResult;
use crate::sys::region::Span;
use crate::sys::uffd::{MoveOutcome, Wake};

impl LinuxMachine {
    pub(crate) fn show_zeros(&self, gfn: Gfn, pages: u64) -> Shown {
        if pages == SUPERPAGE_PAGES && !self.drops_tables {
            // The page table would stay, and the next superpage come in 512 pieces.
            return Shown::Unsupported;
        }
        let span = self.guest.span(gfn.raw() * PAGE_BYTES, pages * PAGE_BYTES);
        let (Ok(span), Some(_moving)) = (span, self.enter()) else { return Shown::Unsupported };
        // Zero pages of an earlier read may be there.
        if self.empty(span).is_err() {
            return Shown::Unsupported;
        }
        let is_shown = self.map_zero_pages(span);
        #[cfg(test)]
        self.hold_shown.pass();
        // What was mapped is protected even then.
        if until_done(|| self.uffd.protect(span)).is_err() {
            // The guest may write there at any time from now on, and nobody would know.
            self.gate.close();
            return Shown::Unsupported;
        }
        if self.has_memory(span, ZeroPage::Ignored) {
            Shown::Written
        } else if is_shown {
            Shown::Zeros
        } else {
            Shown::Unsupported
        }
    }

    fn map_zero_pages(&self, span: Span<'_>) -> bool {
        let (mut done, mut backoff) = (0, Backoff::default());
        while done < span.bytes() {
            let Ok(rest) = span.part(done, span.bytes() - done) else { return false };
            match self.uffd.map_zero_pages(rest, Wake::No) {
                MoveOutcome::Done => return true,
                MoveOutcome::Partial { bytes: 0 } => backoff.wait(),
                MoveOutcome::Partial { bytes } => done += bytes,
                _ => return false,
            }
        }
        true
    }

    pub(crate) fn is_written(&self, gfn: Gfn) -> bool {
        let page = self.range(gfn, Order::PAGE);
        let is_written = page.is_ok_and(|page| self.has_memory(page, ZeroPage::Ignored));
        if is_written {
            self.written.fetch_add(1, Ordering::Relaxed);
        }
        is_written
    }

    /// Whether something was written at `range` that has no frame yet.
    fn has_written(&self, range: Span<'_>) -> bool {
        self.written.load(Ordering::Relaxed) > 0 && self.has_memory(range, ZeroPage::Ignored)
    }

    /// Drops the zero pages of a range without frames.
    ///
    /// # Errors
    /// When something was written there that has no frame yet, or the kernel refuses.
    pub(super) fn empty(&self, range: Span<'_>) -> Result<(), MapError> {
        if self.has_written(range) {
            return Err(MapError);
        }
        range.discard().map_err(|_| MapError)
    }

    /// Makes what was written at a page the memory of frame `mfn`, where it is. Returns false if
    /// nothing was.
    ///
    /// # Errors
    /// The kernel does not let the guest write there again.
    pub(super) fn keep_written(&self, range: Span<'_>, mfn: Mfn) -> Result<bool, MapError> {
        if !self.has_written(range) {
            return Ok(false);
        }
        until_done(|| self.uffd.unprotect(range)).map_err(|_| MapError)?;
        if self.slots.is_present(mfn) {
            self.free_page_memory(mfn, self.settled_backing(mfn.superframe()));
        }
        self.slots.set_present(mfn);
        self.written.fetch_sub(1, Ordering::Relaxed);
        Ok(true)
    }
}

/// The kernel puts a request off while mappings change.
fn until_done(mut request: impl FnMut() -> SysResult<()>) -> SysResult<()> {
    let mut backoff = Backoff::default();
    loop {
        match request() {
            Err(error) if error.is(libc::EAGAIN) => backoff.wait(),
            outcome => return outcome,
        }
    }
}
