//! Many runs: guests × policies × seeds.

use std::ops::ControlFlow;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use zerosweep::{PAGE_BYTES, Policy};

use crate::cost::CostModel;
use crate::guest::{Guest, Model};
use crate::result::Run;
use crate::run::{Experiment, Interrupted, on_linux, on_software};

/// Where guests run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The software machine: deterministic, times modelled, several runs at a time.
    Software,
    /// Real memory: times measured, one run after the other.
    Linux,
}

impl Stage {
    /// As in [`Run::machine`].
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Software => "software",
            Self::Linux => "linux",
        }
    }
}

/// The policies of `all`, in order of age: those that the experiments compare.
pub const POLICIES: [Policy; 6] = [
    Policy::None,
    Policy::Hypercall2011,
    Policy::Rfc2011(zerosweep::Gate::Debt),
    Policy::Xen2012,
    Policy::Xen2016,
    Policy::Zerosweep,
];

/// A part of a matrix: every `of`-th run, beginning with number `index`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// From 0.
    pub index: usize,
    /// How many parts there are.
    pub of: usize,
}

impl Shard {
    /// Everything.
    pub const WHOLE: Self = Self { index: 0, of: 1 };
}

/// A shard that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a shard is written I/N with I from 0 to N-1, as 0/4 to 3/4")]
pub struct ShardError;

impl FromStr for Shard {
    type Err = ShardError;

    fn from_str(text: &str) -> Result<Self, ShardError> {
        let (index, of) = text.split_once('/').ok_or(ShardError)?;
        let number = |text: &str| text.parse::<usize>().map_err(|_| ShardError);
        let shard = Self { index: number(index)?, of: number(of)? };
        if shard.index < shard.of { Ok(shard) } else { Err(ShardError) }
    }
}

/// What is to be run.
#[derive(Clone, Debug)]
pub struct Matrix {
    /// The guests.
    pub guests: Vec<Guest>,
    /// The policies.
    pub policies: Vec<Policy>,
    /// Where.
    pub stage: Stage,
    /// What each guest is told that it has, in bytes.
    pub max_mem_bytes: u64,
    /// What it may hold, in bytes.
    pub target_bytes: u64,
    /// Virtual CPUs of each guest.
    pub vcpus: u32,
    /// The first seed.
    pub seed: u64,
    /// How many seeds: each is one more than the one before.
    pub repeat: u32,
    /// What modelled times are made of.
    pub costs: CostModel,
    /// Whether timelines are wanted.
    pub timeline: bool,
}

impl Matrix {
    /// The runs of a shard, in the order of the results.
    #[must_use]
    pub fn experiments(&self, shard: Shard) -> Vec<Experiment> {
        let mut experiments = Vec::new();
        for guest in &self.guests {
            for &policy in &self.policies {
                for n in 0..u64::from(self.repeat) {
                    experiments.push(Experiment {
                        guest: guest.clone(),
                        policy,
                        max_mem_bytes: self.max_mem_bytes,
                        target_bytes: self.target_bytes,
                        vcpus: self.vcpus,
                        seed: self.seed.wrapping_add(n),
                        costs: self.costs,
                        timeline: self.timeline,
                    });
                }
            }
        }
        experiments.into_iter().skip(shard.index).step_by(shard.of).collect()
    }

    /// Memory that one run takes at most, in bytes: the target, a plan, a ledger, tables.
    #[must_use]
    pub fn bytes_per_run(&self) -> u64 {
        const BYTES_PER_PAGE: u64 = 48;
        let tables = (self.max_mem_bytes / PAGE_BYTES).saturating_mul(BYTES_PER_PAGE);
        self.target_bytes.saturating_add(tables).saturating_add(16 << 20)
    }
}

/// Whether `run` is what came of `experiment`.
#[must_use]
pub fn is_run_of(run: &Run, experiment: &Experiment, stage: Stage) -> bool {
    run.guest == experiment.guest.name()
        && run.policy == experiment.policy.to_string()
        && run.machine == stage.name()
        && run.seed == experiment.seed
        && run.vcpus == experiment.vcpus
        && run.max_mem_bytes == experiment.max_mem_bytes
        && run.target_bytes == experiment.target_bytes
}

