//! What was seen on which host: a file that is kept, and the table of docs/hosts.md.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::kernel::numbers;
use super::scenario::SCENARIOS;
use crate::cargo::workspace;

/// Where the table is in docs/hosts.md.
const BEGIN: &str = "<!-- This table is written by `cargo xtask hosts`. -->\n";
const END: &str = "<!-- The end of the table. -->\n";

/// Changes when a record is read in another way.
const SCHEMA: u32 = 1;

/// What a scenario came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) passed: bool,
    /// How many tests passed; or what failed, or why it was refused.
    pub(crate) detail: String,
    /// By the host's own clock.
    pub(crate) seconds: f64,
    /// What the tests printed of themselves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) figures: Vec<String>,
}

/// A host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Host {
    pub(crate) arch: String,
    /// What the kernel calls itself.
    pub(crate) kernel: String,
    /// The QEMU of its guests.
    pub(crate) qemu: String,
    /// Where the host ran: emulated, or the name of a processor.
    pub(crate) on: String,
}

/// A cell of the table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Cell {
    #[serde(flatten)]
    pub(crate) host: Host,
    pub(crate) scenario: String,
    #[serde(flatten)]
    pub(crate) outcome: Outcome,
    pub(crate) commit: String,
    pub(crate) date: String,
}

/// All cells that were ever seen; a new one replaces an older one of the same host and scenario.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    schema: u32,
    cells: Vec<Cell>,
}

impl Default for Record {
    fn default() -> Self {
        Self { schema: SCHEMA, cells: Vec::new() }
    }
}

impl Record {
    pub(crate) fn path() -> PathBuf {
        workspace().join("bench/record/hosts.json")
    }

    /// Reads the record; an empty one, where there is none yet.
    pub(crate) fn read() -> Result<Self> {
        let path = Self::path();
        if path.exists() { Self::read_from(&path) } else { Ok(Self::default()) }
    }

    /// Reads a record from a file.
    pub(crate) fn read_from(path: &Path) -> Result<Self> {
        let text = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        let record: Self = serde_json::from_slice(&text)
            .with_context(|| format!("{} is no record of hosts", path.display()))?;
        let (schema, known) = (record.schema, SCHEMA);
        ensure!(schema == known, "{}: schema {schema}, not {known}", path.display());
        Ok(record)
    }

    /// All that is in it.
    pub(crate) fn into_cells(self) -> Vec<Cell> {
        self.cells
    }

    /// Writes a record to a file.
    pub(crate) fn write_to(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(path, text).with_context(|| format!("writing {}", path.display()))
    }

    /// Adds a cell. Of a kernel's series, the version that was seen last is kept.
    pub(crate) fn add(&mut self, cell: Cell) {
        self.cells.retain(|other| {
            let (old, new) = (&other.host, &cell.host);
            let same = old.arch == new.arch && old.qemu == new.qemu && old.on == new.on;
            let same_series = series(&old.kernel) == series(&new.kernel);
            let replaced = other.scenario == cell.scenario || old.kernel != new.kernel;
            !(same && same_series && replaced)
        });
        self.cells.push(cell);
        let key = |cell: &Cell| (cell.host.clone(), cell.scenario.clone());
        self.cells.sort_by(|a, b| {
            let numbers = |cell: &Cell| numbers(&cell.host.kernel);
            (&b.host.arch, numbers(a)).cmp(&(&a.host.arch, numbers(b))).then(key(a).cmp(&key(b)))
        });
    }

    /// Writes the record, and the table.
    pub(crate) fn write(&self) -> Result<()> {
        self.write_to(&Self::path())?;
        let page = workspace().join("docs/hosts.md");
        let text = fs::read_to_string(&page).context("reading docs/hosts.md")?;
        fs::write(&page, with_table(&text, &self.table())?).context("writing docs/hosts.md")
    }

