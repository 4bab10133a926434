//! `zerosweep experiment --machine qemu`: small matrices, from start to document.

use std::os::unix::process::CommandExt as _;
use std::process::{Child, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use serde_json::Value;

use super::harness::{PATIENCE, Place, TOLERANCE, mib, processes_of, stderr, wait_until};

const MAX_BYTES: u64 = 1 << 30;
const TARGET_BYTES: u64 = 400 << 20;

/// `experiment --machine qemu` in a process group of its own.
fn start(place: &Place, more: &[&str]) -> Child {
    let sizes = ["--max-mem", "1G", "--target", "400M", "--json"];
    let words = [&["experiment", "--machine", "qemu"], &sizes[..], more].concat();
    let mut command = place.command(words);
    command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits for the end, after which nothing may be left.
fn end(place: &Place, child: Child) -> Output {
    let group = child.id();
    let output = child.wait_with_output().unwrap();
    wait_until("no process is left", PATIENCE, || processes_of(group).is_empty().then_some(()));
    assert_eq!(place.left_behind(), [""; 0]);
    output
}

fn runs(document: &[u8]) -> Vec<Value> {
    let document: Value = serde_json::from_slice(document).unwrap();
    document["runs"].as_array().unwrap().clone()
}

/// A figure that must be there.
#[track_caller]
fn figure(run: &Value, name: &str) -> f64 {
    run[name].as_f64().unwrap_or_else(|| panic!("no {name}: {run:#}"))
}

#[test]
#[ignore = "needs QEMU, a guest image and userfaultfd: cargo xtask test sets them up"]
fn plain_qemu_takes_everything_and_zerosweep_its_target() {
    let place = Place::new();
    let more = ["--guest", "qemu-linux-scrub", "--policy", "plain,zerosweep"];
    let output = end(&place, start(&place, &more));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let runs = runs(&output.stdout);
    assert_eq!(runs.len(), 2);
    for (run, policy) in runs.iter().zip(["plain", "zerosweep"]) {
        println!(
            "\n  {policy}: boot {:.2} s, inflate {:.2} s; held at most {:.1} MiB, at the end {:.1}",
            figure(run, "boot_seconds"),
            figure(run, "balloon_seconds"),
            mib(figure(run, "peak_total_bytes") as u64),
            mib(figure(run, "end_total_bytes") as u64)
        );
        assert_eq!(run["policy"], policy);
        let facts = ["machine", "accelerator", "outcome", "time_kind"].map(|name| &run[name]);
        assert_eq!(facts, ["qemu", "tcg", "ok", "measured"]);
        assert!(run["limit_superpages_free"].is_null() && run["limit_bytes_scanned"].is_null());
        for name in ["boot_seconds", "balloon_seconds", "end_total_bytes", "superpages_in_guest"] {
            assert!(figure(run, name) > 0.0, "{name}: {run:#}");
        }
        let live = figure(run, "live_on_superpages");
        assert!(live > 0.0 && live <= 1.0, "{live}");
        let most = figure(run, "peak_total_bytes");
        assert!(figure(run, "end_total_bytes") <= most, "{run:#}");
    }
    let (plain, ours) = (&runs[0], &runs[1]);
    let held = |run| figure(run, "peak_total_bytes");
    assert!(held(plain) > 0.95 * MAX_BYTES as f64, "the guest zeroes all of its memory: {plain:#}");
    assert!(held(ours) <= TOLERANCE * TARGET_BYTES as f64, "{ours:#}");
    assert!(held(ours) > 0.5 * TARGET_BYTES as f64, "what it holds was not seen: {ours:#}");
    for name in ["populates_2m", "superpages_reclaimed", "bytes_scanned", "zero_checks_2m_hit"] {
        assert_eq!(figure(plain, name) as u64, 0, "there is no engine: {plain:#}");
        assert!(figure(ours, name) > 0.0, "{name}: {ours:#}");
    }
    assert!(plain["fault_ns_max"].is_null() && figure(ours, "fault_ns_max") > 0.0);
    assert!(figure(ours, "bytes_scanned_ballooning") <= figure(ours, "bytes_scanned"));
}

/// The guest needs more than its target, and nothing looks for zeros. The run is given up, and this
/// is its result.
#[test]
#[ignore = "needs QEMU, a guest image and userfaultfd: cargo xtask test sets them up"]
fn a_guest_that_stalls_is_a_result() {
    let place = Place::new();
    let more = ["--guest", "qemu-linux-scrub", "--policy", "none"];
    let output = end(&place, start(&place, &more));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let runs = runs(&output.stdout);
    assert_eq!(runs[0]["outcome"], "stalled", "{:#}", runs[0]);
    assert!(figure(&runs[0], "peak_total_bytes") <= TOLERANCE * TARGET_BYTES as f64);
}

#[test]
#[ignore = "needs QEMU, a guest image and userfaultfd: cargo xtask test sets them up"]
fn ctrl_c_ends_the_guest_and_keeps_what_is_finished() {
    let place = Place::new();
    let out = place.path().join("runs.json");
    let file = out.to_str().unwrap().to_owned();
    let more = ["--guest", "qemu-linux", "--policy", "plain,zerosweep", "--out", &file];
    let child = start(&place, &more);
    wait_until("the first run is finished", PATIENCE, || out.exists().then_some(()));
    let is_up = || place.left_behind().iter().any(|name| name.ends_with(".sock"));
    wait_until("the second guest is up", PATIENCE, || is_up().then_some(()));
    std::thread::sleep(Duration::from_millis(500));
    rustix::process::kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let output = end(&place, child);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let said = stderr(&output);
    assert!(said.contains("1 of 2 runs are kept") && said.contains("--resume"), "{said}");
    let kept = runs(&std::fs::read(&out).unwrap());
    assert_eq!(kept.len(), 1);
    assert_eq!(kept, runs(&output.stdout), "what is finished is shown as well");
    assert_eq!((&kept[0]["policy"], &kept[0]["outcome"]), (&"plain".into(), &"ok".into()));
}
