//! [R14](zerosweep::rules#r14).

use zerosweep::{
    Config, Consolidation, DecreaseError, DiscardError, Domain, Fault, Gfn, Host, Order, Policy,
    Progress, Session, Superpage,
};
use zerosweep_sim::{SoftwareGuest, SoftwareMachine};

use crate::support::fill;

/// Pages of the guest: the operations work on the first half, other faults are in the second.
const PAGES: u64 = 32 * 512;

/// A host on which two virtual CPUs fault whenever the machine works for an operation: one in each
/// superpage that the operation has claimed, and one elsewhere.
struct TwoMoreCpus<'a> {
    guest: &'a mut SoftwareGuest,
    /// The next page that is touched elsewhere.
    elsewhere: u64,
    /// Calls of the machine during which a superpage was claimed.
    claimed: u64,
}

impl<'a> TwoMoreCpus<'a> {
    fn new(guest: &'a mut SoftwareGuest) -> Self {
        Self { guest, elsewhere: PAGES / 2, claimed: 0 }
    }

    fn touch(&mut self) {
        let claimed: Vec<Superpage> = (0..PAGES / 512)
            .map(Superpage::new)
            .filter(|&superpage| self.guest.domain.p2m().in_transit(superpage))
            .collect();
        self.claimed += u64::from(!claimed.is_empty());
        for &superpage in &claimed {
            let waits = self.guest.session().fault(superpage.page(7));
            assert_eq!(waits, Ok(Fault::InTransit), "{superpage:?} is claimed");
        }
        while claimed.contains(&Gfn::new(self.elsewhere).superpage()) {
            self.elsewhere = PAGES / 2 + (self.elsewhere + 37) % (PAGES / 2);
        }
        let elsewhere = Gfn::new(self.elsewhere);
        self.elsewhere = PAGES / 2 + (self.elsewhere + 37) % (PAGES / 2);
        let served = self.guest.session().fault(elsewhere);
        assert!(matches!(served, Ok(Fault::Present { .. })), "{elsewhere:?}: {served:?}");
    }
}

impl Host for TwoMoreCpus<'_> {
    type Machine = SoftwareMachine;

    fn domain(&mut self) -> &mut Domain {
        &mut self.guest.domain
    }

    fn machine<R>(&mut self, work: impl FnOnce(&mut SoftwareMachine) -> R) -> R {
        self.touch();
        let result = work(&mut self.guest.machine);
        self.touch();
        result
    }
}

/// Runs an operation on a guest with zeros, live pages and broken ranges. Returns how many calls of
/// the machine were made while a superpage was claimed.
fn operate(policy: Policy, work: impl FnOnce(&mut Session<&mut TwoMoreCpus<'_>>)) -> u64 {
    let mut guest = SoftwareGuest::new(Config::new(PAGES, PAGES, policy)).unwrap();
    fill(&mut guest, 0..PAGES / 2, 0);
    fill(&mut guest, (0..PAGES / 2).filter(|page| page / 512 % 2 == 0 && page % 512 < 40), 7);
    for page in (4 * 512..6 * 512).filter(|page| page % 512 >= 9) {
        guest.session().decrease(Gfn::new(page), Order::PAGE).unwrap();
    }
    let mut host = TwoMoreCpus::new(&mut guest);
    work(&mut Session::new(&mut host));
    let claimed = host.claimed;
    guest.domain.audit().unwrap();
    claimed
}

#[test]
fn r14_only_faults_on_the_claimed_range_wait_while_the_machine_works() {
    for policy in Policy::ALL {
        let swept = operate(policy, |session| {
            let mut next = 0;
            while session.sweep_full(&mut next, 1) == Progress::More {}
        });
        let decreased = operate(policy, |session| {
            for gfn in [0, 512 + 3, 4 * 512 + 5].map(Gfn::new) {
                session.decrease(gfn, Order::PAGE).unwrap();
            }
        });
        let discarded = operate(policy, |session| {
            session.discard(Gfn::new(100), 1000).unwrap();
        });
        let calls = [("full sweep", swept), ("decrease", decreased), ("discard", discarded)];
        for (operation, calls) in calls {
            assert!(calls > 0, "{policy}, {operation}: the machine did nothing in a claimed range");
        }
    }
}

#[test]
fn r14_only_faults_on_the_claimed_range_wait_while_pages_move() {
    let broken = operate(Policy::Zerosweep, |session| {
        session.set_target(10 * 512).unwrap();
    });
    let consolidated = operate(Policy::Xen2016, |session| {
        let mut work = Consolidation::default();
        while session.consolidate(&mut work, 1).unwrap() == Progress::More {}
        assert!(work.moved() > 0);
    });
    assert!(broken > 0 && consolidated > 0, "{broken} and {consolidated} calls");
}

/// A host on which another virtual CPU gives up the content of two superpages while the machine works
/// in the second.
struct Reporting<'a> {
    guest: &'a mut SoftwareGuest,
    outcome: Option<Result<u64, DiscardError>>,
}

impl Host for Reporting<'_> {
    type Machine = SoftwareMachine;

    fn domain(&mut self) -> &mut Domain {
        &mut self.guest.domain
    }

    fn machine<R>(&mut self, work: impl FnOnce(&mut SoftwareMachine) -> R) -> R {
        if self.outcome.is_none() && self.guest.domain.p2m().in_transit(Superpage::new(1)) {
            self.outcome = Some(self.guest.session().discard(Gfn::new(3), 1000));
            assert!(self.guest.machine.is_flushed(), "a CPU still reaches what was given up");
        }
        work(&mut self.guest.machine)
    }
}

#[test]
fn r14_what_was_done_before_a_claimed_range_is_told_and_flushed() {
    for policy in Policy::ALL {
        let mut guest = SoftwareGuest::new(Config::new(2048, 2048, policy)).unwrap();
        fill(&mut guest, 0..1024, 0);
        fill(&mut guest, 3..400, 7);
        // Ours would clear the pages of a whole superpage where they are.
        guest.session().pin(Gfn::new(1)).unwrap();
        let mut host = Reporting { guest: &mut guest, outcome: None };
        let mut next = 1;
        let _ = Session::new(&mut host).sweep_full(&mut next, 1);
        let error = host.outcome.unwrap().unwrap_err();
        assert_eq!(
            (error.reason, error.next),
            (DecreaseError::InTransit, Gfn::new(512)),
            "{policy}"
        );
        assert_eq!(error.discarded, 509, "{policy}");
        fill(&mut guest, 3..512, 9);
        assert!(guest.session().discard(error.next, 491).is_ok(), "{policy}");
        guest.domain.audit().unwrap();
    }
}