/// Runs them, `jobs` at a time. `finished` is called with the number of each and what came of it,
/// by one thread at a time. Once `stop` is set, or one has failed, no more are begun and those
/// under way are ended; then the result is that failure, or [`Interrupted`].
///
/// # Errors
/// See there.
pub fn run_all(
    experiments: &[Experiment],
    stage: Stage,
    jobs: usize,
    stop: &AtomicBool,
    finished: impl FnMut(usize, Run) -> Result<()> + Send,
) -> Result<()> {
    // What takes longest is begun first, so that no processor is idle at the end.
    let is_long = |n: &usize| matches!(experiments[*n].guest.model(), Model::Hostile(_));
    let (mut queue, rest): (Vec<_>, Vec<_>) = (0..experiments.len()).partition(is_long);
    queue.extend(rest);
    let next = AtomicUsize::new(0);
    let finished = Mutex::new(finished);
    let failure = Mutex::new(None);
    let work = || {
        loop {
            let Some(&n) = queue.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
            let done = run_one(&experiments[n], stage, stop).and_then(|run| {
                let mut finished = finished.lock().unwrap_or_else(PoisonError::into_inner);
                finished(n, run)
            });
            if let Err(error) = done {
                stop.store(true, Ordering::Relaxed);
                let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
                // An interruption is what others' failures look like from here.
                if failure.is_none() || !error.is::<Interrupted>() {
                    *failure = Some(error);
                }
                return;
            }
        }
    };
    std::thread::scope(|scope| {
        (1..jobs.clamp(1, experiments.len().max(1))).for_each(|_| drop(scope.spawn(work)));
        work();
    });
    failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

fn run_one(experiment: &Experiment, stage: Stage, stop: &AtomicBool) -> Result<Run> {
    let mut watch = |_: &[u8]| match stop.load(Ordering::Relaxed) {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    };
    if watch(&[]).is_break() {
        return Err(Interrupted.into());
    }
    let run = match stage {
        Stage::Software => on_software(experiment, &mut watch),
        Stage::Linux => on_linux(experiment, &mut watch),
    };
    match run {
        Err(error) if error.is::<Interrupted>() => Err(error),
        run => run.with_context(|| {
            format!("guest {} under policy {}", experiment.guest, experiment.policy)
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::parse_list;
    use crate::result::Outcome;

    fn matrix() -> Matrix {
        Matrix {
            guests: parse_list("all").unwrap(),
            policies: POLICIES.to_vec(),
            stage: Stage::Software,
            max_mem_bytes: 64 << 20,
            target_bytes: 16 << 20,
            vcpus: 2,
            seed: 7777,
            repeat: 1,
            costs: CostModel::default(),
            timeline: true,
        }
    }

    fn runs(matrix: &Matrix, jobs: usize) -> Vec<Run> {
        let mut runs = Vec::new();
        let experiments = matrix.experiments(Shard::WHOLE);
        let stop = AtomicBool::new(false);
        run_all(&experiments, Stage::Software, jobs, &stop, |n, run| {
            runs.push((n, run));
            Ok(())
        })
        .unwrap();
        runs.sort_by_key(|(n, _)| *n);
        runs.into_iter().map(|(_, run)| run).collect()
    }

    #[test]
    fn the_result_depends_on_the_seed_alone() {
        let matrix = matrix();
        let json = |runs: &[Run]| serde_json::to_string(runs).unwrap();
        let first = runs(&matrix, 1);
        assert_eq!(json(&first), json(&runs(&matrix, 2)));
        let other = runs(&Matrix { seed: 1, ..matrix }, 2);
        assert_ne!(json(&first), json(&other));
    }

    #[test]
    fn every_guest_ends_under_every_policy_and_within_the_limit() {
        let runs = runs(&matrix(), 2);
        assert_eq!(runs.len(), 36);
        for run in &runs {
            let what = format!("{} {}", run.guest, run.policy);
            assert!(run.peak_total_bytes <= run.target_bytes, "{what}: beyond the target");
            if run.outcome == Outcome::Ok {
                assert!(run.superpages_free() <= run.limit_superpages_free, "{what}");
                assert!(run.bytes_scanned >= run.limit_bytes_scanned, "{what}");
            } else {
                assert_eq!(run.outcome, Outcome::Exhausted, "{what}");
            }
            let samples = run.timeline.as_ref().unwrap();
            assert!(samples.len() > 5 && samples.iter().all(|s| s.map.len() == 32), "{what}");
        }
        assert!(runs.iter().all(|run| run.policy != "zerosweep" || run.outcome == Outcome::Ok));
    }

    #[test]
    fn shards_cover_the_matrix_without_overlap() {
        let matrix = Matrix { repeat: 2, ..matrix() };
        let key = |e: &Experiment| format!("{} {} {}", e.guest, e.policy, e.seed);
        let mut sharded: Vec<String> = (0..5)
            .flat_map(|index| matrix.experiments(Shard { index, of: 5 }))
            .map(|experiment| key(&experiment))
            .collect();
        let mut all: Vec<String> = matrix.experiments(Shard::WHOLE).iter().map(key).collect();
        sharded.sort();
        all.sort();
        assert_eq!((sharded.len(), &sharded), (72, &all));
    }

    #[test]
    fn shards_are_written_from_0() {
        assert_eq!("3/4".parse(), Ok(Shard { index: 3, of: 4 }));
        for wrong in ["", "4/4", "1", "a/b", "-1/2", "0/0", "1/2/3"] {
            assert_eq!(wrong.parse::<Shard>(), Err(ShardError), "{wrong}");
        }
    }

    #[test]
    fn a_stop_ends_runs_that_are_under_way() {
        let stop = AtomicBool::new(false);
        let experiments = matrix().experiments(Shard::WHOLE);
        let mut count = 0;
        let ended = run_all(&experiments, Stage::Software, 1, &stop, |_, _| {
            count += 1;
            stop.store(count == 3, Ordering::Relaxed);
            Ok(())
        });
        assert!(ended.unwrap_err().is::<Interrupted>());
        assert_eq!(count, 3);
    }
}
