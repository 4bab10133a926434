//! A virtual CPU: how it begins, and the thread that runs it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::{Cap, Kvm, VcpuExit, VcpuFd};
use vm_memory::GuestAddress;
use vmm_sys_util::signal::{Killable as _, SIGRTMIN, register_signal_handler};
use zerosweep_linux::GuestMemory;

use crate::devices::{Devices, Ending};
use crate::layout;

/// How often a thread that shall end is told so: a signal that comes just before `KVM_RUN` is lost.
const TELL_AGAIN: Duration = Duration::from_millis(10);

/// Bits of CPUID.
const X86_VMX: u32 = 1 << 5;
const X86_TSC_DEADLINE: u32 = 1 << 24;
const X86_HYPERVISOR: u32 = 1 << 31;
const AMD_SVM: u32 = 1 << 2;
/// The three bits of KVM's asynchronous page faults.
const ASYNCHRONOUS_FAULTS: u32 = 1 << 4 | 1 << 10 | 1 << 14;

/// Bits of control registers.
const CR0_PE: u64 = 1;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// MTRRs on, and everything is write-back that they do not name.
const MTRR_DEFAULT: u32 = 0x2ff;
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

/// What a virtual CPU can do: all that KVM has, but for what does not go together with zerosweep.
pub(crate) fn cpuid(kvm: &Kvm, id: u8, vcpus: u8) -> Result<CpuId> {
    let mut cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    let has_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            0x1 => {
                // A guest's guests: before Linux 6.13, KVM uses their pages without pinning them.
                entry.ecx &= !X86_VMX;
                entry.ecx |= X86_HYPERVISOR;
                if has_deadline {
                    entry.ecx |= X86_TSC_DEADLINE;
                }
                entry.ebx &= 0xffff;
                entry.ebx |= u32::from(vcpus) << 16 | u32::from(id) << 24;
            }
            0xb | 0x1f => entry.edx = id.into(),
            0x8000_0001 => entry.ecx &= !AMD_SVM,
            0x8000_001e => entry.eax = id.into(),
            // A guest that halts until its page is there does not help when it waits for a frame,
            // and each such page occupies a thread of the host.
            0x4000_0001 => entry.eax &= !ASYNCHRONOUS_FAULTS,
            _ => {}
        }
    }
    Ok(cpuid)
}

/// Puts the first virtual CPU at the kernel's 64-bit entry. The others wait for its signal.
pub(crate) fn start_at(vcpu: &VcpuFd, entry: GuestAddress) -> Result<()> {
    let mut sregs = vcpu.get_sregs()?;
    let code = kvm_segment {
        limit: u32::MAX,
        selector: 0x10,
        type_: 0xb,
        present: 1,
        s: 1,
        l: 1,
        g: 1,
        ..kvm_segment::default()
    };
    let data = kvm_segment { selector: 0x18, type_: 0x3, l: 0, db: 1, ..code };
    sregs.cs = code;
    [sregs.ds, sregs.es, sregs.ss, sregs.fs, sregs.gs] = [data; 5];
    (sregs.gdt.base, sregs.gdt.limit) = (layout::GDT, 31);
    sregs.cr0 |= CR0_PE | CR0_PG;
    sregs.cr3 = layout::PAGE_TABLES;
    sregs.cr4 |= CR4_PAE;
    sregs.efer |= EFER_LME | EFER_LMA;
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_regs {
        rip: entry.0,
        rsi: layout::BOOT_PARAMETERS,
        rsp: layout::STACK,
        rflags: 2,
        ..kvm_regs::default()
    })?;
    let mtrr = kvm_msr_entry { index: MTRR_DEFAULT, data: MTRR_WRITE_BACK, ..Default::default() };
    vcpu.set_msrs(&Msrs::from_entries(&[mtrr])?)?;
    Ok(())
}

/// The threads of the virtual CPUs.
pub(crate) struct Vcpus {
    threads: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

impl Vcpus {
    /// Starts a thread for each virtual CPU. `ended` is called in the thread of the one with which
    /// the machine ends.
    pub(crate) fn start(
        vcpus: Vec<VcpuFd>,
        memory: &Arc<GuestMemory>,
        devices: &Arc<Devices>,
        ended: &Arc<dyn Fn(Result<Ending>) + Send + Sync>,
    ) -> Result<Self> {
        // A handler that does nothing: the signal ends KVM_RUN.
        extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
        register_signal_handler(SIGRTMIN(), ignore)?;
        let stop = Arc::new(AtomicBool::new(false));
        let mut all = Self { threads: Vec::new(), stop };
        for (id, vcpu) in vcpus.into_iter().enumerate() {
            let (memory, devices) = (Arc::clone(memory), Arc::clone(devices));
            let (ended, stop) = (Arc::clone(ended), Arc::clone(&all.stop));
            let body = move || {
                // When no frame can be found, this thread may wait; others borrow.
                memory.add_vcpu(zerosweep_linux::thread_id());
                if let Some(ending) = run(vcpu, &devices, &stop).transpose() {
                    ended(ending);
                }
            };
            let thread = thread::Builder::new().name(format!("vcpu{id}")).spawn(body);
            all.threads.push(thread.context("starting the thread of a virtual CPU")?);
        }
        Ok(all)
    }

    /// Ends all threads, and waits for them.
    pub(crate) fn stop(self) {
        self.stop.store(true, Ordering::Release);
        for thread in self.threads {
            while !thread.is_finished() {
                // Fails only if it has just ended.
                let _ = thread.kill(SIGRTMIN());
                thread::sleep(TELL_AGAIN);
            }
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// Runs until the machine ends, or until it is told to stop: then returns `None`.
fn run(mut vcpu: VcpuFd, devices: &Devices, stop: &AtomicBool) -> Result<Option<Ending>> {
    while !stop.load(Ordering::Acquire) {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(port, data)) => {
                if let Some(ending) = devices.write_port(port, data)? {
                    return Ok(Some(ending));
                }
            }
            Ok(VcpuExit::IoIn(port, data)) => devices.read_port(port, data),
            Ok(VcpuExit::MmioWrite(address, data)) => devices.write(address, data)?,
            Ok(VcpuExit::MmioRead(address, data)) => devices.read(address, data),
            Ok(VcpuExit::Shutdown) => return Ok(Some(Ending::TripleFault)),
            Ok(VcpuExit::Intr) => {}
            Ok(exit) => bail!("a virtual CPU ended with {exit:?}"),
            // A signal, or one of the other CPUs that does not run yet.
            Err(e) if [libc::EINTR, libc::EAGAIN].contains(&e.errno()) => {}
            Err(e) => return Err(e).context("running a virtual CPU"),
        }
    }
    Ok(None)
}
