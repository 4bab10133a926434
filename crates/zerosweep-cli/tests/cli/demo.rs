//! `zerosweep demo`: on real memory where that is allowed, and elsewhere where it is not.
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use crate::support::without_userfaultfd;

fn demo(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zerosweep"));
    command.arg("demo").args(arguments).output().unwrap()
}

#[test]
fn without_userfaultfd_it_says_so_and_runs_on_the_software_machine() {
    let output = without_userfaultfd(|| demo(&["--max-mem", "256M"]));
    assert!(output.status.success(), "{output:?}");
    let (said, table) =
        (String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
    assert!(said.contains("Real memory cannot be used here"), "{said}");
    assert!(table.contains("software machine") && table.contains("modelled"), "{table}");
    assert!(table.lines().all(|line| line.len() <= 80), "{table}");
}

#[test]
fn without_userfaultfd_the_document_says_software_and_modelled() {
    let output = without_userfaultfd(|| demo(&["--max-mem", "256M", "--json"]));
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["schema"], 1);
    let runs = document["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 3);
    for run in runs {
        assert_eq!((&run["machine"], &run["time_kind"]), (&"software".into(), &"modelled".into()));
    }
    assert_eq!(runs[0]["outcome"], "exhausted");
    assert_eq!(runs[2]["outcome"], "ok");
}

#[test]
#[ignore = "needs userfaultfd in kernel mode: root, CAP_SYS_PTRACE or /dev/userfaultfd"]
fn on_real_memory_it_takes_less_than_half_a_minute() {
    let start = Instant::now();
    let output = demo(&["--json"]);
    assert!(output.status.success(), "{output:?}");
    // The bound of the promise made to users, not a measurement.
    assert!(start.elapsed() < Duration::from_secs(30));
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let ours = &document["runs"][2];
    assert_eq!((&ours["machine"], &ours["outcome"]), (&"linux".into(), &"ok".into()));
    assert!(ours["peak_total_bytes"].as_u64().unwrap() <= 256 << 20);
}
