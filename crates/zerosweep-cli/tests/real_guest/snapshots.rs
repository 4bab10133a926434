//! A guest goes back to what it was: `snapshot-save` and `snapshot-load` while it runs (`savevm` and
//! `loadvm`), and `-loadvm` at its start. Its balloon is then another one, and nobody says so.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use zerosweep_wire::State;

use super::harness::{
    GUEST_BYTES, Guest, PAGE_BYTES, Place, Spec, stderr, stdout, value, wait_until,
};

const APPEND: &str = "init_on_free=1 zs.fill=64M zs.stir=16M zs.end=idle";
const MIB: u64 = 1 << 20;
/// For a step of a guest on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);
/// The balloon's own figure may be a moment old.
const SLACK_BYTES: u64 = 16 * PAGE_BYTES;

/// Every byte is right, the engine counts what the balloon has, and set-target says so.
#[test]
#[ignore = "needs QEMU, a guest image and userfaultfd: cargo xtask test sets them up"]
fn a_guest_goes_back_to_its_snapshot_and_follows_its_target() {
    let place = Place::new();
    let guest = Guest::managed(&place, &Spec { append: APPEND, ..Spec::default() });
    guest.marker("stirred ");
    let file = add_disk(&place, &guest);
    let before = guest.status();
    job(&guest, "snapshot-save", &snapshot("one"));
    let counters = guest.status().counters;
    println!(
        "\n  saved: {} faults, {} pages read as zeros, {} borrowed",
        counters.faults - before.counters.faults,
        counters.engine.pages_shown - before.counters.engine.pages_shown,
        guest.status().borrowed_pages
    );
    reaches(&place, &guest, 500);

    job(&guest, "snapshot-load", &snapshot("one"));
    guest.qmp().execute("cont", &json!({})).unwrap();
    is_well(&guest);
    // It came back with the balloon of 300 MiB, and nobody asked it for anything.
    settles(&place, &guest, 500);
    reaches(&place, &guest, 300);
    is_well(&guest);
    drop(guest);

    let again = Place::new();
    let drive = format!("file={},if=none,format=qcow2,id=snapshots", file.display());
    let qemu = ["-drive", drive.as_str(), "-loadvm", "one"];
    let run = ["--target", "350M"];
    let spec = Spec { qemu: &qemu, run: &run, append: APPEND, ..Spec::default() };
    let guest = Guest::managed(&again, &spec);
    settles(&again, &guest, 350);
    reaches(&again, &guest, 330);
    is_well(&guest);
}

/// Gives the guest a node that holds snapshots. Returns its file.
fn add_disk(place: &Place, guest: &Guest) -> PathBuf {
    let file = place.path().join("snapshots.qcow2");
    let create = |options: &Value| {
        job(guest, "blockdev-create", &json!({"options": options}));
    };
    let add = |options: &Value| {
        guest.qmp().execute("blockdev-add", options).unwrap();
    };
    create(&json!({"driver": "file", "filename": file, "size": 0}));
    add(&json!({"driver": "file", "filename": file, "node-name": "file"}));
    create(&json!({"driver": "qcow2", "file": "file", "size": 4 * GUEST_BYTES}));
    add(&json!({"driver": "qcow2", "file": "file", "node-name": "snapshots"}));
    assert!(Path::new(&file).exists());
    file
}

fn snapshot(tag: &str) -> Value {
    json!({"tag": tag, "vmstate": "snapshots", "devices": ["snapshots"]})
}

/// Runs one of QEMU's jobs to its end.
fn job(guest: &Guest, command: &str, arguments: &Value) {
    let mut arguments = arguments.clone();
    arguments["job-id"] = json!("job");
    guest.qmp().execute(command, &arguments).unwrap();
    let ended = wait_until("the job has ended", LIMIT, || {
        std::thread::sleep(Duration::from_millis(50));
        let jobs = guest.qmp().execute("query-jobs", &json!({})).ok()?;
        (jobs[0]["status"] == "concluded").then(|| jobs[0].clone())
    });
    assert!(ended.get("error").is_none(), "{command}: {ended}");
    guest.qmp().execute("job-dismiss", &json!({"id": "job"})).unwrap();
}

/// The pattern and the files are as they were.
#[track_caller]
fn is_well(guest: &Guest) {
    for _ in 0..2 {
        let alive = guest.marker_from(guest.console.len(), "alive ");
        assert_eq!((value(&alive, "pages"), value(&alive, "bad")), (16384.0, 0.0));
    }
    assert!(!guest.console.has("zerosweep-guest: damaged"), "{}", guest.console.tail(20));
}

/// The balloon comes to this target by itself, and the engine counts what it has.
#[track_caller]
fn settles(place: &Place, guest: &Guest, target_mib: u64) {
    let status = wait_until("the balloon is where its target is", LIMIT, || {
        let status = guest.try_status().ok()?;
        let actual = guest.qmp().balloon_actual().ok()?;
        let had = status.pages.ballooned_out * PAGE_BYTES;
        let is_there = actual.abs_diff(target_mib * MIB) <= SLACK_BYTES;
        let is_counted = (GUEST_BYTES - actual).abs_diff(had) <= SLACK_BYTES;
        (is_there && is_counted).then_some(status)
    });
    if status.state != State::Managing || status.stalled_threads != 0 {
        guest.fail("it is managed as before");
    }
    let audited = place.output(["audit", "vm"]);
    assert!(audited.status.success(), "R19: {}{}", stdout(&audited), stderr(&audited));
}

/// `set-target` gets there, and says so.
#[track_caller]
fn reaches(place: &Place, guest: &Guest, target_mib: u64) {
    let set = place.output(["set-target", "vm", &format!("{target_mib}M"), "--wait", "60"]);
    assert!(set.status.success(), "{}{}", stdout(&set), stderr(&set));
    settles(place, guest, target_mib);
}
