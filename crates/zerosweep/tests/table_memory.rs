//! There is no memory for the engine: every allocation of every operation fails once, alone and
//! with all that follow. The error reaches the caller (or the operation does without), nothing is
//! retried for ever, no byte and no frame is lost, and the same operation works afterwards.
//!
//! An allocation that the engine does not expect to fail would end the process: there is none.
#![expect(unsafe_code, reason = "an allocator is")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;

use zerosweep::{
    Allocated, Config, Consolidation, Content, Domain, Fault, Gfn, InvalidTouch, Machine, MapError,
    Mapped, Mfn, Order, OutOfFrames, Policy, Progress, Session, Superframe, Unmapped, Upkeep,
};
use zerosweep_sim::SoftwareMachine;

thread_local! {
    /// Allocations of this thread while it is armed; which of them fail: from, to.
    static ARMED: Cell<bool> = const { Cell::new(false) };
    static COUNT: Cell<u64> = const { Cell::new(0) };
    static FAILS: Cell<(u64, u64)> = const { Cell::new((u64::MAX, u64::MAX)) };
}

struct Failing;

fn fails() -> bool {
    if !ARMED.get() {
        return false;
    }
    let nth = COUNT.replace(COUNT.get() + 1);
    let (from, to) = FAILS.get();
    (from..to).contains(&nth)
}

// SAFETY: as the system's own, or no memory.
unsafe impl GlobalAlloc for Failing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps `alloc`'s contract, which is the system's.
        if fails() { std::ptr::null_mut() } else { unsafe { System.alloc(layout) } }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: it came from the system's `alloc`.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: it came from the system's `alloc`.
        if fails() { std::ptr::null_mut() } else { unsafe { System.realloc(memory, layout, size) } }
    }
}

#[global_allocator]
static ALLOCATOR: Failing = Failing;

/// Runs `work` with allocations as they were before, or as they are for everyone.
fn with_allocations<T>(armed: bool, work: impl FnOnce() -> T) -> T {
    let was = ARMED.replace(armed);
    let outcome = work();
    ARMED.set(was);
    outcome
}

/// The software machine, whose own allocations never fail.
struct Sheltered(SoftwareMachine);

impl Machine for Sheltered {
    fn allocate(&mut self, order: Order) -> Result<Allocated, OutOfFrames> {
        with_allocations(false, || self.0.allocate(order))
    }

    fn allocate_in(&mut self, superframe: Superframe) -> Result<Allocated, OutOfFrames> {
        with_allocations(false, || self.0.allocate_in(superframe))
    }

    fn free(&mut self, mfn: Mfn, order: Order) {
        with_allocations(false, || self.0.free(mfn, order));
    }

    fn map(&mut self, gfn: Gfn, mfn: Mfn, order: Order) -> Result<Mapped, MapError> {
        with_allocations(false, || self.0.map(gfn, mfn, order))
    }

    fn unmap(&mut self, gfn: Gfn, mfn: Mfn, order: Order) -> Unmapped {
        with_allocations(false, || self.0.unmap(gfn, mfn, order))
    }

    fn flush(&mut self) {
        with_allocations(false, || self.0.flush());
    }

    fn quick_check(&mut self, gfn: Gfn, mfn: Mfn, order: Order) -> Option<u32> {
        self.0.quick_check(gfn, mfn, order)
    }

    fn peek(&mut self, gfn: Gfn, mfn: Mfn, word: u32) -> u64 {
        self.0.peek(gfn, mfn, word)
    }

    fn zero_check(&mut self, mfn: Mfn, pages: u64) -> Option<u32> {
        self.0.zero_check(mfn, pages)
    }

    fn clear(&mut self, mfn: Mfn, order: Order) {
        self.0.clear(mfn, order);
    }

    fn copy(&mut self, from: Mfn, to: Mfn) {
        self.0.copy(from, to);
    }

    fn scrub(&mut self, gfn: Gfn, mfn: Mfn) -> Content {
        self.0.scrub(gfn, mfn)
    }

    fn retire(&mut self, mfn: Mfn) {
        with_allocations(false, || self.0.retire(mfn));
    }
}

const PAGES: u64 = 2 * 512 + 37;

