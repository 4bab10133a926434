//! [R2](zerosweep::rules#r2).

use zerosweep::{Config, ConfigError, Domain, Policy, Progress, TargetError};
use zerosweep_sim::{SoftwareGuest, SoftwareMachine};

use crate::support::{guest, state};

#[test]
fn r2_the_cache_grows_with_the_target_and_is_never_cut() {
    let mut guest = guest(4096, 1024, Policy::Xen2016);
    assert_eq!(state(&guest), (4096, 1024, 1024));
    let refused = [0, 4097, u64::MAX].map(|target| guest.session().set_target(target));
    assert!(refused.iter().all(|r| matches!(r, Err(TargetError::OutOfRange { max: 4096, .. }))));
    guest.session().set_target(512).unwrap();
    assert_eq!(state(&guest).1, 1024, "the balloon brings the rest");
    let no_frames = guest.session().set_target(4096);
    assert!(matches!(no_frames, Err(TargetError::Fill(_))), "{no_frames:?}");
    assert_eq!(guest.domain.quantities().target, 4096);
    guest.domain.audit().unwrap();
}

#[test]
fn r2_filling_can_be_interrupted() {
    let machine = SoftwareMachine::new(4096);
    let mut guest = SoftwareGuest::on(machine, Config::new(4096, 512, Policy::Zerosweep)).unwrap();
    guest.session().begin_target(4096).unwrap();
    assert_eq!(guest.session().fill(3), Ok(Progress::More));
    assert_eq!(state(&guest), (4096, 512 * 4, 512 * 4));
    while guest.session().fill(1) == Ok(Progress::More) {}
    assert_eq!(state(&guest), (4096, 4096, 4096));
}

#[test]
fn a_domain_that_cannot_be_is_refused() {
    let refused = |max, target| Domain::new(Config::new(max, target, Policy::None)).unwrap_err();
    assert_eq!(refused(0, 1), ConfigError::MaxPages(0));
    assert_eq!(refused(5, 6), ConfigError::Target { target: 6, max: 5 });
    assert_eq!(refused(5, 0), ConfigError::Target { target: 0, max: 5 });
    assert!(matches!(refused(u64::MAX, 6), ConfigError::MaxPages(_)));
}
