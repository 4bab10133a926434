//! Two records side by side.

use std::path::Path;

use anyhow::Result;

use super::record::{Row, read};

/// A ratio that differs from 1 by this much is marked.
const MARKED: f64 = 0.1;

/// Prints each figure of both records, and the second over the first.
pub(crate) fn compare(before: &Path, after: &Path) -> Result<()> {
    let (before, after) = (read(before)?, read(after)?);
    println!("{:<54} {:>14} {:>14} {:>7}", "case", "before", "after", "ratio");
    for row in &after {
        let same = |other: &&Row| (&other.bench, &other.case) == (&row.bench, &row.case);
        let old = before.iter().find(same);
        let pairs = [
            ("ns", old.and_then(|old| old.median_ns), row.median_ns),
            ("instructions", old.and_then(|old| old.instructions), row.instructions),
        ];
        for (unit, old, new) in pairs {
            let name = format!("{}/{}, {unit}", row.bench, row.case);
            if let Some(line) = new.map(|new| line(&name, old, new)) {
                println!("{line}");
            }
        }
    }
    for row in &before {
        if !after.iter().any(|other| (&other.bench, &other.case) == (&row.bench, &row.case)) {
            println!("{}/{}: only in the first", row.bench, row.case);
        }
    }
    Ok(())
}

fn line(name: &str, old: Option<f64>, new: f64) -> String {
    let Some(old) = old else { return format!("{name:<54} {:>14} {new:>14.1}", "-") };
    let ratio = new / old;
    let mark = match ratio {
        ratio if ratio > 1.0 + MARKED => " slower",
        ratio if ratio < 1.0 - MARKED => " faster",
        _ => "",
    };
    format!("{name:<54} {old:>14.1} {new:>14.1} {ratio:>7.2}{mark}")
}

#[cfg(test)]
mod unit_tests {
    use super::line;

    #[test]
    fn what_has_become_slower_is_marked() {
        assert!(line("a", Some(100.0), 115.0).ends_with("1.15 slower"));
        assert!(line("a", Some(100.0), 105.0).ends_with("1.05"));
        assert!(line("a", Some(100.0), 50.0).ends_with("0.50 faster"));
        assert!(line("a", None, 50.0).ends_with("50.0"));
    }
}
