//! `zerosweep experiment`: its answers, its files, and what it refuses.

#![expect(clippy::unwrap_used, reason = "test code; clippy does not see that in helpers")]

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;
use support::{Place, stderr, stdout, wait_until};

/// A small matrix: a second in a debug build.
const SMALL: [&str; 5] = ["experiment", "--max-mem", "64M", "--target", "16M"];

fn small(place: &Place, more: &[&str]) -> std::process::Output {
    let arguments: Vec<&str> = SMALL.iter().chain(more).copied().collect();
    let output = place.output(&arguments);
    assert_eq!(output.status.code(), Some(0), "{more:?}: {}", stderr(&output));
    assert!(stderr(&output).is_empty(), "no progress in a pipe: {}", stderr(&output));
    output
}

fn runs(document: &str) -> Vec<Value> {
    let document: Value = serde_json::from_str(document).unwrap();
    assert_eq!(document["schema"], 1);
    assert!(document["host"]["cpus"].as_u64().unwrap() > 0);
    document["runs"].as_array().unwrap().clone()
}

fn refused(arguments: &[&str], parts: &[&str]) {
    let place = Place::new();
    let all: Vec<&str> = ["experiment"].iter().chain(arguments).copied().collect();
    let output = place.output(&all);
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {message}");
    assert!(output.stdout.is_empty(), "{arguments:?}");
    for part in parts {
        assert!(message.contains(part), "{arguments:?}: {part:?} is not in: {message}");
    }
}

#[test]
fn the_json_depends_on_the_seed_alone_and_has_every_field() {
    let place = Place::new();
    let first = stdout(&small(&place, &["--json", "--jobs", "1"]));
    assert_eq!(first, stdout(&small(&place, &["--json", "--jobs", "2"])));
    assert_ne!(first, stdout(&small(&place, &["--json", "--seed", "3"])));
    let runs = runs(&first);
    assert_eq!(runs.len(), 36);
    let fields = "guest policy machine seed vcpus max_mem_bytes target_bytes outcome boot_seconds \
        balloon_seconds time_kind populates_2m populates_4k zero_checks_2m zero_checks_2m_hit \
        zero_checks_4k bytes_scanned bytes_cleared bytes_copied eager_checks emergency_sweeps \
        splinters shatters superpages_reclaimed superpages_in_guest superpages_in_cache \
        superpages_returned pages_returned_4k emergency_sweeps_ballooning bytes_scanned_ballooning \
        peak_total_bytes unmap_flushes live_on_superpages fault_ns_p50 fault_ns_p99 fault_ns_max \
        limit_superpages_free limit_bytes_scanned";
    let wanted: BTreeSet<&str> = fields.split_whitespace().collect();
    for run in &runs {
        let has: BTreeSet<&str> = run.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(has, wanted);
        assert_eq!(run["time_kind"], "modelled");
        assert!(run["peak_total_bytes"].as_u64() <= run["target_bytes"].as_u64());
    }
}

#[test]
fn a_guest_is_called_as_it_was_asked_for() {
    let place = Place::new();
    let list = "scrub:dirty_percent=5,clustered,windows,scrub";
    let arguments = ["--json", "--guest", list, "--policy", "xen-2016,rfc-2011:gate=always"];
    let runs = runs(&stdout(&small(&place, &arguments)));
    let names: Vec<&str> =
        runs.iter().step_by(2).map(|run| run["guest"].as_str().unwrap()).collect();
    assert_eq!(names, ["scrub:dirty_percent=5,clustered", "windows", "scrub"]);
    assert_eq!(runs[1]["policy"], "rfc-2011:gate=always");
}

#[test]
fn the_table_fits_and_says_that_times_are_modelled() {
    let place = Place::new();
    let table = stdout(&small(&place, &[]));
    assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");
    for part in ["linux, 16M of 64M", "churn", "zerosweep", "hypercall-2011", "modelled"] {
        assert!(table.contains(part), "{part}: {table}");
    }
}

#[test]
fn wrong_usage_is_said_before_any_work() {
    refused(&["--guest", "beos"], &["unknown guest \"beos\"", "linux-scrub"]);
    refused(&["--guest", "linux", "--policy", "best"], &["best", "xen-2016", "all"]);
    refused(&["--machine", "vax"], &["vax", "software", "linux"]);
    refused(&["--target", "0"], &["--target 0", "above 0"]);
    refused(&["--target", "8G"], &["--target 8G", "at most --max-mem (4G)"]);
    refused(&["--target", "1001"], &["1001", "multiples of 4K"]);
    refused(&["--max-mem", "8E", "--target", "8E"], &["takes", "available"]);
    refused(&["--max-mem", "100T"], &["100T", "takes", "available"]);
    refused(&["--shard", "4/4"], &["0/4 to 3/4"]);
    refused(&["--report", "/no/such/place/r.html"], &["cannot write /no/such/place/r.html"]);
    refused(&["--out", "/"], &["cannot write /"]);
    refused(&["--vcpus", "0"], &["--vcpus"]);
    refused(&["--costs", "/no/such/costs"], &["/no/such/costs"]);
    let place = Place::new();
    let costs = place.path().join("costs");
    std::fs::write(&costs, "{\"fault_ns\":1}").unwrap();
    refused(&["--costs", costs.to_str().unwrap()], &["no cost model", "map_4k_ns"]);
    refused(&["merge"], &["FILE"]);
    refused(&["merge", "/no/such/file"], &["cannot read /no/such/file"]);
}

