//! Moves that the kernel refuses, puts off or does in part: the operation goes on or back, it is
//! counted, and the guest's bytes stay.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use zerosweep::{Gfn, Order, Policy};
use zerosweep_linux::{GuestMemory, OnExhaustion, Options, PAGE_BYTES, Parking, Region};

mod one_guest;
#[path = "memory/pin.rs"]
mod pin;
use one_guest::{LIMIT, as_guest};
use pin::pin;

const MIB: u64 = 1 << 20;

fn memory(policy: Policy) -> Arc<GuestMemory> {
    let options = Options {
        target_bytes: 32 * MIB,
        policy,
        on_exhaustion: OnExhaustion::Borrow,
        parking: Parking::Lazy,
        fault_threads: Options::DEFAULT_FAULT_THREADS,
    };
    GuestMemory::new(Region::new(64 * MIB).unwrap(), &options).unwrap()
}

fn value(page: u64) -> u64 {
    page.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
}

fn write(memory: &Arc<GuestMemory>, pages: std::ops::Range<u64>) {
    as_guest(memory, |memory| {
        pages.for_each(|page| memory.guest().store_word(page * PAGE_BYTES, value(page)).unwrap());
    });
}

fn verify(memory: &Arc<GuestMemory>, pages: std::ops::Range<u64>) {
    as_guest(memory, |memory| {
        for page in pages {
            assert_eq!(memory.guest().load_word(page * PAGE_BYTES), Ok(value(page)), "{page}");
        }
    });
}

fn busy(memory: &GuestMemory) -> u64 {
    memory.machine().counters().busy.load(Ordering::Relaxed)
}

/// Whether the pages can be given back, at last: a pin ends some time after its ring is closed.
fn gives_back(memory: &GuestMemory, gfn: Gfn, order: Order) {
    let (end, mut given) = (Instant::now() + LIMIT, 0);
    while given < order.pages() {
        assert!(Instant::now() < end, "{given} of {order:?} came back");
        given += memory.decrease(gfn, order).unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
#[ignore = "needs userfaultfd in kernel mode: root, CAP_SYS_PTRACE or /dev/userfaultfd"]
fn a_superpage_with_a_pinned_page_stays_until_it_is_unpinned() {
    for pinned in [0, 256, 511] {
        let memory = memory(Policy::Zerosweep);
        write(&memory, 0..1024);
        let page = memory.guest().part(pinned * PAGE_BYTES, PAGE_BYTES).unwrap();
        let Some(ring) = pin(page) else {
            eprintln!("skipped: io_uring is not available (kernel.io_uring_disabled)");
            return;
        };
        let before = busy(&memory);
        assert_eq!(memory.decrease(Gfn::new(0), Order::SUPERPAGE), Some(0), "page {pinned}");
        assert!(busy(&memory) > before);
        verify(&memory, 0..1024);
        memory.audit().unwrap();
        drop(ring);
        gives_back(&memory, Gfn::new(0), Order::SUPERPAGE);
        verify(&memory, 512..1024);
        memory.audit().unwrap();
        memory.stop();
    }
}

/// Mappings that come and go elsewhere make the kernel put moves off (`EAGAIN`).
#[test]
#[ignore = "needs userfaultfd in kernel mode: root, CAP_SYS_PTRACE or /dev/userfaultfd"]
fn moves_go_on_while_mappings_change() {
    let memory = memory(Policy::Zerosweep);
    let stop = Arc::new(AtomicBool::new(false));
    let mapper = {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                drop(Region::new(4 * MIB).unwrap());
            }
        })
    };
    for round in 0..20 {
        let first = round % 2 * 4096;
        write(&memory, first..first + 4096);
        verify(&memory, first..first + 4096);
        (first..first + 4096).step_by(512).for_each(|page| {
            assert!(memory.decrease(Gfn::new(page), Order::SUPERPAGE).is_some());
        });
        memory.audit().unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    mapper.join().unwrap();
    let repeats = memory.machine().counters().repeats.load(Ordering::Relaxed);
    println!("moves repeated: {repeats}, refused: {}", busy(&memory));
    memory.stop();
}
