//! `zerosweep experiment`: every policy on every guest.
//!
//! What is wrong with the arguments is found before any work starts. Finished runs are kept: Ctrl-C
//! and a failure show what is there, and `--resume` goes on.

pub(crate) mod arguments;
mod costs;
mod documents;
mod progress;
mod table;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::anyhow;
use zerosweep::Policy;
use zerosweep_lab::cost::CostModel;
use zerosweep_lab::matrix::{Matrix, Shard, Stage, is_run_of, run_all};
use zerosweep_lab::result::{HostFacts, Report, Run, SCHEMA};
use zerosweep_lab::run::{Experiment, Interrupted};

use self::arguments::{ExperimentAction, ExperimentArguments, MergeArguments};
use self::documents::Destination;
use self::progress::Progress;
use crate::error::Failure;
use crate::output;
use crate::size::Size;

/// Runs the experiments, or joins documents of such runs.
pub(super) fn execute(arguments: &ExperimentArguments) -> Result<ExitCode, Failure> {
    if let Some(ExperimentAction::Merge(arguments)) = &arguments.action {
        return merge(arguments);
    }
    if arguments.calibrate {
        return costs::execute(arguments);
    }
    let mut work = Work::prepare(arguments)?;
    let ended = work.run();
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

/// All that is to be done, checked.
struct Work {
    matrix: Matrix,
    experiments: Vec<Experiment>,
    /// What came of each.
    runs: Vec<Option<Run>>,
    /// Runs in the file that is resumed which are not of this matrix: they stay in it.
    others: Vec<Run>,
    host: HostFacts,
    jobs: usize,
    out: Option<Destination>,
    report: Option<Destination>,
}

impl Work {
    fn prepare(arguments: &ExperimentArguments) -> Result<Self, Failure> {
        let matrix = matrix(arguments)?;
        let host = HostFacts::read();
        let jobs = jobs(arguments, &matrix, &host)?;
        let experiments = matrix.experiments(arguments.shard.unwrap_or(Shard::WHOLE));
        let out = arguments.out.as_ref().or(arguments.resume.as_ref());
        let mut work = Self {
            runs: experiments.iter().map(|_| None).collect(),
            others: Vec::new(),
            out: out.map(|path| Destination::new(path)).transpose()?,
            report: arguments.report.as_ref().map(|path| Destination::new(path)).transpose()?,
            matrix,
            experiments,
            host,
            jobs,
        };
        if let Some(path) = &arguments.resume
            && path.exists()
        {
            work.take_over(documents::read(path)?);
        }
        Ok(work)
    }

    /// Keeps the runs of an earlier invocation.
    fn take_over(&mut self, report: Report) {
        for run in report.runs {
            let is_it = |experiment: &Experiment| is_run_of(&run, experiment, self.matrix.stage);
            match self.experiments.iter().position(is_it) {
                Some(n) if self.runs[n].is_none() => self.runs[n] = Some(run),
                Some(_) => {}
                None => self.others.push(run),
            }
        }
    }

    fn run(&mut self) -> Result<(), Failure> {
        let stop = Arc::new(AtomicBool::new(false));
        stop_on_signals(&stop)?;
        let left: Vec<usize> =
            (0..self.experiments.len()).filter(|&n| self.runs[n].is_none()).collect();
        let experiments: Vec<Experiment> =
            left.iter().map(|&n| self.experiments[n].clone()).collect();
        let progress = Progress::new(experiments.len());
        let (stage, jobs) = (self.matrix.stage, self.jobs);
        let done = run_all(&experiments, stage, jobs, &stop, |n, run| {
            progress.finished(&run);
            self.runs[left[n]] = Some(run);
            self.save().map_err(|failure| anyhow!("{failure}"))
        });
        drop(progress);
        done.map_err(|error| self.explain(&error))
    }

    fn save(&self) -> Result<(), Failure> {
        let Some(out) = &self.out else { return Ok(()) };
        let runs: Vec<&Run> = self.others.iter().chain(self.runs.iter().flatten()).collect();
        out.write_document(&self.host, &runs)
    }

    fn explain(&self, error: &anyhow::Error) -> Failure {
        if !error.is::<Interrupted>() {
            return Failure::work(format!("{error:#}"));
        }
        let done = self.runs.iter().flatten().count();
        let all = self.runs.len();
        Failure::work(match self.out {
            Some(_) => format!("interrupted: {done} of {all} runs are kept; --resume FILE goes on"),
            None => format!("interrupted: {done} of {all} runs were finished"),
        })
    }

    fn finished(&self) -> Vec<Run> {
        self.runs.iter().flatten().cloned().collect()
    }
}

/// Ctrl-C and a polite kill end the runs; a second one ends the program.
fn stop_on_signals(stop: &Arc<AtomicBool>) -> Result<(), Failure> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    for signal in [SIGINT, SIGTERM] {
        let asked_twice = Arc::clone(stop);
        signal_hook::flag::register_conditional_shutdown(signal, 1, asked_twice)
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(stop)))
            .map_err(|error| Failure::work(format!("cannot catch signals: {error}")))?;
    }
    Ok(())
}

fn matrix(arguments: &ExperimentArguments) -> Result<Matrix, Failure> {
    let (max_mem, target) = (arguments.max_mem, arguments.target);
    if !max_mem.is_whole_pages() || !target.is_whole_pages() {
        return Err(Failure::usage(format!(
            "--max-mem {max_mem} and --target {target} must be multiples of 4K"
        )));
    }
    if target.0 == 0 || target > max_mem {
        return Err(Failure::usage(format!(
            "--target {target} cannot be: it must be above 0 and at most --max-mem ({max_mem})"
        )));
    }
    Ok(Matrix {
        guests: without_repeats(&arguments.guest.0),
        policies: without_repeats::<Policy>(&arguments.policy.0),
        stage: arguments.machine.into(),
        max_mem_bytes: max_mem.0,
        target_bytes: target.0,
        vcpus: arguments.vcpus,
        seed: arguments.seed,
        repeat: arguments.repeat,
        costs: match &arguments.costs {
            Some(path) => costs::read(path)?,
            None => CostModel::default(),
        },
        timeline: arguments.report.is_some()
            || arguments.out.is_some()
            || arguments.resume.is_some(),
    })
}

fn without_repeats<T: Clone + PartialEq>(items: &[T]) -> Vec<T> {
    let mut once: Vec<T> = Vec::new();
    for item in items {
        if !once.contains(item) {
            once.push(item.clone());
        }
    }
    once
}

/// How many runs at a time; an error if there is no memory for one.
fn jobs(
    arguments: &ExperimentArguments,
    matrix: &Matrix,
    host: &HostFacts,
) -> Result<usize, Failure> {
    let one = matrix.bytes_per_run();
    let available = available_bytes().unwrap_or(host.memory_bytes);
    if one > available {
        return Err(Failure::usage(format!(
            "a guest with --max-mem {} and --target {} takes {} here, and this machine has {} \
             available",
            arguments.max_mem,
            arguments.target,
            Size(one).rounded(),
            Size(available).rounded()
        )));
    }
    if matrix.stage == Stage::Linux {
        return Ok(1);
    }
    let wanted = arguments.jobs.unwrap_or(host.cpus.max(1)) as usize;
    Ok(wanted.min((available / one) as usize).max(1))
}

/// What the kernel says new programs can have.
fn available_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kib * 1024)
}
