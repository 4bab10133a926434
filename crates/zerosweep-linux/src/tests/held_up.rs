//! A lift while an operation is held up at any of its calls: no byte is lost ([INV-6], [INV-10]).
//!
//! An operation may be held up for longer than a lift waits: by slow swap, by a machine without a
//! CPU for it. What it does afterwards must not undo what the lift has put in place.
//!
//! [INV-6]: zerosweep::rules#inv-6
//! [INV-10]: zerosweep::rules#inv-10

use std::sync::Arc;
use std::time::Duration;

use zerosweep::{Gfn, Order, Policy};

use super::as_guest;
use crate::{GuestMemory, MainLoop, Options, PAGE_BYTES, Region, operation};

const MIB: u64 = 1 << 20;
/// The most calls of an operation that are held up, evenly, if it has more.
const MOST_CALLS: u64 = 60;

/// What a page holds, if it was not given back.
fn value(page: u64) -> u64 {
    page.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
}

/// A guest of 16 MiB that may hold 12, and has written to some pages.
struct Guest {
    memory: Arc<GuestMemory>,
    /// Pages that hold their [`value`]; others are zero, or given back.
    live: Vec<u64>,
}

impl Guest {
    fn new(live: Vec<u64>, touched: impl Iterator<Item = u64> + Send + 'static) -> Self {
        Self::under(Policy::Zerosweep, live, touched)
    }

    fn under(
        policy: Policy,
        live: Vec<u64>,
        touched: impl Iterator<Item = u64> + Send + 'static,
    ) -> Self {
        let main_loop = MainLoop::None;
        let options = Options { policy, main_loop, ..Options::new(12 * MIB) };
        let memory = GuestMemory::new(Region::new(16 * MIB).unwrap(), &options).unwrap();
        let written = live.clone();
        as_guest(&memory, move |memory| {
            for page in touched {
                memory.guest().store_word(page * PAGE_BYTES + 16, 0).unwrap();
            }
            for &page in &written {
                memory.guest().store_word(page * PAGE_BYTES + 16, value(page)).unwrap();
            }
        });
        Self { memory, live }
    }

    fn verify(&self, what: &str) {
        let (live, what) = (self.live.clone(), what.to_owned());
        as_guest(&self.memory, move |memory| {
            for page in live {
                let word = memory.guest().load_word(page * PAGE_BYTES + 16);
                assert_eq!(word, Ok(value(page)), "{what}: page {page}");
            }
        });
    }
}

/// Runs `operation` and holds it up at the call after `calls` others; lifts meanwhile, and lets it
/// go on. Whether it came so far.
fn lifted_after(calls: u64, guest: &Guest, operation: impl FnOnce(&GuestMemory) + Send) -> bool {
    let memory = &*guest.memory;
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            memory.domain.machine.hold.after(calls);
            operation(memory);
        });
        let held = memory.domain.machine.hold.is_reached(|| thread.is_finished());
        if held {
            memory.lift("something else failed");
            memory.domain.machine.hold.release();
        }
        held
    })
}

/// Lifts at each call of `operation`, or at [`MOST_CALLS`] of them.
fn lifted_at_each_call(
    name: &str,
    prepare: impl Fn() -> Guest,
    operation: impl Fn(&GuestMemory) + Send + Copy,
) {
    let guest = prepare();
    assert!(!lifted_after(u64::MAX, &guest, operation));
    let calls = guest.memory.domain.machine.hold.passed();
    println!("{name}: {calls} calls");
    assert!(calls >= 4, "{name} is not the operation that is meant: {calls} calls");
    assert_eq!(guest.memory.snapshot().lifted, None);
    guest.memory.stop();
    let count = calls.min(MOST_CALLS);
    for nth in (0..count).map(|n| n * calls / count) {
        let guest = prepare();
        let what = format!("{name}, lifted at call {nth} of {calls}");
        // Another thread's work may have made it shorter.
        if lifted_after(nth, &guest, operation) {
            let reason = guest.memory.snapshot().lifted;
            assert_eq!(reason.as_deref(), Some("something else failed"), "{what}");
        }
        guest.verify(&what);
    }
}

#[test]
#[ignore = "needs userfaultfd in kernel mode"]
fn while_live_pages_are_evacuated() {
    // Two superpages with four live pages each, among zeros.
    let prepare = || Guest::new(vec![3, 5, 300, 511, 512, 600, 601, 1023], 0..1024);
    lifted_at_each_call("evacuation", prepare, |memory| {
        let _ = memory.sweep(0, Duration::from_secs(30));
    });
}

#[test]
#[ignore = "needs userfaultfd in kernel mode"]
fn while_singles_are_consolidated() {
    // Under this policy what is given back breaks its superpage, and the rest stays where it is.
    let prepare = || {
        let live = |page: &u64| page % 512 < 8;
        let guest = Guest::under(Policy::None, (0..2048).filter(live).collect(), 0..2048);
        for page in (0..2048).filter(|page| !live(page)) {
            assert_eq!(guest.memory.inflate(Gfn::new(page), Order::PAGE), Ok(1));
        }
        assert_eq!(guest.memory.set_target(2 * MIB), Ok(()));
        guest
    };
    lifted_at_each_call("consolidation", prepare, |memory| {
        let _ = memory.consolidate(0, Duration::from_secs(30));
    });
}

#[test]
#[ignore = "needs userfaultfd in kernel mode"]
fn while_a_range_is_refilled() {
    let prepare = || {
        let guest = Guest::new(vec![3, 5, 300], 0..512);
        let _ = guest.memory.sweep(0, Duration::from_secs(30));
        guest
    };
    // A touch in a broken range, as the thread that answers faults does it.
    lifted_at_each_call("refill", prepare, |memory| {
        let _ = operation::track(&memory.domain, || memory.domain.session().fault(Gfn::new(9)));
    });
}

#[test]
#[ignore = "needs userfaultfd in kernel mode"]
fn while_zeros_are_shown() {
    // Pages without a frame on both sides of each that has one.
    let prepare = || {
        let guest = Guest::under(Policy::None, vec![3, 5, 300], 0..512);
        for page in (0..512).filter(|page| ![3, 5, 300].contains(page)) {
            assert_eq!(guest.memory.inflate(Gfn::new(page), Order::PAGE), Ok(1));
        }
        guest
    };
    lifted_at_each_call("read", prepare, |memory| {
        let read = || domain_read(memory, 9);
        let _ = operation::track(&memory.domain, read);
    });
}

fn domain_read(memory: &GuestMemory, page: u64) {
    let _ = memory.domain.session().fault_reading(Gfn::new(page));
}

#[test]
#[ignore = "needs userfaultfd in kernel mode"]
fn while_pages_are_given_back() {
    let live = || (0..1024).filter(|page| !(200..280).contains(page)).collect();
    let prepare = || Guest::new(live(), 200..280);
    lifted_at_each_call("decrease", prepare, |memory| {
        for page in (200..280).step_by(10) {
            let _ = memory.inflate(Gfn::new(page), Order::PAGE);
        }
        let _ = memory.set_target(2 * MIB);
    });
}
