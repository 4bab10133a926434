//! One process is stopped for a while (`SIGSTOP`, a debugger, a laptop's lid): the guest and all
//! other processes go on, and afterwards all is as before.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use zerosweep_wire::{State, runtime};

use super::harness::{ENDING, Guest, Place, Spec, stderr, wait_until};

/// Longer than any look of the tool's and any timeout of a single answer.
const STOPPED: Duration = Duration::from_secs(3);

#[test]
#[ignore = "needs QEMU, a guest image and userfaultfd: cargo xtask test sets them up"]
fn a_stopped_tool_leaves_guest_and_others_alone() {
    let place = Place::new();
    let run = ["--target", "600M"];
    let append = "zs.fill=96M zs.stir=64M zs.end=idle";
    let mut guest = Guest::managed(&place, &Spec { run: &run, append, ..Spec::default() });
    guest.marker("done ok");
    wait_until("the tool has seen the balloon arrive", Duration::from_secs(60), || {
        guest.errors.has("is down to").then_some(())
    });
    guest.signal(Signal::STOP);
    let from = guest.console.len();
    // The guest goes on, and another tool moves its target up and down.
    guest.marker_from(from, "stirred ");
    for size in ["800M", "600M"] {
        let output = place.output(["set-target", "vm", size, "--wait", "10"]);
        assert!(output.status.success(), "{}", stderr(&output));
    }
    std::thread::sleep(STOPPED);
    check(&place, &guest);
    guest.signal(Signal::CONT);
    check(&place, &guest);
    std::thread::sleep(Duration::from_secs(2));
    assert!(!guest.errors.has("does not answer"), "{}", guest.errors.tail(5));
    // The tool works again: it passes signals on.
    guest.signal(Signal::TERM);
    assert_eq!(guest.end(), 0);
    guest.wait_until_gone();
    assert_eq!(place.left_behind(), [""; 0]);
}

/// What a tool saw before it was stopped is old when it goes on: it must not end the guest for it.
#[test]
#[ignore = "needs QEMU, a guest image and userfaultfd: cargo xtask test sets them up"]
fn a_tool_that_is_stopped_while_the_guest_starts_does_not_end_it() {
    let place = Place::new();
    let run = ["--target", "300M", "--wait-agent", "1"];
    let spec = Spec { run: &run, append: "zs.fill=64M zs.end=idle", ..Spec::default() };
    let guest = Guest::managed(&place, &spec);
    wait_until("the VMM is started", ENDING, || (guest.processes().len() > 1).then_some(()));
    std::thread::sleep(Duration::from_millis(80));
    guest.signal(Signal::STOP);
    std::thread::sleep(STOPPED);
    guest.signal(Signal::CONT);
    guest.marker("balloon settled");
    assert!(guest.marker("verified ").text.contains(" bad=0 "));
    guest.marker("done ok");
    check(&place, &guest);
}

#[test]
#[ignore = "needs QEMU, a guest image and userfaultfd: cargo xtask test sets them up"]
fn a_client_that_is_stopped_in_the_middle_of_a_request_is_nobodys_trouble() {
    let place = Place::new();
    let run = ["--target", "600M"];
    let append = "zs.fill=96M zs.stir=64M zs.end=idle";
    let guest = Guest::managed(&place, &Spec { run: &run, append, ..Spec::default() });
    guest.marker("done ok");
    // Half a request, and a request whose answer nobody takes.
    let socket = runtime::control_socket(&place.runtime(), "vm");
    let mut half = UnixStream::connect(&socket).unwrap();
    half.write_all(b"{\"id\": 1, \"op\": \"sta").unwrap();
    let mut deaf = UnixStream::connect(&socket).unwrap();
    deaf.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    while deaf.write_all(b"{\"id\": 1, \"op\": \"map\", \"first\": 0}\n").is_ok() {}
    let mut tools: Vec<Child> = ["sweep", "consolidate", "sweep"]
        .into_iter()
        .map(|command| {
            let mut command = place.command([command, "vm"]);
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for (tool, after) in tools.iter().zip([2, 5, 10]) {
        std::thread::sleep(Duration::from_millis(after));
        let _ = rustix::process::kill_process(Pid::from_child(tool), Signal::STOP);
    }
    let from = guest.console.len();
    guest.marker_from(from, "stirred ");
    std::thread::sleep(STOPPED);
    check(&place, &guest);
    for tool in &mut tools {
        let _ = rustix::process::kill_process(Pid::from_child(tool), Signal::CONT);
        let status = wait_until("a tool ends", ENDING, || tool.try_wait().unwrap());
        let mut said = String::new();
        tool.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(status.success(), "what was stopped ends well: {said}");
    }
    // The half request is taken when the other half comes.
    half.write_all(b"tus\"}\n").unwrap();
    let mut lines = BufReader::new(&half).lines();
    lines.next().unwrap().unwrap();
    assert!(lines.next().unwrap().unwrap().contains("\"ok\""), "the half request is answered");
    check(&place, &guest);
}

/// Managed, within its target, in order, and answering; the guest has all of its bytes.
#[track_caller]
fn check(place: &Place, guest: &Guest) {
    for command in ["status", "audit"] {
        let output = place.output([command, "vm"]);
        assert!(output.status.success(), "{command}: {}", stderr(&output));
    }
    let status = guest.status();
    if status.state != State::Managing || status.borrowed_pages != 0 {
        guest.fail("it is managed as before");
    }
    if guest.console.has("zerosweep-guest: damaged") {
        guest.fail("the guest is damaged");
    }
}
