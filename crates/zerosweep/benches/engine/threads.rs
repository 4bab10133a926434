//! Faults of four threads, each on a range of its own, alone and while a sweep runs in a fifth.
//!
//! Under the machine is no lock: what a thread scans is a superpage of its own that it keeps for
//! that, so that what one thread waits for is the domain's lock and nothing else.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use criterion::Criterion;
use zerosweep::{
    Allocated, Content, Domain, Fault, Gfn, Host, Machine, MapError, Mapped, Mfn, Order,
    OutOfFrames, PAGE_BYTES, Progress, SUPERPAGE_BYTES, SUPERPAGE_PAGES, Session, Unmapped,
};

use crate::build::{booted, superpages};
use crate::measure::{PerOperation, figure};
use crate::null::{Looks, NullMachine};

const THREADS: u64 = 4;
/// Superpages that each thread touches.
const TOUCHED: u64 = 8192;
/// Superpages that the sweep goes round and round in.
const SWEPT: u64 = 1024;
/// What a guest does between two faults, in words written.
const PAUSE_WORDS: usize = 512;

/// One thread's way to the machine. It maps nothing; a quick check finds nothing, and a full one
/// always takes as long as a whole superpage does, whose last word is not zero.
struct Scanner {
    superpage: Vec<u64>,
}

impl Machine for Scanner {
    fn allocate(&mut self, _order: Order) -> Result<Allocated, OutOfFrames> {
        Err(OutOfFrames)
    }

    fn free(&mut self, _mfn: Mfn, _order: Order) {}

    fn map(&mut self, _gfn: Gfn, _mfn: Mfn, _order: Order) -> Result<Mapped, MapError> {
        Ok(Mapped::Whole)
    }

    fn unmap(&mut self, _gfn: Gfn, _mfn: Mfn, _order: Order) -> Unmapped {
        Unmapped::Done
    }

    fn flush(&mut self) {}

    fn quick_check(&mut self, _gfn: Gfn, _mfn: Mfn, _order: Order) -> Option<u32> {
        None
    }

    fn peek(&mut self, _gfn: Gfn, _mfn: Mfn, _word: u32) -> u64 {
        0
    }

    fn zero_check(&mut self, _mfn: Mfn, pages: u64) -> Option<u32> {
        let found = zerosweep_scan::first_nonzero(&self.superpage);
        assert_eq!(found, Some(self.superpage.len() - 1));
        u32::try_from(pages * PAGE_BYTES / 8 - 1).ok()
    }

    fn clear(&mut self, _mfn: Mfn, _order: Order) {}

    fn copy(&mut self, _from: Mfn, _to: Mfn) {}

    fn scrub(&mut self, _gfn: Gfn, _mfn: Mfn) -> Content {
        Content::Zero
    }
}

/// Takes the domain's lock as a host with many threads does.
struct Threaded<'a> {
    domain: &'a Mutex<Domain>,
    guard: Option<MutexGuard<'a, Domain>>,
    machine: Scanner,
}

impl Host for Threaded<'_> {
    type Machine = Scanner;

    fn domain(&mut self) -> &mut Domain {
        self.guard.get_or_insert_with(|| self.domain.lock().unwrap())
    }

    fn machine<R>(&mut self, work: impl FnOnce(&mut Scanner) -> R) -> R {
        self.guard = None;
        work(&mut self.machine)
    }
}

fn session(domain: &Mutex<Domain>) -> Session<Threaded<'_>> {
    let mut superpage = vec![0; (SUPERPAGE_BYTES / 8) as usize];
    superpage.last_mut().into_iter().for_each(|word| *word = 1);
    Session::new(Threaded { domain, guard: None, machine: Scanner { superpage } })
}

/// What the fifth thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fifth {
    Nothing,
    /// Scans as a sweep does, without the engine: the CPUs' share of the time.
    Scans,
    Sweeps,
}

pub(crate) fn cases(criterion: &mut Criterion<PerOperation>) {
    let mut group = criterion.benchmark_group("threads");
    figure(&mut group, "fault_p99_alone", || p99_ns(Fifth::Nothing));
    figure(&mut group, "fault_p99_beside_a_scan", || p99_ns(Fifth::Scans));
    figure(&mut group, "fault_p99_beside_a_sweep", || p99_ns(Fifth::Sweeps));
}

fn p99_ns(fifth: Fifth) -> f64 {
    let swept = SWEPT * SUPERPAGE_PAGES;
    let pages = swept + THREADS * TOUCHED * SUPERPAGE_PAGES;
    let mut machine = NullMachine::new(pages, Looks::Zero);
    // The swept part is populated; then the rest is promised, and the cache is filled for it.
    let mut built = booted(&mut machine, pages, swept);
    built.with(&mut machine).set_target(pages).unwrap();
    let domain = Mutex::new(built);
    let done = AtomicBool::new(false);
    let mut nanoseconds: Vec<u64> = std::thread::scope(|scope| {
        scope.spawn(|| background(&domain, fifth, &done));
        let range = |n| {
            let first = swept + n * TOUCHED * SUPERPAGE_PAGES;
            first..first + TOUCHED * SUPERPAGE_PAGES
        };
        let guests: Vec<_> = (0..THREADS)
            .map(|n| (&domain, range(n)))
            .map(|(d, r)| scope.spawn(|| touch(d, r)))
            .collect();
        let all = guests.into_iter().flat_map(|guest| guest.join().unwrap()).collect();
        done.store(true, Ordering::Relaxed);
        all
    });
    domain.lock().unwrap().audit().unwrap();
    let place = nanoseconds.len() * 99 / 100;
    *nanoseconds.select_nth_unstable(place).1 as f64
}

/// Touches every superpage of a range. Returns how long each fault took.
fn touch(domain: &Mutex<Domain>, range: core::ops::Range<u64>) -> Vec<u64> {
    let mut session = session(domain);
    let mut memory = [0_u64; PAUSE_WORDS];
    let mut nanoseconds = Vec::with_capacity(TOUCHED as usize);
    for gfn in superpages(range) {
        let start = Instant::now();
        let fault = session.fault(gfn).unwrap();
        // The lock is dropped when the operation is over, as a host does that answers the guest.
        session.host().guard = None;
        nanoseconds.push(start.elapsed().as_nanos() as u64);
        assert!(matches!(fault, Fault::Present { .. }), "{fault:?}");
        memory.iter_mut().for_each(|word| *word = core::hint::black_box(gfn.raw()));
    }
    nanoseconds
}

fn background(domain: &Mutex<Domain>, fifth: Fifth, done: &AtomicBool) {
    let mut session = session(domain);
    while fifth != Fifth::Nothing && !done.load(Ordering::Relaxed) {
        if fifth == Fifth::Scans {
            let found = session.host().machine.zero_check(Mfn::new(0), SUPERPAGE_PAGES);
            assert!(found.is_some());
            continue;
        }
        let mut next = 0;
        while next < SWEPT && !done.load(Ordering::Relaxed) {
            let _: Progress = session.sweep_full(&mut next, 1);
            session.host().guard = None;
        }
    }
}
