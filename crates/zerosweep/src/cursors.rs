//! Where the sweeps stopped.

use crate::frame::Gfn;

/// Where the sweeps stopped.
#[derive(Default)]
pub(crate) struct Cursors {
    /// The highest gfn that a fault was served for.
    pub(crate) highest_fault: u64,
    /// Xen's 4K sweep goes on here; 0: from the highest fault.
    pub(crate) single: u64,
    /// Xen's 2M sweep goes on here; 0: from below the highest fault.
    pub(crate) superpage: u64,
    /// Ours.
    pub(crate) bounded: BoundedSweep,
    /// Pages that were looked at while they were mapped, so far.
    pub(crate) looks: u64,
    /// Our search for a superpage.
    pub(crate) seek: Seek,
    /// What our sweeps cost.
    pub(crate) sweep_cost: SweepCost,
}

impl Cursors {
    pub(crate) fn note_fault(&mut self, gfn: Gfn) {
        self.highest_fault = self.highest_fault.max(gfn.raw());
    }
}

/// What is looked at in this round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Phase {
    #[default]
    Superpages,
    BrokenRanges,
    WholeRanges,
}

/// Where the sweep is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct BoundedSweep {
    pub(crate) phase: Phase,
    pub(crate) next: u64,
    /// Ranges seen in this phase since something was found.
    pub(crate) seen: u64,
    /// Whether one of them was in transit.
    pub(crate) passed_over: bool,
    /// Singles were found in this round: before it is given up, another is made.
    pub(crate) found: bool,
    /// Full rounds in which something was passed over and nothing found.
    pub(crate) rounds: u64,
    /// A round found nothing.
    pub(crate) fruitless: Option<Fruitless>,
}

/// When a sweep that found nothing is worth repeating.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fruitless {
    /// At this count of populates.
    pub(crate) populates: u64,
    /// As soon as the guest has given back more than this.
    pub(crate) given_back: u64,
}

/// What our sweeps cost, in bytes that could have been scanned in the same time, less what each
/// page that was populated since then is worth.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SweepCost {
    owed: u64,
    /// The count of populates at which this was owed.
    populates: u64,
}

/// To look at a range, or at a page while it is mapped, costs a few cache lines that have to come
/// from memory. That takes as long as scanning this many bytes.
pub(crate) const LOOK_BYTES: u64 = 2048;
/// A page that is populated is worth this many looks: a guest that borrows page by page pays no
/// more for each.
pub(crate) const LOOKS_PER_POPULATE: u64 = 32;

impl SweepCost {
    /// Adds what a step cost. Never more is owed than `most`.
    pub(crate) fn add(&mut self, bytes: u64, populates: u64, most: u64) {
        *self = Self { owed: (self.owed_at(populates) + bytes).min(most), populates };
    }

    /// Returns what is still owed.
    pub(crate) fn owed_at(&self, populates: u64) -> u64 {
        let worth = populates
            .saturating_sub(self.populates)
            .saturating_mul(LOOKS_PER_POPULATE * LOOK_BYTES);
        self.owed.saturating_sub(worth)
    }
}

/// Where the search for a superpage is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seek {
    pub(crate) next: u64,
    pub(crate) seen: u64,
    /// A round found nothing: how many populates there had been.
    pub(crate) fruitless: Option<u64>,
}

impl BoundedSweep {
    /// Whether the last sweep found nothing.
    pub(crate) fn is_fruitless(&self) -> bool {
        self.fruitless.is_some()
    }

    /// A superpage was found: superpages first, the next time. A single: on with this round, or
    /// what was looked at before would be looked at again and again.
    pub(crate) fn note_found(&mut self) {
        if self.phase == Phase::Superpages {
            self.restart();
        } else {
            (self.found, self.rounds) = (true, 0);
        }
    }

    pub(crate) fn restart(&mut self) {
        *self = Self { next: self.next, ..Self::default() };
    }
}
