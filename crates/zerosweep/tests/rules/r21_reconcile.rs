//! [R21](zerosweep::rules#r21).

use zerosweep::{
    Config, Entry, Gfn, InvalidTouch, Order, Policy, Progress, Reconciliation, Superpage,
};
use zerosweep_sim::SoftwareGuest;

use crate::support::{fill, order};

/// A guest whose touch of a page that it gave back takes the page back.
fn guest(max: u64, target: u64, policy: Policy) -> SoftwareGuest {
    let config = Config::new(max, target, policy);
    SoftwareGuest::new(Config { invalid_touch: InvalidTouch::Increase, ..config }).unwrap()
}

fn reconcile(guest: &mut SoftwareGuest, ballooned: u64) {
    let mut work = Reconciliation::new(ballooned);
    while guest.session().reconcile(&mut work, 3) == Progress::More {}
    guest.domain.audit().unwrap();
}

fn given_back(guest: &SoftwareGuest) -> u64 {
    let quantities = guest.domain.quantities();
    quantities.max - quantities.guest()
}

#[test]
fn r21_a_guest_that_arrives_with_a_full_balloon_owes_nothing() {
    for policy in Policy::ALL {
        let mut guest = guest(16 * 512, 4 * 512, policy);
        fill(&mut guest, 0..1000, 7);
        assert!(guest.domain.quantities().owed() > 0);
        reconcile(&mut guest, 12 * 512);
        assert_eq!(given_back(&guest), 12 * 512, "{policy}");
        assert!(guest.domain.quantities().owed() <= 0, "{policy}");
        let p2m = guest.domain.p2m();
        // What it has is as it was, and the promises that are left are beside it, whole.
        assert_eq!(p2m.whole(Superpage::new(2)), Some(Entry::Pod), "{policy}");
        assert_eq!(p2m.whole(Superpage::new(4)), Some(Entry::Invalid), "{policy}");
        for page in 0..1000 {
            assert_eq!(guest.read(Gfn::new(page), 0), Ok(7));
        }
    }
}

#[test]
fn r21_a_page_whose_promise_was_dropped_is_taken_back_by_a_touch() {
    let mut guest = guest(8 * 512, 2 * 512, Policy::Zerosweep);
    fill(&mut guest, 0..10, 7);
    reconcile(&mut guest, 6 * 512);
    guest.write(Gfn::new(4000), 0, 9).unwrap();
    assert_eq!(guest.read(Gfn::new(4000), 0), Ok(9));
    assert_eq!(given_back(&guest), 6 * 512 - 1);
    guest.domain.audit().unwrap();
}

#[test]
fn r21_a_guest_that_took_everything_back_silently_is_promised_it_again() {
    for policy in Policy::ALL {
        let mut guest = guest(8 * 512, 4 * 512, policy);
        fill(&mut guest, 0..512, 7);
        // Pages that keep their frames, pages of broken superpages, and a whole superpage.
        for gfn in (100..200).chain(700..900).map(Gfn::new) {
            assert_eq!(guest.session().decrease(gfn, Order::PAGE), Ok(1));
        }
        assert_eq!(guest.session().decrease(Gfn::new(6 * 512), order(9)), Ok(512));
        reconcile(&mut guest, 0);
        assert_eq!(given_back(&guest), 0, "{policy}");
        for page in 100..200 {
            assert_eq!(guest.read(Gfn::new(page), 0), Ok(0), "{policy}");
        }
        for page in (0..100).chain(200..512) {
            assert_eq!(guest.read(Gfn::new(page), 0), Ok(7), "{policy}");
        }
        assert_eq!(guest.domain.p2m().get(Gfn::new(6 * 512)), (Entry::Pod, Order::SUPERPAGE));
    }
}

#[test]
fn r21_one_promise_is_broken_for_the_last_pages() {
    let mut guest = guest(8 * 512, 4 * 512, Policy::Zerosweep);
    fill(&mut guest, 0..1024, 7);
    let broken = |guest: &SoftwareGuest| -> Vec<u64> {
        (0..8).filter(|&n| guest.domain.p2m().whole(Superpage::new(n)).is_none()).collect()
    };
    reconcile(&mut guest, 1300);
    assert_eq!((given_back(&guest), broken(&guest)), (1300, vec![5]));
    // The next difference is made up in there.
    reconcile(&mut guest, 1400);
    assert_eq!((given_back(&guest), broken(&guest)), (1400, vec![5]));
    reconcile(&mut guest, 1290);
    assert_eq!((given_back(&guest), broken(&guest)), (1290, vec![5]));
}

#[test]
fn r21_a_superpage_that_was_given_back_is_broken_if_pages_of_it_are_taken_again() {
    let mut guest = guest(8 * 512, 4 * 512, Policy::Zerosweep);
    assert_eq!(guest.session().decrease(Gfn::new(1024), order(9)), Ok(512));
    reconcile(&mut guest, 500);
    assert_eq!(given_back(&guest), 500);
    assert_eq!(guest.domain.p2m().tally(Superpage::new(2)).pod, 12);
}

#[test]
fn r21_more_than_there_is_changes_no_page_with_content() {
    let mut guest = guest(4 * 512 + 7, 4 * 512, Policy::Zerosweep);
    fill(&mut guest, 0..700, 7);
    reconcile(&mut guest, u64::MAX);
    for page in 0..700 {
        assert_eq!(guest.read(Gfn::new(page), 0), Ok(7));
    }
    guest.domain.audit().unwrap();
}

#[test]
fn r21_no_promise_is_dropped_where_a_touch_would_be_refused() {
    let config = Config::new(8 * 512, 2 * 512, Policy::Zerosweep);
    let refuse = Config { invalid_touch: InvalidTouch::Refuse, ..config };
    let mut guest = SoftwareGuest::new(refuse).unwrap();
    reconcile(&mut guest, 6 * 512);
    assert_eq!(given_back(&guest), 0);
    guest.write(Gfn::new(4000), 0, 9).unwrap();
}
