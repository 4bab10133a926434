//! Helpers of the tests of several rules.

use zerosweep::{Config, Event, Fault, FaultError, Gfn, Host, Order, Policy, Session};
use zerosweep_sim::{Recorder, SoftwareGuest};

pub(crate) fn order(raw: u8) -> Order {
    Order::new(raw).unwrap()
}

pub(crate) fn guest(max: u64, target: u64, policy: Policy) -> SoftwareGuest {
    SoftwareGuest::new(Config::new(max, target, policy)).unwrap()
}

pub(crate) fn fill(guest: &mut SoftwareGuest, pages: impl IntoIterator<Item = u64>, value: u64) {
    for page in pages {
        guest.write(Gfn::new(page), 0, value).unwrap();
    }
}

pub(crate) fn state(guest: &SoftwareGuest) -> (u64, u64, u64) {
    guest.domain.audit().unwrap();
    let q = guest.domain.quantities();
    (q.entries, q.cache, q.total())
}

pub(crate) fn record(
    guest: &mut SoftwareGuest,
    work: impl FnOnce(&mut Session<Recorder<'_>>),
) -> Vec<Event> {
    let mut session = Session::new(Recorder::new(guest));
    work(&mut session);
    std::mem::take(&mut session.host().events)
}

/// What a fault comes to when nobody says meanwhile that a sweep is worth another try.
pub(crate) fn borrow<H: Host>(session: &mut Session<H>, gfn: Gfn) -> Result<Fault, FaultError> {
    loop {
        match session.fault_borrowing(gfn) {
            Ok(Fault::Again) => {}
            other => return other,
        }
    }
}

pub(crate) fn borrow_and_write(guest: &mut SoftwareGuest, page: u64) {
    let gfn = Gfn::new(page);
    assert!(matches!(borrow(&mut guest.session(), gfn), Ok(Fault::Present { .. })));
    let (mfn, _) = guest.machine.translate(gfn).unwrap();
    guest.machine.set_word(mfn, 0, 1);
}
