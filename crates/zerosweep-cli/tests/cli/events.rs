//! `experiment --events`: traces of runs, read by our own reader and by Xen's `xenalyze`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::{Place, stderr, stdout};
use serde_json::Value;

fn json(place: &Place, arguments: &[&str]) -> Value {
    let output = place.output(arguments);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", stderr(&output));
    assert!(stderr(&output).is_empty(), "{}", stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn experiment(place: &Place, directory: &Path, more: &[&str]) -> Vec<Value> {
    let directory = directory.to_str().unwrap();
    let sizes = ["--max-mem", "64M", "--target", "16M", "--json", "--events", directory];
    let document = json(place, &[&["experiment"], &sizes[..], more].concat());
    document["runs"].as_array().unwrap().clone()
}

fn text<'a>(run: &'a Value, field: &str) -> &'a str {
    run[field].as_str().unwrap()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

/// The trace of a run has the run's own counts, and each page in one state.
fn compare(place: &Place, directory: &Path, run: &Value) {
    let (guest, policy) =
        ["guest", "policy"].map(|field| text(run, field).replace([':', ','], "-")).into();
    let name = format!("{guest}.{policy}.{}.{}.bin", text(run, "machine"), number(&run["seed"]));
    let file = directory.join(&name);
    let read = json(place, &["trace", "read", file.to_str().unwrap(), "--json"]);
    assert_eq!((number(&read["lost_records"]), &read["broken"]), (0, &Value::Null), "{name}");
    let domain = &read["domains"]["1"];
    for (traced, counted) in [
        (&domain["populates"]["9"], &run["populates_2m"]),
        (&domain["populates"]["0"], &run["populates_4k"]),
        (&domain["splinters"], &run["splinters"]),
        (&domain["reclaims"]["9"], &run["superpages_reclaimed"]),
    ] {
        assert_eq!(number(traced), number(counted), "{name}: {traced} but {counted}: {run}");
    }
    let at_the_end = &domain["pages_at_the_end"];
    let pages = ["pod", "ram", "invalid"].map(|kind| number(&at_the_end[kind]));
    assert_eq!(pages.iter().sum::<u64>(), number(&run["max_mem_bytes"]) / 4096, "{name}");
    let held = number(&run["end_total_bytes"]) / 4096;
    assert!(pages[1] <= held, "{name}: {} pages of ram, {held} held", pages[1]);
    if text(run, "outcome") == "ok" {
        assert_eq!(number(&domain["decreases"]["0"]), 48 * 256, "{name}: 48 MiB are given back");
    }
}

#[test]
fn every_run_has_a_trace_with_its_counts() {
    let place = Place::new();
    let directory = place.path().join("new/traces");
    let runs = experiment(&place, &directory, &["--policy", "all,rfc-2011:gate=always"]);
    assert_eq!(runs.len(), 42);
    runs.iter().for_each(|run| compare(&place, &directory, run));
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 42, "one file a run, and no other");
}

#[test]
#[ignore = "needs userfaultfd in kernel mode"]
fn runs_on_real_memory_have_traces() {
    let place = Place::new();
    let directory = place.path().join("traces");
    let more = ["--machine", "linux", "--guest", "linux-scrub,churn,windows", "--vcpus", "2"];
    let runs =
        experiment(&place, &directory, &[&more[..], &["--policy", "zerosweep,xen-2016"]].concat());
    assert_eq!(runs.len(), 6);
    runs.iter().for_each(|run| compare(&place, &directory, run));
}

#[test]
fn a_trace_of_ours_can_be_replayed() {
    let place = Place::new();
    let directory = place.path().join("traces");
    let runs = experiment(&place, &directory, &["--guest", "linux-scrub", "--policy", "xen-2016"]);
    let file = directory.join("linux-scrub.xen-2016.software.7777.bin");
    let again = ["trace", "replay", file.to_str().unwrap(), "--policy", "xen-2016", "--json"];
    let replay = json(&place, &again);
    assert_eq!(number(&replay["target_bytes"]), 16 << 20, "what the guest had when it was done");
    let replayed = &replay["replays"][0];
    assert_eq!(replayed["exhausted_after"], Value::Null);
    assert_eq!(replayed["populates_2m"], runs[0]["populates_2m"]);
}

