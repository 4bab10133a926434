//! The VMM or the tool is killed: nothing is left behind, and no guest ends with its tool.

use rustix::process::{Pid, Signal};

use super::harness::{ENDING, Guest, PATIENCE, Place, Spec, stderr, stdout, wait_until};

#[test]
#[ignore = "needs QEMU, a guest image and userfaultfd: cargo xtask test sets them up"]
fn killed_vmm_leaves_nothing() {
    let place = Place::new();
    let spec = Spec { append: "zs.fill=64M zs.end=idle", ..Spec::default() };
    let mut guest = Guest::managed(&place, &spec);
    guest.marker("filled ");
    let vmm = i32::try_from(guest.status().pid).ok().and_then(Pid::from_raw).unwrap();
    rustix::process::kill_process(vmm, Signal::KILL).unwrap();
    assert_eq!(guest.end(), 137, "as a shell says it: 128 and SIGKILL");
    guest.wait_until_gone();
    assert_eq!(place.left_behind(), [""; 0]);
    let listed = place.output(["ps", "--json"]);
    assert!(!stdout(&listed).contains("\"vm\""), "{}", stdout(&listed));
}

#[test]
#[ignore = "needs QEMU, a guest image and userfaultfd: cargo xtask test sets them up"]
fn killed_tool_leaves_the_guest_running() {
    let place = Place::new();
    let spec = Spec { append: "init_on_free=1 zs.fill=64M zs.rewrite=1", ..Spec::default() };
    let mut guest = Guest::managed(&place, &spec);
    guest.marker("boot ");
    let vmm = guest.status().pid;
    guest.signal(Signal::KILL);
    assert_eq!(guest.end(), 137);
    assert_eq!(guest.processes(), [vmm], "the VMM runs on");

    guest.marker("filled ");
    let status = place.output(["status", "vm"]);
    assert_eq!(status.status.code(), Some(0), "{}", stderr(&status));
    guest.marker("balloon settled");
    let pages = guest.status().pages;
    assert!(pages.total <= pages.target, "the guest is managed as before: {pages:?}");
    assert!(guest.marker("verified ").text.contains(" bad=0 "));
    guest.marker("done ok");
    guest.wait_until_gone();
    let left = place.left_behind();
    assert!(left.iter().all(|file| file == "vm.lock"), "sockets are left: {left:?}");
    assert_eq!(place.output(["ps"]).status.code(), Some(0));
    assert_eq!(place.left_behind(), [""; 0], "ps clears up after a dead run");
}

#[test]
#[ignore = "needs QEMU, a guest image and userfaultfd: cargo xtask test sets them up"]
fn ctrl_c_ends_both() {
    let place = Place::new();
    let spec = Spec { append: "zs.end=idle", ..Spec::default() };
    let mut guest = Guest::managed(&place, &spec);
    guest.marker("boot ");
    guest.signal_group(Signal::INT);
    let code = guest.end();
    assert_eq!(code, 0, "QEMU ends well at SIGINT, and its status is passed on");
    guest.wait_until_gone();
    assert_eq!(place.left_behind(), [""; 0]);
}

#[test]
#[ignore = "needs QEMU, a guest image and userfaultfd: cargo xtask test sets them up"]
fn a_guest_that_powers_off_ends_run() {
    let place = Place::new();
    let mut guest = Guest::managed(&place, &Spec { append: "zs.fill=8M", ..Spec::default() });
    guest.marker("done ok");
    assert_eq!(guest.end(), 0);
    guest.wait_until_gone();
    wait_until("the runtime directory is empty", ENDING.min(PATIENCE), || {
        place.left_behind().is_empty().then_some(())
    });
}
