//! A guest under KVM that runs a few instructions at ring 3, in long mode, with interrupts on.
//!
//! It writes to each page from 4 MiB on, and ends. With the kernel's own interrupt controller KVM
//! takes its faults as it takes those of every guest of QEMU's: a kernel worker asks for the page,
//! and the virtual CPU is halted meanwhile (*asynchronous page faults*).
#![expect(unsafe_code, reason = "a memory slot of KVM names memory by its address")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment, kvm_sregs, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use zerosweep_linux::{GuestMemory, MainLoop, Options, PAGE_BYTES, Region};

pub(crate) const MIB: u64 = 1 << 20;
/// What the guest is told that it has.
pub(crate) const MAX: u64 = 64 * MIB;
/// Where the guest begins to write, and where it ends.
pub(crate) const WRITTEN: std::ops::Range<u64> = 4 * MIB..60 * MIB;

const CODE: u64 = 0x1000;
const TABLES: u64 = 0x1_0000;
const STACK: u64 = 0x2_2000;

/// Who delivers interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Controller {
    /// Nobody: every fault is the virtual CPU's own.
    None,
    /// The kernel, as with QEMU's default: faults are asynchronous.
    Kernel,
}

/// A guest that has begun to run, in a thread of its own.
pub(crate) struct Guest {
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) vm: Arc<VmFd>,
    done: Arc<AtomicBool>,
}

impl Guest {
    /// Starts one that may hold `target` bytes.
    pub(crate) fn start(controller: Controller, target: u64, main_loop: MainLoop) -> Self {
        let region = Region::new(MAX).unwrap();
        let options = Options { main_loop, ..Options::new(target) };
        let memory = GuestMemory::new(region, &options).unwrap();
        load(&memory);
        let kvm = Kvm::new().unwrap();
        let vm = kvm.create_vm().unwrap();
        vm.set_tss_address(0xfffb_d000).unwrap();
        if controller == Controller::Kernel {
            vm.create_irq_chip().unwrap();
        }
        let slot = kvm_userspace_memory_region {
            memory_size: MAX,
            userspace_addr: memory.guest().start().get() as u64,
            ..Default::default()
        };
        // SAFETY: the memory is never unmapped: the process ends with the guest.
        unsafe { vm.set_user_memory_region(slot) }.unwrap();
        let vm = Arc::new(vm);
        let done = Arc::new(AtomicBool::new(false));
        let guest = Self { memory, vm, done };
        let (memory, vm) = (Arc::clone(&guest.memory), Arc::clone(&guest.vm));
        let done = Arc::clone(&guest.done);
        std::thread::spawn(move || {
            let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
            let mut vcpu = vm.create_vcpu(0).unwrap();
            vcpu.set_cpuid2(&cpuid).unwrap();
            memory.add_vcpu(zerosweep_linux::thread_id());
            run(&mut vcpu);
            done.store(true, Ordering::SeqCst);
        });
        guest
    }

    /// Whether the guest has written to all of its pages.
    pub(crate) fn is_done(&self) -> bool {
        self.done.load(Ordering::SeqCst)
    }

    /// Waits until the guest is done, at most `limit`; whether it is.
    pub(crate) fn is_done_within(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        while Instant::now() < end && !self.is_done() {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.is_done()
    }

    /// Pages that do not hold what the guest wrote to them, its own address.
    pub(crate) fn wrong_pages(&self) -> u64 {
        let pages = WRITTEN.step_by(PAGE_BYTES as usize);
        pages.filter(|&at| self.memory.guest().load_word(at) != Ok(at)).count() as u64
    }
}

/// Puts page tables and program into the guest's memory.
fn load(memory: &GuestMemory) {
    let ram = memory.guest();
    let user = 7;
    for at in (TABLES..STACK + PAGE_BYTES).step_by(8) {
        ram.store_word(at, 0).unwrap();
    }
    ram.store_word(TABLES, (TABLES + 0x1000) | user).unwrap();
    ram.store_word(TABLES + 0x1000, (TABLES + 0x2000) | user).unwrap();
    for entry in 0..512 {
        let superpage = 0x80;
        ram.store_word(TABLES + 0x2000 + entry * 8, entry << 21 | superpage | user).unwrap();
    }
    #[rustfmt::skip]
    let code = [
        0xbb, 0, 0, 0x40, 0,                     // mov ebx, 4 MiB
        0x48, 0x89, 0x1b,                        // mov [rbx], rbx
        0x48, 0x81, 0xc3, 0, 0x10, 0, 0,         // add rbx, 4096
        0x48, 0x81, 0xfb, 0, 0, 0xc0, 0x03,      // cmp rbx, 60 MiB
        0x72, 0xed,                              // jb: the next page
        0xe6, 0x11,                              // out 0x11, al: the end
        0xf4,
    ];
    for (index, bytes) in code.chunks(8).enumerate() {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        ram.store_word(CODE + index as u64 * 8, u64::from_le_bytes(word)).unwrap();
    }
}

fn run(vcpu: &mut VcpuFd) {
    let data = kvm_segment {
        limit: u32::MAX,
        selector: 0x2b,
        present: 1,
        type_: 3,
        dpl: 3,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    let code = kvm_segment { type_: 11, db: 0, l: 1, selector: 0x33, ..data };
    let sregs = kvm_sregs {
        cs: code,
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        cr0: 0x8005_0033,
        cr3: TABLES,
        cr4: 1 << 5 | 1 << 9 | 1 << 10,
        efer: 1 | 1 << 8 | 1 << 10 | 1 << 11,
        ..vcpu.get_sregs().unwrap()
    };
    vcpu.set_sregs(&sregs).unwrap();
    // Interrupts on, and ports open to ring 3.
    let regs = kvm_regs { rip: CODE, rsp: STACK, rflags: 0x3202, ..Default::default() };
    vcpu.set_regs(&regs).unwrap();
    loop {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(..)) => return,
            Ok(exit) => panic!("the guest stopped: {exit:?}"),
            Err(error) if error.errno() == libc::EINTR => {}
            Err(error) => panic!("KVM_RUN: {error}"),
        }
    }
}