struct Guest {
    domain: Domain,
    machine: Sheltered,
    /// What it wrote and did not give back.
    written: BTreeMap<u64, u64>,
    operations: u64,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Write(u64, u64),
    Decrease(u64, u8),
    Promise(u64, u8),
    Physmap(u64, u8),
    Special(u64),
    Discard(u64, u64),
    Pin(u64),
    Offline(u64),
    Target(u64),
    Sweep,
    Consolidate,
    Upkeep,
}

const STEPS: [Step; 18] = [
    Step::Write(41, 1),
    Step::Write(1060, 1),
    Step::Write(640, 0),
    Step::Decrease(40, 0),
    Step::Decrease(0, 9),
    Step::Decrease(512, 5),
    Step::Decrease(530, 0),
    Step::Promise(8, 4),
    Step::Physmap(8, 2),
    Step::Physmap(0, 9),
    Step::Special(1050),
    Step::Discard(500, 40),
    Step::Pin(700),
    Step::Offline(512),
    Step::Target(300),
    Step::Sweep,
    Step::Consolidate,
    Step::Upkeep,
];

impl Guest {
    fn new(policy: Policy, upkeep: Upkeep) -> Self {
        let mut machine = Sheltered(SoftwareMachine::new(4 * 512));
        let config = Config {
            invalid_touch: InvalidTouch::Increase,
            upkeep,
            ..Config::new(PAGES, 900, policy)
        };
        let mut domain = Domain::new(config).unwrap();
        let mut session = domain.with(&mut machine);
        for superpage in 0..2 {
            session.populate_on_demand(Gfn::new(superpage * 512), Order::SUPERPAGE).unwrap();
        }
        (1024..PAGES).for_each(|page| {
            session.populate_on_demand(Gfn::new(page), Order::PAGE).unwrap();
        });
        session.set_target(900).unwrap();
        Self { domain, machine, written: BTreeMap::new(), operations: 0 }
    }

    fn session(&mut self) -> Session<zerosweep::Exclusive<'_, Sheltered>> {
        self.domain.with(&mut self.machine)
    }

    /// Does a step, armed; what the guest knows is as without.
    fn step(&mut self, step: Step) {
        self.operations += 1;
        let gfn = |page| Gfn::new(page);
        let order = |raw| Order::new(raw).unwrap();
        match step {
            Step::Write(page, value) => self.write(page, value),
            Step::Decrease(page, raw) => {
                let outcome = with_allocations(true, || {
                    self.domain.with(&mut self.machine).decrease(gfn(page), order(raw))
                });
                outcome.unwrap();
                self.forget(page..page + order(raw).pages());
            }
            Step::Promise(page, raw) => {
                let _ = with_allocations(true, || {
                    self.domain.with(&mut self.machine).populate_on_demand(gfn(page), order(raw))
                });
            }
            Step::Physmap(page, raw) => {
                let _ = with_allocations(true, || {
                    self.domain.with(&mut self.machine).populate_physmap(gfn(page), order(raw))
                });
            }
            Step::Special(page) => {
                let _ = with_allocations(true, || {
                    self.domain.with(&mut self.machine).set_special(gfn(page), order(0))
                });
            }
            Step::Discard(page, pages) => {
                let outcome = with_allocations(true, || {
                    self.domain.with(&mut self.machine).discard(gfn(page), pages)
                });
                outcome.unwrap();
                self.forget(page..page + pages);
            }
            Step::Pin(page) => {
                let _ =
                    with_allocations(true, || self.domain.with(&mut self.machine).unpin(gfn(page)));
            }
            Step::Offline(mfn) => {
                let _ = with_allocations(true, || {
                    self.domain.with(&mut self.machine).offline(Mfn::new(mfn))
                });
            }
            Step::Target(pages) => {
                let _ = with_allocations(true, || {
                    self.domain.with(&mut self.machine).set_target(pages)
                });
            }
            Step::Sweep => with_allocations(true, || {
                let _ = self.domain.with(&mut self.machine).sweep_full(&mut 0, u64::MAX);
            }),
            Step::Consolidate => with_allocations(true, || {
                let mut work = Consolidation::default();
                let mut session = self.domain.with(&mut self.machine);
                while session.consolidate(&mut work, 8) == Ok(Progress::More) {}
                // The plan's own memory is the caller's to give back.
                with_allocations(false, || drop(work));
            }),
            Step::Upkeep => with_allocations(true, || {
                let mut session = self.domain.with(&mut self.machine);
                while session.upkeep(1, true) == Progress::More {}
            }),
        }
        self.check(step);
    }

    fn write(&mut self, page: u64, value: u64) {
        // A fault that finds no table memory is an error; it is not tried for ever.
        for _ in 0..1000 {
            let translated = self.machine.0.translate(Gfn::new(page));
            if let Some((mfn, _)) = translated {
                self.machine.0.set_word(mfn, 7, value);
                self.written.insert(page, value);
                return;
            }
            let fault = with_allocations(true, || {
                self.domain.with(&mut self.machine).fault(Gfn::new(page))
            });
            match fault {
                Ok(Fault::Exhausted) | Err(_) => return,
                Ok(_) => {}
            }
        }
        panic!("page {page} is retried for ever");
    }

    /// The guest gave these up: they read as zero, or as before if that was not possible.
    fn forget(&mut self, pages: std::ops::Range<u64>) {
        for page in pages {
            let now = self.machine.0.translate(Gfn::new(page));
            if now.is_none_or(|(mfn, _)| self.machine.0.word(mfn, 7) == 0) {
                self.written.remove(&page);
            }
        }
    }

    fn check(&mut self, step: Step) {
        self.domain.audit().unwrap_or_else(|error| panic!("{step:?}: {error}"));
        for (&page, &value) in &self.written {
            let Some((mfn, _)) = self.machine.0.translate(Gfn::new(page)) else {
                // Zeros may be taken back; the rest is there.
                assert_eq!(value, 0, "page {page} is lost after {step:?}");
                continue;
            };
            assert_eq!(self.machine.0.word(mfn, 7), value, "page {page} after {step:?}");
        }
    }

    fn tear_down(mut self) {
        let retired = (0..4 * 512).filter(|&n| self.machine.0.is_retired(Mfn::new(n))).count();
        let mut calls = 0;
        while self.session().teardown(8) == Progress::More {
            calls += 1;
            assert!(calls < 10_000, "it comes to no end");
        }
        let free = self.machine.0.pool().free_pages() + retired as u64;
        assert_eq!(free, 4 * 512, "frames are lost");
    }
}

