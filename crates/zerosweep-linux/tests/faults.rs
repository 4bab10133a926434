//! Faults that nobody expects: holes that someone made behind the engine's back, and virtual CPUs
//! that signals make fault again.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]
#![expect(unsafe_code, reason = "sends signals to a thread")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use zerosweep::Policy;
use zerosweep_linux::{
    GuestMemory, MainLoop, OnExhaustion, Options, PAGE_BYTES, Parking, Progress, Region,
};

const MIB: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(60);

fn memory(policy: Policy, on_exhaustion: OnExhaustion, fault_threads: usize) -> Arc<GuestMemory> {
    let parking = Parking::Lazy;
    let target_bytes = 16 * MIB;
    let main_loop = MainLoop::None;
    let options =
        Options { target_bytes, policy, on_exhaustion, parking, fault_threads, main_loop };
    GuestMemory::new(Region::new(64 * MIB).unwrap(), &options).unwrap()
}

/// A thread of the guest's, or the operator's: one that hangs fails the test.
fn in_time<R: Send + 'static>(
    memory: &Arc<GuestMemory>,
    work: impl FnOnce(&GuestMemory) -> R + Send + 'static,
) -> R {
    let memory = Arc::clone(memory);
    let thread = std::thread::spawn(move || work(&memory));
    let end = Instant::now() + LIMIT;
    while !thread.is_finished() {
        assert!(Instant::now() < end, "a thread hangs");
        std::thread::sleep(Duration::from_millis(1));
    }
    thread.join().unwrap()
}

fn write(memory: &Arc<GuestMemory>, pages: std::ops::Range<u64>) {
    in_time(memory, |memory| {
        pages.for_each(|page| {
            memory.guest().store_word(page * PAGE_BYTES, page + 1).unwrap();
        });
    });
}

fn verify(memory: &Arc<GuestMemory>, pages: std::ops::Range<u64>, is_hole: fn(u64) -> bool) {
    in_time(memory, move |memory| {
        for page in pages {
            let expected = if is_hole(page) { 0 } else { page + 1 };
            assert_eq!(memory.guest().load_word(page * PAGE_BYTES), Ok(expected), "page {page}");
        }
    });
}

/// Makes a hole, as a VMM does whose call passes us by.
fn drop_pages(memory: &GuestMemory, page: u64, pages: u64) {
    memory.guest().part(page * PAGE_BYTES, pages * PAGE_BYTES).unwrap().discard().unwrap();
}

/// The second superpage, and a page of the third that a sweep looks at first.
fn is_hole(page: u64) -> bool {
    (512..1024).contains(&page) || page == 1024
}

fn make_holes(memory: &GuestMemory) {
    drop_pages(memory, 512, 512);
    drop_pages(memory, 1024, 1);
}

#[test]
#[ignore = "needs userfaultfd in kernel mode: root, CAP_SYS_PTRACE or /dev/userfaultfd"]
fn a_sweep_that_meets_a_hole_goes_on() {
    for policy in [Policy::Zerosweep, Policy::Xen2016] {
        for fault_threads in [1, 2] {
            let memory = memory(policy, OnExhaustion::Borrow, fault_threads);
            write(&memory, 0..2048);
            make_holes(&memory);
            let began = Instant::now();
            let swept = in_time(&memory, |memory| memory.sweep(0, LIMIT));
            println!("{policy}, {fault_threads} servers: swept in {:?}", began.elapsed());
            assert_eq!(swept, Ok(Progress::Done));
            verify(&memory, 0..2048, is_hole);
            memory.audit().unwrap();
            assert_eq!(memory.snapshot().lifted, None);
            memory.stop();
        }
    }
}

/// The fault threads sweep, and wait at a hole themselves; also when all of them do.
#[test]
#[ignore = "needs userfaultfd in kernel mode: root, CAP_SYS_PTRACE or /dev/userfaultfd"]
fn a_fault_thread_that_meets_a_hole_goes_on() {
    for policy in [Policy::Zerosweep, Policy::Xen2016] {
        for fault_threads in [1, 2] {
            let memory = memory(policy, OnExhaustion::Borrow, fault_threads);
            write(&memory, 0..4096);
            make_holes(&memory);
            drop_pages(&memory, 3 * 512, 2 * 512);
            let began = Instant::now();
            // The cache is empty: each of these first touches looks for zeros.
            let guests = [4096..4100, 5120..5124].map(|pages: std::ops::Range<u64>| {
                let memory = Arc::clone(&memory);
                std::thread::spawn(move || write(&memory, pages))
            });
            guests.into_iter().for_each(|guest| guest.join().unwrap());
            println!("{policy}, {fault_threads} servers: went on after {:?}", began.elapsed());
            let is_hole = |page| is_hole(page) || (1536..2560).contains(&page);
            verify(&memory, 0..4100, is_hole);
            verify(&memory, 5120..5124, |_| false);
            memory.audit().unwrap();
            assert_eq!(memory.snapshot().lifted, None);
            memory.stop();
        }
    }
}

