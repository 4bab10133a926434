//! JSON documents of runs: read, joined, and overwritten as runs are finished.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use zerosweep_client::error::Failure;
use zerosweep_lab::files;
use zerosweep_lab::host::HostFacts;
use zerosweep_lab::result::{Report, Run, SCHEMA};

/// Reads a document; anything wrong with it is wrong usage.
pub(super) fn read(path: &Path) -> Result<Report, Failure> {
    let name = path.display();
    let text = fs::read_to_string(path)
        .map_err(|error| Failure::usage(format!("cannot read {name}: {error}")))?;
    #[derive(Deserialize)]
    struct Version {
        schema: u32,
    }
    let version: Version = serde_json::from_str(&text).map_err(|error| {
        Failure::usage(format!("{name} is not a document of `zerosweep experiment`: {error}"))
    })?;
    if version.schema != SCHEMA {
        return Err(Failure::usage(format!(
            "{name} has schema {}, and this program knows schema {SCHEMA}: documents of different \
             schemas cannot be joined",
            version.schema
        )));
    }
    serde_json::from_str(&text)
        .map_err(|error| Failure::usage(format!("{name} has schema {SCHEMA}, but: {error}")))
}

/// Joins documents. A run that is in several of them with the same result counts once.
pub(super) fn merge(files: &[PathBuf]) -> Result<Report, Failure> {
    let mut joined: Option<Report> = None;
    let mut hosts_differ = false;
    for file in files {
        let report = read(file)?;
        let Some(all) = &mut joined else {
            joined = Some(report);
            continue;
        };
        hosts_differ |= all.host != report.host;
        for run in report.runs {
            if !all.runs.contains(&run) {
                all.runs.push(run);
            }
        }
    }
    let mut joined = joined.ok_or_else(|| Failure::usage("there is nothing to join"))?;
    if hosts_differ {
        eprintln!(
            "zerosweep: the documents come from different machines; host is that of the first"
        );
    }
    joined.runs.sort_by(|a, b| order(a).cmp(&order(b)));
    Ok(joined)
}

/// Guests together, policies in order of age.
fn order(run: &Run) -> (&str, &str, u64, u64, Option<usize>, &str, u64) {
    let age = zerosweep::Policy::ALL.iter().position(|policy| policy.to_string() == run.policy);
    let sizes = (run.max_mem_bytes, run.target_bytes);
    (&run.machine, &run.guest, sizes.0, sizes.1, age, &run.policy, run.seed)
}

/// Makes a directory if it is not there, and checks that files can be written in it.
pub(super) fn check_directory(path: &Path) -> Result<(), Failure> {
    let cannot = |error| Failure::usage(format!("cannot write to {}: {error}", path.display()));
    fs::create_dir_all(path).map_err(cannot)?;
    files::check_directory(path).map_err(cannot)
}

/// A file that can be written to, known before any work starts.
#[derive(Debug)]
pub(crate) struct Destination {
    name: PathBuf,
    file: files::Destination,
}

impl Destination {
    /// Checks that the file can be written, and leaves it as it is.
    pub(crate) fn new(path: &Path) -> Result<Self, Failure> {
        let file = files::Destination::new(path)
            .map_err(|error| Failure::usage(format!("cannot write {}: {error}", path.display())))?;
        Ok(Self { name: path.to_owned(), file })
    }

    /// Replaces the content in one step.
    pub(crate) fn write(&self, content: &str) -> Result<(), Failure> {
        self.file.write(content.as_bytes()).map_err(|error| {
            Failure::work(format!("cannot write {}: {error}", self.name.display()))
        })
    }

    /// Writes a document on one line.
    pub(super) fn write_document(&self, host: &HostFacts, runs: &[&Run]) -> Result<(), Failure> {
        #[derive(serde::Serialize)]
        struct Document<'a> {
            schema: u32,
            host: &'a HostFacts,
            runs: &'a [&'a Run],
        }
        let json = serde_json::to_string(&Document { schema: SCHEMA, host, runs })
            .map_err(|error| Failure::work(format!("cannot write JSON: {error}")))?;
        self.write(&(json + "\n"))
    }
}
