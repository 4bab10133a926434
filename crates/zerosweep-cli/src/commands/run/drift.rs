//! What a guest's balloon does after it has reached the target, without being asked.
//!
//! Nobody tells when a guest is reset, loads a snapshot, loses its balloon device or gets another
//! one, or when its driver takes memory back (`deflate-on-oom`). So the balloon is looked at now and
//! then, and when it has come to rest it is compared with what it should be.

use std::time::{Duration, Instant};

use zerosweep_client::size::PAGE_BYTES;
use zerosweep_wire::Status;

use super::balloon::BalloonMode;

/// Between two looks at the balloon.
pub(super) const INTERVAL: Duration = Duration::from_secs(5);
/// What is no difference, in pages.
const SLACK_PAGES: u64 = 16;
/// How long a guest has to follow before it is asked once more.
const PATIENCE: Duration = Duration::from_secs(60);
/// Requests in a row that a guest may not follow before it is left alone.
const REQUESTS: u32 = 3;

/// What there is to do about the balloon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// It is as it should be, moves, or was told of before.
    Nothing,
    /// The engine counts another number of pages given back.
    Reconcile,
    /// The guest has more than its target, and is asked again.
    Above,
    /// The guest has less than its target, and is asked again.
    Below,
    /// The guest has more than its target, and was asked often enough.
    DoesNotFollow,
}

/// The balloon as it was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    actual_bytes: u64,
    /// Pages that the engine counts as given back.
    given_back: u64,
    target_bytes: u64,
}

/// Compares the balloon with what it should be.
#[derive(Debug, Default)]
pub(super) struct Drift {
    last: Option<Seen>,
    /// With this the engine was reconciled, and it was as good as it gets.
    reconciled: Option<Seen>,
    /// The target that was asked for, when, and how often.
    asked: Option<(u64, Instant, u32)>,
}

