//! Cases with real scans and clears, on the software machine.

use std::cell::RefCell;
use std::time::Instant;

use criterion::Criterion;
use zerosweep::{Domain, Entry, Fault, Gfn, Machine, Order, Progress, SUPERPAGE_PAGES, Superpage};
use zerosweep_sim::SoftwareMachine;

use crate::SIZES;
use crate::build::{booted, promised, superpages};
use crate::measure::{Group, PerOperation, case, figure};

/// Memory that has frames, at most: 2 GiB.
const POPULATED_MAX: u64 = 1 << 19;

const PAGE_WORDS: usize = 512;

/// A machine that is used again and again, so that its arena is mapped once.
struct Host {
    machine: RefCell<Option<SoftwareMachine>>,
    pages: u64,
    populated: u64,
}

/// A domain on it; taken down when it is dropped.
struct Guest<'a> {
    domain: Domain,
    machine: Option<SoftwareMachine>,
    host: &'a Host,
}

impl Host {
    fn new(pages: u64) -> Self {
        let populated = (pages / 8 * 7).min(POPULATED_MAX);
        let mut machine = SoftwareMachine::new(populated);
        // Touched once, so that no case pays for it.
        while let Ok(run) = machine.allocate(Order::SUPERPAGE) {
            machine.clear(run.mfn, Order::SUPERPAGE);
        }
        superpages(0..populated).for_each(|gfn| {
            machine.free(zerosweep::Mfn::new(gfn.raw()), Order::SUPERPAGE);
        });
        Self { machine: RefCell::new(Some(machine)), pages, populated }
    }

    fn guest(&self, build: impl FnOnce(&mut SoftwareMachine) -> Domain) -> Guest<'_> {
        let mut machine = self.machine.borrow_mut().take().unwrap();
        let domain = build(&mut machine);
        Guest { domain, machine: Some(machine), host: self }
    }

    /// All that can be populated is, and more is promised.
    fn booted(&self) -> Guest<'_> {
        self.guest(|machine| booted(machine, self.pages, self.populated))
    }

    /// Booted, with 1 in word `word` of each page that `is_dirty`.
    fn dirty(&self, word: usize, is_dirty: impl Fn(u64) -> bool) -> Guest<'_> {
        let mut guest = self.booted();
        for page in (0..self.populated).filter(|&page| is_dirty(page)) {
            guest.write(Gfn::new(page), word);
        }
        guest
    }
}

impl Guest<'_> {
    fn both(&mut self) -> (&mut Domain, &mut SoftwareMachine) {
        (&mut self.domain, self.machine.as_mut().unwrap())
    }

    fn write(&mut self, gfn: Gfn, word: usize) {
        let machine = self.machine.as_mut().unwrap();
        let (mfn, _) = machine.translate(gfn).unwrap();
        machine.set_word(mfn, word, 1);
    }

    /// Gives back a page in the middle of each superpage.
    fn decrease_in_each(&mut self) -> u64 {
        let populated = self.host.populated;
        let (domain, machine) = self.both();
        let mut session = domain.with(machine);
        for gfn in superpages(0..populated) {
            assert_eq!(session.decrease(gfn.offset(256), Order::PAGE), Ok(1));
        }
        populated / SUPERPAGE_PAGES
    }

    /// A full check of each superpage's frame, and nothing else.
    fn scan_each(&mut self) -> u64 {
        let populated = self.host.populated;
        let (domain, machine) = self.both();
        for n in 0..populated / SUPERPAGE_PAGES {
            if let Some(Entry::Ram { mfn, .. }) = domain.p2m().whole(Superpage::new(n)) {
                assert_eq!(machine.zero_check(mfn, SUPERPAGE_PAGES), None);
            }
        }
        populated / SUPERPAGE_PAGES
    }

    fn check_each(&mut self) -> u64 {
        let count = self.host.populated / SUPERPAGE_PAGES;
        let (domain, machine) = self.both();
        let _: Progress = domain.with(machine).sweep_full(&mut 0, count);
        count
    }

    /// Touches promised pages, and dirties them, until no frame can be found or it was `enough`.
    fn exhaust(&mut self, enough: u64) -> Exhausted {
        let mut at = Gfn::new(self.host.populated);
        let mut seen = Exhausted::default();
        let begin = Instant::now();
        loop {
            let (domain, machine) = self.both();
            let start = Instant::now();
            let fault = domain.with(machine).fault(at).unwrap();
            seen.longest_step_ns = seen.longest_step_ns.max(start.elapsed().as_nanos() as f64);
            if fault == Fault::Exhausted || seen.found == enough {
                break;
            }
            if matches!(fault, Fault::Present { .. }) {
                if seen.found == 0 {
                    let checks = domain.statistics();
                    let scanned = checks.zero_checks_2m * SUPERPAGE_PAGES + checks.zero_checks_4k;
                    seen.first_per_page_ns = begin.elapsed().as_nanos() as f64 / scanned as f64;
                }
                self.write(at, 0);
                at = at.offset(1);
                seen.found += 1;
            }
        }
        seen.total_ns = begin.elapsed().as_nanos() as f64;
        seen
    }
}

