//! The guest's memory: zerosweep's, in one part or two, as KVM, the kernel loader and the balloon
//! see it.
#![expect(
    unsafe_code,
    reason = "gives addresses to KVM, and gives pages back once the cap is lifted"
)]

use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::{
    GuestAddress, GuestMemoryBackend as _, GuestMemoryRegion as _, MemoryRegionAddress,
};
use zerosweep::Order;
use zerosweep_linux::{
    GuestMemory, GuestRam, GuestRamCollection, Lifted, Options, PAGE_BYTES, Region, SUPERPAGE_BYTES,
};

use crate::balloon::Pages;
use crate::layout;

/// Guest memory that zerosweep manages.
pub(crate) struct Ram {
    memory: Arc<GuestMemory>,
    parts: GuestRamCollection,
}

impl Ram {
    /// Memory of `max_mem` bytes that may hold `target`.
    pub(crate) fn new(max_mem: u64, target: u64) -> Result<Self> {
        if !max_mem.is_multiple_of(SUPERPAGE_BYTES) {
            bail!("--max-mem {max_mem} is not a multiple of 2 MiB");
        }
        if target == 0 || target > max_mem || !target.is_multiple_of(PAGE_BYTES) {
            bail!("--target {target} is not a multiple of 4 KiB up to --max-mem");
        }
        // The first thread runs the balloon, which the virtual CPUs may wait for: the default for
        // `Options::main_loop` watches just that thread.
        let memory = GuestMemory::new(Region::new(max_mem)?, &Options::new(target))?;
        let parts = layout::parts(max_mem).into_iter().map(|part| {
            GuestRam::new(Arc::clone(&memory), GuestAddress(part.start), part.offset, part.bytes)
        });
        let parts = parts.collect::<Result<Vec<_>, _>>()?;
        let parts = GuestRamCollection::from_regions(parts)?;
        Ok(Self { memory, parts })
    }

    /// The memory under the engine.
    pub(crate) fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// The memory as `vm-memory` knows it.
    pub(crate) fn parts(&self) -> &GuestRamCollection {
        &self.parts
    }

    /// Makes each part a memory slot of the virtual machine.
    pub(crate) fn give_to(&self, vm: &VmFd) -> Result<()> {
        for (slot, part) in (0..).zip(self.parts.iter()) {
            let region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: part.start_addr().0,
                memory_size: part.len(),
                userspace_addr: part.get_host_address(MemoryRegionAddress(0))? as u64,
            };
            // SAFETY: the memory outlives the virtual machine, which `Machine::run` ends before it
            // returns; nothing in this process refers to it but by address.
            unsafe { vm.set_user_memory_region(region) }.context("giving memory to KVM")?;
        }
        Ok(())
    }

    /// The part that all of `[start, start + bytes)` is in.
    fn part(&self, start: GuestAddress, bytes: u64) -> Option<&GuestRam> {
        let part = self.parts.find_region(start)?;
        let left = part.len() - (start.0 - part.start_addr().0);
        (bytes <= left).then_some(part)
    }
}

/// What a VMM without zerosweep does: the kernel takes the pages, and the next touch gets zeros.
fn drop_pages(part: &GuestRam, start: GuestAddress, bytes: u64) {
    let within = MemoryRegionAddress(start.0 - part.start_addr().0);
    if let Ok(address) = part.get_host_address(within) {
        // SAFETY: the range is the guest's, who has given it up; no Rust reference points into it.
        unsafe { libc::madvise(address.cast(), bytes as usize, libc::MADV_DONTNEED) };
    }
}

impl Pages for Ram {
    fn inflate(&self, page: GuestAddress) -> bool {
        let Some(part) = self.part(page, PAGE_BYTES) else { return false };
        let Some(gfn) = part.gfn(page) else { return false };
        if let Err(Lifted) = self.memory.inflate(gfn, Order::PAGE) {
            drop_pages(part, page, PAGE_BYTES);
        }
        true
    }

    fn deflate(&self, page: GuestAddress) -> bool {
        let part = self.part(page, PAGE_BYTES);
        let Some(gfn) = part.and_then(|part| part.gfn(page)) else { return false };
        // Once the cap is lifted, the kernel gives the page at its first touch.
        let _ = self.memory.deflate(gfn, 1);
        true
    }

    fn report(&self, start: GuestAddress, bytes: u64) -> bool {
        let Some(part) = self.part(start, bytes) else { return false };
        let Some(gfn) = part.gfn(start) else { return false };
        if let Err(Lifted) = self.memory.discard(gfn, bytes / PAGE_BYTES) {
            drop_pages(part, start, bytes);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes as _;

    use super::*;

    const MIB: u64 = 1 << 20;
    const HIGH: GuestAddress = GuestAddress(layout::HOLE_END + MIB);

    /// Memory with 4 MiB above the hole.
    fn ram() -> Ram {
        Ram::new(layout::HOLE + 4 * MIB, 64 * MIB).unwrap()
    }

    fn held(ram: &Ram, address: GuestAddress) -> u64 {
        ram.parts.read_obj(address).unwrap()
    }

    #[test]
    #[ignore = "needs userfaultfd in kernel mode"]
    fn the_balloon_takes_pages_of_both_parts() {
        let ram = ram();
        for (page, before) in [(GuestAddress(5 * MIB), 0), (HIGH, 1)] {
            ram.parts.write_obj(7_u64, page).unwrap();
            assert!(ram.inflate(page));
            let given_back = ram.memory.snapshot().statistics.pages_given_back;
            assert_eq!(given_back, before + 1);
            assert!(ram.deflate(page));
            ram.parts.write_obj(8_u64, page).unwrap();
            assert_eq!(held(&ram, page), 8);
            assert!(ram.report(page, 8 * PAGE_BYTES));
            ram.memory.audit().unwrap();
        }
        ram.memory.stop();
    }

    #[test]
    #[ignore = "needs userfaultfd in kernel mode"]
    fn what_is_no_memory_is_refused() {
        let ram = ram();
        let end = GuestAddress(layout::HOLE_END + 4 * MIB);
        for page in [GuestAddress(layout::HOLE), GuestAddress(layout::BALLOON), end] {
            assert!(!ram.inflate(page) && !ram.deflate(page) && !ram.report(page, PAGE_BYTES));
        }
        // Over the end of a part.
        let last = GuestAddress(layout::HOLE - PAGE_BYTES);
        assert!(ram.report(last, PAGE_BYTES));
        assert!(!ram.report(last, 2 * PAGE_BYTES));
        assert!(!ram.report(GuestAddress(end.0 - PAGE_BYTES), 2 * PAGE_BYTES));
        assert!(!ram.report(HIGH, !0xfff));
        ram.memory.stop();
    }

    #[test]
    #[ignore = "needs userfaultfd in kernel mode"]
    fn once_the_cap_is_lifted_the_kernel_takes_the_pages() {
        let ram = ram();
        let other = GuestAddress(HIGH.0 + PAGE_BYTES);
        for page in [HIGH, other] {
            ram.parts.write_obj(7_u64, page).unwrap();
        }
        ram.memory.lift("a test");
        assert!(ram.inflate(HIGH) && ram.deflate(HIGH));
        assert_eq!((held(&ram, HIGH), held(&ram, other)), (0, 7));
        assert!(ram.report(other, PAGE_BYTES));
        assert_eq!(held(&ram, other), 0);
        assert!(!ram.inflate(GuestAddress(layout::HOLE)));
        ram.memory.stop();
    }
}
