//! What a VMM builds before and beside what the guest touches: a range is built whole, or is what
//! it was (rules [R1], [R16]).
//!
//! [R1]: zerosweep::rules#r1
//! [R16]: zerosweep::rules#r16

use zerosweep::{
    BuildError, Config, Domain, Entry, Gfn, Order, Policy, Quantities, RamState, SUPERPAGE_PAGES,
    Superpage,
};
use zerosweep_sim::{Failure, SoftwareMachine};

const PAGES: u64 = 8 * 512;

fn order(raw: u8) -> Order {
    Order::new(raw).expect("an order")
}

/// A guest of which nothing has a frame: page by page promised and not, whole superpages promised
/// and not, a special page.
fn built(policy: Policy, machine: &mut SoftwareMachine) -> Domain {
    let mut domain = Domain::new(Config::new(PAGES, PAGES, policy)).expect("memory for the tables");
    let mut session = domain.with(machine);
    for page in (0..512).filter(|page| page % 3 == 1) {
        session.populate_on_demand(Gfn::new(page), Order::PAGE).expect("nothing is there");
    }
    session.populate_on_demand(Gfn::new(512), Order::SUPERPAGE).expect("nothing is there");
    session.populate_on_demand(Gfn::new(3 * 512 + 200), order(5)).expect("nothing is there");
    session.set_special(Gfn::new(PAGES - 1), Order::PAGE).expect("nothing is there");
    domain
}

fn entries(domain: &Domain) -> Vec<Entry> {
    (0..PAGES).map(|page| domain.p2m().get(Gfn::new(page)).0).collect()
}

fn quantities(domain: &Domain) -> Quantities {
    domain.audit().expect("the books are right");
    domain.quantities()
}

/// Ranges within, around and across superpages of each kind.
const RANGES: [(u64, u8); 9] =
    [(0, 4), (70, 6), (512, 4), (512, 9), (3, 10), (1000, 4), (1024, 9), (0, 11), (300, 9)];

#[test]
fn a_range_that_cannot_be_populated_is_what_it_was() {
    for policy in [Policy::Zerosweep, Policy::Xen2016] {
        for (first, raw) in RANGES {
            let (gfn, order) = (Gfn::new(first), order(raw));
            // Singles are many and alike.
            let stride = if raw > 6 { 67 } else { 1 };
            for failing in (0..).step_by(stride) {
                let mut machine = SoftwareMachine::new(PAGES).with_poison();
                let mut domain = built(policy, &mut machine);
                let before = (entries(&domain), quantities(&domain));
                machine.fail(failing, 1, Failure::Refuse);
                let outcome = domain.with(&mut machine).populate_physmap(gfn, order);
                if outcome.is_ok() {
                    assert!(failing > 0, "nothing failed");
                    break;
                }
                assert_eq!(outcome, Err(BuildError::OutOfFrames));
                let after = (entries(&domain), quantities(&domain));
                assert!(after == before, "{policy} {first:#x} {raw} call {failing}");
                assert_eq!(machine.pool().free_pages(), PAGES);
                let mut session = domain.with(&mut machine);
                assert_eq!(session.populate_physmap(gfn, order), Ok(()), "nothing is in transit");
            }
        }
    }
}

#[test]
fn a_range_that_is_populated_is_zero_and_what_is_around_it_stays() {
    for policy in Policy::ALL {
        for (first, raw) in RANGES {
            for how in [None, Some(Failure::Pieces)] {
                let mut machine = SoftwareMachine::new(PAGES).with_poison();
                let mut domain = built(policy, &mut machine);
                let (before, promised) = (entries(&domain), quantities(&domain).entries);
                if let Some(how) = how {
                    machine.fail(0, u64::MAX, how);
                }
                let (gfn, order) = (Gfn::new(first), order(raw));
                assert_eq!(domain.with(&mut machine).populate_physmap(gfn, order), Ok(()));
                let range = first..first + order.pages();
                for (page, (was, is)) in (0..).zip(before.iter().zip(entries(&domain))) {
                    let Entry::Ram { mfn, state } = is else {
                        assert!(!range.contains(&page) && is == *was, "page {page:#x}");
                        continue;
                    };
                    assert!(range.contains(&page) && state == RamState::Mapped, "page {page:#x}");
                    let there = machine.translate(Gfn::new(page)).map(|(mfn, _)| mfn);
                    assert_eq!(there, Some(mfn));
                    for word in [0, 511] {
                        assert_eq!(machine.word(mfn, word), 0, "rubbish is cleared");
                    }
                }
                let replaced = before[first as usize..range.end as usize]
                    .iter()
                    .filter(|&&entry| entry == Entry::Pod)
                    .count() as u64;
                let now = quantities(&domain);
                assert_eq!((now.populated, now.entries), (order.pages(), promised - replaced));
                for superpage in [1, 2].map(Superpage::new) {
                    let start = superpage.first().raw();
                    let covered = range.start <= start && start + SUPERPAGE_PAGES <= range.end;
                    let whole = matches!(domain.p2m().whole(superpage), Some(Entry::Ram { .. }));
                    assert_eq!(whole, covered && how.is_none(), "{superpage:?}");
                }
            }
        }
    }
}

#[test]
fn work_on_a_mapped_page_keeps_its_superpage_and_no_other() {
    let mut machine = SoftwareMachine::new(PAGES);
    let mut domain = built(Policy::Zerosweep, &mut machine);
    let mut session = domain.with(&mut machine);
    session.populate_physmap(Gfn::new(1024), Order::SUPERPAGE).expect("there are frames");
    let mut works = |page| {
        let mut worked = false;
        let settled = session.with_claim(Gfn::new(page), |_| worked = true);
        assert_eq!(settled, worked);
        settled
    };
    assert!(works(1024) && works(1535) && works(1024), "it is released again");
    for (page, what) in [(512, "promised"), (0, "out"), (PAGES - 1, "special"), (PAGES, "beyond")] {
        assert!(!works(page), "{what}");
    }
}
