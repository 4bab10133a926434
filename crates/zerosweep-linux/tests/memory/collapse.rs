//! Superpages made of small pages in place.
#![expect(unsafe_code, reason = "advice by system call")]

use zerosweep_linux::sys::raw;
use zerosweep_linux::{Span, SysError};

/// `MADV_COLLAPSE`: copies, and takes 2 MiB more for a moment. On registered memory every page must
/// have a frame of its own.
pub(crate) fn collapse(span: Span<'_>) -> Result<(), SysError> {
    let (start, bytes) = (span.start().get(), span.bytes() as usize);
    // SAFETY: the span lies in a region, and the advice changes no content.
    unsafe { raw::madvise("madvise(MADV_COLLAPSE)", start, bytes, libc::MADV_COLLAPSE) }
}
