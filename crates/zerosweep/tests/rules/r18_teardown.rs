//! [R18](zerosweep::rules#r18).

use zerosweep::{DecreaseError, FaultError, Gfn, Life, Policy, Progress};

use crate::support::{fill, guest, order};

#[test]
fn r18_death_returns_every_frame_in_steps() {
    for policy in Policy::ALL {
        let mut guest = guest(4096, 1024, policy);
        fill(&mut guest, 0..700, 3);
        guest.session().decrease(Gfn::new(5), order(4)).unwrap();
        let busy = guest.machine.translate(Gfn::new(650)).unwrap().0;
        guest.machine.set_busy(busy, true);
        for _ in 0..100 {
            let _ = guest.session().teardown(2);
        }
        assert_ne!(guest.domain.life(), Life::Dead, "a busy frame is waited for");
        assert_eq!(guest.session().fault(Gfn::new(3)), Err(FaultError::Dying));
        assert_eq!(guest.session().decrease(Gfn::new(3), order(0)), Err(DecreaseError::Dying));
        guest.machine.set_busy(busy, false);
        while guest.session().teardown(2) == Progress::More {}
        assert_eq!(guest.machine.pool().free_superpages(), 2, "{policy}");
        assert_eq!(guest.domain.quantities().total(), 0);
    }
}
