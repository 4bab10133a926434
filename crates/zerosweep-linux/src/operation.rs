//! Runs operations of the engine so that a lift can wait for them, and a panic in one lifts the cap
//! ([INV-10]).
//!
//! A thread that panics may leave a range claimed, and the next touch of that range would wait for
//! ever. So no thread of ours works outside of [`track`] or [`guard`]: a panic lifts the cap, which
//! answers every fault, and the guest goes on.
//!
//! [INV-10]: zerosweep::rules#inv-10

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use zerosweep::{DecreaseError, Host, Session};

use crate::domain::{LinuxHost, SharedDomain};
use crate::outcome::Lifted;
use crate::recovery::lift::lift;

pub(crate) mod consolidation;

/// Runs `work` as an operation that a lift waits for. Lifts the cap if `work` panics, or if the
/// machine could not take back a move.
///
/// # Errors
/// [`Lifted`]; without a panic, `work` did not run.
pub(crate) fn track<R>(domain: &SharedDomain, work: impl FnOnce() -> R) -> Result<R, Lifted> {
    let running = domain.lift_state.enter();
    let outcome = running.is_some().then(|| catch(work));
    drop(running);
    if let Some(Err(message)) = &outcome {
        lift(domain, &format!("an operation of zerosweep's panicked: {message}"));
    }
    if domain.machine.is_closed() {
        lift(domain, "a move of pages could neither be finished nor taken back");
    }
    outcome.and_then(Result::ok).ok_or(Lifted)
}

/// Runs work that is no operation. Lifts the cap and returns `None` if it panics; the reason names
/// `who`. Not for use within an operation.
pub(crate) fn guard<R>(domain: &SharedDomain, who: &str, work: impl FnOnce() -> R) -> Option<R> {
    let outcome = catch(work);
    if let Err(message) = &outcome {
        lift(domain, &format!("{who} panicked: {message}"));
    }
    outcome.ok()
}

/// Runs an operation for a thread that answers no faults. Lets waiting faults try again after it,
/// and notifies the upkeep thread if there is work for it.
///
/// # Errors
/// As [`track`].
pub(crate) fn run<R>(
    domain: &SharedDomain,
    work: impl FnOnce(&mut Session<LinuxHost<'_>>) -> R,
) -> Result<R, Lifted> {
    let result = track(domain, || {
        let mut session = domain.session();
        let result = work(&mut session);
        (result, session.host().domain().wants_upkeep(false))
    });
    domain.signals.notify_faults();
    let (result, wants_upkeep) = result?;
    if wants_upkeep {
        domain.signals.notify_upkeep();
    }
    Ok(result)
}

/// Repeats `operation` while another operation has claimed its range. Returns 0 for a range that
/// the engine refuses. The lock is not held between two tries: the other operation needs it.
///
/// # Errors
/// [`Lifted`] if the cap is lifted meanwhile: the other operation may never end.
pub(crate) fn retry_in_transit<'a>(
    session: &mut Session<LinuxHost<'a>>,
    mut operation: impl FnMut(&mut Session<LinuxHost<'a>>) -> Result<u64, DecreaseError>,
) -> Result<u64, Lifted> {
    let mut pause = Duration::from_micros(10);
    loop {
        match operation(session) {
            Ok(pages) => return Ok(pages),
            Err(DecreaseError::OutOfRange | DecreaseError::Dying) => return Ok(0),
            Err(DecreaseError::InTransit) if session.host().is_lifted() => return Err(Lifted),
            Err(DecreaseError::InTransit) => {
                session.host().machine(|_| std::thread::sleep(pause));
            }
        }
        pause = (pause * 2).min(Duration::from_millis(1));
    }
}

/// Runs `work`, and returns the message if it panics.
fn catch<R>(work: impl FnOnce() -> R) -> Result<R, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| message(&*payload))
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}
