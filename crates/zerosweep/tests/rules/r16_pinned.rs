//! [R16](zerosweep::rules#r16).

use zerosweep::{Entry, FaultError, Gfn, Order, Policy, RamState};
use zerosweep_sim::TouchError;

use crate::support::{fill, guest, order};

#[test]
fn r16_special_and_pinned_pages_stay() {
    for policy in Policy::ALL {
        let mut guest = guest(4096, 1024, policy);
        guest.session().set_special(Gfn::new(40), order(2)).unwrap();
        fill(&mut guest, 512..1024, 0);
        guest.session().pin(Gfn::new(600)).unwrap();
        let (mfn, _) = guest.machine.translate(Gfn::new(600)).unwrap();
        assert_eq!(guest.session().decrease(Gfn::new(32), order(4)), Ok(12));
        assert_eq!(guest.session().decrease(Gfn::new(600), Order::PAGE), Ok(0));
        let mut next = 0;
        let _ = guest.session().sweep_full(&mut next, u64::MAX);
        assert_eq!(guest.machine.translate(Gfn::new(600)).map(|(mfn, _)| mfn), Some(mfn));
        assert_eq!(guest.domain.p2m().get(Gfn::new(41)).0, Entry::Special);
        assert_eq!(guest.write(Gfn::new(41), 0, 1), Err(TouchError::Fault(FaultError::Special)));
        guest.domain.audit().unwrap();
    }
}