/// The second fault at the same place finds the hole, whichever thread takes it.
#[test]
#[ignore = "needs userfaultfd in kernel mode: root, CAP_SYS_PTRACE or /dev/userfaultfd"]
fn a_hole_is_found_at_the_second_fault() {
    for fault_threads in [1, 2, 4] {
        let memory = memory(Policy::Zerosweep, OnExhaustion::Borrow, fault_threads);
        write(&memory, 0..2048);
        drop_pages(&memory, 512, 512);
        let before = memory.snapshot().faults;
        verify(&memory, 512..1024, |_| true);
        // The last is counted just after the guest has gone on.
        std::thread::sleep(Duration::from_millis(100));
        let faults = memory.snapshot().faults - before;
        println!("{fault_threads} servers: {faults} faults at 512 holes");
        // On a slow machine a thread that was woken may look before its page is there.
        assert!((1024..1032).contains(&faults), "{fault_threads} threads: {faults}");
        verify(&memory, 0..512, |_| false);
        memory.audit().unwrap();
        memory.stop();
    }
}

static SIGNALS: AtomicU64 = AtomicU64::new(0);

extern "C" fn note_signal(_: libc::c_int) {
    SIGNALS.fetch_add(1, Ordering::Relaxed);
}

/// A virtual CPU that has stalled, because it writes to more than the target.
fn stalled_vcpu(memory: &Arc<GuestMemory>) -> (u32, std::thread::JoinHandle<()>) {
    // SAFETY: the handler only adds to a number.
    unsafe { libc::signal(libc::SIGUSR1, note_signal as *const () as libc::sighandler_t) };
    let vcpu = Arc::new(AtomicU32::new(0));
    let guest = {
        let (memory, vcpu) = (Arc::clone(memory), Arc::clone(&vcpu));
        std::thread::spawn(move || {
            let thread_id = zerosweep_linux::sys::raw::thread_id();
            memory.set_vcpus(&[thread_id]);
            vcpu.store(thread_id, Ordering::SeqCst);
            for page in 0..6144 {
                memory.guest().store_word(page * PAGE_BYTES, page + 1).unwrap();
            }
        })
    };
    let end = Instant::now() + LIMIT;
    while memory.snapshot().stalled == 0 {
        assert!(Instant::now() < end, "the guest does not stall");
        std::thread::sleep(Duration::from_millis(1));
    }
    (vcpu.load(Ordering::SeqCst), guest)
}

/// Makes the virtual CPU fault again, `times` times.
fn signal(thread_id: u32, times: u64) {
    let (end, enough) = (Instant::now() + LIMIT, SIGNALS.load(Ordering::Relaxed) + times);
    while SIGNALS.load(Ordering::Relaxed) < enough {
        assert!(Instant::now() < end, "signals are not handled");
        // SAFETY: a signal with a handler, to a thread of this process.
        unsafe {
            let process = std::process::id();
            libc::syscall(libc::SYS_tgkill, process, thread_id, libc::SIGUSR1);
        }
        std::thread::yield_now();
    }
}

/// The target rises, and the virtual CPU ends its work.
fn let_go(memory: &Arc<GuestMemory>, guest: std::thread::JoinHandle<()>) {
    assert_eq!(memory.set_target(32 * MIB), Ok(()));
    let end = Instant::now() + LIMIT;
    while !guest.is_finished() {
        assert!(Instant::now() < end, "the guest hangs");
        std::thread::sleep(Duration::from_millis(1));
    }
    guest.join().unwrap();
    verify(memory, 0..6144, |_| false);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(memory.snapshot().stalled, 0);
    memory.audit().unwrap();
    memory.stop();
}

#[test]
#[ignore = "needs userfaultfd in kernel mode: root, CAP_SYS_PTRACE or /dev/userfaultfd"]
fn a_virtual_cpu_under_signals_is_counted_once_and_holds_up_nobody() {
    let memory = memory(Policy::Zerosweep, OnExhaustion::Stall, 2);
    let (vcpu, guest) = stalled_vcpu(&memory);
    let mut most = 0;
    for _ in 0..100 {
        signal(vcpu, 100);
        std::thread::sleep(Duration::from_millis(2));
        most = most.max(memory.snapshot().stalled);
    }
    let signals = SIGNALS.load(Ordering::Relaxed);
    println!("signals handled: {signals}, most counted: {most}");
    assert_eq!(most, 1);
    // Another thread's fault is still taken, and answered with a borrowed page.
    let began = Instant::now();
    write(&memory, 8192..8193);
    println!("another thread went on after {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(2));
    let_go(&memory, guest);
}
