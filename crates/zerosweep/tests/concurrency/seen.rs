//! What all schedules of a kind came to: a test in which nothing happens finds nothing.

use std::cell::RefCell;

use zerosweep::Statistics;

thread_local! {
    static SEEN: RefCell<Seen> = RefCell::default();
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    schedules: u64,
    waits: u64,
    populates_2m: u64,
    populates_4k: u64,
    reclaims_2m: u64,
    reclaims_4k: u64,
    evacuations: u64,
    refills: u64,
    rejoined: u64,
    splinters: u64,
    shatters: u64,
    retained: u64,
    retaken: u64,
    consolidated: u64,
    exhaustions: u64,
    borrowed: u64,
    busy: u64,
    failed: u64,
    shown: u64,
    early_writes: u64,
}

pub(crate) fn add(s: &Statistics, failed: u64) {
    SEEN.with_borrow_mut(|seen| {
        seen.schedules += 1;
        seen.populates_2m += s.populates_2m;
        seen.populates_4k += s.populates_4k;
        seen.reclaims_2m += s.superpages_reclaimed;
        seen.reclaims_4k += s.singles_reclaimed;
        seen.evacuations += s.evacuations;
        seen.refills += s.refills;
        seen.rejoined += s.rejoined;
        seen.splinters += s.splinters;
        seen.shatters += s.shatters;
        seen.retained += s.pages_retained;
        seen.retaken += s.pages_retaken;
        seen.consolidated += s.pages_consolidated;
        seen.exhaustions += s.exhaustions;
        seen.borrowed += s.borrowed;
        seen.busy += s.busy;
        seen.failed += failed;
        seen.shown += s.pages_shown;
    });
}

/// A guest wrote to what was shown to the host and not yet protected.
pub(crate) fn early_write() {
    SEEN.with_borrow_mut(|seen| seen.early_writes += 1);
}

/// A fault met another operation.
pub(crate) fn wait() {
    SEEN.with_borrow_mut(|seen| seen.waits += 1);
}

pub(crate) fn all() -> Seen {
    SEEN.with_borrow(|seen| *seen)
}
