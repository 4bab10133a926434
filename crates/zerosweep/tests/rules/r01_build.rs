//! [R1](zerosweep::rules#r1).

use zerosweep::{BuildError, Config, Domain, Entry, Gfn, Order, Policy};
use zerosweep_sim::{SoftwareGuest, SoftwareMachine};

use crate::support::{guest, order, state};

#[test]
fn r1_build_at_any_order_and_alignment() {
    let machine = SoftwareMachine::new(1 << 19);
    let mut domain = Domain::new(Config::new(1 << 19, 1 << 19, Policy::Zerosweep)).unwrap();
    let mut machine = machine;
    let mut session = domain.with(&mut machine);
    session.populate_on_demand(Gfn::new(0), Order::MAX).unwrap();
    // PoD over PoD does not count twice.
    session.populate_on_demand(Gfn::new(5), order(10)).unwrap();
    session.populate_on_demand(Gfn::new((1 << 18) - 3), order(3)).unwrap();
    assert_eq!(domain.quantities().entries, (1 << 18) + 5);
    let mut session = domain.with(&mut machine);
    let beyond = session.populate_on_demand(Gfn::new(1 << 18), order(18));
    assert_eq!(beyond, Ok(()));
    let beyond = session.populate_on_demand(Gfn::new((1 << 18) + 1), Order::MAX);
    assert_eq!(beyond, Err(BuildError::OutOfRange));
    domain.audit().unwrap();
}

#[test]
fn r1_ram_and_special_are_not_marked_and_nothing_changes() {
    let mut guest = guest(2048, 1024, Policy::Zerosweep);
    guest.write(Gfn::new(700), 0, 9).unwrap();
    guest.session().set_special(Gfn::new(1600), Order::PAGE).unwrap();
    let before = state(&guest);
    for gfn in [0, 512, 1500] {
        let outcome = guest.session().populate_on_demand(Gfn::new(gfn), order(9));
        assert!(matches!(outcome, Ok(()) | Err(BuildError::Busy(_))), "{outcome:?}");
    }
    assert_eq!(
        guest.session().populate_on_demand(Gfn::new(600), order(8)),
        Err(BuildError::Busy(Gfn::new(600)))
    );
    assert_eq!(state(&guest), before);
    assert_eq!(guest.read(Gfn::new(700), 0), Ok(9));
}

#[test]
fn r1_a_kernel_image_is_populated_for_real_or_not_at_all() {
    let mut guest = guest(2048, 2048, Policy::Zerosweep);
    guest.session().decrease(Gfn::new(0), order(10)).unwrap();
    assert_eq!(guest.session().populate_physmap(Gfn::new(3), order(4)), Ok(()));
    let p2m = guest.domain.p2m();
    assert!(matches!(p2m.get(Gfn::new(3)).0, Entry::Ram { .. }));
    assert_eq!(p2m.get(Gfn::new(2)).0, Entry::Invalid);
    let before = state(&guest);
    let in_the_way = guest.session().populate_physmap(Gfn::new(0), order(3));
    assert_eq!(in_the_way, Err(BuildError::Busy(Gfn::new(3))));
    let mut full = SoftwareGuest::new(Config::new(2048, 1024, Policy::Zerosweep)).unwrap();
    let outcome = full.session().populate_physmap(Gfn::new(0), Order::PAGE);
    assert_eq!(outcome, Err(BuildError::OverTarget));
    assert_eq!(state(&guest), before);
}