/// The outcome of touching promised pages until no frame was found.
#[derive(Default)]
struct Exhausted {
    /// Pages that were touched.
    found: u64,
    total_ns: f64,
    /// The first fault, by the pages that its sweep passed.
    first_per_page_ns: f64,
    longest_step_ns: f64,
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        let (domain, machine) = self.both();
        while domain.with(machine).teardown(u64::MAX >> 12) == Progress::More {}
        *self.host.machine.borrow_mut() = self.machine.take();
    }
}

pub(crate) fn cases(criterion: &mut Criterion<PerOperation>) {
    for (size, pages) in SIZES {
        let host = Host::new(pages);
        let mut group = criterion.benchmark_group(format!("memory_{size}"));
        let group = &mut group;
        checks(group, &host);
        sweeps(group, &host);
        fills(group, &host);
    }
}

fn checks(group: &mut Group<'_>, host: &Host) {
    let each = |page: u64| page.is_multiple_of(SUPERPAGE_PAGES);
    let last = |page: u64| each(page + 1);
    let none = |_| false;
    case(group, "scan_2m", || host.dirty(0, none), Guest::scan_each);
    case(group, "decrease_zero", || host.dirty(0, none), Guest::decrease_in_each);
    case(group, "decrease_last_word", || host.dirty(PAGE_WORDS - 1, last), Guest::decrease_in_each);
    case(group, "decrease_first_word", || host.dirty(0, each), Guest::decrease_in_each);
    let checked = || {
        let mut guest = host.dirty(0, |_| true);
        guest.check_each();
        guest
    };
    case(group, "failed_check_repeated", checked, Guest::check_each);
}

fn sweeps(group: &mut Group<'_>, host: &Host) {
    for one_in in [64, 512] {
        let dirty = || host.dirty(0, |page| page % one_in != one_in / 2);
        let name = |what| format!("sweep_1_zero_in_{one_in}_{what}");
        figure(group, &name("per_page_scanned"), || dirty().exhaust(1).first_per_page_ns);
        figure(group, &name("per_page_found"), || {
            let seen = dirty().exhaust(u64::MAX);
            assert_eq!(seen.found, host.populated / one_in);
            seen.total_ns / seen.found as f64
        });
    }
    let nothing = || host.dirty(0, |_| true).exhaust(u64::MAX);
    figure(group, "sweep_nothing_all_steps", || nothing().total_ns);
    figure(group, "sweep_nothing_longest_step", || nothing().longest_step_ns);
}

fn fills(group: &mut Group<'_>, host: &Host) {
    let empty = || {
        host.guest(|machine| {
            let mut domain = promised(machine, host.pages, SUPERPAGE_PAGES);
            domain.with(machine).begin_target(host.populated).unwrap();
            domain
        })
    };
    case(group, "fill_2m", empty, |guest| {
        let (domain, machine) = guest.both();
        while domain.with(machine).fill(1024).unwrap() == Progress::More {}
        host.populated / SUPERPAGE_PAGES - 1
    });
}
