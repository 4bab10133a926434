//! Under KVM a guest waits at its target, no matter who asks for its pages: the virtual CPU itself,
//! or a worker of the kernel's.
#![cfg(target_arch = "x86_64")]
#![expect(unsafe_code, reason = "a memory slot of KVM names memory by its address")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use kvm_bindings::kvm_userspace_memory_region;
use zerosweep_linux::{KernelVersion, MainLoop, PAGE_BYTES, Region, thread_id};

mod kvm_guest;
use kvm_guest::{Controller, Guest, MIB};

const TARGET: u64 = 16 * MIB;

fn waits_at_its_target_and_goes_on(controller: Controller) {
    let guest = Guest::start(controller, TARGET, MainLoop::None);
    // Longer than a stuck main thread would be waited for.
    let done = guest.is_done_within(Duration::from_secs(6));
    let snapshot = guest.memory.snapshot();
    println!(
        "{controller:?}: guest {}; target {} MiB, total {} MiB, borrowed {} pages, stalled {}",
        if done { "has written all of 56 MiB" } else { "waits" },
        snapshot.quantities.target * PAGE_BYTES / MIB,
        snapshot.quantities.total() * PAGE_BYTES / MIB,
        snapshot.borrowed,
        snapshot.stalled,
    );
    assert!(!done, "it has written 56 MiB with a target of 16 MiB");
    assert_eq!(snapshot.quantities.total() * PAGE_BYTES, TARGET);
    assert_eq!(snapshot.borrowed, 0);
    assert_eq!(snapshot.stalled, 1);
    guest.memory.audit().unwrap();
    assert_eq!(guest.memory.set_target(64 * MIB), Ok(()));
    assert!(guest.is_done_within(Duration::from_secs(60)), "{:?}", guest.memory.snapshot());
    assert_eq!(guest.wrong_pages(), 0);
    let snapshot = guest.memory.snapshot();
    assert_eq!((snapshot.borrowed, snapshot.lifted), (0, None));
    // What the engine calls whole is whole by the kernel too, if that drops empty page tables.
    let whole = guest.memory.machine().whole_superpages().unwrap();
    match KernelVersion::running() >= Some(KernelVersion::WITH_TABLE_RECLAIM) {
        true => assert_eq!(whole, snapshot.superpages_in_guest),
        false => assert!(whole <= snapshot.superpages_in_guest, "{whole}"),
    }
    guest.memory.audit().unwrap();
}

#[test]
#[ignore = "needs userfaultfd in kernel mode, KVM"]
fn without_an_interrupt_controller() {
    waits_at_its_target_and_goes_on(Controller::None);
}

#[test]
#[ignore = "needs userfaultfd in kernel mode, KVM"]
fn with_the_kernels_interrupt_controller() {
    waits_at_its_target_and_goes_on(Controller::Kernel);
}

/// KVM changes a memory slot only when no virtual CPU is in a fault. The thread that asks for it,
/// QEMU's main loop, waits in a system call for as long as the virtual CPU waits for a frame.
#[test]
#[ignore = "needs userfaultfd in kernel mode, KVM"]
fn a_main_loop_that_changes_a_memory_slot_is_let_go_on() {
    let (start, started) = channel();
    let (tell, told) = channel();
    let main = std::thread::spawn(move || {
        tell.send(thread_id()).unwrap();
        let vm: Arc<kvm_ioctls::VmFd> = started.recv().unwrap();
        let other = Region::new(MIB).unwrap();
        let slot = kvm_userspace_memory_region {
            slot: 1,
            guest_phys_addr: 256 * MIB,
            memory_size: MIB,
            userspace_addr: other.start().get() as u64,
            ..Default::default()
        };
        let began = Instant::now();
        // SAFETY: nothing of the guest's is there, and the slot goes before the memory.
        unsafe { vm.set_user_memory_region(slot) }.unwrap();
        let waited = began.elapsed();
        let none = kvm_userspace_memory_region { memory_size: 0, ..slot };
        // SAFETY: takes the slot away.
        unsafe { vm.set_user_memory_region(none) }.unwrap();
        waited
    });
    let main_loop = MainLoop::Thread(told.recv().unwrap());
    let guest = Guest::start(Controller::None, TARGET, main_loop);
    // While it waits for its turn it hangs, too; that is over before the guest stalls for good.
    let end = Instant::now() + Duration::from_secs(20);
    while guest.memory.snapshot().stalled == 0 {
        assert!(Instant::now() < end, "{:?}", guest.memory.snapshot());
        std::thread::sleep(Duration::from_millis(1));
    }
    start.send(Arc::clone(&guest.vm)).unwrap();
    let end = Instant::now() + Duration::from_secs(30);
    while !main.is_finished() {
        assert!(Instant::now() < end, "the slot cannot be changed: {:?}", guest.memory.snapshot());
        std::thread::sleep(Duration::from_millis(10));
    }
    println!("the slot was changed after {:?}", main.join().unwrap());
    assert!(guest.memory.snapshot().borrowed > 0);
    assert_eq!(guest.memory.set_target(64 * MIB), Ok(()));
    assert!(guest.is_done_within(Duration::from_secs(60)), "{:?}", guest.memory.snapshot());
    assert_eq!(guest.wrong_pages(), 0);
    guest.memory.audit().unwrap();
}

const IS_CHILD: &str = "ZEROSWEEP_TEST_STALLS";

/// A process whose KVM worker waits for a page dies when it is killed, though its userfaultfd was
/// there before its virtual machine.
#[test]
#[ignore = "needs userfaultfd in kernel mode, KVM"]
fn a_process_with_a_stalled_guest_can_be_killed() {
    if std::env::var_os(IS_CHILD).is_some() {
        let guest = Guest::start(Controller::Kernel, TARGET, MainLoop::None);
        while guest.memory.snapshot().stalled == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        println!("stalled");
        std::thread::sleep(Duration::from_secs(120));
        return;
    }
    let test = "a_process_with_a_stalled_guest_can_be_killed";
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env(IS_CHILD, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line.ends_with("stalled")));
    child.kill().unwrap();
    let end = Instant::now() + Duration::from_secs(20);
    while child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < end, "process {} cannot be killed", child.id());
        std::thread::sleep(Duration::from_millis(5));
    }
}
