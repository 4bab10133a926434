//! `status`, `ps`, `audit` and `watch` on fake agents.

use std::fs::{File, OpenOptions};
use std::io::Read as _;
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::support::{FakeAgent, Place, status, stderr, stdout};

fn place_with_guest() -> (Place, FakeAgent) {
    let place = Place::new();
    place.make_runtime();
    let agent = FakeAgent::new(place.runtime().join("vm.sock"), status("vm"));
    (place, agent)
}

#[test]
fn status_is_a_table_or_a_document() {
    let (place, agent) = place_with_guest();
    let output = place.output(&["status", "vm"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains("target 256M of 1G"), "{}", stdout(&output));
    let output = place.output(&["status", "vm", "--json"]);
    let document: zerosweep_wire::Status = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document, *agent.status.lock().unwrap());
}

#[test]
fn a_guest_that_is_not_there() {
    let place = Place::new();
    for command in ["status", "audit"] {
        let output = place.output(&[command, "nobody"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("no guest named nobody"), "{}", stderr(&output));
        assert!(output.stdout.is_empty());
    }
    assert!(!place.runtime().exists());
}

#[test]
fn another_protocol_is_said_clearly() {
    let (place, agent) = place_with_guest();
    agent.status.lock().unwrap().protocol = 7;
    let output = place.output(&["status", "vm"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("version 7"), "{}", stderr(&output));
}

#[test]
fn ps_lists_the_living_and_removes_the_dead() {
    let (place, _agent) = place_with_guest();
    drop(UnixListener::bind(place.runtime().join("dead.sock")).unwrap());
    std::fs::write(place.runtime().join("dead.qmp"), "").unwrap();
    std::fs::write(place.runtime().join("gone.lock"), "").unwrap();
    let output = place.output(&["ps"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stderr(&output).is_empty());
    assert_eq!(stdout(&output).lines().count(), 2, "{}", stdout(&output));
    assert_eq!(place.left_behind(), ["vm.sock"]);
    let document: serde_json::Value =
        serde_json::from_slice(&place.output(&["ps", "--json"]).stdout).unwrap();
    assert_eq!(document["guests"][0]["name"], "vm");
    assert_eq!(document["guests"][0]["status"]["target_bytes"], 256 << 20);
}

#[test]
fn ps_without_guests() {
    let place = Place::new();
    let output = place.output(&["ps", "--json"]);
    assert_eq!(output.status.code(), Some(0));
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["guests"], serde_json::json!([]));
    assert!(!place.runtime().exists());
}

#[test]
fn audit_tells_the_difference() {
    let (place, agent) = place_with_guest();
    let output = place.output(&["audit", "vm"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(stdout(&output).contains("every figure agrees"));
    agent.status.lock().unwrap().reason = Some("cache is 4, counted 3".into());
    let output = place.output(&["audit", "vm"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains("cache is 4, counted 3"), "{}", stdout(&output));
    let output = place.output(&["audit", "vm", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["ok"], false);
    assert_eq!(document["difference"], "cache is 4, counted 3");
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let (place, _agent) = place_with_guest();
    for arguments in [&["status", "vm"][..], &["ps"], &["audit", "vm", "--json"], &["--help"]] {
        let mut command = place.command(arguments);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", stderr(&output));
        assert!(!stderr(&output).contains("panicked"), "{}", stderr(&output));
    }
}

#[test]
fn a_name_that_is_taken_is_wrong_usage() {
    let (place, _agent) = place_with_guest();
    let fake = place.script("fake-qemu", "touch \"$0.started\"");
    let output = place.output(&["run", "--name", "vm", "--target", "64M", "--", &fake]);
    assert_eq!(output.status.code(), Some(2));
    let expect = format!("a guest named vm is running already (pid {})", std::process::id());
    assert!(stderr(&output).contains(&expect), "{}", stderr(&output));
    assert_eq!(place.left_behind(), ["vm.sock"]);
    assert!(!place.path().join("fake-qemu.started").exists());
}

/// What the program writes on a terminal of this size.
fn on_terminal(place: &Place, arguments: &[&str], columns: u16, rows: u16) -> String {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let terminal = OpenOptions::new().read(true).write(true).open(name.to_str().unwrap()).unwrap();
    let size = Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&terminal, size).unwrap();
    let reader = std::thread::spawn(move || {
        let mut shown = Vec::new();
        // A terminal that nobody has open any more is an error to read.
        let _ = File::from(master).read_to_end(&mut shown);
        String::from_utf8(shown).unwrap()
    });
    let status = place.command(arguments).stdout(terminal).status().unwrap();
    assert!(status.success());
    reader.join().unwrap()
}

/// A terminal says 0 where it does not know.
#[test]
fn a_terminal_of_no_size_is_drawn_on_all_the_same() {
    let (place, agent) = place_with_guest();
    agent.letters.lock().unwrap().push_str(&"W".repeat(512));
    let watch = ["watch", "vm", "--count", "1"];
    let (columns, rows) = (80, 24);
    for (columns, rows) in [(columns, 0), (0, rows), (0, 0), (columns, rows)] {
        let shown = on_terminal(&place, &watch, columns, rows);
        for part in ["vm  pid", "target 256M of 1G", "Ctrl-C ends the watching"] {
            assert!(shown.contains(part), "{columns}x{rows}: no {part:?} in {shown:?}");
        }
        assert_eq!(shown.matches("\r\n").count(), shown.matches("\x1b[K").count() - 1, "{shown:?}");
        assert!(shown.matches("\r\n").count() < 24, "{shown:?}");
    }
    // What it knows is kept to: of 3 rows there are 3, of 200 more than of 24.
    let lines =
        |columns, rows| on_terminal(&place, &watch, columns, rows).matches("\x1b[K").count();
    assert_eq!(lines(0, 3), 3);
    assert!(lines(34, 200) > 24);
}