#[test]
fn shards_are_joined_to_the_whole() {
    let place = Place::new();
    let guests = ["--json", "--guest", "linux,scrub", "--seed", "5"];
    let whole = stdout(&small(&place, &guests));
    let mut files = Vec::new();
    for index in 0..3 {
        let file = place.path().join(format!("{index}.json")).to_str().unwrap().to_owned();
        let shard = format!("{index}/3");
        let arguments: Vec<&str> =
            guests.iter().chain(&["--shard", &shard, "--out", &file]).copied().collect();
        small(&place, &arguments);
        files.push(file);
    }
    let merge = ["experiment", "merge", "--json", &files[2], &files[0], &files[1], &files[0]];
    assert_eq!(stdout(&place.output(&merge)), whole);
}

#[test]
fn a_merge_of_different_schemas_is_refused() {
    let place = Place::new();
    let file = |name: &str, text: &str| {
        let path = place.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (one, two) = (place.path().join("1.json"), file("2.json", "{\"schema\":2,\"runs\":[]}"));
    let one = one.to_str().unwrap();
    small(&place, &["--guest", "linux", "--policy", "none", "--out", one]);
    let none = file("3.json", "[]");
    refused(&["merge", one, &two], &["2.json has schema 2", "different schemas"]);
    refused(&["merge", one, &none], &["3.json is not a document"]);
}

#[test]
fn the_report_is_one_file_that_needs_nothing() {
    let place = Place::new();
    let path = place.path().join("report.html");
    let out = place.path().join("runs.json");
    let more = ["--report", path.to_str().unwrap(), "--out", out.to_str().unwrap()];
    small(&place, &[&more[..], &["--repeat", "2"]].concat());
    let html = std::fs::read_to_string(&path).unwrap();
    assert!(html.starts_with("<!doctype html>") && html.trim_end().ends_with("</html>"));
    for part in ["name=viewport", "prefers-color-scheme", "Modelled times", "<svg", "hostile"] {
        assert!(html.contains(part), "{part}");
    }
    for outside in ["http:", "https:", "<script", "@import", "url("] {
        assert!(!html.contains(outside), "{outside}");
    }
    // The same from the file, timelines included.
    let again = place.path().join("again.html");
    let merge = ["experiment", "merge", out.to_str().unwrap(), "--report", again.to_str().unwrap()];
    assert_eq!(place.output(&merge).status.code(), Some(0));
    let again = std::fs::read_to_string(&again).unwrap();
    assert_eq!(again.matches("<svg").count(), html.matches("<svg").count());
}

#[test]
fn an_interrupted_matrix_keeps_what_is_finished_and_goes_on() {
    let place = Place::new();
    let out = place.path().join("runs.json");
    let file = out.to_str().unwrap();
    let matrix = ["experiment", "--max-mem", "512M", "--target", "128M", "--jobs", "1"];
    let child = place
        .command(&[&matrix[..], &["--out", file]].concat())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    wait_until("a run is finished", || out.exists());
    std::thread::sleep(Duration::from_millis(50));
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("--resume"), "{}", stderr(&output));
    let kept = runs(&std::fs::read_to_string(&out).unwrap());
    assert!((1..36).contains(&kept.len()), "{}", kept.len());

    let output = place.output(&[&matrix[..], &["--resume", file]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let all = runs(&std::fs::read_to_string(&out).unwrap());
    assert_eq!(all.len(), 36);
    assert!(kept.iter().all(|run| all.contains(run)), "a finished run was run again");
}

#[test]
fn times_come_from_the_cost_model_that_is_given() {
    let place = Place::new();
    let costs = place.path().join("costs.json");
    let model = "{\"fault_ns\":1e9,\"map_4k_ns\":0,\"flush_ns\":0,\"scanned_byte_ns\":0,\
        \"cleared_byte_ns\":0}";
    std::fs::write(&costs, model).unwrap();
    let arguments = ["--json", "--guest", "scrub", "--policy", "zerosweep", "--costs"];
    let output = small(&place, &[&arguments[..], &[costs.to_str().unwrap()]].concat());
    let runs = runs(&stdout(&output));
    // A second for each of the 32 superpages that are populated.
    assert_eq!(runs[0]["boot_seconds"], 32.0);
    assert_eq!(runs[0]["outcome"], "ok");
}
