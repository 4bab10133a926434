//! `zerosweep experiment`: its answers, its files, and what it refuses.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::support::{self, Place, stderr, stdout, wait_until};
use serde_json::Value;

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
        singles_in_cache superpages_returned pages_returned_4k emergency_sweeps_ballooning \
        bytes_scanned_ballooning superpages_reclaimed_ballooning peak_total_bytes end_total_bytes \
        unmap_flushes live_on_superpages fault_ns_p50 fault_ns_p99 fault_ns_max \
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
    refused(&["--machine", "vax"], &["vax", "software", "linux", "qemu"]);
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
    refused(&["--costs", costs.to_str().unwrap()], &["is not a cost model", "map_4k_ns"]);
    refused(&["merge"], &["FILE"]);
    refused(&["merge", "/no/such/file"], &["cannot read /no/such/file"]);
}

#[test]
fn real_guests_and_models_are_not_mixed() {
    refused(&["--guest", "linux,qemu-churn"], &["guest qemu-churn", "--machine qemu"]);
    refused(&["--machine", "linux", "--guest", "qemu-linux"], &["qemu-linux", "--machine qemu"]);
    refused(&["--policy", "none,plain"], &["policy plain", "--machine qemu"]);
    let qemu = |more: &[&str], parts: &[&str]| {
        refused(&[&["--machine", "qemu"], more].concat(), parts);
    };
    qemu(&["--guest", "qemu-linux,scrub"], &["guest scrub is a model", "qemu-linux-scrub"]);
    qemu(&["--guest", "beos"], &["unknown guest \"beos\"", "qemu-churn"]);
    qemu(&["--policy", "best"], &["best", "xen-2016", "plain", "all"]);
    qemu(&["--target", "3G"], &["--target 3G", "at most --max-mem (2G)"]);
    qemu(&["--max-mem", "64M", "--target", "64M"], &["--max-mem 512M", "--target 128M"]);
    qemu(&["--max-mem", "100T"], &["100T", "takes", "available"]);
    qemu(&["--out", "/"], &["cannot write /"]);
}

/// `experiment --machine qemu` that fails because of the machine: exit status 1, nothing left.
fn cannot_start(place: &Place, mut command: std::process::Command, parts: &[&str]) {
    let output = command.output().unwrap();
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(output.stdout.is_empty());
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
    assert!(!place.runtime().exists(), "nothing was started");
}

/// As `--machine qemu` runs it, with a fake QEMU first in the path.
fn with_a_fake_qemu(place: &Place, more: &[&str]) -> std::process::Command {
    place.script("qemu-system-x86_64", "exit 0");
    let mut command = place.command(&[&["experiment", "--machine", "qemu"], more].concat());
    let path = std::env::var("PATH").unwrap();
    command.env("PATH", format!("{}:{path}", place.path().display()));
    command
}

