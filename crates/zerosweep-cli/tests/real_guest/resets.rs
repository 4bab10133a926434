//! A guest that is reset while its balloon inflates, at several points and several times in turn:
//! it uses the ballooned pages again and does not say so, and it boots within its target.

use std::time::Duration;

use serde_json::json;
use zerosweep_wire::State;

use super::harness::{GUEST_BYTES, Guest, Place, Spec, stderr, stdout, wait_until};

const TARGET_BYTES: u64 = 400 << 20;

#[test]
#[ignore = "needs QEMU, a guest image and userfaultfd: cargo xtask test sets them up"]
fn a_guest_that_is_reset_while_it_balloons_boots_within_its_target() {
    let place = Place::new();
    let append = "zs.fill=96M zs.first=30 zs.settle=240 zs.end=idle";
    let run = ["--target", "400M"];
    let spec = Spec { run: &run, append, reboots: true, ..Spec::default() };
    let guest = Guest::managed(&place, &spec);
    // The share of its way that the balloon has gone when the guest is reset.
    let mut from = 0;
    println!();
    for share in [0.02, 0.6] {
        guest.marker_from(from, "balloon loaded devices=1");
        let mut qmp = guest.qmp();
        let owed = (GUEST_BYTES - TARGET_BYTES) as f64;
        let gone = wait_until("the balloon is on its way", Duration::from_secs(60), || {
            let gone = (GUEST_BYTES - qmp.balloon_actual().unwrap()) as f64 / owed;
            (gone >= share).then_some(gone)
        });
        from = guest.console.len();
        qmp.execute("system_reset", &json!({})).unwrap();
        if share == 0.6 {
            // Once more before it has got far.
            std::thread::sleep(Duration::from_millis(700));
            qmp.execute("system_reset", &json!({})).unwrap();
            from = guest.console.len();
        }
        drop(qmp);
        println!("  reset when {:.0} % were given back", gone * 100.0);
        guest.marker_from(from, "boot ");
        check(&guest, &place);
    }
    guest.marker_from(from, "balloon settled");
    assert!(guest.marker_from(from, "verified ").text.contains(" bad=0 "));
    guest.marker_from(from, "done ok");
    check(&guest, &place);
    let status = guest.status();
    println!(
        "  {} pages given back, {} retaken, peak {} of {} pages",
        status.counters.engine.pages_given_back,
        status.counters.engine.pages_retaken,
        status.counters.engine.peak_total,
        status.pages.target
    );
}

#[track_caller]
fn check(guest: &Guest, place: &Place) {
    let output = place.output(["audit", "vm"]);
    assert!(output.status.success(), "R19: {}{}", stdout(&output), stderr(&output));
    let status = guest.status();
    if status.state != State::Managing
        || status.borrowed_pages != 0
        || status.counters.engine.exhaustions != 0
        || status.counters.engine.peak_total > status.pages.target
    {
        guest.fail("it is within its target, and nobody waits or borrows");
    }
}
