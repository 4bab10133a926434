//! Moves that the kernel refuses, puts off or does in part: the operation goes on or back, it is
//! counted, and the guest's bytes stay.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]
#![expect(unsafe_code, reason = "forks, pins and ages memory")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use zerosweep::{Gfn, Order, Policy};
use zerosweep_linux::{
    GuestMemory, MainLoop, OnExhaustion, Options, PAGE_BYTES, Parking, Region, Span,
};

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
        main_loop: MainLoop::None,
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
        given += memory.inflate(gfn, order).unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
#[ignore = "needs userfaultfd, io_uring"]
fn a_superpage_with_a_pinned_page_stays_until_it_is_unpinned() {
    for pinned in [0, 256, 511] {
        let memory = memory(Policy::Zerosweep);
        write(&memory, 0..1024);
        let page = memory.guest().part(pinned * PAGE_BYTES, PAGE_BYTES).unwrap();
        let ring = pin(page);
        let before = busy(&memory);
        assert_eq!(memory.inflate(Gfn::new(0), Order::SUPERPAGE), Ok(0), "page {pinned}");
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

/// One page of a superpage in pieces is pinned: the others come and go, it stays.
#[test]
#[ignore = "needs userfaultfd, io_uring"]
fn a_pinned_single_among_singles_stays_alone() {
    // Under this policy a page that is given back breaks its superpage.
    let memory = memory(Policy::Xen2016);
    write(&memory, 0..512);
    as_guest(&memory, |memory| {
        (1..512).for_each(|page| memory.guest().store_word(page * PAGE_BYTES, 0).unwrap());
    });
    assert_eq!(memory.inflate(Gfn::new(511), Order::PAGE), Ok(1));
    let pinned = memory.guest().part(7 * PAGE_BYTES, PAGE_BYTES).unwrap();
    let ring = pin(pinned);
    let before = busy(&memory);
    let given: u64 =
        (0..511).map(|page| memory.inflate(Gfn::new(page), Order::PAGE).unwrap()).sum();
    assert_eq!(given, 510, "all but the pinned one");
    assert!(busy(&memory) > before);
    as_guest(&memory, |memory| assert_eq!(memory.guest().load_word(7 * PAGE_BYTES), Ok(0)));
    memory.audit().unwrap();
    drop(ring);
    gives_back(&memory, Gfn::new(7), Order::PAGE);
    memory.audit().unwrap();
    memory.stop();
}

/// What might make the kernel put moves off (`EAGAIN`).
#[derive(Clone, Copy, Debug)]
enum Disturbance {
    /// Mappings come and go elsewhere.
    Mappings,
    /// Neighbouring memory is dropped, populated, protected.
    Neighbours,
    /// The process forks.
    Forks,
    /// The guest's own pages are pinned for a moment, again and again (`process_vm_readv`).
    Pins,
    /// The guest's own pages are aged and taken off their lists (`MADV_COLD`).
    Aging,
}

fn disturb(disturbance: Disturbance, memory: &GuestMemory, random: &mut u64) {
    *random = random.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
    let page = (*random >> 40) % 16_384;
    let at = memory.guest().part(page * PAGE_BYTES, PAGE_BYTES).unwrap();
    match disturbance {
        Disturbance::Mappings => drop(Region::new(4 * MIB).unwrap()),
        Disturbance::Neighbours => {
            let region = Region::new(4 * MIB).unwrap();
            region.all().populate().unwrap();
            region.all().discard().unwrap();
            let (start, bytes) = (region.start().get(), region.bytes() as usize);
            for protection in [libc::PROT_READ, libc::PROT_READ | libc::PROT_WRITE] {
                // SAFETY: a region of our own, into which no reference points.
                unsafe { libc::mprotect(start as *mut libc::c_void, bytes / 2, protection) };
            }
        }
        // SAFETY: the child only ends, and is waited for.
        Disturbance::Forks => unsafe {
            let child = libc::fork();
            if child == 0 {
                libc::_exit(0);
            }
            libc::waitpid(child, std::ptr::null_mut(), 0);
        },
        Disturbance::Pins => {
            let mut word = 0_u64;
            let to = libc::iovec { iov_base: (&raw mut word).cast(), iov_len: 8 };
            let from = libc::iovec { iov_base: at.as_ptr().cast_mut().cast(), iov_len: 8 };
            let process = std::process::id() as i32;
            // SAFETY: reads a word of the guest's memory, into one of our own.
            unsafe { libc::process_vm_readv(process, &raw const to, 1, &raw const from, 1, 0) };
        }
        Disturbance::Aging => {
            let address = at.as_ptr().cast_mut().cast();
            // SAFETY: changes no content.
            unsafe { libc::madvise(address, PAGE_BYTES as usize, libc::MADV_COLD) };
        }
    }
}

#[test]
#[ignore = "needs userfaultfd in kernel mode: root, CAP_SYS_PTRACE or /dev/userfaultfd"]
fn moves_go_on_whatever_happens_to_memory_meanwhile() {
    use Disturbance::{Aging, Forks, Mappings, Neighbours, Pins};
    for disturbance in [Mappings, Neighbours, Forks, Pins, Aging] {
        let memory = memory(Policy::Zerosweep);
        let stop = Arc::new(AtomicBool::new(false));
        let disturber = {
            let (memory, stop) = (Arc::clone(&memory), Arc::clone(&stop));
            std::thread::spawn(move || {
                let (mut times, mut random) = (0_u64, 1);
                while !stop.load(Ordering::Relaxed) {
                    disturb(disturbance, &memory, &mut random);
                    times += 1;
                }
                times
            })
        };
        for round in 0..20 {
            let first = round % 2 * 4096;
            write(&memory, first..first + 4096);
            let _ = memory.sweep(0, LIMIT);
            verify(&memory, first..first + 4096);
            (first..first + 4096).step_by(512).for_each(|page| {
                assert!(memory.inflate(Gfn::new(page), Order::SUPERPAGE).is_ok());
            });
            memory.audit().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        let times = disturber.join().unwrap();
        let repeats = memory.machine().counters().repeats.load(Ordering::Relaxed);
        println!("{disturbance:?} {times} times: {repeats} repeats, {} refused", busy(&memory));
        assert_eq!(memory.snapshot().lifted, None);
        memory.stop();
    }
}
