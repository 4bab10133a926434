//! Runs of a guest model: on the software machine, and on real memory.

mod linux;
mod software;

pub use linux::on_linux;
pub use software::on_software;

use zerosweep::{PAGE_BYTES, Policy, Quantities, Statistics};

use crate::guest::Scrub;
use crate::result::{Outcome, Run, TimeKind};

/// What is to be run.
#[derive(Clone, Copy, Debug)]
pub struct Experiment {
    /// The guest.
    pub guest: Scrub,
    /// How the engine decides.
    pub policy: Policy,
    /// What the guest is told that it has, in bytes.
    pub max_mem_bytes: u64,
    /// What it may hold, in bytes.
    pub target_bytes: u64,
    /// Its virtual CPUs: on real memory each is a thread.
    pub vcpus: u32,
}

impl Experiment {
    fn max_pages(&self) -> u64 {
        self.max_mem_bytes / PAGE_BYTES
    }

    fn target_pages(&self) -> u64 {
        self.target_bytes / PAGE_BYTES
    }
}

/// What both machines can tell of a run that is under way or over.
struct Readings {
    statistics: Statistics,
    quantities: Quantities,
    superpages_in_guest: u64,
    superpages_in_cache: u64,
    superpages_returned: u64,
}

/// What is measured differently on each machine.
struct Times {
    boot_seconds: f64,
    balloon_seconds: f64,
    kind: TimeKind,
    fault_ns: Option<(u64, u64, u64)>,
}

fn assemble(
    experiment: &Experiment,
    machine: &str,
    outcome: Outcome,
    booted: &Statistics,
    end: &Readings,
    times: &Times,
) -> Run {
    let s = &end.statistics;
    let populated = end.quantities.populated;
    let live = match populated {
        0 => 0.0,
        _ => (end.superpages_in_guest * 512) as f64 / populated as f64,
    };
    Run {
        guest: experiment.guest.to_string(),
        policy: experiment.policy.to_string(),
        machine: machine.to_owned(),
        seed: experiment.guest.seed,
        vcpus: experiment.vcpus,
        max_mem_bytes: experiment.max_mem_bytes,
        target_bytes: experiment.target_bytes,
        outcome,
        boot_seconds: times.boot_seconds,
        balloon_seconds: times.balloon_seconds,
        time_kind: times.kind,
        populates_2m: s.populates_2m,
        populates_4k: s.populates_4k,
        zero_checks_2m: s.zero_checks_2m,
        zero_checks_2m_hit: s.zero_checks_2m_hit,
        zero_checks_4k: s.zero_checks_4k,
        bytes_scanned: s.bytes_scanned,
        bytes_cleared: s.bytes_cleared,
        bytes_copied: s.bytes_copied,
        eager_checks: s.eager_checks,
        emergency_sweeps: s.emergency_sweeps,
        splinters: s.splinters,
        shatters: s.shatters,
        superpages_reclaimed: s.superpages_reclaimed,
        superpages_in_guest: end.superpages_in_guest,
        superpages_in_cache: end.superpages_in_cache,
        superpages_returned: end.superpages_returned,
        pages_returned_4k: s.pages_returned_4k,
        emergency_sweeps_ballooning: s.emergency_sweeps - booted.emergency_sweeps,
        bytes_scanned_ballooning: s.bytes_scanned - booted.bytes_scanned,
        peak_total_bytes: s.peak_total * PAGE_BYTES,
        unmap_flushes: s.unmap_flushes,
        live_on_superpages: live,
        fault_ns_p50: times.fault_ns.map(|(p50, _, _)| p50),
        fault_ns_p99: times.fault_ns.map(|(_, p99, _)| p99),
        fault_ns_max: times.fault_ns.map(|(_, _, max)| max),
    }
}
