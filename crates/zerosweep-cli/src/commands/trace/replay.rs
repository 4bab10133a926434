//! `zerosweep trace replay FILE`: what each policy would have done with it.

use std::fmt::Write as _;
use std::process::ExitCode;

use serde::Serialize;
use zerosweep::Policy;
use zerosweep_client::error::Failure;
use zerosweep_client::output;
use zerosweep_client::size::{PAGE_BYTES, Size};
use zerosweep_lab::xentrace::{DomainSummary, Recording, Replay, Unknown};

use super::Trace;
use crate::cli::TraceReplayArguments;

/// What `--json` prints.
#[derive(Serialize)]
struct Document<'a> {
    schema: u32,
    file: String,
    domain: u32,
    max_mem_bytes: u64,
    target_bytes: u64,
    /// Touches and give-backs.
    steps: usize,
    unknown: Unknown,
    /// What Xen did.
    recorded: &'a DomainSummary,
    replays: &'a [Replay],
}

/// Replays and compares.
pub(super) fn execute(arguments: &TraceReplayArguments) -> Result<ExitCode, Failure> {
    let file = &arguments.trace.file;
    let trace = Trace::open(&arguments.trace)?;
    let layout = trace.layout()?.layout;
    let (summary, broken) = trace.summary(layout)?;
    broken.map_or(Ok(()), |broken| Err(trace.cannot_read(&broken)))?;
    let domain = super::domain(arguments.domain, &summary)?;
    let recording = Recording::read(&mut trace.reader()?, layout, domain, arguments.unknown.into())
        .map_err(|error| trace.cannot_read(&error))?;
    let target = target(arguments, &recording)?;
    let policies = match arguments.policy.as_slice() {
        [] => Policy::ALL.to_vec(),
        names => names
            .iter()
            .map(|name| name.parse().map_err(Failure::usage))
            .collect::<Result<_, _>>()?,
    };
    let mut replays = Vec::new();
    for policy in policies {
        let replay = recording.replay(policy, target.0 / PAGE_BYTES);
        replays.push(replay.map_err(|error| Failure::work(format!("policy {policy}: {error}")))?);
    }
    let Some(recorded) = summary.domains.get(&domain) else { return Ok(ExitCode::SUCCESS) };
    if arguments.json {
        output::json(&Document {
            schema: 1,
            file: file.display().to_string(),
            domain,
            max_mem_bytes: recording.max_pages * PAGE_BYTES,
            target_bytes: target.0,
            steps: recording.steps(),
            unknown: arguments.unknown.into(),
            recorded,
            replays: &replays,
        })?;
    } else {
        output::text(&render(&recording, target, recorded, &replays))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn target(arguments: &TraceReplayArguments, recording: &Recording) -> Result<Size, Failure> {
    let target = arguments.target.or(recording.final_pages.map(|pages| Size(pages * PAGE_BYTES)));
    let target = target.ok_or_else(|| {
        Failure::usage(
            "--target is needed: the guest gave nothing back, so the trace has no target",
        )
    })?;
    let max = Size(recording.max_pages * PAGE_BYTES);
    if !target.is_whole_pages() || target.0 == 0 || target > max {
        return Err(Failure::usage(format!(
            "invalid target: {target} (must be a multiple of 4K, above 0, and at most the guest's \
             {max})"
        )));
    }
    Ok(target)
}

fn render(
    recording: &Recording,
    target: Size,
    recorded: &DomainSummary,
    replays: &[Replay],
) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "domain {}: {}, target {}, {} touches and give-backs\n",
        recording.domain,
        Size(recording.max_pages * PAGE_BYTES).rounded(),
        target.rounded(),
        recording.steps(),
    );
    let _ = writeln!(
        text,
        "{:20} {:>5} {:>7} {:>7} {:>7} {:>7} {:>6} {:>6} {:>6}",
        "", "2M", "4K", "scanned", "sweeps", "broken", "whole", "cached", "end"
    );
    let _ = writeln!(
        text,
        "{:20} {:>5} {:>7} {:>7} {:>7} {:>7} {:>6} {:>6} {:>6}",
        "as recorded",
        recorded.populates.of(9),
        recorded.populates.of(0),
        "",
        "",
        recorded.splinters,
        "",
        "",
        "",
    );
    for replay in replays {
        let end = match replay.exhausted_after {
            None => "ok".to_owned(),
            Some(step) => format!("{} %", step * 100 / recording.steps().max(1)),
        };
        let _ = writeln!(
            text,
            "{:20} {:>5} {:>7} {:>7} {:>7} {:>7} {:>6} {:>6} {end:>6}",
            replay.policy,
            replay.populates_2m,
            replay.populates_4k,
            Size(replay.bytes_scanned).rounded(),
            replay.emergency_sweeps,
            replay.splinters + replay.shatters,
            replay.superpages_in_guest,
            replay.superpages_in_cache,
        );
    }
    text.push_str(
        "\n2M, 4K: populates; broken: superpages of promised pages or ram; whole, cached: \
         superpages\nin the guest and in the cache at the end; end: how far it came before no \
         frame was found\n",
    );
    text
}
