//! Reads each guest's figures, and sends it its new target.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use zerosweep_client::agent::{Client, ClientError};
use zerosweep_client::error::Failure;
use zerosweep_client::qmp::{GuestStats, Qmp, QmpError};
use zerosweep_client::runtime::{self, GuestFiles, HELLO_TIMEOUT};
use zerosweep_client::size::{PAGE_BYTES, Size};
use zerosweep_wire::{Operation, State, Status};

use super::decide::{Decision, Following, QUANTUM, Seen};
use super::need::{self, Before, Sample};
use super::policy::Policy;

/// Longest wait for one answer of QEMU.
const QMP_TIMEOUT: Duration = Duration::from_secs(2);
/// Statistics of a guest that are older than this do not count, in seconds.
const STALE_SECONDS: u64 = 15;
/// How long a guest may give nothing back before it is late.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is remembered of a guest from round to round.
#[derive(Debug, Default)]
pub(super) struct Known {
    before: Option<(Before, Instant)>,
    /// The memory that it could hold when it last answered.
    committed_bytes: u64,
    request: Option<Request>,
}

/// A request to a balloon for less memory.
#[derive(Clone, Copy, Debug)]
struct Request {
    bytes: u64,
    actual_bytes: u64,
    /// When `actual_bytes` last changed.
    moved: Instant,
}

/// A guest in this round.
#[derive(Debug)]
pub(super) struct Looked {
    pub(super) name: String,
    pub(super) seen: Seen,
    /// How its need was estimated.
    pub(super) how: String,
    files: GuestFiles,
}

/// Looks at every guest. With `ask_for_stats`, guests that do not report statistics are asked to.
pub(super) fn look(
    policy: &Policy,
    known: &mut BTreeMap<String, Known>,
    ask_for_stats: bool,
) -> Result<Vec<Looked>, Failure> {
    let mut looked = Vec::new();
    for (name, files) in runtime::every_guest()? {
        match status(&files) {
            Err(error) if error.is_nobody_there() => {}
            answer => {
                let known = known.entry(name.clone()).or_default();
                let (seen, how) = match answer {
                    Ok(status) => managed(policy, &status, &files, known, ask_for_stats),
                    Err(error) => silent(policy, &name, &error, known),
                };
                looked.push(Looked { name, seen, how, files });
            }
        }
    }
    known.retain(|name, _| looked.iter().any(|guest| guest.name == *name));
    Ok(looked)
}

fn status(files: &GuestFiles) -> Result<Status, ClientError> {
    Client::connect(&files.socket, HELLO_TIMEOUT)?.request(Operation::Status)
}

fn managed(
    policy: &Policy,
    status: &Status,
    files: &GuestFiles,
    known: &mut Known,
    ask_for_stats: bool,
) -> (Seen, String) {
    let balloon = balloon(files, ask_for_stats);
    let (actual_bytes, stats) = balloon.as_ref().map_or((status.max_mem_bytes, None), |seen| *seen);
    let stats = stats.filter(|stats| need::is_of_now(stats, actual_bytes, status.max_mem_bytes));
    let sample = Sample { status, actual_bytes, stats };
    let before = known.before.map(|(before, when)| (before, when.elapsed()));
    let (need, before) = need::estimate(&sample, before);
    known.before = Some((before, Instant::now()));
    let mut seen = Seen {
        limits: policy.limits(&status.name, status.max_mem_bytes),
        target_bytes: status.target_bytes,
        held_bytes: status.pages.total.saturating_mul(PAGE_BYTES),
        actual_bytes,
        need_bytes: need.bytes,
        is_short: need.is_short,
        following: known.following(actual_bytes),
    };
    let mut how = need.how;
    if status.state != State::Managing {
        // Without a cap it may take all that it was promised.
        (seen.following, seen.held_bytes) = (Following::Impossible, status.max_mem_bytes);
        how = "its memory is not limited; `zerosweep status` says why".to_owned();
    } else if let Err(error) = balloon {
        seen.following = Following::Impossible;
        how = format!("its balloon cannot be asked: {error}");
    }
    known.committed_bytes = seen.target_bytes.max(seen.held_bytes);
    (seen, how)
}

