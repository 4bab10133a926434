//! [R3](zerosweep::rules#r3).

use zerosweep::{Config, Event, FaultError, Gfn, Order, Policy};
use zerosweep_sim::{SoftwareGuest, SoftwareMachine};

use crate::support::{fill, guest, record, state};

#[test]
fn r3_a_touch_gets_a_superpage_or_a_single_and_zeros() {
    let machine = SoftwareMachine::new(1024).with_poison();
    let mut guest = SoftwareGuest::on(machine, Config::new(2048, 515, Policy::None)).unwrap();
    assert_eq!(guest.read(Gfn::new(600), 4088), Ok(0));
    let (_, first) = guest.machine.translate(Gfn::new(512)).unwrap();
    assert_eq!(first, Order::SUPERPAGE);
    let events = record(&mut guest, |session| {
        let _ = session.fault(Gfn::new(5)).unwrap();
    });
    let splinter = Event::Splinter { gfn: Gfn::new(0), fault: Gfn::new(5) };
    assert_eq!(events[0], splinter);
    assert!(matches!(events[1], Event::Populate { gfn, .. } if gfn == Gfn::new(5)), "{events:?}");
    assert_eq!(guest.machine.translate(Gfn::new(4)), None);
    assert_eq!(guest.read(Gfn::new(5), 0), Ok(0));
    guest.domain.audit().unwrap();
}

#[test]
fn r3_a_frame_that_could_not_be_mapped_is_the_last_to_be_tried_again() {
    for policy in [Policy::Zerosweep, Policy::Xen2016] {
        let mut guest = guest(2048, 1536, policy);
        let superpages = |guest: &SoftwareGuest| guest.domain.cache().iter().collect::<Vec<_>>();
        let before = superpages(&guest);
        guest.machine.fail(0, 1, zerosweep_sim::Failure::Refuse);
        assert_eq!(guest.session().fault(Gfn::new(0)), Err(FaultError::Map), "{policy}");
        let after = superpages(&guest);
        assert_eq!(after[..2], before[1..], "{policy}");
        assert_eq!(after[2], before[0], "{policy}");
        assert_eq!(state(&guest), (2048, 1536, 1536));
        fill(&mut guest, 0..1, 7);
        let mapped = guest.machine.translate(Gfn::new(0));
        assert_eq!(mapped.map(|(mfn, _)| mfn), Some(before[1].0), "{policy}");
    }
}
