//! What the operations of [`GuestMemory`](crate::GuestMemory) return: how far work has come, and
//! that the cap is lifted.

use zerosweep::OutOfTableMemory;

/// The cap is lifted: the range belongs to the kernel again, and the operation did nothing that the
/// caller may rely on. The caller does what it did without zerosweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the cap is lifted")]
pub struct Lifted;

/// How far work has come that is done in several calls.
#[must_use = "work may be left"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing is left to do.
    Done,
    /// Call again with this number, which is never 0.
    More(u64),
}

impl Progress {
    /// Returns the number to call again with, or `None` if nothing is left to do.
    #[must_use]
    pub const fn next(self) -> Option<u64> {
        match self {
            Self::Done => None,
            Self::More(next) => Some(next),
        }
    }
}

/// A target that was not set, or not reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetTargetError {
    /// The cap is lifted: there is no target.
    #[error(transparent)]
    Lifted(#[from] Lifted),
    /// The engine refused the target, or could not fill the cache.
    #[error(transparent)]
    Target(#[from] zerosweep::TargetError),
}

/// A consolidation that did not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConsolidateError {
    /// The cap is lifted.
    #[error(transparent)]
    Lifted(#[from] Lifted),
    /// There is no memory for the plan of the consolidation.
    #[error("{0}")]
    TableMemory(OutOfTableMemory),
}

/// Fault service times, from the arrival of a fault to its answer, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultLatency {
    /// The median.
    pub p50_ns: u64,
    /// The 99th percentile.
    pub p99_ns: u64,
    /// The longest.
    pub max_ns: u64,
}
