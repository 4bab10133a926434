//! Every public operation, with whatever arguments.

use zerosweep::Config;
use zerosweep_sim::Failure;

/// One operation. Pages and frames beyond the end are taken modulo what there is.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Read(u64),
    Write(u64, u64),
    /// A thread of the host reads a page; just then the guest writes this to it, if it is not 0.
    ReadByHost(u64, u64),
    /// Writes zeros to a number of pages from this one on.
    Scrub(u64, u64),
    /// Touches a page, and takes a frame beyond the target if there is no other.
    Borrow(u64),
    Decrease(u64, u8),
    Promise(u64, u8),
    Physmap(u64, u8),
    Special(u64, u8),
    Discard(u64, u64),
    Retake(u64, u64),
    Pin(u64, bool),
    /// A device holds the frame, or no longer does.
    Busy(u64, bool),
    Offline(u64),
    Settle(u64),
    Target(u64),
    /// Sets the target, and fills the cache in steps of this size.
    TargetInSteps(u64, u64),
    /// A part of a full sweep, or all of it.
    Sweep(u64),
    /// A part of a consolidation, or all of it.
    Consolidate(u64),
    Upkeep(bool),
    /// The balloon says how many pages it has; in steps of this many superpages.
    Reconcile(u64, u64),
    /// The machine's next calls work, up to the first number. Then the second number of calls fail.
    Fail(u64, u64, Failure),
}

/// A domain, and what is done with it.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) config: Config,
    pub(crate) steps: Vec<Step>,
}

/// All pages of the largest guest: four superpages and a partial one.
pub(crate) const MOST_PAGES: u64 = 4 * 512 + 37;
