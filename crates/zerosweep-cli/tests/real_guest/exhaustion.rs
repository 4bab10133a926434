//! Rule R15: a guest that needs more than its target, and has nothing to give.

use std::time::{Duration, Instant};

use zerosweep_wire::State;

use super::harness::{Guest, MEBIBYTE, PATIENCE, Place, Spec, wait_until};

/// More than the target, none of it zero.
const APPEND: &str = "init_on_free=1 zs.fill=400M zs.end=idle";
const RAISED_BYTES: u64 = 600 << 20;

#[test]
#[ignore = "needs QEMU, a guest image and userfaultfd: cargo xtask test sets them up"]
fn a_guest_above_its_target_stalls_until_the_target_rises() {
    let place = Place::new();
    let run = ["--target", "300M", "--on-exhaustion", "stall"];
    let guest = Guest::managed(&place, &Spec { run: &run, append: APPEND, ..Spec::default() });
    guest.marker("boot ");
    let mut agent = guest.agent();
    wait_until("the guest stalls", PATIENCE, || {
        (agent.status().unwrap().stalled_threads >= 1).then_some(())
    });

    // It stays like this: above no target, without damage, and everyone answers.
    let stalled_at = Instant::now();
    let mut slowest = Duration::ZERO;
    while stalled_at.elapsed() < Duration::from_secs(4) {
        let asked = Instant::now();
        let running = guest.qmp().execute("query-status", &serde_json::json!({})).unwrap();
        assert_eq!(running["running"], true);
        slowest = slowest.max(asked.elapsed());
        let status = agent.status().unwrap();
        let total = status.pages.total;
        if total > status.pages.target || status.state != State::Managing {
            guest.fail("INV-3: above the target, and nobody asked to borrow");
        }
        if status.stalled_threads == 0 {
            guest.fail("it stalls no longer, although nothing has changed");
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    println!("\n  stalled: slowest answer of QEMU {:.0} ms", slowest.as_secs_f64() * 1e3);
    assert!(slowest < Duration::from_secs(5), "QEMU answered after {slowest:?}");
    assert!(guest.errors.has("waits for memory"), "the stall is told: {}", guest.errors.tail(5));

    // The guest must not be squeezed below what it filled.
    guest.qmp().balloon(RAISED_BYTES).unwrap();
    agent.set_target(RAISED_BYTES).unwrap();
    guest.marker("filled ");
    guest.marker("balloon settled");
    assert!(guest.marker("verified ").text.contains(" bad=0 "));
    guest.marker("done ok");
    let status = agent.status().unwrap();
    let target = RAISED_BYTES / 4096;
    if status.stalled_threads != 0
        || status.borrowed_pages != 0
        || status.counters.peak_total_pages > target
        || status.counters.exhaustions == 0
    {
        guest.fail("it goes on within the new target, without borrowing");
    }
    let audited = place.output(["audit", "vm"]);
    assert_eq!(audited.status.code(), Some(0));
}

#[test]
#[ignore = "needs QEMU, a guest image and userfaultfd: cargo xtask test sets them up"]
fn a_guest_above_its_target_borrows_and_says_so() {
    let place = Place::new();
    let run = ["--target", "300M", "--on-exhaustion", "borrow"];
    let guest = Guest::managed(&place, &Spec { run: &run, append: APPEND, ..Spec::default() });
    guest.marker("boot ");
    // As above; zerosweep has sent its own target before.
    guest.qmp().balloon(RAISED_BYTES).unwrap();
    let began = Instant::now();
    guest.marker("filled ");
    let status = guest.status();
    println!(
        "\n  borrowed {} MiB; filled after {:.1} s; {} sweep steps looked at {} pages",
        status.borrowed_pages * 4096 / MEBIBYTE,
        began.elapsed().as_secs_f64(),
        status.counters.emergency_sweeps,
        status.counters.zero_checks_4k
    );
    if status.borrowed_pages == 0 || status.state != State::Managing {
        guest.fail("more than the target is filled, so something is borrowed");
    }
    assert!(guest.marker("verified ").text.contains(" bad=0 "));
    guest.marker("done ok");
    wait_until("the borrowing is told", Duration::from_secs(5), || {
        guest.errors.has("beyond its target").then_some(())
    });
    let audited = place.output(["audit", "vm"]);
    assert_eq!(audited.status.code(), Some(0));
}
