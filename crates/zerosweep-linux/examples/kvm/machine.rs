//! The guest, and what runs it.
#![expect(unsafe_code, reason = "gives KVM the address of the guest's memory")]

use std::error::Error;
use std::sync::Arc;

use kvm_bindings::{kvm_regs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use zerosweep::{Order, Policy};
use zerosweep_linux::{GuestMemory, GuestRam, GuestRamCollection, Options, Region, Snapshot};

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const MAX_MEM: u64 = 64 * MIB;
pub(crate) const TARGET: u64 = 16 * MIB;

/// Where the guest's code is.
const CODE: GuestAddress = GuestAddress(0x1000);
/// The guest writes the address of a page here to give it back.
const GIVE_BACK: u16 = 0x10;
/// The guest writes here how many pages were not as it had left them.
const REPORT: u16 = 0x11;

// Real mode, with segments that reach all of memory: addresses are physical, there are no tables.
core::arch::global_asm!(
    r#"
    .section .rodata
    .code16
    .global kvm_guest_begin, kvm_guest_end
    kvm_guest_begin:
        mov ebx, 0x200000           // 2 to 6 MiB: each page gets its address
    1:  mov dword ptr [ebx], ebx
        add ebx, 0x1000
        cmp ebx, 0x600000
        jb 1b

        mov ebx, 0x800000           // 8 to 64 MiB: zeros
    2:  mov dword ptr [ebx], 0
        add ebx, 0x1000
        cmp ebx, 0x4000000
        jb 2b

        mov eax, 0x400000           // 4 to 6 MiB: given back
    3:  out 0x10, eax
        add eax, 0x1000
        cmp eax, 0x600000
        jb 3b

        mov ebx, 0x400000           // 4 to 5 MiB: taken again
    4:  mov dword ptr [ebx], ebx
        add ebx, 0x1000
        cmp ebx, 0x500000
        jb 4b

        xor ecx, ecx                // what is not as it was left
        mov ebx, 0x200000
    5:  cmp dword ptr [ebx], ebx
        je 6f
        inc ecx
    6:  add ebx, 0x1000
        cmp ebx, 0x500000
        jb 5b
        mov ebx, 0x800000
    7:  cmp dword ptr [ebx], 0
        je 8f
        inc ecx
    8:  add ebx, 0x1000
        cmp ebx, 0x4000000
        jb 7b

        mov eax, ecx
        out 0x11, eax
        hlt
    kvm_guest_end:
    .code64
    .text
    "#
);

/// The guest's code.
fn code() -> &'static [u8] {
    unsafe extern "C" {
        static kvm_guest_begin: u8;
        static kvm_guest_end: u8;
    }
    // SAFETY: both are labels in one section that nobody writes to, the second behind the first.
    unsafe {
        let bytes = (&raw const kvm_guest_end).offset_from_unsigned(&raw const kvm_guest_begin);
        std::slice::from_raw_parts(&raw const kvm_guest_begin, bytes)
    }
}

/// The outcome of a run.
pub(crate) struct Outcome {
    /// Pages that were not as the guest had left them.
    pub(crate) wrong_pages: u32,
    /// Pages that the guest gave back.
    pub(crate) given_back: u64,
    /// zerosweep's figures at the end.
    pub(crate) snapshot: Snapshot,
}

/// Runs the guest to its end.
pub(crate) fn run() -> Result<Outcome, Box<dyn Error>> {
    let kvm = Kvm::new().map_err(|e| format!("/dev/kvm: {e}"))?;
    let options = Options { policy: Policy::Zerosweep, ..Options::new(TARGET) };
    let memory = GuestMemory::new(Region::new(MAX_MEM)?, &options)?;
    let ended = serve(&kvm, &memory);
    let audit = memory.audit();
    let snapshot = memory.snapshot();
    memory.stop();
    audit?;
    let (wrong_pages, given_back) = ended?;
    Ok(Outcome { wrong_pages, given_back, snapshot })
}

fn serve(kvm: &Kvm, memory: &Arc<GuestMemory>) -> Result<(u32, u64), Box<dyn Error>> {
    // PCs have a hole under 4 GiB: a second region behind it would take the rest of the memory.
    let ram = GuestRamCollection::from_regions(vec![GuestRam::whole(Arc::clone(memory))])?;
    let vm = kvm.create_vm()?;
    for (slot, region) in ram.iter().enumerate() {
        map(&vm, u32::try_from(slot)?, region)?;
    }
    ram.write_slice(code(), CODE)?;
    let mut vcpu = vm.create_vcpu(0)?;
    memory.add_vcpu(zerosweep_linux::thread_id());
    start_in_real_mode(&vcpu)?;

    let mut given_back = 0;
    loop {
        match vcpu.run()? {
            VcpuExit::IoOut(GIVE_BACK, &[a, b, c, d]) => {
                let address = GuestAddress(u32::from_le_bytes([a, b, c, d]).into());
                let region = ram.find_region(address).ok_or("a page that is not RAM")?;
                let gfn = region.gfn(address).ok_or("a page that is not RAM")?;
                // Once the cap is lifted, the page stays with the kernel.
                given_back += memory.inflate(gfn, Order::PAGE).unwrap_or(0);
            }
            VcpuExit::IoOut(REPORT, &[a, b, c, d]) => {
                return Ok((u32::from_le_bytes([a, b, c, d]), given_back));
            }
            exit => return Err(format!("the guest ended early: {exit:?}").into()),
        }
    }
}

fn map(vm: &VmFd, slot: u32, region: &GuestRam) -> Result<(), Box<dyn Error>> {
    let slot = kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr: region.start_addr().0,
        memory_size: region.len(),
        userspace_addr: region.get_host_address(vm_memory::MemoryRegionAddress(0))? as u64,
    };
    // SAFETY: the region's memory outlives the VM, whose handle ends with `serve`, and nothing in
    // this process refers to it but by address.
    Ok(unsafe { vm.set_user_memory_region(slot) }?)
}

fn start_in_real_mode(vcpu: &VcpuFd) -> Result<(), Box<dyn Error>> {
    let mut sregs = vcpu.get_sregs()?;
    for segment in [&mut sregs.cs, &mut sregs.ds] {
        segment.base = 0;
        segment.selector = 0;
    }
    sregs.ds.limit = u32::MAX;
    sregs.ds.g = 1;
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_regs { rip: CODE.0, rflags: 2, ..kvm_regs::default() })?;
    Ok(())
}