#[test]
fn a_directory_that_cannot_be_written_is_refused_before_any_work() {
    let place = Place::new();
    let file = place.path().join("file");
    fs::write(&file, "").unwrap();
    for directory in [file.as_path(), Path::new("/proc/zerosweep")] {
        let output = place.output(&["experiment", "--events", directory.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(2));
        let message = stderr(&output);
        assert!(message.contains("cannot write to ") && output.stdout.is_empty(), "{message}");
    }
}

/// What Xen's own reader says of a trace.
fn xenalyze(arguments: &[&str], file: &Path) -> String {
    let output =
        Command::new("xenalyze").args(["--cpu-hz", "1G"]).args(arguments).arg(file).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    stdout(&output)
}

/// Xen's own reader finds every event, under the domain that it is of. Before Xen 4.18 it shows
/// every order as 0: the layout was another one.
#[test]
#[ignore = "needs xenalyze"]
fn xenalyze_reads_what_is_written() {
    let place = Place::new();
    let directory = place.path().join("traces");
    let sizes = ["--guest", "scrub:dirty_percent=20", "--policy", "xen-2016,zerosweep"];
    for run in experiment(&place, &directory, &sizes) {
        let file = directory
            .join(format!("scrub-dirty_percent=20.{}.software.7777.bin", text(&run, "policy")));
        let read = json(&place, &["trace", "read", file.to_str().unwrap(), "--json"]);
        let domain = &read["domains"]["1"];
        let all =
            |counts: &Value| -> u64 { counts.as_object().unwrap().values().map(number).sum() };
        let dump = xenalyze(&["--dump-all"], &file);
        let count = |what: &str| dump.lines().filter(|line| line.contains(what)).count() as u64;
        let populates = all(&domain["populates"]);
        assert_eq!(count(" d1v0 pod_populate d1 "), populates);
        assert_eq!(count(" d1v0 pod_zero_reclaim d1 "), all(&domain["reclaims"]));
        assert_eq!(count(" d1v0 pod_spage_splinter d1 "), number(&domain["splinters"]));
        assert_eq!(count(" d1v0 set_p2m_entry d1 "), number(&domain["p2m_sets"]));
        assert!(populates > 100, "{populates} populates");
        let summary = xenalyze(&["--summary"], &file);
        let of_domain = summary.split("|-- Domain 1 --|").nth(1).unwrap();
        let populated = of_domain.split("Populated:").nth(1).unwrap();
        let shown: u64 = populated
            .lines()
            .skip(1)
            .map_while(|line| {
                line.trim().strip_prefix('[')?.split_once("] ")?.1.trim().parse::<u64>().ok()
            })
            .sum();
        assert_eq!(shown, populates, "{of_domain}");
        let seconds = summary.split("Total time: ").nth(1).unwrap().split(' ').next().unwrap();
        let modelled =
            run["boot_seconds"].as_f64().unwrap() + run["balloon_seconds"].as_f64().unwrap();
        assert!((seconds.parse::<f64>().unwrap() - modelled).abs() < 0.02, "{seconds}, {modelled}");
    }
}

/// After a hole it still knows whose the events are.
#[test]
#[ignore = "needs xenalyze"]
fn xenalyze_goes_on_after_lost_records() {
    use zerosweep::{Gfn, Mfn, Order};
    use zerosweep_events::{Note, What, Writer};
    let place = Place::new();
    let file = place.path().join("hole.bin");
    let mut writer = Writer::begin(fs::File::create(&file).unwrap(), 1, 1024);
    let populate = |page: u64| Note {
        what: What::Populate,
        gfn: Gfn::new(page),
        mfn: Some(Mfn::new(page)),
        order: Order::PAGE,
    };
    for page in 0..10 {
        writer.note(1000 * page + 1, &populate(page)).unwrap();
    }
    writer.lost(20_000, 17, 10_500);
    for page in 10..30 {
        writer.note(20_000 + 1000 * page, &populate(page)).unwrap();
    }
    writer.finish(60_000).unwrap();
    let dump = xenalyze(&["--dump-all"], &file);
    let populates = dump.lines().filter(|line| line.contains(" d1v0 pod_populate d1 "));
    assert_eq!(populates.count(), 30, "{dump}");
    assert!(dump.contains("lost_records count 17 d1v0"), "{dump}");
}

#[test]
fn a_file_that_cannot_be_written_is_told_before_the_vmm_is_started() {
    let place = Place::new();
    let started = place.path().join("started");
    let vmm = place.script("vmm", &format!("touch {}", started.display()));
    let run = |options: &[&str]| {
        let vmm = ["--", &vmm, "-m", "128"];
        place.output(&[&["run", "--target", "64M"], options, &vmm].concat())
    };
    for option in ["--events", "--record"] {
        let output = run(&[option, "/no/such/e.bin"]);
        assert_eq!(output.status.code(), Some(1));
        let message = stderr(&output);
        assert!(message.contains("cannot write /no/such/e.bin: No such file"), "{message}");
        assert!(!started.exists(), "the VMM was started");
    }
    let output = run(&["--events", "a.bin", "--record", "b.bin"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("cannot be used with"), "{}", stderr(&output));
    assert!(!started.exists(), "the VMM was started");
}

/// A pipe would have the program wait for a reader, and the VMM after it.
#[test]
fn a_pipe_or_a_device_is_told_at_once_and_nothing_is_left() {
    let place = Place::new();
    let pipe = place.path().join("pipe");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let vmm = place.script("vmm", "touch \"$0.started\"");
    let pipe = pipe.to_str().unwrap();
    for (option, file, why) in [
        ("--events", pipe, "it is a pipe or a socket that nobody reads"),
        ("--record", pipe, "it is a pipe or a socket that nobody reads"),
        ("--events", "/dev/null", "it is a device, and this must be a file"),
    ] {
        let arguments = ["run", "--target", "64M", option, file, "--", &vmm, "-m", "128"];
        let mut child = place.command(&arguments).stderr(Stdio::piped()).spawn().unwrap();
        let ended = ends(&mut child);
        let output = child.wait_with_output().unwrap();
        assert!(ended, "{option} {file}: it waits: {}", stderr(&output));
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        let message = format!("cannot write {file}: {why}");
        assert!(stderr(&output).contains(&message), "{}", stderr(&output));
        assert!(!place.path().join("vmm.started").exists(), "the VMM was started");
        assert!(place.left_behind().is_empty(), "{:?}", place.left_behind());
    }
    let arguments = ["experiment", "--guest", "scrub", "--policy", "none", "--report", pipe];
    let mut child = place.command(&arguments).stderr(Stdio::piped()).spawn().unwrap();
    let ended = ends(&mut child);
    let output = child.wait_with_output().unwrap();
    assert!(ended, "it waits: {}", stderr(&output));
    assert!(stderr(&output).contains("that nobody reads"), "{}", stderr(&output));
}

/// Whether it ends by itself, soon.
fn ends(child: &mut std::process::Child) -> bool {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
    while std::time::Instant::now() < deadline {
        if child.try_wait().unwrap().is_some() {
            return true;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    child.kill().unwrap();
    false
}

/// They tell what is in a guest's pages.
#[test]
fn recordings_and_traces_are_their_users_own() {
    let place = Place::new();
    let vmm = place.script("vmm", "exit 3");
    let mode = |file: &Path| fs::metadata(file).unwrap().permissions().mode() & 0o777;
    for option in ["--events", "--record"] {
        let file = place.path().join(format!("{option}.bin"));
        let name = file.to_str().unwrap();
        let output =
            place.output(&["run", "--target", "64M", option, name, "--", &vmm, "-m", "128"]);
        assert_eq!((output.status.code(), mode(&file)), (Some(3), 0o600), "{}", stderr(&output));
    }
    let directory = place.path().join("traces");
    experiment(&place, &directory, &["--guest", "scrub", "--policy", "none"]);
    assert_eq!(mode(&directory.join("scrub.none.software.7777.bin")), 0o600);
}
