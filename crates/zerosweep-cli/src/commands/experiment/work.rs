//! The runs of one invocation: what is done, what is left, what is kept.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::anyhow;
use zerosweep_client::error::Failure;
use zerosweep_lab::host::HostFacts;
use zerosweep_lab::matrix::{Matrix, Runner, Shard, Stage, is_run_of, run_all};
use zerosweep_lab::result::{Report, Run};
use zerosweep_lab::run::{Experiment, Interrupted};

use super::documents::{self, Destination};
use super::plan;
use super::progress::Progress;
use crate::cli::ExperimentArguments;

/// The order in which experiments are run.
pub(super) type Order<G, P> = fn(&[Experiment<G, P>]) -> Vec<usize>;

/// All that is to be done, checked.
pub(super) struct Work<G, P> {
    matrix: Matrix<G, P>,
    experiments: Vec<Experiment<G, P>>,
    /// The result of each experiment; `None` if it has not been run.
    runs: Vec<Option<Run>>,
    /// Runs in the file that is resumed which are not of this matrix: they stay in it.
    others: Vec<Run>,
    pub(super) host: HostFacts,
    jobs: usize,
    out: Option<Destination>,
    pub(super) report: Option<Destination>,
}

impl<G: Clone + Display + Send + Sync, P: Copy + Display + Send + Sync> Work<G, P> {
    pub(super) fn prepare(
        arguments: &ExperimentArguments,
        matrix: Matrix<G, P>,
    ) -> Result<Self, Failure> {
        let host = HostFacts::read();
        let jobs = plan::jobs(arguments, &matrix, &host)?;
        let experiments = matrix.experiments(arguments.shard.unwrap_or(Shard::WHOLE));
        let out = arguments.out.as_ref().or(arguments.resume.as_ref());
        if let Some(directory) = &matrix.events {
            documents::check_directory(directory)?;
        }
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

    /// Where the guests run.
    pub(super) fn stage(&self) -> Stage {
        self.matrix.stage
    }

    /// Those that are compared.
    pub(super) fn policies(&self) -> &[P] {
        &self.matrix.policies
    }

    /// Keeps the runs of an earlier invocation.
    fn take_over(&mut self, report: Report) {
        for run in report.runs {
            let stage = self.matrix.stage;
            let is_it = |experiment: &Experiment<G, P>| is_run_of(&run, experiment, stage);
            match self.experiments.iter().position(is_it) {
                Some(n) if self.runs[n].is_none() => self.runs[n] = Some(run),
                Some(_) => {}
                None => self.others.push(run),
            }
        }
    }

    /// Runs what is left.
    pub(super) fn run(
        &mut self,
        order: Order<G, P>,
        runner: Runner<'_, G, P>,
    ) -> Result<(), Failure> {
        let stop = Arc::new(AtomicBool::new(false));
        crate::commands::stop_on_signals(&stop)?;
        let left: Vec<usize> =
            (0..self.experiments.len()).filter(|&n| self.runs[n].is_none()).collect();
        let experiments: Vec<Experiment<G, P>> =
            left.iter().map(|&n| self.experiments[n].clone()).collect();
        let progress = Progress::new(experiments.len());
        let (queue, jobs) = (order(&experiments), self.jobs);
        let done = run_all(&experiments, &queue, jobs, &stop, runner, |n, run| {
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

    /// What is done, in the order of the results.
    pub(super) fn finished(&self) -> Vec<Run> {
        self.runs.iter().flatten().cloned().collect()
    }
}
