//! `zerosweep experiment`: every policy on every guest.
//!
//! Errors in the arguments are found before any work starts. Finished runs are kept: after Ctrl-C
//! or a failure their results are shown, and `--resume` goes on.

mod costs;
pub(crate) mod documents;
mod plan;
mod progress;
mod qemu;
mod table;
mod work;

use std::fmt::Display;
use std::process::ExitCode;

use zerosweep_client::error::Failure;
use zerosweep_client::output;
use zerosweep_lab::matrix::{Runner, longest_first, paired};
use zerosweep_lab::result::{Report, SCHEMA};

use self::documents::Destination;
use self::work::{Order, Work};
use crate::cli::{ExperimentAction, ExperimentArguments, Machine, MergeArguments};

/// Runs the experiments, or joins documents of such runs.
pub(super) fn execute(arguments: &ExperimentArguments) -> Result<ExitCode, Failure> {
    if let Some(ExperimentAction::Merge(arguments)) = &arguments.action {
        return merge(arguments);
    }
    if arguments.calibrate {
        return costs::execute(arguments);
    }
    if arguments.machine == Machine::Qemu {
        let work = Work::prepare(arguments, plan::real_guests(arguments)?)?;
        let qemu = qemu::Qemu::find(work.policies(), arguments.accel)?;
        return carry_out(arguments, work, paired, &|experiment, watch| {
            qemu.run(experiment, watch)
        });
    }
    let work = Work::prepare(arguments, plan::models(arguments)?)?;
    let stage = work.stage();
    carry_out(arguments, work, longest_first, &|experiment, watch| {
        stage.run_model(experiment, watch)
    })
}

/// Does the work and shows the results, also when it was ended early.
fn carry_out<G: Clone + Display + Send + Sync, P: Copy + Display + Send + Sync>(
    arguments: &ExperimentArguments,
    mut work: Work<G, P>,
    order: Order<G, P>,
    runner: Runner<'_, G, P>,
) -> Result<ExitCode, Failure> {
    let ended = work.run(order, runner);
    let runs = work.finished();
    if ended.is_ok() || !runs.is_empty() {
        let report = Report { schema: SCHEMA, host: work.host, runs };
        show(&report, work.report.as_ref(), arguments.json)?;
    }
    ended.map(|()| ExitCode::SUCCESS)
}

fn merge(arguments: &MergeArguments) -> Result<ExitCode, Failure> {
    let report = arguments.report.as_ref().map(|path| Destination::new(path)).transpose()?;
    let joined = documents::merge(&arguments.files)?;
    show(&joined, report.as_ref(), arguments.json)?;
    Ok(ExitCode::SUCCESS)
}

/// The runs for people or for programs; timelines are only in files.
fn show(report: &Report, html: Option<&Destination>, json: bool) -> Result<(), Failure> {
    if let Some(html) = html {
        html.write(&zerosweep_lab::report::html(report))?;
    }
    if !json {
        return output::text(&table::table(&report.runs));
    }
    let mut report = report.clone();
    report.runs.iter_mut().for_each(|run| run.timeline = None);
    output::json(&report)
}
