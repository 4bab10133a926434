//! Instructions per operation, counted by callgrind.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::cargo::{target, workspace};

/// Every case of the bench `instructions`, with its instructions per operation.
pub(crate) fn count(valgrind: &Path) -> Result<Vec<(String, f64)>> {
    let program = build()?;
    let names = output(Command::new(&program))?;
    let mut counts = Vec::new();
    for name in names.lines() {
        let per_operation = count_one(valgrind, &program, name)?;
        println!("{name}: {per_operation:.1} instructions");
        counts.push((name.to_owned(), per_operation));
    }
    Ok(counts)
}

fn count_one(valgrind: &Path, program: &Path, case: &str) -> Result<f64> {
    let out = target().join("callgrind.out");
    let mut command = Command::new(valgrind);
    command.args(["--quiet", "--tool=callgrind", "--collect-atstart=no"]);
    command.args(["--toggle-collect=*counted_work*"]);
    command.arg(format!("--callgrind-out-file={}", out.display()));
    command.arg(program).arg(case);
    let operations: u64 = output(command)?.trim().parse().context("not a number of operations")?;
    let profile = std::fs::read_to_string(&out).with_context(|| format!("reading {out:?}"))?;
    let total = total(&profile).context("callgrind wrote no total")?;
    ensure!(total > 0 && operations > 0, "nothing was counted for {case}");
    Ok(total as f64 / operations as f64)
}

fn total(profile: &str) -> Option<u64> {
    profile.lines().find_map(|line| line.strip_prefix("totals: ")?.trim().parse().ok())
}

/// Builds the bench; where it is.
fn build() -> Result<PathBuf> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["bench", "-p", "zerosweep", "--bench", "instructions", "--no-run"]);
    command.arg("--message-format=json-render-diagnostics").current_dir(workspace());
    let messages = output(command)?;
    let executable = |line: &str| {
        let message: Value = serde_json::from_str(line).ok()?;
        Some(PathBuf::from(message["executable"].as_str()?))
    };
    messages.lines().filter_map(executable).next_back().context("cargo built no program")
}

fn output(mut command: Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.with_context(|| format!("starting {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod unit_tests {
    #[test]
    fn the_total_is_found() {
        let profile = "version: 1\nevents: Ir\nfn=(1) f\n3 17\n\ntotals: 4711\n";
        assert_eq!(super::total(profile), Some(4711));
        assert_eq!(super::total("events: Ir\n"), None);
    }
}