impl Drift {
    /// A look at a guest that runs. What it finds is done, or told, by the caller.
    pub(super) fn look(
        &mut self,
        mode: BalloonMode,
        actual_bytes: u64,
        status: &Status,
        now: Instant,
    ) -> Finding {
        let seen = Seen {
            actual_bytes,
            given_back: status.pages.ballooned_out,
            target_bytes: status.target_bytes,
        };
        // What the engine counts may move on under a guest that is busy.
        let is_at_rest = self.last.is_some_and(|last| {
            (last.actual_bytes, last.target_bytes) == (seen.actual_bytes, seen.target_bytes)
        });
        self.last = Some(seen);
        if !is_at_rest {
            return Finding::Nothing;
        }
        let ballooned = status.max_mem_bytes.saturating_sub(actual_bytes) / PAGE_BYTES;
        let differs = ballooned.abs_diff(seen.given_back) >= SLACK_PAGES;
        if differs && self.reconciled.replace(seen) != Some(seen) {
            return Finding::Reconcile;
        }
        let slack = SLACK_PAGES * PAGE_BYTES;
        let is_below = actual_bytes + slack < seen.target_bytes;
        if !is_below && actual_bytes <= seen.target_bytes + slack {
            self.asked = None;
            return Finding::Nothing;
        }
        if mode == BalloonMode::Followed {
            return Finding::Nothing;
        }
        let times = match self.asked {
            Some((target, at, times)) if target == seen.target_bytes => {
                if now < at + PATIENCE || times > REQUESTS {
                    return Finding::Nothing;
                }
                times
            }
            _ => 0,
        };
        self.asked = Some((seen.target_bytes, now, times + 1));
        match (is_below, times < REQUESTS) {
            (false, true) => Finding::Above,
            (false, false) => Finding::DoesNotFollow,
            (true, true) => Finding::Below,
            // It does no harm.
            (true, false) => Finding::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use zerosweep_client::test_support::sample_status;

    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    fn status(given_back: u64, target_bytes: u64) -> Status {
        let mut status = sample_status("vm");
        status.max_mem_bytes = 2 * GIB;
        status.target_bytes = target_bytes;
        status.pages.ballooned_out = given_back;
        status
    }

    fn looks(drift: &mut Drift, actual: u64, status: &Status, seconds: u64) -> Finding {
        let now = Instant::now() + Duration::from_secs(seconds);
        drift.look(BalloonMode::Asked, actual, status, now)
    }

    #[test]
    fn a_balloon_that_is_where_it_should_be_or_moves_is_left_alone() {
        let mut drift = Drift::default();
        let status = status((2 * GIB - 300 * MIB) / PAGE_BYTES, 300 * MIB);
        for _ in 0..3 {
            assert_eq!(looks(&mut drift, 300 * MIB, &status, 0), Finding::Nothing);
        }
        for actual in [400, 500, 600] {
            assert_eq!(looks(&mut drift, actual * MIB, &status, 0), Finding::Nothing);
        }
    }

    #[test]
    fn a_count_that_differs_is_reconciled_once() {
        let mut drift = Drift::default();
        let status = status(0, 300 * MIB);
        assert_eq!(looks(&mut drift, 300 * MIB, &status, 0), Finding::Nothing, "it may move");
        assert_eq!(looks(&mut drift, 300 * MIB, &status, 5), Finding::Reconcile);
        assert_eq!(looks(&mut drift, 300 * MIB, &status, 10), Finding::Nothing, "it did not help");
    }

    #[test]
    fn a_count_that_moves_under_a_busy_guest_is_reconciled_too() {
        let mut drift = Drift::default();
        let mut look = |given_back| looks(&mut drift, 300 * MIB, &status(given_back, 300 * MIB), 0);
        let found = (look(1000), look(1100), look(1200));
        assert_eq!(found, (Finding::Nothing, Finding::Reconcile, Finding::Reconcile));
    }

    #[test]
    fn a_guest_above_its_target_is_asked_again_and_not_for_ever() {
        let mut drift = Drift::default();
        let given_back = (2 * GIB - 500 * MIB) / PAGE_BYTES;
        let above = status(given_back, 300 * MIB);
        let mut look = |seconds| looks(&mut drift, 500 * MIB, &above, seconds);
        assert_eq!(look(0), Finding::Nothing);
        assert_eq!(look(5), Finding::Above);
        assert_eq!(look(10), Finding::Nothing, "it has time to follow");
        assert_eq!(
            (look(66), look(127), look(188)),
            (Finding::Above, Finding::Above, Finding::DoesNotFollow,)
        );
        assert_eq!((look(300), look(900)), (Finding::Nothing, Finding::Nothing));
        // Another target is another request.
        let other = status(given_back, 200 * MIB);
        assert_eq!(looks(&mut drift, 500 * MIB, &other, 905), Finding::Nothing);
        assert_eq!(looks(&mut drift, 500 * MIB, &other, 910), Finding::Above);
    }

    #[test]
    fn a_guest_below_its_target_is_asked_again_and_not_for_ever() {
        let mut drift = Drift::default();
        let below = status((2 * GIB - 200 * MIB) / PAGE_BYTES, 300 * MIB);
        let mut look = |seconds| looks(&mut drift, 200 * MIB, &below, seconds);
        assert_eq!(
            (look(0), look(5), look(10)),
            (Finding::Nothing, Finding::Below, Finding::Nothing)
        );
        assert_eq!(
            (look(66), look(127), look(188)),
            (Finding::Below, Finding::Below, Finding::Nothing)
        );
    }

    #[test]
    fn what_another_tool_asks_for_is_its_own_business() {
        let mut drift = Drift::default();
        let above = status((2 * GIB - 500 * MIB) / PAGE_BYTES, 300 * MIB);
        for _ in 0..3 {
            let finding = drift.look(BalloonMode::Followed, 500 * MIB, &above, Instant::now());
            assert_eq!(finding, Finding::Nothing);
        }
    }
}
