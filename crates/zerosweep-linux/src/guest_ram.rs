//! Guest memory for VMMs of the [rust-vmm](https://github.com/rust-vmm) family: [`GuestRam`] is a
//! region of the crate `vm-memory`, whose traits device models and kernel loaders take.
#![expect(unsafe_code, reason = "vm-memory makes volatile slices of raw addresses")]

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

/// All of a guest's memory, as `vm-memory` has it: `read_slice`, `write_obj`, `get_slice` and so on
/// go through it.
pub type GuestRamCollection = GuestRegionCollection<GuestRam>;

/// A range of guest physical addresses with managed memory behind it.
///
/// One [`GuestMemory`] may lie behind several, as RAM below and above the hole under 4 GiB does.
/// Each keeps it alive. Addresses in the *memory* begin at 0 and have no holes; its gfns are what
/// [`GuestMemory::decrease`] and its like take, and [`GuestRam::gfn`] gives.
///
/// An access is like one of the guest: it may wait for a frame, on any thread but those that
/// zerosweep has started. Writes are not tracked (`B` is `()`): who wants to migrate asks the
/// hypervisor.
#[derive(Clone, Debug)]
pub struct GuestRam {
    memory: Arc<GuestMemory>,
    start: GuestAddress,
    /// Where it begins in the memory, and how long it is, in bytes.
    offset: u64,
    bytes: u64,
}

impl GuestRam {
    /// The `bytes` bytes of `memory` at `offset` are at `start` for the guest. All three are
    /// multiples of 4 KiB; keep `start` and `offset` the same distance from a multiple of 2 MiB, or
    /// the hypervisor cannot map superpages.
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

    /// All of `memory`, from guest physical address 0 on.
    #[must_use]
    pub fn whole(memory: Arc<GuestMemory>) -> Self {
        let bytes = memory.guest().bytes();
        Self { memory, start: GuestAddress(0), offset: 0, bytes }
    }

    /// The memory behind it.
    #[must_use]
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// The memory's gfn of the page at a guest physical address; `None` outside.
    #[must_use]
    pub fn gfn(&self, address: GuestAddress) -> Option<Gfn> {
        let within = self.to_region_addr(address)?;
        Some(Gfn::new((self.offset + within.0) / PAGE_BYTES))
    }

    /// The address in this process of the byte `within` bytes into the range.
    fn host_address(&self, within: u64) -> *mut u8 {
        let address = self.memory.guest().start().get() + (self.offset + within) as usize;
        core::ptr::with_exposed_provenance_mut(address)
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
        Ok(self.host_address(within.0))
    }

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> Result<VolatileSlice<'_, BS<'_, Self::B>>, GuestMemoryError> {
        if offset.0.checked_add(count as u64).is_none_or(|end| end > self.bytes) {
            return Err(GuestMemoryError::InvalidBackendAddress);
        }
        // SAFETY: the part lies within the memory, whose region stays mapped for as long as the
        // memory lives, which `self` keeps; no Rust reference ever points into a region, and all
        // who use it besides (the guest, the kernel, our own moves and scans) do so by address.
        Ok(unsafe { VolatileSlice::new(self.host_address(offset.0), count) })
    }
}

impl GuestMemoryRegionBytes for GuestRam {}
