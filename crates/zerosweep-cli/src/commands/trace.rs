//! `zerosweep trace`: traces of real Xen hosts.
//!
//! A trace that is cut or damaged is read up to the damage. What was read is shown, standard error
//! says where the damage is, and the exit status is 1.

mod read;
mod replay;
mod report;

use std::path::Path;
use std::process::ExitCode;

use zerosweep_client::error::Failure;
use zerosweep_lab::xentrace::{self, Broken, Guess, Layout, Reader, Source, Summary};

use crate::cli::{TraceCommand, TraceFile};

/// Does what was asked.
pub(super) fn execute(command: &TraceCommand) -> Result<ExitCode, Failure> {
    match command {
        TraceCommand::Read(arguments) => read::execute(arguments),
        TraceCommand::Report(arguments) => report::execute(arguments),
        TraceCommand::Replay(arguments) => replay::execute(arguments),
    }
}

/// A trace that the user named.
struct Trace<'a> {
    arguments: &'a TraceFile,
    source: Source,
}

impl<'a> Trace<'a> {
    fn open(arguments: &'a TraceFile) -> Result<Self, Failure> {
        let source =
            Source::open(&arguments.file).map_err(|error| cannot_read(&arguments.file, &error))?;
        Ok(Self { arguments, source })
    }

    /// Reads it from its beginning.
    fn reader(&self) -> Result<Reader<Box<dyn std::io::Read>>, Failure> {
        self.source.reader().map_err(|error| self.cannot_read(&error))
    }

    /// The layout that the user gave, else the one that the trace seems to have.
    fn layout(&self) -> Result<Guess, Failure> {
        if let Some(layout) = self.arguments.layout {
            return Ok(Guess { layout: layout.into(), reason: "--layout".to_owned() });
        }
        xentrace::guess(&mut self.reader()?).map_err(|broken| self.cannot_read(&broken))
    }

    /// What is in it, and where it broke.
    fn summary(&self, layout: Layout) -> Result<(Summary, Option<Broken>), Failure> {
        let (summary, outcome) = Summary::read(&mut self.reader()?, layout);
        Ok((summary, outcome.err()))
    }

    /// For people.
    fn name(&self) -> String {
        shown(&self.arguments.file)
    }

    fn cannot_read(&self, error: &dyn std::fmt::Display) -> Failure {
        cannot_read(&self.arguments.file, error)
    }
}

fn shown(file: &Path) -> String {
    match file.to_str() {
        Some("-") => "standard input".to_owned(),
        _ => file.display().to_string(),
    }
}

fn cannot_read(file: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::work(format!("cannot read {}: {error}", shown(file)))
}

/// What a trace without a domain may lack.
const NOTHING: &str = "no record of populate on demand: was it captured with -e 0x00121000?";

/// The domain that the user named, else the only one.
fn domain(wanted: Option<u32>, summary: &Summary) -> Result<u32, Failure> {
    let numbers: Vec<u32> = summary.domains.keys().copied().collect();
    match (wanted, numbers.as_slice()) {
        (_, []) => Err(Failure::work(format!("the trace has {NOTHING}"))),
        (Some(domain), numbers) if numbers.contains(&domain) => Ok(domain),
        (None, &[domain]) => Ok(domain),
        (Some(domain), _) => Err(Failure::usage(format!(
            "there is no domain {domain} in the trace; those in it are {numbers:?}"
        ))),
        (None, _) => {
            Err(Failure::usage(format!("--domain is needed: those in the trace are {numbers:?}")))
        }
    }
}
