//! [R12](zerosweep::rules#r12).

use zerosweep::{
    Config, Entry, FaultError, Gfn, InvalidTouch, Order, Policy, Progress, Superpage,
    SuperpageState, Upkeep,
};
use zerosweep_sim::{SoftwareGuest, TouchError};

use crate::support::{fill, guest};

#[test]
fn r12_a_page_given_back_is_zero_and_leaves_its_superpage_whole() {
    let mut guest = guest(8 * 512, 8 * 512, Policy::Zerosweep);
    fill(&mut guest, 0..512, 7);
    assert_eq!(guest.session().decrease(Gfn::new(9), Order::PAGE), Ok(1));
    assert_eq!(guest.session().decrease(Gfn::new(9), Order::PAGE), Ok(0), "given back twice");
    let q = guest.domain.quantities();
    assert_eq!((q.guest(), q.populated, q.retained, q.total()), (4095, 511, 1, 4096));
    assert!(matches!(guest.domain.p2m().whole(Superpage::new(0)), Some(Entry::Ram { .. })));
    assert_eq!(guest.domain.p2m().get(Gfn::new(9)).0, Entry::Invalid);
    assert_eq!(guest.read(Gfn::new(9), 0), Err(TouchError::Fault(FaultError::Unmapped)));
    let (mfn, _) = guest.machine.translate(Gfn::new(9)).unwrap();
    assert_eq!(guest.machine.word(mfn, 0), 0, "INV-11");
    // populate_physmap takes it again at once.
    guest.session().populate_physmap(Gfn::new(9), Order::PAGE).unwrap();
    assert_eq!(guest.read(Gfn::new(9), 0), Ok(0));
    assert_eq!(guest.domain.quantities().retained, 0);
    guest.domain.audit().unwrap();
}

#[test]
fn r12_silent_re_use_keeps_its_data() {
    let config = Config {
        invalid_touch: InvalidTouch::Increase,
        ..Config::new(8 * 512, 8 * 512, Policy::Zerosweep)
    };
    let mut guest = SoftwareGuest::new(config).unwrap();
    fill(&mut guest, 0..4096, 7);
    for page in 0..1000 {
        guest.session().decrease(Gfn::new(page), Order::PAGE).unwrap();
    }
    // The guest takes some again and says nothing. Then all retained frames are needed.
    fill(&mut guest, 600..700, 8);
    guest.session().set_target(2048).unwrap();
    for page in 600..700 {
        assert_eq!(guest.read(Gfn::new(page), 0), Ok(8));
    }
    assert_eq!(guest.domain.statistics().pages_retaken, 100);
    let q = guest.domain.quantities();
    assert_eq!((q.retained, q.populated), (0, 4096 - 1000 + 100));
    guest.domain.audit().unwrap();
}

#[test]
fn r12_a_guest_that_says_so_takes_its_pages_again_without_a_fault() {
    let mut guest = guest(8 * 512, 8 * 512, Policy::Zerosweep);
    fill(&mut guest, 0..512, 7);
    for page in 0..100 {
        guest.session().decrease(Gfn::new(page), Order::PAGE).unwrap();
    }
    assert_eq!(guest.session().retake(Gfn::new(50), 1000), 50);
    assert_eq!(guest.domain.quantities().retained, 50);
    assert_eq!(guest.domain.quantities().populated, 462);
    guest.domain.audit().unwrap();
}

#[test]
fn r12_when_frames_are_needed_the_fewest_live_pages_are_broken_first() {
    let mut guest = guest(8 * 512, 4 * 512, Policy::Zerosweep);
    fill(&mut guest, 0..4 * 512, 7);
    // Three, 500 and 100 live pages are left, and all of the fourth; no page is owed to anyone.
    for (superpage, live) in [(0, 3), (1, 500), (2, 100)] {
        for page in (superpage * 512 + live)..(superpage + 1) * 512 {
            guest.session().decrease(Gfn::new(page), Order::PAGE).unwrap();
        }
    }
    let states =
        |guest: &SoftwareGuest| [0, 1, 2, 3].map(|n| guest.domain.p2m().state(Superpage::new(n)));
    assert!(!states(&guest).contains(&SuperpageState::Broken));
    guest.write(Gfn::new(5 * 512), 0, 1).unwrap();
    // The first brought singles only; with these the next one came free whole.
    assert_eq!(
        states(&guest),
        [
            SuperpageState::Broken,
            SuperpageState::Retaining,
            SuperpageState::Broken,
            SuperpageState::Whole
        ]
    );
    assert_eq!(guest.read(Gfn::new(2), 0), Ok(7));
    guest.domain.audit().unwrap();
}

#[test]
fn r12_a_superpage_of_which_all_is_out_or_zero_is_reclaimed_in_one_step() {
    let mut guest = guest(16 * 512, 8 * 512, Policy::Zerosweep);
    fill(&mut guest, 0..512, 7);
    fill(&mut guest, 0..200, 0);
    let before = guest.domain.quantities();
    for page in 200..512 {
        guest.session().decrease(Gfn::new(page), Order::PAGE).unwrap();
    }
    let mut next = 0;
    let _ = guest.session().sweep_full(&mut next, 1);
    let after = guest.domain.quantities();
    assert_eq!((after.retained, after.populated), (0, 0));
    assert_eq!((after.entries, after.cache), (before.entries + 200, before.cache + 512));
    guest.domain.audit().unwrap();
}

#[test]
fn r12_frames_for_pages_that_were_taken_again_come_from_the_host() {
    let config = Config { upkeep: Upkeep::Host, ..Config::new(2048, 2048, Policy::Zerosweep) };
    let mut guest = SoftwareGuest::new(config).unwrap();
    fill(&mut guest, 0..1536, 7);
    // Half of each of two superpages, which stay whole.
    for page in (0..256).chain(512..768) {
        guest.session().decrease(Gfn::new(page), Order::PAGE).unwrap();
    }
    while guest.session().upkeep(1, false) == Progress::More {}
    let before = guest.domain.quantities();
    assert_eq!((before.cache, before.entries, before.retained), (0, 512, 512));
    assert!(!guest.domain.wants_upkeep(false), "what is out backs what is promised");
    assert_eq!(guest.session().retake(Gfn::new(1), 1000), 511);
    assert!(!guest.domain.wants_upkeep(false), "less than a superpage is wanted");
    assert_eq!(guest.session().retake(Gfn::new(0), 1), 1);
    assert!(guest.domain.wants_upkeep(false));
    while guest.session().upkeep(1, false) == Progress::More {}
    assert_eq!(guest.domain.cache().superpages(), 1);
    guest.domain.audit().unwrap();
}
