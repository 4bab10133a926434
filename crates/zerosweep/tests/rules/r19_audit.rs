//! [R19](zerosweep::rules#r19).

use zerosweep::{
    Config, Consolidation, Domain, Fault, Gfn, Host, Order, Policy, Progress, Session,
};
use zerosweep_sim::{SoftwareGuest, SoftwareMachine};

use crate::support::{guest, order};

/// A host that audits whenever the machine is asked for something: while it works,
/// other threads may look.
struct Auditor<'a>(&'a mut SoftwareGuest);

impl Host for Auditor<'_> {
    type Machine = SoftwareMachine;

    fn domain(&mut self) -> &mut Domain {
        &mut self.0.domain
    }

    fn machine<R>(&mut self, work: impl FnOnce(&mut SoftwareMachine) -> R) -> R {
        self.0.domain.audit().unwrap();
        let result = work(&mut self.0.machine);
        self.0.domain.audit().unwrap();
        result
    }
}

#[test]
fn r19_the_books_are_right_whenever_the_machine_works() {
    for policy in Policy::ALL {
        let mut guest = guest(2048, 1100, policy);
        let mut random = 1_u64;
        for step in 0..600 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let (gfn, what) = (Gfn::new(random >> 40 & 2047), random >> 20 & 15);
            audited_step(&mut guest, gfn, what, step);
        }
        while Session::new(Auditor(&mut guest)).teardown(1) == Progress::More {}
        guest.domain.audit().unwrap();
        assert_eq!(guest.domain.quantities().total(), 0);
    }
}

fn audited_step(guest: &mut SoftwareGuest, gfn: Gfn, what: u64, step: u64) {
    let mut session = Session::new(Auditor(guest));
    match what {
        0..=6 => audited_write(guest, gfn, if what < 3 { 0 } else { step }),
        7..=9 => drop(session.decrease(gfn, Order::PAGE)),
        10 => drop(session.decrease(gfn, order(4))),
        11 => drop(session.discard(gfn, 1)),
        12 => drop(session.set_target(700 + step)),
        13 => {
            let mut next = 0;
            while session.sweep_full(&mut next, 1) == Progress::More {}
        }
        14 => {
            let mut work = Consolidation::default();
            while session.consolidate(&mut work, 1).unwrap() == Progress::More {}
        }
        _ => drop(session.populate_on_demand(gfn, Order::PAGE)),
    }
    guest.domain.audit().unwrap();
}

/// The guest writes a word, if it can.
fn audited_write(guest: &mut SoftwareGuest, gfn: Gfn, value: u64) {
    guest.domain.allow_sweep();
    loop {
        if let Some((mfn, _)) = guest.machine.translate(gfn) {
            if !guest.domain.p2m().is_out(gfn) {
                guest.machine.set_word(mfn, 3, value);
            }
            return;
        }
        match Session::new(Auditor(guest)).fault(gfn) {
            Ok(Fault::Exhausted) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

#[test]
fn r19_memory_for_tables_is_there_before_a_range_is_broken() {
    let mut guest = SoftwareGuest::new(Config::new(2048, 2048, Policy::Zerosweep)).unwrap();
    let mut operations: [&mut dyn FnMut(&mut SoftwareGuest); 3] = [
        &mut |guest| assert_eq!(guest.read(Gfn::new(0), 0), Ok(0)),
        // These two break a range, and so use up what is there.
        &mut |guest| assert_eq!(guest.session().decrease(Gfn::new(600), Order::PAGE), Ok(1)),
        &mut |guest| assert_eq!(guest.session().decrease(Gfn::new(1100), Order::PAGE), Ok(1)),
    ];
    for operation in &mut operations {
        operation(&mut guest);
        // Nothing to serve: it only makes ready.
        let present = Fault::Present { gfn: Gfn::new(0), order: Order::SUPERPAGE };
        assert_eq!(guest.session().fault(Gfn::new(0)), Ok(present));
        assert!(!guest.domain.p2m().wants_spare());
    }
}
