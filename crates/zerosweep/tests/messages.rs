//! What a caller is told: every error says what is wrong, with its figures; a domain that is being
//! taken down says so to everybody.

use std::error::Error;

use zerosweep::{
    AuditError, BuildError, Config, ConfigError, Consolidation, DecreaseError, Domain, FaultError,
    FillError, Gfn, Life, Mfn, Offline, Order, OutOfTableMemory, Policy, Progress, Superpage,
    TargetError,
};
use zerosweep_sim::{NewGuestError, SoftwareGuest, SoftwareMachine, TouchError};

#[test]
fn every_error_says_what_is_wrong() {
    let said: [(Box<dyn Error>, &str); 28] = [
        (Box::new(ConfigError::MaxPages(0)), "invalid guest memory: 0 pages"),
        (
            Box::new(ConfigError::Target { target: 9, max: 8 }),
            "invalid target: 9 pages (must be 1 to 8)",
        ),
        (Box::new(ConfigError::TableMemory(OutOfTableMemory)), "no memory for the engine's"),
        (Box::new(BuildError::OutOfRange), "ends beyond the guest's memory"),
        (Box::new(BuildError::Busy(Gfn::new(0x77))), "in the way at gfn 0x77"),
        (Box::new(BuildError::InTransit), "in transit"),
        (Box::new(BuildError::OverTarget), "more than its target"),
        (Box::new(BuildError::OutOfFrames), "no frame to give"),
        (Box::new(BuildError::TableMemory), "no memory for the engine's"),
        (Box::new(BuildError::Dying), "being taken down"),
        (Box::new(DecreaseError::OutOfRange), "ends beyond the guest's memory"),
        (Box::new(DecreaseError::InTransit), "in transit"),
        (Box::new(DecreaseError::Dying), "being taken down"),
        (Box::new(FaultError::Unmapped), "not the guest's"),
        (Box::new(FaultError::Special), "special"),
        (Box::new(FaultError::Map), "could not be mapped"),
        (Box::new(FaultError::TableMemory), "no memory for the engine's"),
        (Box::new(FaultError::Dying), "being taken down"),
        (Box::new(FaultError::Unkept), "no frame for what the guest wrote"),
        (
            Box::new(TargetError::OutOfRange { target: 9, max: 8 }),
            "invalid target: 9 pages (must be 1 to 8)",
        ),
        (Box::new(TargetError::Dying), "being taken down"),
        (Box::new(TargetError::Fill(FillError::OutOfFrames)), "be filled: the host has no frame"),
        (Box::new(FillError::TableMemory), "no memory for the engine's"),
        (
            Box::new(AuditError::Counter { name: "entries", counter: 3, recount: 4 }),
            "entries is 3, but the tables say 4",
        ),
        (Box::new(AuditError::Tally(Superpage::new(5))), "5"),
        (Box::new(AuditError::FrameTwice(Mfn::new(0x99))), "frame 0x99 is in two places"),
        (Box::new(AuditError::OutOfMemory), "no memory to audit with"),
        (Box::new("xen-1999".parse::<Policy>().unwrap_err()), "there are none, hypercall-2011"),
    ];
    for (error, text) in said {
        assert!(error.to_string().contains(text), "{error}");
    }
    let new = [
        NewGuestError::Config(ConfigError::MaxPages(0)).to_string(),
        NewGuestError::Build(BuildError::Dying).to_string(),
        NewGuestError::Target(TargetError::Dying).to_string(),
        TouchError::Exhausted.to_string(),
        TouchError::Fault(FaultError::Special).to_string(),
    ];
    assert!(new.iter().all(|text| text.len() > 10), "{new:?}");
}

#[test]
fn a_guest_that_cannot_be_says_why() {
    let few = SoftwareGuest::on(SoftwareMachine::new(512), Config::new(2048, 1024, Policy::None));
    let outcome = few.map(drop);
    let full = TargetError::Fill(FillError::OutOfFrames);
    assert_eq!(outcome, Err(NewGuestError::Target(full)), "the host has 512 frames");
    let mut domain = Domain::new(Config::new(512, 512, Policy::Zerosweep)).unwrap();
    assert_eq!(domain.expect_frames(1 << 20), Ok(()));
    assert_eq!(domain.expect_frames(u64::MAX), Err(OutOfTableMemory));
    let none = SoftwareGuest::new(Config::new(0, 0, Policy::None)).map(drop);
    assert_eq!(none, Err(NewGuestError::Config(ConfigError::MaxPages(0))));
}

#[test]
fn a_domain_that_is_taken_down_says_so_to_everybody() {
    for policy in Policy::ALL {
        let mut guest = SoftwareGuest::new(Config::new(2048, 1024, policy)).unwrap();
        guest.write(Gfn::new(3), 0, 1).unwrap();
        // Page 600 is promised by itself.
        assert_eq!(guest.session().decrease(Gfn::new(601), Order::PAGE), Ok(1));
        let mut work = Consolidation::default();
        assert_eq!(guest.session().consolidate(&mut work, 1), Ok(Progress::More));
        assert_eq!(guest.session().teardown(1), Progress::More);
        assert_eq!(guest.domain.life(), Life::Dying(1));
        let gfn = Gfn::new(600);
        let mut session = guest.session();
        assert_eq!(session.fault(gfn), Err(FaultError::Dying));
        assert_eq!(session.fault_borrowing(gfn), Err(FaultError::Dying));
        assert_eq!(session.decrease(gfn, Order::PAGE), Err(DecreaseError::Dying));
        let refused = session.discard(gfn, 1).unwrap_err();
        assert_eq!((refused.reason, refused.next), (DecreaseError::Dying, gfn));
        assert_eq!(session.populate_on_demand(gfn, Order::PAGE), Err(BuildError::Dying));
        assert_eq!(session.populate_physmap(gfn, Order::PAGE), Err(BuildError::Dying));
        assert_eq!(session.set_special(gfn, Order::PAGE), Err(BuildError::Dying));
        assert_eq!(session.set_target(9), Err(TargetError::Dying));
        assert_eq!(session.consolidate(&mut work, 1), Ok(Progress::Done));
        assert_eq!(session.upkeep(1, true), Progress::Done);
        assert_eq!(session.offline(Mfn::new(9)), Ok(Offline::NotCached));
        assert_eq!(session.pin(Gfn::new(5000)), Err(BuildError::OutOfRange));
        while guest.session().teardown(1) == Progress::More {}
        assert_eq!(
            (guest.domain.life(), guest.session().teardown(1)),
            (Life::Dead, Progress::Done)
        );
        assert!(format!("{:?}", guest.domain).contains("Dead"));
        assert_eq!(guest.session().fault(gfn), Err(FaultError::Dying));
    }
}
