//! The VMM reads its guest out: what has no frame is zero, and gets none.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use zerosweep::{Gfn, Order};
use zerosweep_linux::sys::raw;
use zerosweep_linux::{
    GuestMemory, KernelVersion, MainLoop, Options, PAGE_BYTES, Region, Snapshot,
};

const MIB: u64 = 1 << 20;
const PAGES: u64 = 64 * MIB / PAGE_BYTES;

/// A guest of 64 MiB that may hold 16.
fn guest() -> Arc<GuestMemory> {
    let options = Options { main_loop: MainLoop::None, ..Options::new(16 * MIB) };
    GuestMemory::new(Region::new(64 * MIB).unwrap(), &options).unwrap()
}

/// Runs `work` as the guest's virtual CPU.
fn as_guest(memory: &Arc<GuestMemory>, work: impl FnOnce(&GuestMemory) + Send) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            memory.set_vcpus(&[raw::thread_id()]);
            work(memory);
        });
    });
}

fn value(page: u64) -> u64 {
    page.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
}

fn load(memory: &GuestMemory, page: u64) -> u64 {
    memory.guest().load_word(page * PAGE_BYTES + 24).unwrap()
}

fn store(memory: &GuestMemory, page: u64, word: u64) {
    memory.guest().store_word(page * PAGE_BYTES + 24, word).unwrap();
}

#[test]
#[ignore = "needs userfaultfd in kernel mode: root, CAP_SYS_PTRACE or /dev/userfaultfd"]
fn a_guest_that_gave_its_memory_back_is_read_out_without_frames() {
    let memory = guest();
    as_guest(&memory, |memory| {
        (0..2048).for_each(|page| store(memory, page, value(page)));
        // The balloon takes everything else, page by page, as a kernel does that clears what it
        // allocates, and half of what was written.
        (2048..PAGES).for_each(|page| {
            store(memory, page, 0);
            memory.inflate(Gfn::new(page), Order::PAGE).unwrap();
        });
        (0..1024).for_each(|page| {
            memory.inflate(Gfn::new(page), Order::PAGE).unwrap();
        });
    });
    let before = memory.snapshot();
    for page in 1024..PAGES {
        assert_eq!(load(&memory, page), if page < 2048 { value(page) } else { 0 }, "page {page}");
    }
    let after = memory.snapshot();
    let populates =
        |snapshot: &Snapshot| snapshot.statistics.populates_2m + snapshot.statistics.populates_4k;
    if KernelVersion::running().unwrap() >= KernelVersion::WITH_TABLE_RECLAIM {
        let faults = after.faults - before.faults;
        assert!(faults <= PAGES / 512, "{faults} faults for {} superpages", PAGES / 512);
        assert_eq!(populates(&after), populates(&before));
        assert!(after.statistics.pages_shown >= 20 * 512, "{after:?}");
    }
    // What was shown is populated as ever.
    as_guest(&memory, |memory| {
        (4096..5120).for_each(|page| store(memory, page, value(page)));
        (4096..5120).for_each(|page| assert_eq!(load(memory, page), value(page)));
    });
    let snapshot = memory.snapshot();
    assert_eq!(snapshot.statistics.borrowed, 0);
    assert_eq!(populates(&snapshot), populates(&after) + 2, "superpages, whole");
    assert!(memory.machine().whole_superpages().unwrap() >= snapshot.superpages_in_guest);
    memory.audit().unwrap();
    memory.stop();
}

#[test]
#[ignore = "needs userfaultfd in kernel mode: root, CAP_SYS_PTRACE or /dev/userfaultfd"]
fn no_byte_is_lost_while_a_running_guest_is_read_out() {
    let memory = guest();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|n| {
                let (memory, done) = (&memory, &done);
                scope.spawn(move || {
                    let mut rounds = 0_u64;
                    while !done.load(Ordering::Relaxed) {
                        for page in (0..PAGES).map(|page| (page * 5 + n * 1000) % PAGES) {
                            let word = load(memory, page);
                            assert!(word == 0 || word == value(page), "page {page}: {word:#x}");
                        }
                        rounds += 1;
                    }
                    rounds
                })
            })
            .collect();
        as_guest(&memory, |memory| {
            for round in 0..30_u64 {
                // Pages all over, in every superpage, and back to the balloon again.
                let pages = (0..1500).map(|n| (n * 37 + round * 1409) % PAGES);
                pages.clone().for_each(|page| store(memory, page, value(page)));
                pages.clone().for_each(|page| assert_eq!(load(memory, page), value(page)));
                pages.for_each(|page| {
                    memory.inflate(Gfn::new(page), Order::PAGE).unwrap();
                });
            }
        });
        done.store(true, Ordering::Relaxed);
        let rounds: u64 = readers.into_iter().map(|reader| reader.join().unwrap()).sum();
        println!("read out {rounds} times");
    });
    let snapshot = memory.snapshot();
    println!("{:?}", snapshot.statistics);
    assert_eq!(snapshot.lifted, None);
    memory.audit().unwrap();
    let resident = memory.machine().resident_pages().unwrap();
    assert!(resident <= snapshot.quantities.total(), "{resident}, {:?}", snapshot.quantities);
    memory.stop();
}
