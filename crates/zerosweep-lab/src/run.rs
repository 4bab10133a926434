//! Runs of a guest model: on the software machine, and on real memory.

mod linux;
mod recorded;
mod software;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

pub use linux::on_linux;
pub use software::on_software;
use zerosweep::{Gfn, PAGE_BYTES, Policy, SUPERPAGE_PAGES, Statistics, SuperpageState};

use crate::cost::CostModel;
use crate::guest::{Guest, Plan, Shape};
use crate::ledger::{Ledger, Limit};
use crate::result::{Outcome, Run, TimeKind};
use crate::timeline::Sample;

/// What is to be run: a guest model, or another kind of guest `G` under something else than a
/// policy `P`.
#[derive(Clone, Debug)]
pub struct Experiment<G = Guest, P = Policy> {
    /// The guest.
    pub guest: G,
    /// How the engine decides.
    pub policy: P,
    /// What the guest is told that it has, in bytes.
    pub max_mem_bytes: u64,
    /// What it may hold, in bytes.
    pub target_bytes: u64,
    /// Its virtual CPUs: on real memory each is a thread.
    pub vcpus: u32,
    /// What the guest's random choices depend on.
    pub seed: u64,
    /// What modelled times are made of, where they are modelled.
    pub costs: CostModel,
    /// Whether a timeline is kept.
    pub timeline: bool,
    /// The file for a trace of Xen's, which records what happens. If it cannot be written, the run
    /// goes on without it, and a message on standard error says so.
    pub events: Option<PathBuf>,
}

/// Called from time to time with the superpage map, a letter each; may end the run.
pub type Watch<'a> = &'a mut dyn FnMut(&[u8]) -> ControlFlow<()>;

/// `watch` ended the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the run was interrupted")]
pub struct Interrupted;

impl Experiment {
    /// What the guest is going to do.
    #[must_use]
    pub fn plan(&self) -> Plan {
        self.guest.plan(&Shape {
            max_pages: self.max_mem_bytes / PAGE_BYTES,
            target_pages: self.target_bytes / PAGE_BYTES,
            vcpus: self.vcpus.max(1),
            seed: self.seed,
        })
    }
}

/// A trace ends before the run does.
fn tell_unrecorded(file: &Path, error: &dyn std::fmt::Display) {
    eprintln!("zerosweep: warning: events are missing from {}: {error}", file.display());
}

/// The figures that both machines have of a run, during the run and at its end.
struct Readings {
    statistics: Statistics,
    superpages_in_cache: u64,
    singles_in_cache: u64,
    superpages_returned: u64,
    /// All that is held: populated, cached, retained.
    total_pages: u64,
    /// A letter for each superpage of the guest.
    letters: Vec<u8>,
}

impl Readings {
    fn superpages_in_guest(&self) -> u64 {
        self.letters.iter().filter(|letter| is_whole(letter)).count() as u64
    }

    fn is_whole(&self, gfn: Gfn) -> bool {
        self.letters.get(gfn.superpage().index()).is_some_and(is_whole)
    }

    fn live_on_superpages(&self, ledger: &Ledger) -> f64 {
        let (mut live, mut whole) = (0_u64, 0_u64);
        for gfn in ledger.live() {
            live += 1;
            whole += u64::from(self.is_whole(gfn));
        }
        if live == 0 { 1.0 } else { whole as f64 / live as f64 }
    }
}

/// Whether the letter of a map says that a superpage is whole.
fn is_whole(letter: &u8) -> bool {
    SuperpageState::from_letter(*letter).is_some_and(SuperpageState::is_whole)
}

/// What is measured differently on each machine.
struct Times {
    boot_seconds: f64,
    balloon_seconds: f64,
    kind: TimeKind,
    fault_ns: Option<(u64, u64, u64)>,
}

/// All that is known of a run at its end.
struct Finished<'a> {
    experiment: &'a Experiment,
    machine: &'static str,
    outcome: Outcome,
    limit: Limit,
    ledger: &'a Ledger,
    booted: Statistics,
    end: Readings,
    times: Times,
    timeline: Option<Vec<Sample>>,
}

impl Finished<'_> {
    fn assemble(self) -> Run {
        let Self { experiment, booted, end, times, limit, .. } = self;
        let s = &end.statistics;
        Run {
            guest: experiment.guest.to_string(),
            policy: experiment.policy.to_string(),
            machine: self.machine.to_owned(),
            seed: experiment.seed,
            vcpus: experiment.vcpus,
            max_mem_bytes: experiment.max_mem_bytes,
            target_bytes: experiment.target_bytes,
            outcome: self.outcome,
            boot_seconds: times.boot_seconds,
            balloon_seconds: times.balloon_seconds,
            time_kind: times.kind,
            engine: s.into(),
            superpages_in_guest: end.superpages_in_guest(),
            superpages_in_cache: end.superpages_in_cache,
            singles_in_cache: end.singles_in_cache,
            superpages_returned: end.superpages_returned,
            pages_returned_4k: s.pages_returned_4k,
            emergency_sweeps_ballooning: s.emergency_sweeps - booted.emergency_sweeps,
            bytes_scanned_ballooning: s.bytes_scanned - booted.bytes_scanned,
            superpages_reclaimed_ballooning: s.superpages_reclaimed - booted.superpages_reclaimed,
            peak_total_bytes: s.peak_total * PAGE_BYTES,
            end_total_bytes: end.total_pages * PAGE_BYTES,
            unmap_flushes: s.unmap_flushes,
            live_on_superpages: end.live_on_superpages(self.ledger),
            fault_ns_p50: times.fault_ns.map(|(p50, _, _)| p50),
            fault_ns_p99: times.fault_ns.map(|(_, p99, _)| p99),
            fault_ns_max: times.fault_ns.map(|(_, _, max)| max),
            limit_superpages_free: Some(limit.superpages_free),
            limit_bytes_scanned: Some(limit.bytes_scanned),
            accelerator: None,
            timeline: self.timeline,
        }
    }
}

/// The words to look at in a page that should be zero: its start and its end.
const ZERO_WORDS: [u16; 3] = [0, 15, (SUPERPAGE_PAGES - 1) as u16];
