//! Cases of the engine's own work, on a machine that touches no memory.

use zerosweep::{Domain, Gfn, Order, Progress, SUPERPAGE_PAGES};

use crate::build::{booted, promise, promised, superpages};
use crate::null::{Looks, NullMachine};

/// A case, and how it is set up for a guest of a number of pages.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) prepare: fn(u64) -> Prepared,
}

/// A domain in its state, and the operations to be timed.
pub(crate) struct Prepared {
    domain: Domain,
    machine: NullMachine,
    work: Work,
}

enum Work {
    Faults(Vec<Gfn>),
    Decreases(Vec<Gfn>, Order),
    /// Checks the first superpages, up to this number.
    Checks(u64),
}

pub(crate) const CASES: [Case; 10] = [
    Case { name: "populate_2m", prepare: populate_2m },
    Case { name: "populate_4k", prepare: populate_4k },
    Case { name: "decrease_4k_pod", prepare: decrease_4k_pod },
    Case { name: "decrease_4k_pod_random", prepare: decrease_4k_pod_random },
    Case { name: "decrease_2m_pod_full_cache", prepare: decrease_2m_pod },
    Case { name: "failed_check_repeated", prepare: failed_check_repeated },
    Case { name: "retain_4k", prepare: retain_4k },
    Case { name: "balloon_ascending", prepare: |pages| balloon(pages, ascending) },
    Case { name: "balloon_descending", prepare: |pages| balloon(pages, descending) },
    Case { name: "balloon_random", prepare: |pages| balloon(pages, random) },
];

impl Prepared {
    /// Does all of the work. Returns how many operations that were. What callgrind counts is in
    /// functions of this name.
    #[inline(never)]
    pub(crate) fn counted_work(&mut self) -> u64 {
        self.work()
    }

    fn work(&mut self) -> u64 {
        let mut session = self.domain.with(&mut self.machine);
        match &self.work {
            Work::Faults(gfns) => {
                for &gfn in gfns {
                    let _ = session.fault(gfn).unwrap();
                }
                gfns.len() as u64
            }
            Work::Decreases(gfns, order) => {
                for &gfn in gfns {
                    assert_eq!(session.decrease(gfn, *order), Ok(order.pages()));
                }
                gfns.len() as u64
            }
            Work::Checks(count) => {
                let _: Progress = session.sweep_full(&mut 0, *count);
                *count
            }
        }
    }
}

fn populate_2m(pages: u64) -> Prepared {
    let mut machine = NullMachine::new(pages, Looks::Zero);
    let domain = promised(&mut machine, pages, pages);
    let gfns = superpages(0..pages).map(|gfn| gfn.offset(77)).collect();
    Prepared { domain, machine, work: Work::Faults(gfns) }
}

/// 256 superpages spread over the guest, of which the host has singles only.
fn populate_4k(pages: u64) -> Prepared {
    const SUPERPAGES: u64 = 256;
    const TOUCHED: u64 = SUPERPAGES * SUPERPAGE_PAGES;
    let mut machine = NullMachine::of_singles();
    let config = zerosweep::Config::new(pages, TOUCHED, zerosweep::Policy::Zerosweep);
    let mut domain = Domain::new(config).unwrap();
    let mut gfns = Vec::new();
    for n in 0..SUPERPAGES {
        let first = n * (pages / TOUCHED) * SUPERPAGE_PAGES;
        promise(&mut domain, &mut machine, first..first + SUPERPAGE_PAGES);
        gfns.extend((first..first + SUPERPAGE_PAGES).map(Gfn::new));
    }
    domain.with(&mut machine).set_target(TOUCHED).unwrap();
    Prepared { domain, machine, work: Work::Faults(gfns) }
}

fn decrease_4k_pod(pages: u64) -> Prepared {
    let mut machine = NullMachine::new(pages, Looks::Zero);
    let domain = promised(&mut machine, pages, pages / 4);
    Prepared { domain, machine, work: Work::Decreases(ascending(pages), Order::PAGE) }
}

fn decrease_4k_pod_random(pages: u64) -> Prepared {
    let prepared = decrease_4k_pod(pages);
    Prepared { work: Work::Decreases(random(pages), Order::PAGE), ..prepared }
}

/// Each superpage that is given back is one that the cache has too many.
fn decrease_2m_pod(pages: u64) -> Prepared {
    let mut machine = NullMachine::new(pages, Looks::Zero);
    let domain = promised(&mut machine, pages, pages);
    let gfns = superpages(0..pages).collect();
    Prepared { domain, machine, work: Work::Decreases(gfns, Order::SUPERPAGE) }
}

/// Superpages that were checked before, and not found zero.
fn failed_check_repeated(pages: u64) -> Prepared {
    let mut machine = NullMachine::new(pages, Looks::FirstWords);
    let domain = booted(&mut machine, pages, pages);
    let work = Work::Checks(pages / SUPERPAGE_PAGES);
    let mut prepared = Prepared { domain, machine, work };
    prepared.work();
    prepared
}

/// Pages of whole superpages are given back while no frame is wanted.
fn retain_4k(pages: u64) -> Prepared {
    let mut machine = NullMachine::new(pages, Looks::FirstWords);
    let domain = booted(&mut machine, pages, pages);
    Prepared { domain, machine, work: Work::Decreases(ascending(pages), Order::PAGE) }
}

/// The populated half of a guest is given back, while there is debt.
fn balloon(pages: u64, order: fn(u64) -> Vec<Gfn>) -> Prepared {
    let mut machine = NullMachine::new(pages, Looks::FirstWords);
    let domain = booted(&mut machine, pages, pages / 2);
    Prepared { domain, machine, work: Work::Decreases(order(pages / 2), Order::PAGE) }
}

fn ascending(pages: u64) -> Vec<Gfn> {
    (0..pages).map(Gfn::new).collect()
}

fn descending(pages: u64) -> Vec<Gfn> {
    (0..pages).rev().map(Gfn::new).collect()
}

fn random(pages: u64) -> Vec<Gfn> {
    let mut gfns = ascending(pages);
    let mut state = 0_u64;
    for left in (1..gfns.len()).rev() {
        // Knuth's generator; its high bits are random enough for an order.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        gfns.swap(left, (state >> 33) as usize % (left + 1));
    }
    gfns
}