/// A guest whose agent does not answer: it counts as having what it had.
fn silent(policy: &Policy, name: &str, error: &ClientError, known: &Known) -> (Seen, String) {
    let bytes = known.committed_bytes;
    let seen = Seen {
        limits: policy.limits(name, bytes.max(QUANTUM)),
        target_bytes: bytes,
        held_bytes: bytes,
        actual_bytes: bytes,
        need_bytes: bytes,
        is_short: false,
        following: Following::Impossible,
    };
    (seen, format!("its agent does not answer: {error}"))
}

/// Returns what the guest's balloon has left it, and the guest's statistics.
fn balloon(files: &GuestFiles, ask: bool) -> Result<(u64, Option<GuestStats>), QmpError> {
    let mut qmp = Qmp::connect(&files.qmp, QMP_TIMEOUT)?;
    let actual_bytes = qmp.balloon_actual()?;
    // A guest that says nothing is judged by what it touches.
    let stats = qmp.guest_stats(ask).ok().flatten();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let is_fresh = |stats: &GuestStats| stats.updated_seconds.saturating_add(STALE_SECONDS) >= now;
    Ok((actual_bytes, stats.filter(is_fresh)))
}

impl Known {
    /// Whether the guest has done what it was asked for, or is doing it.
    fn following(&mut self, actual_bytes: u64) -> Following {
        let Some(request) = &mut self.request else { return Following::Yes };
        if actual_bytes <= request.bytes {
            self.request = None;
            return Following::Yes;
        }
        if actual_bytes < request.actual_bytes {
            (request.actual_bytes, request.moved) = (actual_bytes, Instant::now());
        }
        if request.moved.elapsed() > PATIENCE { Following::Late } else { Following::Yes }
    }

    fn ask(&mut self, bytes: u64, actual_bytes: u64) {
        self.request = match self.request {
            _ if bytes >= actual_bytes => None,
            // Asked for more memory meanwhile, a guest that gives none is as late as before.
            Some(request) => Some(Request { bytes, ..request }),
            None => Some(Request { bytes, actual_bytes, moved: Instant::now() }),
        };
    }
}

/// Carries out the decision about a guest.
///
/// # Errors
/// The error of the agent or of QEMU. The next round begins from the state at that time.
pub(super) fn act(
    guest: &Looked,
    decision: &Decision,
    known: &mut BTreeMap<String, Known>,
) -> Result<(), Failure> {
    let Some(ask_bytes) = decision.ask_bytes else { return Ok(()) };
    let target_bytes = decision.target_bytes;
    let set_target = || {
        if target_bytes == guest.seen.target_bytes {
            return Ok(());
        }
        Client::connect(&guest.files.socket, HELLO_TIMEOUT)
            .and_then(|mut client| client.request(Operation::SetTarget { target_bytes }))
            .map(drop)
            .map_err(|error| Failure::work(format!("target {}: {error}", Size(target_bytes))))
    };
    let ask = || {
        Qmp::connect(&guest.files.qmp, QMP_TIMEOUT)
            .and_then(|mut qmp| qmp.set_balloon(ask_bytes))
            .map_err(Failure::work)
    };
    if let Some(known) = known.get_mut(&guest.name) {
        known.ask(ask_bytes, guest.seen.actual_bytes);
    }
    // Up, the guest finds the memory when its balloon lets go of it; down, it has given it back
    // before it may hold no more.
    if target_bytes > guest.seen.target_bytes {
        set_target().and_then(|()| ask())
    } else {
        ask().and_then(|()| set_target())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_gives_nothing_back_is_late_until_it_does() {
        let mut known = Known::default();
        known.ask(100, 500);
        assert_eq!(known.following(500), Following::Yes, "it has just been asked");
        let long_ago = Instant::now().checked_sub(2 * PATIENCE).unwrap();
        known.request.as_mut().unwrap().moved = long_ago;
        assert_eq!(known.following(500), Following::Late);
        known.ask(90, 500);
        assert_eq!(known.following(500), Following::Late, "asking again is no excuse");
        assert_eq!(known.following(400), Following::Yes, "it moves");
        assert_eq!(known.following(90), Following::Yes);
        assert!(known.request.is_none());
        known.ask(600, 90);
        assert!(known.request.is_none(), "a guest need not follow when it may grow");
    }
}
