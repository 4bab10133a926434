//! Many runs: guests × policies × seeds.

use std::fmt::Display;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use zerosweep::{PAGE_BYTES, Policy};

use crate::cost::CostModel;
use crate::guest::{Guest, Model};
use crate::result::Run;
use crate::run::{Experiment, Interrupted, Watch, on_linux, on_software};

/// Where guests run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The software machine: deterministic, times modelled, several runs at a time.
    Software,
    /// Real memory: times measured, one run after the other.
    Linux,
    /// Real guests under QEMU: times measured, one run after the other, those of a guest and a seed
    /// next to each other.
    Qemu,
}

impl Stage {
    /// As in [`Run::machine`].
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Software => "software",
            Self::Linux => "linux",
            Self::Qemu => "qemu",
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

/// A part of a matrix: every `of`-th run, beginning with number `index`. Under QEMU, where runs are
/// compared with those next to them, every `of`-th guest and seed with all policies.
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

/// An invalid shard.
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
pub struct Matrix<G = Guest, P = Policy> {
    /// The guests.
    pub guests: Vec<G>,
    /// The policies.
    pub policies: Vec<P>,
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
    /// Whether timelines are kept.
    pub timeline: bool,
    /// The directory for the traces of the runs; `None` if none are written.
    pub events: Option<PathBuf>,
}

impl<G: Clone + Display, P: Copy + Display> Matrix<G, P> {
    /// The runs of a shard, in the order of the results.
    #[must_use]
    pub fn experiments(&self, shard: Shard) -> Vec<Experiment<G, P>> {
        let repeat = self.repeat as usize;
        let mut experiments = Vec::new();
        for (guest_number, guest) in self.guests.iter().enumerate() {
            for (policy_number, &policy) in self.policies.iter().enumerate() {
                for n in 0..repeat {
                    let part = match self.stage {
                        Stage::Qemu => guest_number * repeat + n,
                        _ => (guest_number * self.policies.len() + policy_number) * repeat + n,
                    };
                    if part % shard.of == shard.index {
                        experiments.push(self.experiment(guest, policy, n as u64));
                    }
                }
            }
        }
        experiments
    }

    fn experiment(&self, guest: &G, policy: P, n: u64) -> Experiment<G, P> {
        Experiment {
            guest: guest.clone(),
            policy,
            max_mem_bytes: self.max_mem_bytes,
            target_bytes: self.target_bytes,
            vcpus: self.vcpus,
            seed: self.seed.wrapping_add(n),
            costs: self.costs,
            timeline: self.timeline,
            events: self.events.as_ref().map(|directory| {
                directory.join(trace_name(guest, policy, self.stage, self.seed.wrapping_add(n)))
            }),
        }
    }

    /// Returns the most memory that one run takes, in bytes: the target, a plan, a ledger and
    /// tables. Under QEMU it is all memory that the guest is told that it has, and QEMU's own.
    #[must_use]
    pub fn bytes_per_run(&self) -> u64 {
        if self.stage == Stage::Qemu {
            return self.max_mem_bytes.saturating_add(256 << 20);
        }
        const BYTES_PER_PAGE: u64 = 48;
        let tables = (self.max_mem_bytes / PAGE_BYTES).saturating_mul(BYTES_PER_PAGE);
        self.target_bytes.saturating_add(tables).saturating_add(16 << 20)
    }
}

/// Returns the name of a run's trace: `GUEST.POLICY.MACHINE.SEED.bin`, with a dash for a character
/// that does not belong into the name of a file.
#[must_use]
pub fn trace_name(guest: &impl Display, policy: impl Display, stage: Stage, seed: u64) -> String {
    let name = format!("{guest}.{policy}.{}.{seed}.bin", stage.name());
    let belongs = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '=');
    name.chars().map(|c| if belongs(c) { c } else { '-' }).collect()
}

/// Whether `run` is the result of `experiment`.
#[must_use]
pub fn is_run_of<G: Display, P: Display>(
    run: &Run,
    experiment: &Experiment<G, P>,
    stage: Stage,
) -> bool {
    run.guest == experiment.guest.to_string()
        && run.policy == experiment.policy.to_string()
        && run.machine == stage.name()
        && run.seed == experiment.seed
        && run.vcpus == experiment.vcpus
        && run.max_mem_bytes == experiment.max_mem_bytes
        && run.target_bytes == experiment.target_bytes
}

/// Returns the order for runs that go on at the same time. The longest runs are begun first, so
/// that no processor is idle at the end.
#[must_use]
pub fn longest_first(experiments: &[Experiment]) -> Vec<usize> {
    let is_long = |n: &usize| matches!(experiments[*n].guest.model(), Model::Hostile(_));
    let (mut queue, rest): (Vec<_>, Vec<_>) = (0..experiments.len()).partition(is_long);
    queue.extend(rest);
    queue
}

