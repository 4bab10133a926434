//! A guest of threads on real memory: what it wrote it reads, the cap holds, and the kernel counts
//! the same superpages as the engine.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use zerosweep::{Gfn, Order, Policy};
use zerosweep_linux::{
    GuestMemory, Lifted, MainLoop, OnExhaustion, Options, PAGE_BYTES, Parking, Progress, Region,
};

const MIB: u64 = 1 << 20;

fn memory(max_mib: u64, target_mib: u64, policy: Policy) -> Arc<GuestMemory> {
    memory_parking(max_mib, target_mib, policy, Parking::Lazy)
}

fn memory_parking(
    max_mib: u64,
    target_mib: u64,
    policy: Policy,
    parking: Parking,
) -> Arc<GuestMemory> {
    let _ = collapsed();
    let region = Region::new(max_mib * MIB).unwrap();
    let options = Options {
        target_bytes: target_mib * MIB,
        policy,
        on_exhaustion: OnExhaustion::Stall,
        parking,
        fault_threads: Options::DEFAULT_FAULT_THREADS,
        main_loop: MainLoop::None,
    };
    GuestMemory::new(region, &options).unwrap()
}

/// Runs each piece of guest work in a thread of its own; a guest that hangs fails the test.
fn as_guest<W: FnOnce(&GuestMemory) + Send + 'static>(memory: &Arc<GuestMemory>, work: Vec<W>) {
    let (done, finished) = channel();
    let count = work.len();
    for piece in work {
        let (memory, done) = (Arc::clone(memory), done.clone());
        std::thread::spawn(move || {
            memory.set_vcpus(&[zerosweep_linux::sys::raw::thread_id()]);
            piece(&memory);
            done.send(()).unwrap();
        });
    }
    for _ in 0..count {
        let outcome = finished.recv_timeout(Duration::from_secs(60));
        assert!(outcome.is_ok(), "the guest hangs: {:?}", memory.snapshot());
    }
}

fn value(page: u64) -> u64 {
    page.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
}

fn write_pages(memory: &GuestMemory, pages: std::ops::Range<u64>, value: impl Fn(u64) -> u64) {
    for page in pages {
        memory.guest().store_word(page * PAGE_BYTES + 8 * (page % 512), value(page)).unwrap();
    }
}

fn verify_pages(memory: &GuestMemory, pages: std::ops::Range<u64>) {
    for page in pages {
        let offset = page * PAGE_BYTES + 8 * (page % 512);
        assert_eq!(memory.guest().load_word(offset), Ok(value(page)), "page {page}");
    }
}

