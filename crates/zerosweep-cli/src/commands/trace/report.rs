//! `zerosweep trace report FILE -o PAGE`: how a domain's memory changed, as an HTML page.

use std::process::ExitCode;

use zerosweep_client::error::Failure;
use zerosweep_client::output::eprint_line;
use zerosweep_lab::report::{TraceReport, trace_html};
use zerosweep_lab::xentrace::{Course, Extent};

use super::Trace;
use crate::cli::TraceReportArguments;
use crate::commands::experiment::documents::Destination;

/// Reads and draws.
pub(super) fn execute(arguments: &TraceReportArguments) -> Result<ExitCode, Failure> {
    let file = &arguments.trace.file;
    let page = Destination::new(&arguments.output)?;
    let trace = Trace::open(&arguments.trace)?;
    let layout = trace.layout()?.layout;
    let (summary, broken) = trace.summary(layout)?;
    let broken = broken.map(|broken| broken.to_string());
    let domain = super::domain(arguments.domain, &summary)?;
    let Some(of_domain) = summary.domains.get(&domain) else { return Ok(ExitCode::SUCCESS) };
    // Where the trace is broken was just found: both stop there.
    let (extent, _) = Extent::read(&mut trace.reader()?, layout, domain);
    let (course, _) = Course::read(&mut trace.reader()?, layout, domain, &extent);
    let ticks = extent.tsc.map_or(0, |(first, last)| last - first);
    let name = match file.to_str() {
        Some("-") => trace.name().into(),
        _ => file.file_name().unwrap_or(file.as_os_str()).to_string_lossy(),
    };
    page.write(&trace_html(&TraceReport {
        file: &name,
        domain,
        layout,
        seconds: arguments.cpu_hz.map(|hz| ticks as f64 / hz),
        lost: summary.lost_records,
        broken: broken.as_deref(),
        summary: of_domain,
        extent: &extent,
        course: &course,
    }))?;
    let Some(broken) = broken else { return Ok(ExitCode::SUCCESS) };
    eprint_line(&format!(
        "error: {} cannot be read on: {broken}; the part before is drawn",
        trace.name()
    ));
    Ok(ExitCode::from(1))
}
