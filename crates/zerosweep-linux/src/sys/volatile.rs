//! A [`Span`] as a slice of the crate `vm-memory`.
#![expect(unsafe_code, reason = "vm-memory makes volatile slices of raw addresses")]

use vm_memory::VolatileSlice;

use super::region::Span;

impl<'region> Span<'region> {
    /// Returns `count` bytes from byte `offset` on, or `None` if they end past the end.
    pub(crate) fn volatile_slice(
        self,
        offset: u64,
        count: usize,
    ) -> Option<VolatileSlice<'region>> {
        if offset.checked_add(count as u64).is_none_or(|end| end > self.bytes()) {
            return None;
        }
        let first = self.as_ptr().cast_mut().wrapping_add(offset as usize);
        // SAFETY: the bytes lie within the span, whose region stays mapped for `'region`. No Rust
        // reference ever points into a region: the guest, the kernel, and our own moves and scans
        // use it by address.
        Some(unsafe { VolatileSlice::new(first, count) })
    }
}
