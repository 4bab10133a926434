//! The guest's figures as a message.

use std::fmt::Write as _;

use zerosweep::PAGE_BYTES;
use zerosweep_linux::GuestMemory;
use zerosweep_wire::{
    AgentConfig, Answer, Counters, FaultLatency, HostMemory, MAP_SUPERPAGES, Map, PROTOCOL, Pages,
    State, Status, Superpages,
};

use crate::{events, files, qmp_tap, state};

/// The status as it is now.
pub(crate) fn answer(config: &AgentConfig) -> Answer {
    Answer::Ok(Box::new(status(config)))
}

/// The status, and a part of the superpage map.
pub(crate) fn map(config: &AgentConfig, memory: &GuestMemory, first: u64) -> Answer {
    let mut map = Map { first, ..Map::default() };
    memory.for_each_superpage(first, MAP_SUPERPAGES, |state, live| {
        map.letters.push(char::from(state.letter()));
        // Writing to a string cannot fail.
        let _ = write!(map.live, "{live:03x}");
    });
    Answer::Ok(Box::new(Status { map: Some(map), ..status(config) }))
}

/// The status, and where to go on.
pub(crate) fn going_on(config: &AgentConfig, next: Option<u64>) -> Answer {
    Answer::Ok(Box::new(Status { next, ..status(config) }))
}

fn status(config: &AgentConfig) -> Status {
    // What came in by a way that is not seen at once: inherited, or from another thread's hands.
    files::check_all();
    let mut status = Status {
        protocol: PROTOCOL,
        name: config.name.clone(),
        pid: std::process::id(),
        state: State::WaitingForRam,
        reason: None,
        max_mem_bytes: config.max_mem_bytes,
        target_bytes: config.target_bytes,
        policy: config.policy.clone(),
        on_exhaustion: config.on_exhaustion,
        return_mode: config.return_mode,
        pages: Pages::default(),
        superpages: Superpages::default(),
        counters: Counters::default(),
        fault_latency: FaultLatency::default(),
        host: HostMemory { rss_anon_bytes: rss_anon_bytes().unwrap_or(0) },
        stalled_threads: 0,
        borrowed_pages: 0,
        balloon_request_bytes: None,
        events: events::figures(),
        next: None,
        map: None,
    };
    match state::guest() {
        None => {}
        Some(Err(reason)) => {
            status.state = State::Failed;
            status.reason = Some(reason.clone());
        }
        Some(Ok(memory)) => fill(&mut status, memory),
    }
    status
}

fn fill(status: &mut Status, memory: &GuestMemory) {
    let snapshot = memory.snapshot();
    let quantities = &snapshot.quantities;
    status.state = if memory.is_lifted() { State::CapLifted } else { State::Managing };
    status.target_bytes = quantities.target * PAGE_BYTES;
    status.pages = Pages {
        max: quantities.max,
        target: quantities.target,
        entries: quantities.entries,
        populated: quantities.populated,
        cache: quantities.cache,
        retained: quantities.retained,
        total: quantities.total(),
        ballooned_out: quantities.max - quantities.guest(),
        debt: quantities.debt(),
        owed: quantities.owed(),
        can_touch: quantities.cache + quantities.retained,
        likely: snapshot.forecast.likely.saturating_sub(quantities.retained),
        short: snapshot.forecast.short,
    };
    status.superpages = Superpages {
        in_guest: snapshot.superpages_in_guest,
        in_guest_by_kernel: memory.machine().whole_superpages().ok(),
        in_cache: snapshot.superpages_in_cache,
        broken: snapshot.broken,
        cleared_ahead: snapshot.prefaulted,
    };
    let zerosweep_linux::FaultLatency { p50_ns, p99_ns, max_ns } = snapshot.fault_latency;
    status.fault_latency = FaultLatency { p50_ns, p99_ns, max_ns };
    status.counters = Counters { faults: snapshot.faults, engine: snapshot.statistics };
    status.stalled_threads = snapshot.stalled;
    status.borrowed_pages = snapshot.borrowed;
    status.reason = snapshot.lifted;
    status.balloon_request_bytes = qmp_tap::request_bytes();
}

/// `RssAnon` of this process.
fn rss_anon_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kib: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}
