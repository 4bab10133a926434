//! All layers together, with what only they can reach: pages put at the wrong place by hand,
//! operations held up at any call, threads that panic. Whatever fails, no byte is lost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use zerosweep::{Gfn, Mfn, Order, Policy};

use crate::sys::uffd::{Holes, MoveOutcome, Wake};
use crate::{GuestMemory, MainLoop, OnExhaustion, Options, PAGE_BYTES, Parking, Region, Span};

mod discard;
mod frames;
mod held_up;
mod misplaced;
mod moves;
mod panics;
#[path = "../tests/memory/pin.rs"]
mod pin;
mod reads;

/// What takes longer hangs, on a busy machine too.
const LIMIT: Duration = Duration::from_secs(120);
const MIB: u64 = 1 << 20;
const PAGES: u64 = 2048;

fn memory(policy: Policy) -> Arc<GuestMemory> {
    let options = Options {
        target_bytes: 16 * MIB,
        policy,
        on_exhaustion: OnExhaustion::Borrow,
        parking: Parking::Lazy,
        fault_threads: Options::DEFAULT_FAULT_THREADS,
        main_loop: MainLoop::None,
    };
    let memory = GuestMemory::new(Region::new(16 * MIB).unwrap(), &options).unwrap();
    as_guest(&memory, |memory| {
        (0..PAGES).for_each(|page| {
            memory.guest().store_word(page * PAGE_BYTES + 8, page + 1).unwrap();
        });
    });
    memory
}

/// Every page but `out` holds what the guest wrote.
fn verify(memory: &Arc<GuestMemory>, out: Option<u64>) {
    as_guest(memory, move |memory| {
        for page in (0..PAGES).filter(|&page| Some(page) != out) {
            let word = memory.guest().load_word(page * PAGE_BYTES + 8);
            assert_eq!(word, Ok(page + 1), "page {page}");
        }
    });
}

fn frame(memory: &GuestMemory, page: u64) -> Mfn {
    memory.domain.frame_of(Gfn::new(page)).unwrap()
}

/// Moves pages of the guest to their slots, behind the engine's back.
fn take_away(memory: &GuestMemory, page: u64, pages: u64) {
    let machine = &memory.domain.machine;
    for page in page..page + pages {
        let slot = machine.slot(frame(memory, page), Order::PAGE).unwrap();
        let at = machine.range(Gfn::new(page), Order::PAGE).unwrap();
        assert_eq!(machine.uffd.move_pages(slot, at, Holes::Stop, Wake::No), MoveOutcome::Done);
    }
}

/// Runs `work` as a thread of the guest. Fails the test if it hangs.
fn as_guest(memory: &Arc<GuestMemory>, work: impl FnOnce(&GuestMemory) + Send + 'static) {
    let memory = Arc::clone(memory);
    let thread = std::thread::spawn(move || work(&memory));
    wait_until("the guest goes on", || thread.is_finished());
    thread.join().unwrap();
}

/// Waits for something that comes about in the background.
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !is_so() {
        assert!(Instant::now() < end, "not within {LIMIT:?}: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