/// Returns the order for runs that are compared: all policies of a guest and a seed one after the
/// other, so that changes on the machine affect all of them. Every second group is reversed.
#[must_use]
pub fn paired<G: PartialEq, P>(experiments: &[Experiment<G, P>]) -> Vec<usize> {
    let guest = |n: usize| experiments.iter().position(|e| e.guest == experiments[n].guest);
    let mut queue: Vec<usize> = (0..experiments.len()).collect();
    queue.sort_by_key(|&n| (guest(n), experiments[n].seed));
    let key = |&n: &usize| (guest(n), experiments[n].seed);
    for (number, group) in queue.chunk_by_mut(|a, b| key(a) == key(b)).enumerate() {
        if number % 2 == 1 {
            group.reverse();
        }
    }
    queue
}

/// Runs one experiment; ends when told to.
pub type Runner<'a, G, P> = &'a (dyn Fn(&Experiment<G, P>, Watch<'_>) -> Result<Run> + Sync + 'a);

impl Stage {
    /// Runs a guest model.
    ///
    /// # Errors
    /// As [`on_software`] and [`on_linux`]; there are no models under QEMU.
    pub fn run_model(self, experiment: &Experiment, watch: Watch<'_>) -> Result<Run> {
        match self {
            Self::Software => on_software(experiment, watch),
            Self::Linux => on_linux(experiment, watch),
            Self::Qemu => anyhow::bail!("a guest model does not run under QEMU"),
        }
    }
}

/// Runs `experiments` in the order of `queue`, `jobs` at a time. Calls `finished` with the number
/// of each experiment and its result, from one thread at a time. Once `stop` is set, or an
/// experiment has failed, no more are begun and those under way are ended. The result is then that
/// failure, or [`Interrupted`].
///
/// # Errors
/// See there.
pub fn run_all<G: Display + Sync, P: Display + Sync>(
    experiments: &[Experiment<G, P>],
    queue: &[usize],
    jobs: usize,
    stop: &AtomicBool,
    runner: Runner<'_, G, P>,
    finished: impl FnMut(usize, Run) -> Result<()> + Send,
) -> Result<()> {
    let next = AtomicUsize::new(0);
    let finished = Mutex::new(finished);
    let failure = Mutex::new(None);
    let work = || {
        loop {
            let Some(&n) = queue.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
            let done = run_one(&experiments[n], stop, runner).and_then(|run| {
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

fn run_one<G: Display, P: Display>(
    experiment: &Experiment<G, P>,
    stop: &AtomicBool,
    runner: Runner<'_, G, P>,
) -> Result<Run> {
    let mut watch = |_: &[u8]| {
        if stop.load(Ordering::Relaxed) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    if watch(&[]).is_break() {
        return Err(Interrupted.into());
    }
    match runner(experiment, &mut watch) {
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
            events: None,
        }
    }

    fn on_software_machine() -> Runner<'static, Guest, Policy> {
        &|experiment, watch| Stage::Software.run_model(experiment, watch)
    }

    fn runs(matrix: &Matrix, jobs: usize) -> Vec<Run> {
        let mut runs = Vec::new();
        let experiments = matrix.experiments(Shard::WHOLE);
        let stop = AtomicBool::new(false);
        let (queue, runner) = (longest_first(&experiments), on_software_machine());
        run_all(&experiments, &queue, jobs, &stop, runner, |n, run| {
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
                let limit = (run.limit_superpages_free.unwrap(), run.limit_bytes_scanned.unwrap());
                assert!(run.superpages_free() <= limit.0, "{what}");
                assert!(run.engine.bytes_scanned >= limit.1, "{what}");
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
    fn under_qemu_a_guest_and_seed_stay_together() {
        use crate::real_guest::{RealGuest, Rival};
        let Matrix { max_mem_bytes, target_bytes, vcpus, seed, costs, .. } = matrix();
        let matrix = Matrix {
            guests: vec![RealGuest::Linux, RealGuest::Churn],
            policies: vec![Rival::Plain, Rival::Policy(Policy::Zerosweep)],
            stage: Stage::Qemu,
            repeat: 2,
            timeline: false,
            events: None,
            max_mem_bytes,
            target_bytes,
            vcpus,
            seed,
            costs,
        };
        let whole = matrix.experiments(Shard::WHOLE);
        let name =
            |e: &Experiment<RealGuest, Rival>| format!("{} {} {}", e.guest, e.seed, e.policy);
        let order: Vec<String> = paired(&whole).iter().map(|&n| name(&whole[n])).collect();
        assert_eq!(
            order,
            [
                "qemu-linux 7777 plain",
                "qemu-linux 7777 zerosweep",
                "qemu-linux 7778 zerosweep",
                "qemu-linux 7778 plain",
                "qemu-churn 7777 plain",
                "qemu-churn 7777 zerosweep",
                "qemu-churn 7778 zerosweep",
                "qemu-churn 7778 plain",
            ]
        );
        let shard = matrix.experiments(Shard { index: 1, of: 3 });
        let names: Vec<String> = shard.iter().map(name).collect();
        assert_eq!(names, ["qemu-linux 7778 plain", "qemu-linux 7778 zerosweep"]);
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
        let queue = longest_first(&experiments);
        let ended = run_all(&experiments, &queue, 1, &stop, on_software_machine(), |_, _| {
            count += 1;
            stop.store(count == 3, Ordering::Relaxed);
            Ok(())
        });
        assert!(ended.unwrap_err().is::<Interrupted>());
        assert_eq!(count, 3);
    }
}
