//! Machine types: each has its own firmware, memory map and bus for the balloon.

use rustix::process::Signal;
use zerosweep_wire::State;

use super::harness::{GUEST_BYTES, Guest, Place, Spec, value};

const TARGET_BYTES: u64 = 300 << 20;
/// What may be left, in KiB, when a pause of the balloon looks like its end.
const PAUSE_KIB: f64 = 8192.0;

#[test]
#[ignore = "needs QEMU, guest image, userfaultfd"]
fn pc() {
    boots_and_balloons("pc", "");
}

#[test]
#[ignore = "needs QEMU, guest image, userfaultfd"]
fn q35() {
    boots_and_balloons("q35", "");
}

/// Without PCI; its guest finds the virtio devices in ACPI's tables. Linux has no timer on this
/// machine to measure the CPU's clock with, and on a software CPU nothing else tells it: it waits for
/// ever. So it is told; how exactly matters only to its time of day.
#[test]
#[ignore = "needs QEMU, guest image, userfaultfd"]
fn microvm() {
    boots_and_balloons("microvm", "tsc_early_khz=2000000");
}

#[track_caller]
fn boots_and_balloons(machine: &str, append: &str) {
    let place = Place::new();
    let append = format!("zs.fill=64M zs.settle=240 zs.end=idle {append}");
    let spec = Spec { qemu: &["-M", machine], append: &append, ..Spec::default() };
    let mut guest = Guest::managed(&place, &spec);
    let settled = guest.marker("balloon settled");
    let given_back_kib = value(&settled, "mem_before") - value(&settled, "mem_total");
    let owed_kib = ((GUEST_BYTES - TARGET_BYTES) >> 10) as f64;
    assert!(
        given_back_kib >= owed_kib - PAUSE_KIB,
        "{given_back_kib} of {owed_kib} KiB given back"
    );
    assert!(guest.marker("verified ").text.contains(" bad=0 "));
    guest.marker("done ok");
    let status = guest.status();
    if status.state != State::Managing
        || status.pages.ballooned_out == 0
        || status.counters.engine.peak_total > status.pages.target
        || status.borrowed_pages != 0
    {
        guest.fail("it is not managed within its target");
    }
    guest.signal(Signal::TERM);
    assert_eq!(guest.end(), 0, "{machine}");
    guest.wait_until_gone();
    assert_eq!(place.left_behind(), [""; 0], "{machine}");
}
