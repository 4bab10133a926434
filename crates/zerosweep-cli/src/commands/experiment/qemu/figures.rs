//! What was seen of a real guest, as a [`Run`].

use anyhow::{Result, anyhow};
use zerosweep::{PAGE_BYTES, SUPERPAGE_BYTES, SUPERPAGE_PAGES};
use zerosweep_lab::real_guest::{Held, RealExperiment};
use zerosweep_lab::result::{Outcome, Run, TimeKind};
use zerosweep_wire::Status;

use super::life::Story;
use crate::cli::Accelerator;

/// The run.
///
/// # Errors
/// When the memory held is not known: nothing is reported then.
pub(super) fn run(
    experiment: &RealExperiment,
    accelerator: Accelerator,
    story: &Story,
    held: &Held,
) -> Result<Run> {
    let managed = experiment.policy.policy().is_some();
    let outcome = story.outcome.unwrap_or(Outcome::Stalled);
    if outcome == Outcome::Ok {
        held.check(managed).map_err(|why| anyhow!("memory held is not known: {why}"))?;
    }
    let counters = |status: &Option<Status>| {
        status.as_ref().map(|status| status.counters.engine).unwrap_or_default()
    };
    let (s, booted) = (&counters(&story.end), counters(&story.booted));
    let fault = story.end.as_ref().map(|status| status.fault_latency);
    let (superpages_in_cache, singles_in_cache) = in_cache(story.end.as_ref());
    Ok(Run {
        guest: experiment.guest.to_string(),
        policy: experiment.policy.to_string(),
        machine: "qemu".to_owned(),
        seed: experiment.seed,
        vcpus: experiment.vcpus,
        max_mem_bytes: experiment.max_mem_bytes,
        target_bytes: experiment.target_bytes,
        outcome,
        boot_seconds: story.boot.as_secs_f64(),
        balloon_seconds: story.balloon.as_secs_f64(),
        time_kind: TimeKind::Measured,
        engine: s.into(),
        superpages_in_guest: held.superpages,
        superpages_in_cache,
        singles_in_cache,
        superpages_returned: s.superpages_returned,
        pages_returned_4k: s.pages_returned_4k,
        emergency_sweeps_ballooning: s.emergency_sweeps.saturating_sub(booted.emergency_sweeps),
        bytes_scanned_ballooning: s.bytes_scanned.saturating_sub(booted.bytes_scanned),
        superpages_reclaimed_ballooning: s
            .superpages_reclaimed
            .saturating_sub(booted.superpages_reclaimed),
        peak_total_bytes: held.peak(None),
        end_total_bytes: held.last(),
        unmap_flushes: s.unmap_flushes,
        live_on_superpages: live_on_superpages(held, story.end.as_ref()),
        fault_ns_p50: fault.map(|fault| fault.p50_ns),
        fault_ns_p99: fault.map(|fault| fault.p99_ns),
        fault_ns_max: fault.map(|fault| fault.max_ns),
        limit_superpages_free: None,
        limit_bytes_scanned: None,
        accelerator: Some(accelerator.name().to_owned()),
        timeline: None,
    })
}

/// Superpages and single pages in the engine's cache.
fn in_cache(end: Option<&Status>) -> (u64, u64) {
    end.map_or((0, 0), |status| {
        let superpages = status.superpages.in_cache;
        (superpages, status.pages.cache.saturating_sub(superpages * SUPERPAGE_PAGES))
    })
}

/// Returns the share of the guest's frames in use that is in huge pages, by the kernel. Retained
/// pages are not in use.
fn live_on_superpages(held: &Held, end: Option<&Status>) -> f64 {
    let retained = end.map_or(0, |status| status.pages.retained) * PAGE_BYTES;
    let live = held.guest_anonymous.saturating_sub(retained);
    let whole = (held.superpages * SUPERPAGE_BYTES).saturating_sub(retained);
    if live == 0 { 1.0 } else { whole.min(live) as f64 / live as f64 }
}
