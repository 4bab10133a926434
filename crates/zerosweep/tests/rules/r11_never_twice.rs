//! [R11](zerosweep::rules#r11).

use zerosweep::{Config, Gfn, Order, Policy, Progress, Upkeep};
use zerosweep_sim::{SoftwareGuest, SoftwareMachine};

use crate::support::fill;

#[test]
fn r11_verified_frames_are_not_cleared_again_and_no_frame_is_handed_out_dirty() {
    let machine = SoftwareMachine::new(1024).with_poison();
    let mut ours = SoftwareGuest::on(machine, Config::new(4096, 1024, Policy::Zerosweep)).unwrap();
    let filled = ours.domain.statistics().bytes_cleared;
    for page in 0..4096 {
        assert_eq!(ours.read(Gfn::new(page), 8), Ok(0));
        ours.write(Gfn::new(page), 0, 0).unwrap();
    }
    assert_eq!(ours.domain.statistics().bytes_cleared, filled, "nothing was cleared twice");
    fill(&mut ours, 0..100, 5);
    ours.session().decrease(Gfn::new(0), Order::PAGE).unwrap();
    ours.session().discard(Gfn::new(1), 99).unwrap();
    for page in 1..4096 {
        assert_eq!(ours.read(Gfn::new(page), 0), Ok(0), "page {page}");
    }
}

#[test]
fn r11_what_comes_back_dirty_is_cleared_later_and_never_handed_out_so() {
    let machine = SoftwareMachine::new(4 * 512).with_poison();
    let config =
        Config { upkeep: Upkeep::Host, ..Config::new(8 * 512, 4 * 512, Policy::Zerosweep) };
    let mut guest = SoftwareGuest::on(machine, config).unwrap();
    fill(&mut guest, 0..4 * 512, 7);
    let before = *guest.domain.statistics();
    guest.session().decrease(Gfn::new(0), Order::SUPERPAGE).unwrap();
    assert_eq!(guest.domain.statistics().bytes_cleared, before.bytes_cleared);
    assert_eq!((guest.domain.cache().dirty_pages(), guest.domain.cache().clean_pages()), (512, 0));
    assert!(guest.domain.wants_upkeep(false));
    assert_eq!(guest.read(Gfn::new(2100), 0), Ok(0), "the fault clears what it needs");
    guest.session().decrease(Gfn::new(512), Order::SUPERPAGE).unwrap();
    assert_eq!(guest.session().upkeep(10, false), Progress::Done);
    assert_eq!(guest.domain.cache().dirty_pages(), 0);
    assert_eq!(guest.read(Gfn::new(2600), 0), Ok(0));
    guest.domain.audit().unwrap();
}