/// Waits for what the background brings about.
fn wait_until(mut done: impl FnMut() -> bool, state: impl Fn() -> String) {
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(std::time::Instant::now() < deadline, "it does not come about: {}", state());
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Superpages for which the host had no huge page: none, if it is not short of memory.
fn small(memory: &GuestMemory) -> u64 {
    let small = memory.machine().counters().small_backing.load(Ordering::Relaxed);
    assert!(small <= 2, "the host has few huge pages: {small} times it had none");
    small
}

/// Superpages that khugepaged has made on this host since the first guest of this process began. It
/// looks at eight in ten seconds.
fn collapsed() -> u64 {
    static BEFORE: LazyLock<u64> = LazyLock::new(now);
    fn now() -> u64 {
        let file = "/sys/kernel/mm/transparent_hugepage/khugepaged/pages_collapsed";
        std::fs::read_to_string(file).unwrap().trim().parse().unwrap()
    }
    let before = *BEFORE;
    now() - before
}

/// The engine's books agree with themselves and with the kernel.
fn check(memory: &GuestMemory, target_mib: u64) {
    memory.audit().unwrap();
    let snapshot = memory.snapshot();
    assert_eq!(snapshot.lifted, None);
    // The kernel may have put singles together that the engine keeps apart.
    let whole = memory.machine().whole_superpages().unwrap();
    let expected = snapshot.superpages_in_guest..=snapshot.superpages_in_guest + collapsed();
    assert!(expected.contains(&whole), "{whole} are whole, {expected:?} expected");
    let target = target_mib * MIB / PAGE_BYTES;
    assert!(snapshot.statistics.peak_total <= target, "{snapshot:?}");
    assert_eq!(snapshot.statistics.borrowed, 0);
    let resident = memory.machine().resident_pages().unwrap();
    assert!(resident <= target, "the kernel says {resident} pages, {target} are allowed");
}

#[test]
#[ignore = "needs userfaultfd in kernel mode: root, CAP_SYS_PTRACE or /dev/userfaultfd"]
fn a_guest_that_scrubs_four_times_its_target_boots() {
    for policy in Policy::ALL {
        if policy == Policy::None {
            continue;
        }
        let memory = memory(256, 64, policy);
        as_guest(&memory, vec![|memory: &GuestMemory| write_pages(memory, 0..65536, |_| 0)]);
        check(&memory, 64);
        memory.stop();
    }
}

/// A visitor that allocates would otherwise do so under a lock that faults need.
#[test]
#[ignore = "needs userfaultfd in kernel mode: root, CAP_SYS_PTRACE or /dev/userfaultfd"]
fn superpages_are_visited_without_the_lock() {
    let memory = memory(2100, 64, Policy::Zerosweep);
    as_guest(
        &memory,
        vec![|memory: &GuestMemory| {
            write_pages(memory, 1024 * 512..1024 * 512 + 1, value);
            let mut live = Vec::new();
            memory.for_each_superpage(1, u64::MAX, |_, pages| {
                if live.len() % 512 == 0 {
                    assert_eq!(memory.snapshot().lifted, None);
                }
                live.push(pages);
            });
            assert_eq!(live.len(), 1049);
            assert!(live.iter().enumerate().all(|(n, &pages)| (pages > 0) == (n == 1023)));
        }],
    );
    memory.stop();
}

#[test]
#[ignore = "needs userfaultfd in kernel mode: root, CAP_SYS_PTRACE or /dev/userfaultfd"]
fn four_threads_scrub_at_once() {
    let memory = memory(256, 64, Policy::Zerosweep);
    let quarter = |n: u64| {
        move |memory: &GuestMemory| {
            write_pages(memory, n * 16384..(n + 1) * 16384, |_| 0);
        }
    };
    as_guest(&memory, (0..4).map(quarter).collect());
    check(&memory, 64);
    memory.stop();
}

#[test]
#[ignore = "needs userfaultfd in kernel mode: root, CAP_SYS_PTRACE or /dev/userfaultfd"]
fn reads_take_no_frame() {
    let memory = memory(256, 64, Policy::Zerosweep);
    as_guest(
        &memory,
        vec![|memory: &GuestMemory| {
            for page in 0..65536 {
                assert_eq!(memory.guest().load_word(page * PAGE_BYTES), Ok(0));
            }
        }],
    );
    assert_eq!(memory.snapshot().quantities.populated, 0);
    assert_eq!(memory.snapshot().faults, 0);
    memory.stop();
}

#[test]
#[ignore = "needs userfaultfd in kernel mode: root, CAP_SYS_PTRACE or /dev/userfaultfd"]
fn a_pattern_survives_ballooning_and_sweeps() {
    for (policy, parking) in [
        (Policy::Zerosweep, Parking::Lazy),
        (Policy::Zerosweep, Parking::Eager(4)),
        (Policy::Xen2016, Parking::Lazy),
        (Policy::Hypercall2011, Parking::Lazy),
    ] {
        let memory = memory_parking(256, 64, policy, parking);
        // Every other superpage of the first 64 MiB has a pattern, the rest of memory zeros.
        let live = |page: &u64| *page < 16384 && (page / 512).is_multiple_of(2);
        as_guest(
            &memory,
            vec![move |memory: &GuestMemory| {
                write_pages(memory, 0..65536, |page| if live(&page) { value(page) } else { 0 });
                // The balloon takes everything else, a page at a time.
                for page in (0..65536).filter(|page| !live(page)) {
                    assert!(memory.inflate(Gfn::new(page), Order::PAGE).is_ok());
                }
                for page in (0..65536).filter(live) {
                    verify_pages(memory, page..page + 1);
                }
            }],
        );
        assert_eq!(memory.snapshot().quantities.guest(), 8192, "{policy}");
        // Words that a quick check does not see make Xen look at every page for itself.
        if policy == Policy::Zerosweep {
            // What was given back in full comes free in the background.
            wait_until(
                || memory.snapshot().superpages_in_guest == 16,
                || format!("{:?}", memory.snapshot()),
            );
            assert_eq!(memory.snapshot().quantities.retained, 0);
        }
        check(&memory, 64);
        memory.stop();
    }
}

#[test]
#[ignore = "needs userfaultfd in kernel mode: root, CAP_SYS_PTRACE or /dev/userfaultfd"]
fn pages_taken_again_without_a_word_get_frames() {
    let memory = memory(64, 32, Policy::Zerosweep);
    as_guest(
        &memory,
        vec![|memory: &GuestMemory| {
            for page in 0..16384 {
                memory.inflate(Gfn::new(page), Order::PAGE).unwrap();
            }
            write_pages(memory, 1000..5000, value);
            verify_pages(memory, 1000..5000);
        }],
    );
    // A touch takes a superpage. What the guest takes of it and does not report is noticed when it
    // is looked at next, and held all the while.
    let quantities = memory.snapshot().quantities;
    assert!(quantities.guest() <= 4000, "{quantities:?}");
    assert!(quantities.populated + quantities.retained >= 4000, "{quantities:?}");
    assert_eq!(memory.snapshot().statistics.refills, 9);
    assert_eq!(memory.set_target(4 << 20), Ok(()));
    // A superpage that is being looked at in the background is left to it.
    wait_until(
        || memory.snapshot().quantities.guest() == 4000,
        || format!("{:?}", memory.snapshot()),
    );
    as_guest(&memory, vec![|memory: &GuestMemory| verify_pages(memory, 1000..5000)]);
    assert_eq!(memory.set_target(32 << 20), Ok(()));
    check(&memory, 32);
    memory.stop();
}

#[test]
#[ignore = "needs userfaultfd in kernel mode: root, CAP_SYS_PTRACE or /dev/userfaultfd"]
fn a_free_page_report_gives_superpages_back_whole() {
    let memory = memory(64, 32, Policy::Zerosweep);
    as_guest(
        &memory,
        vec![|memory: &GuestMemory| {
            write_pages(memory, 0..8192, value);
            assert_eq!(memory.discard(Gfn::new(1024), 1024), Ok(1024));
            verify_pages(memory, 0..1024);
            verify_pages(memory, 2048..8192);
            assert_eq!(memory.guest().load_word(1024 * PAGE_BYTES), Ok(0));
            write_pages(memory, 1024..2048, value);
            verify_pages(memory, 0..8192);
        }],
    );
    assert_eq!(memory.snapshot().superpages_in_guest + small(&memory), 16);
    check(&memory, 32);
    memory.stop();
}

#[test]
#[ignore = "needs userfaultfd in kernel mode: root, CAP_SYS_PTRACE or /dev/userfaultfd"]
fn a_guest_that_stalls_goes_on_when_the_target_rises() {
    let memory = memory(64, 8, Policy::Zerosweep);
    let (done, finished) = channel();
    let guest = Arc::clone(&memory);
    std::thread::spawn(move || {
        guest.set_vcpus(&[zerosweep_linux::sys::raw::thread_id()]);
        write_pages(&guest, 0..4096, value);
        verify_pages(&guest, 0..4096);
        done.send(()).unwrap();
    });
    assert!(finished.recv_timeout(Duration::from_millis(500)).is_err(), "16 MiB in 8 MiB");
    assert_eq!(memory.snapshot().stalled, 1);
    assert!(memory.snapshot().quantities.total() <= 2048);
    memory.set_target(16 * MIB).unwrap();
    finished.recv_timeout(Duration::from_secs(20)).unwrap();
    assert_eq!(memory.snapshot().statistics.borrowed, 0);
    memory.audit().unwrap();
    memory.stop();
}

#[test]
#[ignore = "needs userfaultfd in kernel mode: root, CAP_SYS_PTRACE or /dev/userfaultfd"]
fn lifting_the_cap_keeps_every_byte_and_lets_a_stalled_guest_go_on() {
    let memory = memory(64, 8, Policy::Zerosweep);
    let (done, finished) = channel();
    let guest = Arc::clone(&memory);
    std::thread::spawn(move || {
        guest.set_vcpus(&[zerosweep_linux::sys::raw::thread_id()]);
        write_pages(&guest, 0..16384, value);
        verify_pages(&guest, 0..16384);
        done.send(()).unwrap();
    });
    assert!(finished.recv_timeout(Duration::from_millis(300)).is_err());
    memory.lift("a test asked for it");
    finished.recv_timeout(Duration::from_secs(20)).unwrap();
    assert_eq!(memory.snapshot().lifted.as_deref(), Some("a test asked for it"));
    assert_eq!(memory.inflate(Gfn::new(0), Order::PAGE), Err(Lifted));
    // What the cache held is the host's again: all that is left is the guest's.
    assert_eq!(memory.machine().resident_pages(), Ok(16384));
}

#[test]
fn memory_that_cannot_be_managed_is_refused_with_a_reason() {
    let options = |target_bytes| Options {
        target_bytes,
        policy: Policy::Zerosweep,
        on_exhaustion: OnExhaustion::Stall,
        parking: Parking::Lazy,
        fault_threads: Options::DEFAULT_FAULT_THREADS,
        main_loop: MainLoop::None,
    };
    for (target, message) in
        [(4097, "not a multiple"), (0, "invalid target: 0 pages"), (65 * MIB, "target")]
    {
        let region = Region::new(64 * MIB).unwrap();
        let error = GuestMemory::new(region, &options(target)).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
#[ignore = "needs userfaultfd in kernel mode: root, CAP_SYS_PTRACE or /dev/userfaultfd"]
fn superpages_stay_whole_while_two_virtual_cpus_race() {
    let memory = memory(2048, 2048, Policy::Zerosweep);
    // Both write to every superpage, in the same order, one at its start and one in its middle.
    let race = |page: u64| {
        move |memory: &GuestMemory| {
            for superpage in 0..1024 {
                let offset = (superpage * 512 + page) * PAGE_BYTES;
                memory.guest().store_word(offset, value(superpage + page)).unwrap();
            }
        }
    };
    as_guest(&memory, vec![race(0), race(256)]);
    assert_eq!(memory.machine().whole_superpages().map(|n| n + small(&memory)), Ok(1024));
    for superpage in 0..1024 {
        for page in [0, 256] {
            let offset = (superpage * 512 + page) * PAGE_BYTES;
            assert_eq!(memory.guest().load_word(offset), Ok(value(superpage + page)));
        }
    }
    check(&memory, 2048);
    memory.stop();
}

#[test]
#[ignore = "needs userfaultfd in kernel mode: root, CAP_SYS_PTRACE or /dev/userfaultfd"]
fn consolidation_holds_no_more_superframes_than_it_must() {
    // The historical policies steal singles and leave them where they are.
    for policy in [Policy::Zerosweep, Policy::None] {
        let memory = memory(64, 64, policy);
        let live = |page: &u64| page % 512 < 40;
        as_guest(
            &memory,
            vec![move |memory: &GuestMemory| {
                write_pages(memory, 0..16384, value);
                for page in (0..16384).filter(|page| !live(page)) {
                    memory.inflate(Gfn::new(page), Order::PAGE).unwrap();
                }
            }],
        );
        // 32 × 40 pages stay: three superframes.
        assert_eq!(memory.set_target(1280 * PAGE_BYTES), Ok(()));
        let before = memory.machine().superframes_held();
        // The guest goes on writing to what it has meanwhile.
        let (stop, stopped) = (Arc::new(AtomicBool::new(false)), channel());
        let rounds_done = Arc::new(AtomicU64::new(0));
        let writer = {
            let (memory, stop, done) = (Arc::clone(&memory), Arc::clone(&stop), stopped.0);
            let rounds_done = Arc::clone(&rounds_done);
            std::thread::spawn(move || {
                let mut rounds = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    for page in (0..16384).filter(live) {
                        let offset = page * PAGE_BYTES + 2048;
                        memory.guest().store_word(offset, rounds ^ page).unwrap();
                        assert_eq!(memory.guest().load_word(offset), Ok(rounds ^ page));
                    }
                    rounds += 1;
                    rounds_done.store(rounds, Ordering::Relaxed);
                }
                done.send(()).unwrap();
            })
        };
        let consolidate = || {
            let mut first = 0;
            let step = |first| memory.consolidate(first, Duration::from_millis(5)).unwrap();
            while let Progress::More(next) = step(first) {
                first = next;
            }
        };
        loop {
            consolidate();
            if rounds_done.load(Ordering::Relaxed) >= 3 {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
        assert!(stopped.1.recv_timeout(Duration::from_secs(60)).is_ok(), "the guest hangs");
        writer.join().unwrap();
        // One leaves out the ranges that the upkeep has at that moment, which still evacuates some.
        wait_until(
            || {
                consolidate();
                memory.machine().superframes_held() <= 3
            },
            || {
                let held = memory.machine().superframes_held();
                format!("{policy}: {held} superframes, {before} before, {:?}", memory.snapshot())
            },
        );
        assert_eq!(memory.machine().superframes_held(), 3, "{policy}: {before} before");
        as_guest(
            &memory,
            vec![move |memory: &GuestMemory| {
                (0..16384).filter(live).for_each(|page| verify_pages(memory, page..page + 1));
            }],
        );
        memory.audit().unwrap();
        memory.stop();
    }
}

/// A page that is given back may lie in a superpage that a sweep has in transit at that moment: the
/// balloon waits for the sweep, and the sweep must be able to go on.
#[test]
#[ignore = "needs userfaultfd in kernel mode: root, CAP_SYS_PTRACE or /dev/userfaultfd"]
fn giving_back_waits_for_a_sweep_of_the_same_superpage_and_not_the_other_way_round() {
    const ROUNDS: u64 = 300;
    let memory = memory(16, 16, Policy::Zerosweep);
    let (done, finished) = channel();
    let (sweeper, swept) = (Arc::clone(&memory), done.clone());
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    std::thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            let _ = sweeper.sweep(0, Duration::from_millis(5));
        }
        swept.send(()).unwrap();
    });
    let guest = Arc::clone(&memory);
    std::thread::spawn(move || {
        guest.set_vcpus(&[zerosweep_linux::sys::raw::thread_id()]);
        for round in 0..ROUNDS {
            let superpage = round % 8 * 512;
            write_pages(&guest, superpage..superpage + 512, |_| 0);
            for page in superpage..superpage + 8 {
                guest.inflate(Gfn::new(page), Order::PAGE).unwrap();
            }
            guest.discard(Gfn::new(superpage), 512).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        done.send(()).unwrap();
    });
    for _ in 0..2 {
        // Not even a snapshot is possible then: the lock is held for ever.
        let outcome = finished.recv_timeout(Duration::from_secs(60));
        assert!(outcome.is_ok(), "guest and sweep wait for each other");
    }
    memory.audit().unwrap();
    memory.stop();
}
