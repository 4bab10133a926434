//! `zerosweep trace`: traces of real Xen hosts.
//!
//! A trace that is cut or damaged is read up to there: what was read is shown, where it broke is told
//! on standard error, and the exit status is 1.

mod read;
mod replay;
mod report;

use std::path::Path;
use std::process::ExitCode;

use zerosweep_lab::xentrace::{self, Guess, Reader, Summary};

use crate::cli::{TraceCommand, TraceFile};
use crate::error::Failure;

/// Does what was asked.
pub(super) fn execute(command: &TraceCommand) -> Result<ExitCode, Failure> {
    match command {
        TraceCommand::Read(arguments) => read::execute(arguments),
        TraceCommand::Report(arguments) => report::execute(arguments),
        TraceCommand::Replay(arguments) => replay::execute(arguments),
    }
}

fn open(file: &Path) -> Result<Reader<Box<dyn std::io::Read>>, Failure> {
    xentrace::open(file).map_err(|error| cannot_read(file, &error))
}

fn cannot_read(file: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::work(format!("cannot read {}: {error}", file.display()))
}

/// The layout that the user gave, else the one that the trace seems to have.
fn layout(trace: &TraceFile) -> Result<Guess, Failure> {
    if let Some(layout) = trace.layout {
        return Ok(Guess { layout: layout.into(), reason: "--layout".to_owned() });
    }
    xentrace::guess(&mut open(&trace.file)?).map_err(|error| cannot_read(&trace.file, &error))
}

/// The domain that the user named, else the only one.
fn domain(wanted: Option<u32>, summary: &Summary) -> Result<u32, Failure> {
    let numbers: Vec<u32> = summary.domains.keys().copied().collect();
    match (wanted, numbers.as_slice()) {
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
