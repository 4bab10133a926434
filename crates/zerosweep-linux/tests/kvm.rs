//! The example is what it says: a guest under KVM whose faults are served.
#![cfg(target_arch = "x86_64")]

#[path = "../examples/kvm/machine.rs"]
mod example;

#[test]
#[ignore = "needs userfaultfd, KVM"]
fn a_guest_under_kvm_holds_no_more_than_its_target() {
    let outcome = example::run().unwrap();
    assert_eq!(outcome.wrong_pages, 0);
    // What keeps its frame in a whole superpage is counted when it is found there.
    assert_eq!(outcome.given_back, 512);
    let statistics = &outcome.snapshot.statistics;
    assert!(outcome.snapshot.faults >= 30, "{} faults", outcome.snapshot.faults);
    assert!(statistics.peak_total <= 16 << 8, "{} pages", statistics.peak_total);
    assert!(statistics.superpages_reclaimed >= 20, "{statistics:?}");
    assert_eq!(outcome.snapshot.borrowed, 0);
    assert_eq!(outcome.snapshot.lifted, None);
}
