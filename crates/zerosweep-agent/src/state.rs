//! How far this process has got, and what every other module asks for: the configuration and the
//! guest's memory.
//!
//! ```text
//! Inert ◄── no configuration, or a child of a fork
//! Waiting ──(MADV_DONTFORK on a range of max-mem bytes)──► Adopting ──► Settled: managed, or not
//! ```
//!
//! All statics that more than one module needs are here. This module knows none of the others.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use zerosweep_linux::GuestMemory;
use zerosweep_wire::AgentConfig;

/// How far the VMM is. The numbers are those in [`PHASE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// This process has nothing to do with us.
    Inert = 0,
    /// Guest RAM has not been allocated.
    Waiting = 1,
    /// One thread takes guest RAM over.
    Adopting = 2,
    /// [`guest`] has the outcome.
    Settled = 3,
}

static PHASE: AtomicU8 = AtomicU8::new(Phase::Inert as u8);
/// The process that adopted: a child that forgot to exec must not clean up after its parent.
static OWNER: AtomicU32 = AtomicU32::new(0);
static CONFIG: OnceLock<AgentConfig> = OnceLock::new();
static GUEST: OnceLock<Result<Arc<GuestMemory>, String>> = OnceLock::new();

/// Whether this process has nothing to do with us. The first question of every call.
pub(crate) fn is_inert() -> bool {
    PHASE.load(Ordering::Acquire) == Phase::Inert as u8
}

/// How far the VMM is.
pub(crate) fn phase() -> Phase {
    let phase = PHASE.load(Ordering::Acquire);
    let known = [Phase::Waiting, Phase::Adopting, Phase::Settled];
    known.into_iter().find(|&known| known as u8 == phase).unwrap_or(Phase::Inert)
}

/// Sets the configuration and waits for guest RAM. Only the first configuration counts.
pub(crate) fn wait_for_ram(config: AgentConfig) {
    if CONFIG.set(config).is_ok() {
        PHASE.store(Phase::Waiting as u8, Ordering::Release);
    }
}

/// Begins the adoption of guest RAM. True for one caller: the one that has to [`settle`] it.
pub(crate) fn begin_adoption() -> bool {
    let (from, to) = (Phase::Waiting as u8, Phase::Adopting as u8);
    PHASE.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
}

/// Ends the adoption: this process has the guest's memory, or a reason why not.
pub(crate) fn settle(outcome: Result<Arc<GuestMemory>, String>) {
    let _ = GUEST.set(outcome);
    PHASE.store(Phase::Settled as u8, Ordering::Release);
    OWNER.store(std::process::id(), Ordering::Release);
}

/// Leaves this process alone from now on: it is a child of the VMM.
pub(crate) fn become_inert() {
    PHASE.store(Phase::Inert as u8, Ordering::Release);
}

/// Whether this process is the one that adopted.
pub(crate) fn is_owner() -> bool {
    OWNER.load(Ordering::Acquire) == std::process::id()
}

/// What was configured.
pub(crate) fn config() -> Option<&'static AgentConfig> {
    CONFIG.get()
}

/// The guest's memory, or why it is not managed; `None` while the VMM has not got that far.
pub(crate) fn guest() -> Option<&'static Result<Arc<GuestMemory>, String>> {
    GUEST.get()
}

/// Whether guest RAM is managed, and not lifted.
pub(crate) fn is_managed() -> bool {
    matches!(guest(), Some(Ok(memory)) if !memory.is_lifted())
}

/// Whether a range is a part of managed guest RAM.
pub(crate) fn is_guest_ram(start: usize, bytes: usize) -> bool {
    matches!(guest(), Some(Ok(memory)) if overlap(memory, start, bytes).is_some())
}

/// Where a range lies in guest RAM: the offset of its start in bytes, and whether all of it is in.
pub(crate) fn overlap(memory: &GuestMemory, start: usize, bytes: usize) -> Option<(u64, bool)> {
    let guest = memory.range();
    let (first, last) = (guest.start.as_u64(), guest.end.as_u64());
    let (start, bytes) = (start as u64, bytes as u64);
    let end = start.saturating_add(bytes);
    let overlaps = start < last && end > first && bytes > 0;
    overlaps.then(|| (start.saturating_sub(first), start >= first && end <= last))
}

/// Runs the work of one of our threads in the VMM. A panic ends the work and lifts the cap: no
/// other thread can finish what this one had begun.
pub(crate) fn guarded(who: &str, work: impl FnOnce()) {
    match guest() {
        Some(Ok(memory)) => drop(memory.guarded(who, work)),
        _ => drop(catch_unwind(AssertUnwindSafe(work))),
    }
}
