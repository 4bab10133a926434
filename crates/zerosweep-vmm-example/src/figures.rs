//! Figures of a machine, as a line of JSON.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};
use zerosweep_linux::{GuestMemory, PAGE_BYTES};

use crate::balloon::Balloon;
use crate::devices::Ending;

/// Figures of one moment.
#[derive(Debug)]
pub(crate) struct Figures {
    line: Value,
    audit: Result<(), zerosweep::AuditError>,
}

impl Figures {
    /// Takes them. `ending` says how the machine has ended, if it has; only then do the engine and
    /// the page tables agree in every case.
    pub(crate) fn take(memory: &GuestMemory, balloon: &Balloon, ending: Option<Ending>) -> Self {
        let audit = memory.audit();
        let snapshot = memory.snapshot();
        let statistics = snapshot.statistics;
        let max_mem = memory.guest().bytes();
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let line = json!({
            "ended": ending.map(|ending| ending.to_string()),
            "max_mem": max_mem,
            "target": max_mem - u64::from(balloon.wanted()) * PAGE_BYTES,
            "held": snapshot.quantities.total() * PAGE_BYTES,
            "held_at_most": statistics.peak_total * PAGE_BYTES,
            "faults": snapshot.faults,
            "populates_2m": statistics.populates_2m,
            "populates_4k": statistics.populates_4k,
            "superpages_reclaimed": statistics.superpages_reclaimed,
            "singles_reclaimed": statistics.singles_reclaimed,
            "exhaustions": statistics.exhaustions,
            "stalled": snapshot.stalled,
            "borrowed": statistics.borrowed,
            "superpages_in_guest": snapshot.superpages_in_guest,
            "superpages_in_page_tables": memory.machine().whole_superpages().ok(),
            "balloon_pages": balloon.actual(),
            "inflated": count(&balloon.inflated),
            "deflated": count(&balloon.deflated),
            "reported": count(&balloon.reported),
            "refused": count(&balloon.refused),
            "audit": audit.as_ref().map_or_else(ToString::to_string, |()| "ok".to_owned()),
            "lifted": snapshot.lifted,
        });
        Self { line, audit }
    }

    /// Whether the recount found everything right.
    pub(crate) fn audit(&self) -> Result<(), zerosweep::AuditError> {
        self.audit
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.line.fmt(f)
    }
}
