//! What criterion measured: `target/criterion/GROUP/CASE/new/estimates.json`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::cargo::target;

/// Cases, as `group/case`, that were written since then, with their medians in nanoseconds.
pub(crate) fn written_since(then: SystemTime) -> Result<Vec<(String, f64)>> {
    let mut found = Vec::new();
    visit(&target().join("criterion"), then, &mut found)?;
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

fn visit(directory: &Path, then: SystemTime, found: &mut Vec<(String, f64)>) -> Result<()> {
    let estimates = directory.join("new/estimates.json");
    if let Ok(metadata) = fs::metadata(&estimates) {
        if metadata.modified()? >= then {
            let names = read(&directory.join("new/benchmark.json"))?;
            let case = names["full_id"].as_str().context("a benchmark without a name")?;
            let median = &read(&estimates)?["median"]["point_estimate"];
            let median = median.as_f64().with_context(|| format!("no median of {case}"))?;
            found.push((case.to_owned(), median));
        }
        return Ok(());
    }
    for entry in fs::read_dir(directory).with_context(|| format!("reading {directory:?}"))? {
        let path: PathBuf = entry?.path();
        if path.is_dir() {
            visit(&path, then, found)?;
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Value> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("in {}", path.display()))
}
