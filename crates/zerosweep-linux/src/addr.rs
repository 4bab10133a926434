//! Addresses in this process.

use core::fmt;

pub use crate::geometry::{PAGE_BYTES, SUPERPAGE_BYTES, SUPERPAGE_PAGES};

/// A virtual address of this process, in bytes. Prints as `h0x7f…`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostAddr(usize);

impl HostAddr {
    /// The address `address`.
    #[must_use]
    pub const fn new(address: usize) -> Self {
        Self(address)
    }

    /// The address as a number of bytes.
    #[must_use]
    pub const fn get(self) -> usize {
        self.0
    }

    /// The address as the kernel's structures want it.
    #[must_use]
    pub const fn as_u64(self) -> u64 {
        self.0 as u64
    }

    /// The address `bytes` further on, or `None` past the end of the address space.
    #[must_use]
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes as usize) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }

    /// Bytes from `start` to here, or `None` when `start` lies behind.
    #[must_use]
    pub const fn offset_from(self, start: Self) -> Option<u64> {
        match self.0.checked_sub(start.0) {
            Some(bytes) => Some(bytes as u64),
            None => None,
        }
    }

    /// The start of the page around this address.
    #[must_use]
    pub const fn page(self) -> Self {
        Self(self.0 & !(PAGE_BYTES as usize - 1))
    }

    /// The start of the 2 MiB around this address.
    #[must_use]
    pub const fn superpage(self) -> Self {
        Self(self.0 & !(SUPERPAGE_BYTES as usize - 1))
    }

    /// Whether a 4 KiB page starts here.
    #[must_use]
    pub const fn is_page_aligned(self) -> bool {
        self.0.is_multiple_of(PAGE_BYTES as usize)
    }

    /// Whether a superpage may start here.
    #[must_use]
    pub const fn is_superpage_aligned(self) -> bool {
        self.0.is_multiple_of(SUPERPAGE_BYTES as usize)
    }
}

impl fmt::Debug for HostAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "h{:#x}", self.0)
    }
}

impl fmt::Display for HostAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_down_to_pages_and_superpages() {
        let address = HostAddr::new(0x40_3456);
        assert_eq!(address.page(), HostAddr::new(0x40_3000));
        assert_eq!(address.superpage(), HostAddr::new(0x40_0000));
        assert!(!address.is_page_aligned() && address.superpage().is_superpage_aligned());
        assert_eq!(format!("{address:?}"), "h0x403456");
    }

    #[test]
    fn distances_do_not_wrap() {
        assert_eq!(HostAddr::new(usize::MAX).checked_add(1), None);
        assert_eq!(HostAddr::new(5).offset_from(HostAddr::new(6)), None);
        assert_eq!(HostAddr::new(6).offset_from(HostAddr::new(4)), Some(2));
    }
}
