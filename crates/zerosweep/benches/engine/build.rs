//! Domains in the states that the cases start from.

use zerosweep::{Config, Domain, Gfn, Machine, Order, Policy, SUPERPAGE_PAGES};

/// All of the guest is promised, and the cache is full.
pub(crate) fn promised<M: Machine>(machine: &mut M, pages: u64, target: u64) -> Domain {
    let mut domain = Domain::new(Config::new(pages, target, Policy::Zerosweep)).unwrap();
    promise(&mut domain, machine, 0..pages);
    domain.with(machine).set_target(target).unwrap();
    domain
}

/// The first `populated` pages have frames, as many as the target allows; the rest is promised,
/// and the cache is empty: there is debt.
pub(crate) fn booted<M: Machine>(machine: &mut M, pages: u64, populated: u64) -> Domain {
    let mut domain = Domain::new(Config::new(pages, populated, Policy::Zerosweep)).unwrap();
    promise(&mut domain, machine, 0..populated);
    let mut session = domain.with(machine);
    session.set_target(populated).unwrap();
    for gfn in superpages(0..populated) {
        let _ = session.fault(gfn).unwrap();
    }
    promise(&mut domain, machine, populated..pages);
    domain
}

pub(crate) fn promise<M: Machine>(
    domain: &mut Domain,
    machine: &mut M,
    pages: core::ops::Range<u64>,
) {
    let mut session = domain.with(machine);
    superpages(pages).for_each(|gfn| session.populate_on_demand(gfn, Order::SUPERPAGE).unwrap());
}

/// The first page of each superpage of a range.
pub(crate) fn superpages(pages: core::ops::Range<u64>) -> impl Iterator<Item = Gfn> {
    pages.step_by(SUPERPAGE_PAGES as usize).map(Gfn::new)
}