#[test]
fn what_real_guests_lack_is_said_with_its_remedy() {
    let place = Place::new();
    let mut command = place.command(&["experiment", "--machine", "qemu"]);
    command.env("PATH", place.path());
    cannot_start(&place, command, &["qemu-system-x86_64 cannot be run", "apt-get install qemu"]);
    let mut command = with_a_fake_qemu(&place, &["--policy", "plain"]);
    command.env("XDG_CACHE_HOME", place.path());
    cannot_start(&place, command, &["no guest image", "cargo xtask setup"]);
    support::without_userfaultfd(|| {
        let place = Place::new();
        let command = with_a_fake_qemu(&place, &["--policy", "zerosweep"]);
        cannot_start(&place, command, &["cannot be managed here", "userfaultfd", "mend: "]);
    });
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
    assert!(html.starts_with("<!DOCTYPE html>") && html.trim_end().ends_with("</html>"));
    for part in ["name=\"viewport\"", "prefers-color-scheme", "Modelled times", "<svg", "hostile"] {
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

/// Each guest on real memory holds its target at most, and loses nothing: the run itself looks.
#[test]
#[ignore = "needs userfaultfd in kernel mode: root, CAP_SYS_PTRACE or /dev/userfaultfd"]
fn on_real_memory_times_are_measured() {
    let place = Place::new();
    let out = place.path().join("runs.json");
    let guests =
        ["--guest", "linux,scrub:dirty_percent=5,clustered", "--policy", "xen-2016,zerosweep"];
    let more = ["--machine", "linux", "--vcpus", "2", "--json", "--out", out.to_str().unwrap()];
    let runs = runs(&stdout(&small(&place, &[&guests[..], &more].concat())));
    assert_eq!(runs.len(), 4);
    for run in &runs {
        let facts = ["machine", "time_kind", "outcome"].map(|name| &run[name]);
        assert_eq!(facts, ["linux", "measured", "ok"], "{run:#}");
        assert_eq!(run["vcpus"], 2);
        let figure = |name: &str| run[name].as_f64().unwrap_or_else(|| panic!("{name}: {run:#}"));
        let most = figure("peak_total_bytes");
        assert!(most > 0.0 && most <= figure("target_bytes"), "{run:#}");
        assert!(figure("end_total_bytes") <= most, "{run:#}");
        for name in ["boot_seconds", "balloon_seconds", "populates_2m", "fault_ns_p50"] {
            assert!(figure(name) > 0.0, "{name}: {run:#}");
        }
        assert!(figure("fault_ns_p50") <= figure("fault_ns_p99"), "{run:#}");
        assert!(figure("fault_ns_p99") <= figure("fault_ns_max"), "{run:#}");
        let free = figure("superpages_in_cache") + figure("superpages_returned");
        assert!(free <= figure("limit_superpages_free"), "{run:#}");
        assert!(figure("bytes_scanned") >= figure("limit_bytes_scanned"), "{run:#}");
    }
    // What the guest does is the same on both machines, so the counts that depend on it alone are.
    let modelled = self::runs(&stdout(&small(&place, &[&guests[..], &["--json"]].concat())));
    for (run, model) in runs.iter().zip(&modelled).filter(|(run, _)| run["guest"] == "linux") {
        for name in ["populates_2m", "pages_returned_4k", "limit_superpages_free"] {
            assert_eq!(run[name], model[name], "{name} of {} {}", run["guest"], run["policy"]);
        }
    }
    let kept: Value = serde_json::from_slice(&std::fs::read(&out).unwrap()).unwrap();
    let map = &kept["runs"][0]["timeline"][0]["map"];
    assert_eq!(map.as_str().unwrap().len(), 32, "a letter a superpage");
}

#[test]
#[ignore = "needs userfaultfd in kernel mode: root, CAP_SYS_PTRACE or /dev/userfaultfd"]
fn a_calibration_is_a_cost_model() {
    let place = Place::new();
    let file = place.path().join("costs.json");
    let path = file.to_str().unwrap();
    let calibrated = place.output(&["experiment", "--calibrate", "--json", "--out", path]);
    assert_eq!(calibrated.status.code(), Some(0), "{}", stderr(&calibrated));
    let costs: Value = serde_json::from_slice(&calibrated.stdout).unwrap();
    let written: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(costs, written, "what is shown is what is written");
    let fields =
        ["fault_ns", "map_4k_ns", "flush_ns", "scanned_byte_ns", "cleared_byte_ns"].into_iter();
    let fields: BTreeSet<&str> = fields.collect();
    let has: BTreeSet<&str> = costs.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(has, fields);
    for field in fields {
        let cost = costs[field].as_f64().unwrap();
        // A single's fault may be no dearer than a superpage's.
        assert!(cost > 0.0 || (field == "map_4k_ns" && cost == 0.0), "{field}: {costs:#}");
    }
    let boot = |more: &[&str]| {
        let scrub = ["--json", "--guest", "scrub", "--policy", "zerosweep"];
        let run = &runs(&stdout(&small(&place, &[&scrub[..], more].concat())))[0];
        assert_eq!(run["outcome"], "ok");
        run["boot_seconds"].as_f64().unwrap()
    };
    let here = boot(&["--costs", path]);
    assert!(here > 0.0);
    assert_ne!(here, boot(&[]), "the model that is given is used");
}

#[test]
fn without_userfaultfd_real_memory_is_refused_with_the_way_on() {
    support::without_userfaultfd(|| {
        let place = Place::new();
        let matrix = [&SMALL[..], &["--machine", "linux", "--guest", "linux"]].concat();
        for arguments in [&matrix[..], &["experiment", "--calibrate"]] {
            let output = place.output(arguments);
            let message = stderr(&output);
            assert_eq!(output.status.code(), Some(1), "{arguments:?}: {message}");
            assert!(message.contains("userfaultfd"), "{arguments:?}: {message}");
            assert!(output.stdout.is_empty(), "{arguments:?}");
        }
    });
}

/// Files of this process may have `kib` at most, as if the disk were full then. (With the signal
/// ignored, the kernel says it as an error, as it does of a full disk.)
fn with_little_room(place: &Place, kib: u32, arguments: &[&str]) -> std::process::Output {
    let script = "trap '' XFSZ; blocks=$1; shift; ulimit -f \"$blocks\"; exec \"$@\"";
    let program = env!("CARGO_BIN_EXE_zerosweep");
    std::process::Command::new("sh")
        .args(["-c", script, "sh", &(kib * 2).to_string(), program])
        .args(SMALL.iter().chain(arguments))
        .env("XDG_RUNTIME_DIR", place.path())
        .output()
        .unwrap()
}

#[test]
fn a_full_disk_is_told_and_what_was_finished_is_kept() {
    let place = Place::new();
    let [out, report] = ["runs.json", "report.html"].map(|name| place.path().join(name));
    let [out_name, report_name] = [&out, &report].map(|path| path.to_str().unwrap());
    let files = || {
        let entries = std::fs::read_dir(place.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect::<BTreeSet<_>>()
    };
    let no_room = |output: &std::process::Output, file: &str| {
        let message = stderr(output);
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(message.contains("cannot write") && message.contains(file), "{message}");
    };
    let known = files();

    // No room for a single run.
    no_room(&with_little_room(&place, 1, &["--out", out_name]), out_name);
    assert_eq!(files(), known, "nothing is left of what could not be written");

    // Room for some: they are there, whole, and can be gone on with.
    no_room(&with_little_room(&place, 60, &["--jobs", "1", "--out", out_name]), out_name);
    let kept = runs(&std::fs::read_to_string(&out).unwrap());
    assert!((1..36).contains(&kept.len()), "{} runs are kept", kept.len());
    assert!(!files().contains(".zerosweep-"), "{:?}", files());
    small(&place, &["--resume", out_name]);
    let all = runs(&std::fs::read_to_string(&out).unwrap());
    assert!(all.len() == 36 && kept.iter().all(|run| all.contains(run)), "it goes on");

    // A report that has no room is not there, and an old one stays as it was.
    let merge = ["--report", report_name, "--guest", "linux", "--policy", "none"];
    no_room(&with_little_room(&place, 4, &merge), report_name);
    assert!(!report.exists() && !files().contains(".zerosweep-"), "{:?}", files());
    std::fs::write(&report, "old").unwrap();
    no_room(&with_little_room(&place, 4, &merge), report_name);
    assert_eq!(std::fs::read_to_string(&report).unwrap(), "old");
}

#[test]
fn a_device_that_is_full_is_told() {
    let place = Place::new();
    let one = ["--guest", "linux", "--policy", "none"];
    for option in ["--out", "--report"] {
        let all = [&SMALL[..], &one, &[option, "/dev/full"]].concat();
        let output = place.output(&all);
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{option}: {message}");
        assert!(message.contains("cannot write /dev/full"), "{option}: {message}");
    }
    for option in [&[][..], &["--json"]] {
        let all = [&SMALL[..], &one, option].concat();
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = place.command(&all).stdout(full).output().unwrap();
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{option:?}: {message}");
        assert!(message.contains("No space left"), "{option:?}: {message}");
    }
}
