//! [R9](zerosweep::rules#r9).

use zerosweep::{Config, Gate, Gfn, Order, Policy, Progress, RamState, Superpage};
use zerosweep_sim::SoftwareGuest;

use crate::support::{fill, guest};

#[test]
fn r9_without_debt_nothing_is_scanned() {
    for policy in [Policy::None, Policy::Rfc2011(Gate::Debt), Policy::Xen2012, Policy::Xen2016] {
        let mut guest = guest(4096, 4096, policy);
        fill(&mut guest, 0..4096, 0);
        for page in 0..4096 {
            guest.session().decrease(Gfn::new(page), Order::PAGE).unwrap();
        }
        assert_eq!(guest.domain.statistics().bytes_scanned, 0, "{policy}");
    }
    let mut ours = guest(4096, 4096, Policy::Zerosweep);
    fill(&mut ours, 0..4096, 0);
    ours.session().decrease(Gfn::new(9), Order::PAGE).unwrap();
    // The page itself is looked at (R12), and nothing else.
    assert_eq!(ours.domain.statistics().bytes_scanned, 4096);
    assert_eq!(ours.domain.statistics().zero_checks_2m, 0);
}

#[test]
fn r9_what_is_promised_and_backed_by_singles_needs_no_search() {
    let mut guest = SoftwareGuest::new(Config::new(4096, 1024, Policy::Zerosweep)).unwrap();
    fill(&mut guest, 0..1024, 7);
    for superpage in 2..7 {
        let gfn = Superpage::new(superpage).first();
        assert_eq!(guest.session().decrease(gfn, Order::SUPERPAGE), Ok(512));
    }
    // Half of each superpage that it has; neither is whole, for one pinned page.
    for first in [0, 512] {
        guest.session().pin(Gfn::new(first + 511)).unwrap();
        for page in first..first + 256 {
            assert_eq!(guest.session().decrease(Gfn::new(page), Order::PAGE), Ok(1));
        }
    }
    while guest.session().upkeep(1, false) == Progress::More {}
    let cache = guest.domain.cache();
    assert_eq!((cache.superpages(), cache.singles()), (0, 512));
    assert_eq!((guest.domain.quantities().debt(), guest.domain.quantities().entries), (0, 512));
    let before = *guest.domain.statistics();
    fill(&mut guest, 7 * 512..8 * 512, 7);
    let now = guest.domain.statistics();
    assert_eq!((now.emergency_sweeps, now.splinters), (before.emergency_sweeps, 1));
    assert_eq!(now.bytes_scanned, before.bytes_scanned);
    guest.domain.audit().unwrap();
}
