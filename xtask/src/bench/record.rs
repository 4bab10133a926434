//! A record: one file of comma-separated values for each machine and day, in `bench/record`.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::cargo::{said_by, workspace};
use crate::machine;

pub(crate) const HEADER: &str = "bench,case,median_ns,instructions,commit,machine,kernel";

/// One figure.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    pub(crate) bench: String,
    pub(crate) case: String,
    pub(crate) median_ns: Option<f64>,
    pub(crate) instructions: Option<f64>,
}

/// What all rows of a record have in common.
pub(crate) struct Record {
    date: String,
    commit: String,
    machine: String,
    kernel: String,
}

impl Record {
    /// Looks before anything is run: the tree may change meanwhile.
    pub(crate) fn begin() -> Result<Self> {
        let mut commit = said_by("git", &["rev-parse", "--short", "HEAD"])?;
        if !said_by("git", &["status", "--porcelain"])?.is_empty() {
            commit.push_str("-dirty");
        }
        let date = said_by("date", &["-u", "+%F"])?;
        Ok(Self { date, commit, machine: machine::slug(), kernel: machine::kernel() })
    }

    pub(crate) fn warning(&self) -> Option<&'static str> {
        let warning = "the tree is not clean: the record will say so, and is not one to keep";
        self.commit.ends_with("-dirty").then_some(warning)
    }

    /// Writes the record; where it is.
    pub(crate) fn write(&self, rows: &[Row]) -> Result<PathBuf> {
        let directory = workspace().join("bench/record");
        fs::create_dir_all(&directory).with_context(|| format!("making {directory:?}"))?;
        let path = directory.join(format!("{}-{}.csv", self.date, self.machine));
        fs::write(&path, self.text(rows)).with_context(|| format!("writing {path:?}"))?;
        Ok(path)
    }

    fn text(&self, rows: &[Row]) -> String {
        let number = |n: Option<f64>| n.map_or_else(String::new, |n| format!("{n:.1}"));
        let mut text = format!("{HEADER}\n");
        for row in rows {
            let (median, instructions) = (number(row.median_ns), number(row.instructions));
            let Self { commit, machine, kernel, .. } = self;
            let Row { bench, case, .. } = row;
            // Writing to a string does not fail.
            let _ = writeln!(
                text,
                "{bench},{case},{median},{instructions},{commit},{machine},{kernel}"
            );
        }
        text
    }
}

/// The figures of a record.
pub(crate) fn read(path: &Path) -> Result<Vec<Row>> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    parse(&text).with_context(|| format!("in {}", path.display()))
}

fn parse(text: &str) -> Result<Vec<Row>> {
    let mut lines = text.lines();
    ensure!(lines.next() == Some(HEADER), "the first line is not {HEADER}");
    lines.map(row).collect()
}

fn row(line: &str) -> Result<Row> {
    let fields: Vec<&str> = line.split(',').collect();
    ensure!(fields.len() == HEADER.split(',').count(), "not a row of a record: {line}");
    let number = |field: &str| -> Result<Option<f64>> {
        if field.is_empty() {
            return Ok(None);
        }
        Ok(Some(field.parse().with_context(|| format!("not a number: {field}"))?))
    };
    Ok(Row {
        bench: fields[0].to_owned(),
        case: fields[1].to_owned(),
        median_ns: number(fields[2])?,
        instructions: number(fields[3])?,
    })
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let common = |text: &str| text.to_owned();
        let record = Record {
            date: common("2026-01-02"),
            commit: common("abc"),
            machine: common("cpu"),
            kernel: common("6.18"),
        };
        let row = |case: &str, median_ns, instructions| Row {
            bench: "engine".to_owned(),
            case: case.to_owned(),
            median_ns,
            instructions,
        };
        let rows = [row("a/b", Some(12.5), None), row("c", None, Some(90.0))];
        let text = record.text(&rows);
        assert_eq!(text.lines().nth(1), Some("engine,a/b,12.5,,abc,cpu,6.18"));
        assert_eq!(parse(&text).unwrap(), rows);
        assert!(parse("bench,case\n").is_err());
        assert!(parse(&format!("{HEADER}\nengine,a\n")).is_err());
    }
}
