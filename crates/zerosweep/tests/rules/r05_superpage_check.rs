//! [R5](zerosweep::rules#r5).

use zerosweep::{Config, Domain, Fault, Gate, Gfn, Order, Policy, Superpage};
use zerosweep_sim::SoftwareMachine;

use crate::support::{fill, guest};

#[test]
fn r5_the_seed_takes_a_zero_superpage_whole_and_shatters_the_others() {
    for (policy, checks_without_debt) in
        [(Policy::Rfc2011(Gate::Debt), false), (Policy::Rfc2011(Gate::Always), true)]
    {
        let mut zeros = guest(4096, 1024, policy);
        fill(&mut zeros, 0..512, 0);
        assert_eq!(zeros.session().decrease(Gfn::new(77), Order::PAGE), Ok(1));
        assert_eq!(zeros.domain.statistics().superpages_reclaimed, 1);
        assert_eq!(zeros.domain.p2m().tally(Superpage::new(0)).pod, 511);

        let mut dirty = guest(4096, 1024, policy);
        fill(&mut dirty, 0..512, 1);
        assert_eq!(dirty.session().decrease(Gfn::new(77), Order::PAGE), Ok(1));
        assert_eq!(dirty.domain.statistics().zero_checks_2m, 1);
        assert_eq!(dirty.session().decrease(Gfn::new(78), Order::PAGE), Ok(1));
        assert_eq!(dirty.domain.statistics().zero_checks_2m, 1, "never scanned again");

        let mut rich = guest(1024, 1024, policy);
        fill(&mut rich, 0..1024, 0);
        assert_eq!(rich.session().decrease(Gfn::new(77), Order::PAGE), Ok(1));
        assert_eq!(rich.domain.statistics().zero_checks_2m == 1, checks_without_debt);
    }
}

#[test]
fn r5_what_a_quick_check_misses_the_full_check_finds() {
    for policy in Policy::ALL {
        let mut guest = guest(4096, 1024, policy);
        fill(&mut guest, 0..512, 0);
        guest.write(Gfn::new(300), 4088, 0x55).unwrap();
        guest.session().decrease(Gfn::new(2), Order::PAGE).unwrap();
        fill(&mut guest, 512..1024, 0);
        for page in 1024..4096 {
            if guest.write(Gfn::new(page), 0, 0).is_err() {
                break;
            }
        }
        assert_eq!(guest.read(Gfn::new(300), 4088), Ok(0x55), "{policy}");
        guest.domain.audit().unwrap();
    }
}

#[test]
fn r5_a_superpage_populated_a_moment_ago_is_left_to_come_home_page_by_page() {
    let mut guest = guest(64 * 512, 32 * 512, Policy::Zerosweep);
    for page in 0..512 {
        // The guest clears each page when it allocates it, and gives it back at once.
        guest.write(Gfn::new(page), 0, 0).unwrap();
        guest.session().decrease(Gfn::new(page), Order::PAGE).unwrap();
    }
    let statistics = guest.domain.statistics();
    assert_eq!((statistics.populates_2m, statistics.populates_4k), (1, 0));
    assert_eq!((statistics.pages_retained, statistics.superpages_reclaimed), (512, 1));
    assert_eq!(statistics.unmap_flushes, 1);
    assert_eq!((guest.domain.cache().superpages(), guest.domain.cache().singles()), (32, 0));
    guest.domain.audit().unwrap();
}

/// While frames are wanted only because the host has none, what the guest gives back is not worth
/// breaking what it has.
#[test]
fn r5_a_guest_that_owes_nothing_keeps_its_superpages() {
    let mut machine = SoftwareMachine::new(32 * 512);
    let mut domain = Domain::new(Config::new(64 * 512, 64 * 512, Policy::Zerosweep)).unwrap();
    let all = || (0..64).map(|number| Superpage::new(number).first());
    for gfn in all() {
        domain.with(&mut machine).populate_on_demand(gfn, Order::SUPERPAGE).unwrap();
    }
    let filled = domain.with(&mut machine).set_target(64 * 512);
    assert!(filled.is_err(), "the host has half of that");
    for gfn in all().take(32) {
        let fault = domain.with(&mut machine).fault(gfn).unwrap();
        assert!(matches!(fault, Fault::Present { order: Order::SUPERPAGE, .. }));
        let (mfn, _) = machine.translate(gfn).unwrap();
        machine.set_word(mfn, 0, 1);
    }
    let (q, before) = (domain.quantities(), *domain.statistics());
    assert!(q.debt() > 0 && q.owed() == 0);
    assert_eq!(domain.with(&mut machine).decrease(Gfn::new(5), Order::PAGE), Ok(1));
    let now = domain.statistics();
    assert_eq!((now.pages_retained, now.zero_checks_2m), (1, before.zero_checks_2m));
}