    /// The table: a row for each host, a column for each scenario.
    pub(crate) fn table(&self) -> String {
        let mut rows = BTreeMap::<usize, (&Host, Vec<&Cell>)>::new();
        for cell in &self.cells {
            let number = rows.values().position(|(host, _)| **host == cell.host);
            let number = number.unwrap_or(rows.len());
            rows.entry(number).or_insert((&cell.host, Vec::new())).1.push(cell);
        }
        let names: Vec<_> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
        let mut text = format!("| kernel | QEMU | on | {} | seen |\n", names.join(" | "));
        text += &format!("|{}\n", " --- |".repeat(names.len() + 4));
        for (host, cells) in rows.values() {
            let column = |name: &str| {
                let cell = cells.iter().find(|cell| cell.scenario == name);
                cell.map_or_else(|| "–".to_owned(), |cell| shown(&cell.outcome))
            };
            let columns: Vec<_> = names.iter().map(|name| column(name)).collect();
            let last = cells.iter().map(|cell| (&cell.date, &cell.commit)).max();
            let (date, commit) = last.expect("a row has a cell");
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {date}, {commit} |",
                host.kernel,
                host.qemu,
                host.on,
                columns.join(" | ")
            );
        }
        text
    }
}

fn shown(outcome: &Outcome) -> String {
    let detail = outcome.detail.replace('|', "\\|");
    match (outcome.passed, detail.is_empty()) {
        (true, true) => "passed".to_owned(),
        (true, false) => detail,
        (false, _) => format!("**no**: {detail}"),
    }
}

/// The page with another table.
fn with_table(page: &str, table: &str) -> Result<String> {
    let parts = page.split_once(BEGIN).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(END)?;
        Some((before, after))
    });
    let Some((before, after)) = parts else {
        bail!("docs/hosts.md has no place for the table: {BEGIN}{END}");
    };
    Ok(format!("{before}{BEGIN}\n{table}\n{END}{after}"))
}

/// `6.18` of `6.18.15+deb13-cloud-amd64`.
fn series(kernel: &str) -> String {
    let mut parts = kernel.split('.');
    [parts.next(), parts.next()].into_iter().flatten().collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    fn cell(kernel: &str, scenario: &str, passed: bool) -> Cell {
        let text = |text: &str| text.to_owned();
        Cell {
            host: Host {
                arch: text("x86_64"),
                kernel: text(kernel),
                qemu: text("7.2"),
                on: text("emulated"),
            },
            scenario: text(scenario),
            outcome: Outcome { passed, detail: text("why"), seconds: 1.0, figures: Vec::new() },
            commit: text("abc"),
            date: text("2026-01-02"),
        }
    }

    #[test]
    fn the_page_has_the_table_of_the_record() {
        let page = fs::read_to_string(workspace().join("docs/hosts.md")).unwrap();
        let table = Record::read().unwrap().table();
        assert!(with_table(&page, &table).unwrap() == page, "it has another: `cargo xtask hosts`");
    }

    #[test]
    fn a_newer_kernel_of_a_series_replaces_the_older_one() {
        let mut record = Record::default();
        record.add(cell("6.18.9+x", "doctor", true));
        record.add(cell("6.18.9+x", "demo", true));
        record.add(cell("6.12.1+x", "demo", true));
        record.add(cell("6.18.9+x", "demo", false));
        assert_eq!(record.cells.len(), 3);
        record.add(cell("6.18.15+x", "demo", true));
        let kernels: Vec<_> = record.cells.iter().map(|cell| cell.host.kernel.as_str()).collect();
        assert_eq!(kernels, ["6.12.1+x", "6.18.15+x"]);
        let table = record.table();
        assert!(table.contains("| 6.12.1+x | 7.2 | emulated | – | why |"), "{table}");
    }

    #[test]
    fn a_page_without_a_place_is_refused() {
        assert!(with_table("# Hosts\n", "t").is_err());
        let page = format!("a\n{BEGIN}old\n{END}b\n");
        assert_eq!(with_table(&page, "t\n").unwrap(), format!("a\n{BEGIN}\nt\n\n{END}b\n"));
    }
}
