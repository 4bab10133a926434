//! [R17](zerosweep::rules#r17).

use zerosweep::{Config, Gfn, Mfn, Offline, Order, Policy};
use zerosweep_sim::{SoftwareGuest, SoftwareMachine};

#[test]
fn r17_a_broken_frame_leaves_the_cache_and_is_replaced() {
    for policy in Policy::ALL {
        let machine = SoftwareMachine::new(2048);
        let mut guest = SoftwareGuest::on(machine, Config::new(2048, 1024, policy)).unwrap();
        let (mfn, order) = guest.domain.cache().iter().next().unwrap();
        assert_eq!(order, Order::SUPERPAGE);
        let broken = mfn.offset(100);
        assert_eq!(guest.session().offline(broken), Ok(Offline::Replaced));
        assert!(guest.machine.is_retired(broken));
        assert_eq!(guest.session().offline(broken), Ok(Offline::NotCached));
        let q = guest.domain.quantities();
        assert_eq!(
            (q.cache, guest.domain.cache().superpages()),
            (1024, 1),
            "{policy}: 511 and one"
        );
        // The guest never gets it.
        for page in 0..1024 {
            guest.write(Gfn::new(page), 0, 1).unwrap();
        }
        assert!((0..1024).all(|page| {
            guest.machine.translate(Gfn::new(page)).is_some_and(|(mfn, _)| mfn != broken)
        }));
        guest.domain.audit().unwrap();
    }
    // Where the host has no other, one is missing until it has.
    let mut guest = SoftwareGuest::new(Config::new(2048, 1024, Policy::Zerosweep)).unwrap();
    assert_eq!(guest.session().offline(Mfn::new(7)), Ok(Offline::Missing));
    assert_eq!(guest.domain.quantities().cache, 1023);
    guest.domain.audit().unwrap();
}
