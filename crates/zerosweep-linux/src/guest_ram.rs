//! Guest memory for VMMs of the [rust-vmm](https://github.com/rust-vmm) family: [`GuestRam`] is a
//! region of the crate `vm-memory`, whose traits device models and kernel loaders take.

use std::sync::Arc;

use vm_memory::bitmap::BS;
use vm_memory::{
    GuestAddress, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes,
    GuestRegionCollection, MemoryRegionAddress, VolatileSlice,
};
use zerosweep::Gfn;

use crate::addr::PAGE_BYTES;
use crate::error::SpanError;
use crate::memory::GuestMemory;

/// All of a guest's memory for `vm-memory`, with `read_slice`, `write_obj`, `get_slice` and so on.
pub type GuestRamCollection = GuestRegionCollection<GuestRam>;

/// A range of guest physical addresses with managed memory behind it.
///
/// One [`GuestMemory`] may back several ranges, such as RAM below and above the hole under 4 GiB.
/// Each range keeps the memory alive. Addresses in the *memory* begin at 0 and have no holes; its
/// gfns are those that [`GuestRam::gfn`] returns and [`GuestMemory::inflate`] takes.
///
/// An access is like an access of the guest: it may wait for a frame. Threads that zerosweep has
/// started must not make one. Writes are not tracked (`B` is `()`): for migration, ask the
/// hypervisor for dirty pages.
#[derive(Clone, Debug)]
pub struct GuestRam {
    memory: Arc<GuestMemory>,
    start: GuestAddress,
    /// Where the range begins in the memory, and its length, in bytes.
    offset: u64,
    bytes: u64,
}

impl GuestRam {
    /// Places `bytes` bytes of `memory` from `offset` on at the guest physical address `start`. All
    /// three are multiples of 4 KiB. Keep `start` and `offset` the same distance from a multiple of
    /// 2 MiB, or the hypervisor cannot map superpages.
    ///
    /// # Errors
    /// [`SpanError`] when misaligned, empty, past the end of `memory` or of the address space.
    pub fn new(
        memory: Arc<GuestMemory>,
        start: GuestAddress,
        offset: u64,
        bytes: u64,
    ) -> Result<Self, SpanError> {
        memory.guest().part(offset, bytes)?;
        if !start.0.is_multiple_of(PAGE_BYTES) {
            return Err(SpanError::Misaligned { offset: start.0, bytes, align: PAGE_BYTES });
        }
        if start.0.checked_add(bytes).is_none() {
            return Err(SpanError::OutOfBounds { offset: start.0, bytes, within: u64::MAX });
        }
        Ok(Self { memory, start, offset, bytes })
    }

    /// Places all of `memory` at guest physical address 0.
    #[must_use]
    pub fn whole(memory: Arc<GuestMemory>) -> Self {
        let bytes = memory.guest().bytes();
        Self { memory, start: GuestAddress(0), offset: 0, bytes }
    }

    /// Returns the memory behind this range.
    #[must_use]
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Returns the memory's gfn of the page at a guest physical address, or `None` outside.
    #[must_use]
    pub fn gfn(&self, address: GuestAddress) -> Option<Gfn> {
        let within = self.to_region_addr(address)?;
        Some(Gfn::new((self.offset + within.0) / PAGE_BYTES))
    }
}

impl GuestMemoryRegion for GuestRam {
    type B = ();

    fn len(&self) -> u64 {
        self.bytes
    }

    fn start_addr(&self) -> GuestAddress {
        self.start
    }

    fn bitmap(&self) -> BS<'_, Self::B> {}

    fn get_host_address(&self, address: MemoryRegionAddress) -> Result<*mut u8, GuestMemoryError> {
        let within = self.check_address(address).ok_or(GuestMemoryError::InvalidBackendAddress)?;
        let first = self.memory.guest().as_ptr().cast_mut();
        Ok(first.wrapping_add((self.offset + within.0) as usize))
    }

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> Result<VolatileSlice<'_, BS<'_, Self::B>>, GuestMemoryError> {
        let outside = GuestMemoryError::InvalidBackendAddress;
        if offset.0.checked_add(count as u64).is_none_or(|end| end > self.bytes) {
            return Err(outside);
        }
        self.memory.guest().volatile_slice(self.offset + offset.0, count).ok_or(outside)
    }
}

impl GuestMemoryRegionBytes for GuestRam {}