/// A guest that has been through a few things, so that tables and lists are in use.
fn prepared(policy: Policy, upkeep: Upkeep) -> Guest {
    let mut guest = Guest::new(policy, upkeep);
    FAILS.set((u64::MAX, u64::MAX));
    let before =
        [Step::Write(3, 5), Step::Write(600, 6), Step::Decrease(700, 3), Step::Write(90, 0)];
    before.into_iter().for_each(|step| guest.step(step));
    guest
}

fn fail_each(policy: Policy, upkeep: Upkeep, steps: &[Step], tried: &mut u64) {
    let mut guest = prepared(policy, upkeep);
    COUNT.set(0);
    steps.iter().for_each(|&step| guest.step(step));
    let allocations = COUNT.get();
    for nth in 0..allocations {
        for to in [nth + 1, u64::MAX] {
            let mut guest = prepared(policy, upkeep);
            COUNT.set(0);
            FAILS.set((nth, to));
            steps.iter().for_each(|&step| guest.step(step));
            FAILS.set((u64::MAX, u64::MAX));
            steps.iter().for_each(|&step| guest.step(step));
            guest.tear_down();
            *tried += 1;
        }
    }
}

#[test]
fn every_allocation_of_two_operations_fails() {
    let mut tried = 0;
    for policy in [Policy::Zerosweep, Policy::Xen2012, Policy::Xen2016] {
        for upkeep in [Upkeep::Inline, Upkeep::Host] {
            for first in STEPS {
                for second in STEPS {
                    fail_each(policy, upkeep, &[first, second], &mut tried);
                }
            }
        }
    }
    println!("{tried} runs, in each of them allocations failed");
    assert!(tried > 1000, "too few: {tried}");
}

#[test]
fn a_domain_without_memory_for_its_tables_is_refused() {
    let config = Config::new(1 << 30, 1 << 20, Policy::Zerosweep);
    COUNT.set(0);
    for nth in 0..3 {
        FAILS.set((COUNT.get() + nth, u64::MAX));
        let made = with_allocations(true, || Domain::new(config).map(drop));
        assert!(matches!(made, Err(zerosweep::ConfigError::TableMemory(_))), "{nth}: {made:?}");
    }
}
