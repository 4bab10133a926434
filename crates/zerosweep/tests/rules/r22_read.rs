//! [R22](zerosweep::rules#r22).

use zerosweep::{Config, Entry, Fault, FaultError, Gfn, InvalidTouch, Order, Policy, Superpage};
use zerosweep_sim::{Failure, SoftwareGuest, SoftwareMachine};

use crate::support::{fill, order};

fn guest(max: u64, target: u64) -> SoftwareGuest {
    let config = Config::new(max, target, Policy::Zerosweep);
    let config = Config { invalid_touch: InvalidTouch::Increase, ..config };
    // The host has frames beyond the target.
    SoftwareGuest::on(SoftwareMachine::new(max), config).unwrap()
}

/// What a read is answered with where zeros are shown.
fn shown(page: u64) -> Result<Option<Fault>, FaultError> {
    let first = Gfn::new(page).superpage().first();
    Ok(Some(Fault::Present { gfn: first, order: Order::SUPERPAGE }))
}

fn read_by_host(guest: &mut SoftwareGuest, page: u64) -> Result<Option<Fault>, FaultError> {
    let fault = guest.session().fault_reading(Gfn::new(page));
    guest.domain.audit().unwrap();
    fault
}

#[test]
fn r22_a_guest_that_is_read_out_gets_no_frames() {
    let mut guest = guest(8 * 512, 2 * 512);
    fill(&mut guest, 0..700, 7);
    for page in 2000..2500 {
        guest.session().decrease(Gfn::new(page), Order::PAGE).unwrap();
    }
    guest.session().decrease(Gfn::new(3072), order(9)).unwrap();
    let entries = |guest: &SoftwareGuest| -> Vec<_> {
        (0..8 * 512).map(|page| guest.domain.p2m().get(Gfn::new(page))).collect()
    };
    let (quantities, before) = (guest.domain.quantities(), entries(&guest));
    for page in 0..8 * 512 {
        let has_frame = matches!(guest.domain.p2m().get(Gfn::new(page)).0, Entry::Ram { .. });
        let expect = if has_frame { Ok(None) } else { shown(page) };
        assert_eq!(read_by_host(&mut guest, page), expect, "page {page}");
    }
    assert_eq!(guest.domain.quantities(), quantities);
    assert_eq!(entries(&guest), before);
    assert!(guest.domain.statistics().pages_shown > 0);
    // A write is a touch as before.
    guest.write(Gfn::new(3072), 0, 9).unwrap();
    assert_eq!(guest.read(Gfn::new(3072), 0), Ok(9));
}

#[test]
fn r22_what_the_guest_writes_meanwhile_is_kept() {
    // A page that is promised, one that was given back, and each once without a free frame.
    for (page, given_back, target) in
        [(1000, false, 1024), (1000, true, 1024), (1000, false, 512), (1000, true, 512)]
    {
        let mut guest = guest(4 * 512, target);
        fill(&mut guest, 0..512, 7);
        if given_back {
            guest.session().decrease(Gfn::new(512), order(9)).unwrap();
        }
        guest.machine.write_when_shown(Gfn::new(page), 0, 9);
        assert_eq!(read_by_host(&mut guest, 700), shown(700));
        assert_eq!(guest.read(Gfn::new(page), 0), Ok(9), "{given_back}, {target}");
        assert_eq!(guest.read(Gfn::new(0), 0), Ok(7));
        let statistics = guest.domain.statistics();
        assert_eq!(statistics.pages_shown, 511);
        let pressed = target == 512;
        assert_eq!(statistics.borrowed, u64::from(pressed), "{given_back}, {target}");
        assert!(guest.domain.p2m().whole(Superpage::new(1)).is_none());
    }
}

#[test]
fn r22_what_was_written_and_cannot_be_kept_is_told() {
    let mut guest = guest(4 * 512, 1024);
    fill(&mut guest, 0..512, 7);
    guest.machine.write_when_shown(Gfn::new(1000), 3, 9);
    // The zeros are shown; no frame can be mapped afterwards.
    guest.machine.fail(1, 100, Failure::Refuse);
    assert_eq!(read_by_host(&mut guest, 700), Err(FaultError::Unkept));
}

#[test]
fn r22_a_machine_that_shows_no_zeros_populates() {
    let mut guest = guest(4 * 512, 1024);
    guest.machine.fail(0, 1, Failure::Refuse);
    assert_eq!(read_by_host(&mut guest, 700), Ok(None));
    // So is what is beyond the guest, or not its own.
    assert_eq!(read_by_host(&mut guest, 4 * 512), Ok(None));
}

#[test]
fn r22_a_page_that_was_given_back_is_refused_where_its_touch_is() {
    let mut guest = SoftwareGuest::new(Config::new(4 * 512, 1024, Policy::Zerosweep)).unwrap();
    guest.session().decrease(Gfn::new(512), order(9)).unwrap();
    assert_eq!(read_by_host(&mut guest, 512), Ok(None));
    assert_eq!(guest.session().fault(Gfn::new(512)), Err(FaultError::Unmapped));
}
