//! Estimates what a guest needs, from the figures of the engine and of the guest.
//!
//! If the guest's balloon driver reports what its programs could still get, this counts. Otherwise
//! the estimate is what the guest has touched. In both cases some memory is added, and more when
//! the guest touches new memory quickly or runs short. The estimate rises at once and falls slowly,
//! so that memory does not go back and forth.

use std::time::Duration;

use zerosweep::SUPERPAGE_PAGES;
use zerosweep_client::qmp::GuestStats;
use zerosweep_client::size::{PAGE_BYTES, Size};
use zerosweep_wire::Status;

/// Added to the memory that is used, with a quarter of it.
const SPARE_BYTES: u64 = 48 << 20;
/// The fixed part of a kernel's own memory; another part grows with the size of its memory.
const KERNEL_BYTES: u64 = 64 << 20;
/// How long a guest that touches new memory is expected to go on at the same rate.
const AHEAD: Duration = Duration::from_secs(5);
/// The estimate falls by at most this part in each round.
const FALL_DIVISOR: u64 = 8;

/// What was seen of a guest's memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample<'a> {
    pub(super) status: &'a Status,
    pub(super) actual_bytes: u64,
    /// The guest's statistics; `None` if they are old.
    pub(super) stats: Option<GuestStats>,
}

/// Counters of the last round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Before {
    touched_pages: u64,
    exhaustions: u64,
    low_forecasts: u64,
    need_bytes: u64,
}

/// An estimate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Need {
    pub(super) bytes: u64,
    pub(super) is_short: bool,
    /// The explanation, for people.
    pub(super) how: String,
}

/// Whether a guest's statistics fit what its balloon has left it. If they do not, they are older
/// than the balloon's last move. The part of its memory that a kernel does not count is small and
/// fixed.
pub(super) fn is_of_now(stats: &GuestStats, actual_bytes: u64, max_mem_bytes: u64) -> bool {
    let own = actual_bytes.checked_sub(stats.total_bytes);
    stats.available_bytes <= stats.total_bytes
        && own.is_some_and(|own| own <= max_mem_bytes / 16 + KERNEL_BYTES)
}

/// Estimates the need of a guest. `before` has the counters of the last round and the time since
/// then.
pub(super) fn estimate(sample: &Sample<'_>, before: Option<(Before, Duration)>) -> (Need, Before) {
    let status = sample.status;
    let done = &status.counters.engine;
    let now = Before {
        touched_pages: done.populates_2m * SUPERPAGE_PAGES + done.populates_4k,
        exhaustions: done.exhaustions,
        low_forecasts: done.low_forecasts,
        need_bytes: 0,
    };
    let (used, mut how) = used(sample);
    let mut bytes = used + used / 4 + SPARE_BYTES;
    let mut is_short = status.stalled_threads > 0 || status.borrowed_pages > 0;
    if let Some((before, elapsed)) = before {
        is_short |=
            now.exhaustions > before.exhaustions || now.low_forecasts > before.low_forecasts;
        let touched = now.touched_pages.saturating_sub(before.touched_pages) * PAGE_BYTES;
        let per_round = AHEAD.as_secs_f64() / elapsed.as_secs_f64().max(0.1);
        // Only what goes beyond what it has: memory that is used again is no need.
        let ahead = (touched as f64 * per_round) as u64;
        let growth = ahead.min(status.target_bytes / 4);
        if sample.stats.is_none() && growth > 0 {
            bytes += growth;
            how += &format!(", touches {} more a round", Size(touched).rounded());
        }
        let floor = before.need_bytes - before.need_bytes / FALL_DIVISOR;
        if bytes < floor {
            bytes = floor;
            how += ", falling";
        }
    }
    if is_short {
        let short = status.target_bytes + status.target_bytes / 4;
        bytes = bytes.max(short);
        how += match status.stalled_threads {
            0 => ", ran short of frames",
            _ => ", waits for memory",
        };
    }
    (Need { bytes, is_short, how }, Before { need_bytes: bytes, ..now })
}

/// Returns what the guest uses, and who reports it.
fn used(sample: &Sample<'_>) -> (u64, String) {
    if let Some(stats) = sample.stats {
        // The kernel's own part, which it does not count into its total, is used as well.
        let used = sample.actual_bytes.saturating_sub(stats.available_bytes);
        let available = Size(stats.available_bytes).rounded();
        return (used, format!("uses {}, could have {available} more", Size(used).rounded()));
    }
    let used = sample.status.pages.populated.saturating_mul(PAGE_BYTES).min(sample.actual_bytes);
    (used, format!("has touched {}", Size(used).rounded()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerosweep_client::test_support::sample_status;

    const MIB: u64 = 1 << 20;
    const ROUND: Duration = Duration::from_secs(2);

    fn stats(available: u64) -> Option<GuestStats> {
        let (available_bytes, total_bytes) = (available * MIB, 700 * MIB);
        Some(GuestStats { updated_seconds: 1, available_bytes, total_bytes })
    }

    fn judge(status: &Status, stats: Option<GuestStats>, before: Option<Before>) -> (Need, Before) {
        let sample = Sample { status, actual_bytes: 768 * MIB, stats };
        estimate(&sample, before.map(|before| (before, ROUND)))
    }

    #[test]
    fn the_guests_word_counts_before_what_it_has_touched() {
        let status = sample_status("vm");
        let (need, _) = judge(&status, stats(368), None);
        assert_eq!(need.bytes, (400 + 100 + 48) * MIB);
        assert_eq!(need.how, "uses 400M, could have 368M more");
        let (need, _) = judge(&status, None, None);
        let touched = 150_000 * PAGE_BYTES;
        assert_eq!(need.bytes, touched + touched / 4 + SPARE_BYTES);
        assert!(!need.is_short);
    }

    #[test]
    fn a_word_from_before_the_balloon_moved_does_not_count() {
        let is_of_now = |actual| is_of_now(&stats(368).unwrap(), actual * MIB, 2048 * MIB);
        assert!(is_of_now(768));
        assert!(!is_of_now(699), "it cannot have more than its balloon left it");
        assert!(!is_of_now(1024), "it has been given memory since");
    }

    #[test]
    fn it_rises_at_once_and_falls_slowly() {
        let status = sample_status("vm");
        let (high, before) = judge(&status, stats(8), None);
        let (low, before) = judge(&status, stats(700), Some(before));
        assert_eq!(low.bytes, high.bytes - high.bytes / 8);
        assert!(low.how.ends_with(", falling"));
        assert_eq!(judge(&status, stats(8), Some(before)).0.bytes, high.bytes);
    }

    #[test]
    fn a_guest_that_touches_new_memory_is_expected_to_go_on() {
        let mut status = sample_status("vm");
        let (calm, before) = judge(&status, None, None);
        status.counters.engine.populates_4k += 1024;
        let (need, _) = judge(&status, None, Some(before));
        assert_eq!(need.bytes, calm.bytes + 10 * MIB, "4M in 2 s, for 5 s");
    }

    #[test]
    fn who_is_short_needs_more_than_it_has() {
        let mut status = sample_status("vm");
        let (_, before) = judge(&status, stats(700), None);
        status.counters.engine.low_forecasts += 1;
        let (need, before) = judge(&status, stats(700), Some(before));
        assert!(need.is_short && need.bytes >= 960 * MIB, "{need:?}");
        assert!(!judge(&status, stats(700), Some(before)).0.is_short, "once is once");
        status.stalled_threads = 1;
        assert!(judge(&status, stats(700), Some(before)).0.how.contains("waits for memory"));
    }
}
