//! Live single pages come together in fewer superframes (rule [R13]), a step at a time.
//!
//! [R13]: zerosweep::rules#r13

use std::sync::{MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use zerosweep::Consolidation;

use super::run;
use crate::domain::SharedDomain;
use crate::outcome::{ConsolidateError, Progress};

/// Superpages that are consolidated per step. Each of a superpage's pages may move, which takes
/// tens of milliseconds.
const STEP: u64 = 1;

/// Consolidates for about `time`. Starts from the beginning if `first` is 0, and continues where
/// the last call stopped otherwise. Waits for another consolidation.
///
/// # Errors
/// See [`ConsolidateError`].
pub(crate) fn consolidate(
    domain: &SharedDomain,
    first: u64,
    time: Duration,
) -> Result<Progress, ConsolidateError> {
    let work = domain.consolidation.lock().unwrap_or_else(PoisonError::into_inner);
    consolidate_with(domain, work, first, time)
}

/// Consolidates as [`consolidate`] does. Returns `None` and does nothing while another thread
/// consolidates.
pub(crate) fn try_consolidate(
    domain: &SharedDomain,
    first: u64,
    time: Duration,
) -> Option<Result<Progress, ConsolidateError>> {
    let work = match domain.consolidation.try_lock() {
        Ok(work) => work,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => return None,
    };
    Some(consolidate_with(domain, work, first, time))
}

fn consolidate_with(
    domain: &SharedDomain,
    mut work: MutexGuard<'_, Consolidation>,
    first: u64,
    time: Duration,
) -> Result<Progress, ConsolidateError> {
    let began = Instant::now();
    if first == 0 {
        *work = Consolidation::default();
    }
    loop {
        let step = run(domain, |session| session.consolidate(&mut work, STEP))?;
        match step.map_err(ConsolidateError::TableMemory)? {
            zerosweep::Progress::Done => return Ok(Progress::Done),
            zerosweep::Progress::More if began.elapsed() >= time => {
                return Ok(Progress::More(work.moved() + 1));
            }
            zerosweep::Progress::More => {}
        }
    }
}
