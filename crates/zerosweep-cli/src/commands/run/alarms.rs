//! The alarms of a guest: figures that a person should know at once. Each alarm is reported once.

use zerosweep_client::size::pages;
use zerosweep_wire::{State, Status};

/// Remembers what has been reported.
#[derive(Debug, Default)]
pub(super) struct Alarms {
    cap_lifted: bool,
    stalled: bool,
    borrowed: bool,
    low_forecasts: u64,
    events_lost: bool,
    events_ended: bool,
}

impl Alarms {
    /// Returns the new alarms in `status`.
    pub(super) fn look(&mut self, status: &Status) -> Vec<String> {
        let name = &status.name;
        let mut lines = Vec::new();
        if rises(&mut self.cap_lifted, matches!(status.state, State::CapLifted | State::Failed)) {
            let reason = status.reason.as_deref().unwrap_or("no reason given");
            lines.push(format!("guest {name} goes on without its memory limit: {reason}"));
        }
        let low = status.counters.engine.low_forecasts;
        if low > std::mem::replace(&mut self.low_forecasts, low) && status.stalled_threads == 0 {
            let figures = &status.pages;
            lines.push(format!(
                "guest {name} is short of memory: it can touch {} now, and {} more after a sweep, \
                 of the {} that it was promised; let it balloon, or raise its target (zerosweep \
                 set-target {name} SIZE)",
                pages(figures.can_touch),
                pages(figures.likely),
                pages(figures.entries),
            ));
        }
        if rises(&mut self.stalled, status.stalled_threads > 0) {
            lines.push(format!(
                "guest {name} waits for memory ({} threads): it holds its target, and none of its \
                 pages is zero; raise --target, or give it less to do",
                status.stalled_threads
            ));
        }
        if rises(&mut self.borrowed, status.borrowed_pages > 0) {
            let borrowed = pages(status.borrowed_pages);
            lines.push(format!(
                "guest {name} holds {borrowed} beyond its target, because no frame could be found"
            ));
        }
        if let Some(events) = &status.events {
            let file = events.file.display();
            if rises(&mut self.events_ended, events.error.is_some()) {
                let reason = events.error.as_deref().unwrap_or("no reason given");
                lines.push(format!(
                    "{file} cannot be written: {reason}; no more events are recorded"
                ));
            }
            if rises(&mut self.events_lost, events.lost > 0) {
                lines.push(format!(
                    "events come faster than {file} can be written: some are missing"
                ));
            }
        }
        lines
    }
}

/// Whether `now` is new. An alarm that ends is reported again when it comes back.
fn rises(told: &mut bool, now: bool) -> bool {
    let before = std::mem::replace(told, now);
    now && !before
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerosweep_client::test_support::sample_status;

    #[test]
    fn each_alarm_is_reported_once_and_again_when_it_comes_back() {
        let mut alarms = Alarms::default();
        let mut status = sample_status("vm");
        assert!(alarms.look(&status).is_empty());
        status.stalled_threads = 2;
        let told = alarms.look(&status);
        assert_eq!(told.len(), 1);
        assert!(told[0].contains("raise --target"), "{told:?}");
        assert!(alarms.look(&status).is_empty());
        status.stalled_threads = 0;
        assert!(alarms.look(&status).is_empty());
        status.stalled_threads = 1;
        assert_eq!(alarms.look(&status).len(), 1);
    }

    #[test]
    fn a_low_forecast_is_reported_each_time() {
        let mut alarms = Alarms::default();
        let mut status = sample_status("vm");
        for times in 1..3 {
            status.counters.engine.low_forecasts = times;
            let told = alarms.look(&status);
            assert!(told[0].contains("is short of memory"), "{told:?}");
            assert!(alarms.look(&status).is_empty());
        }
    }

    #[test]
    fn a_lifted_cap_has_its_reason() {
        let mut alarms = Alarms::default();
        let mut status = sample_status("vm");
        status.state = State::CapLifted;
        status.reason = Some("UFFDIO_MOVE: EINVAL".into());
        status.borrowed_pages = 512;
        let told = alarms.look(&status);
        assert!(told[0].contains("UFFDIO_MOVE: EINVAL"), "{told:?}");
        assert!(told[1].contains("2M beyond"), "{told:?}");
        assert!(alarms.look(&status).is_empty());
    }

    #[test]
    fn a_trace_that_ends_or_has_holes_is_told_once() {
        let mut alarms = Alarms::default();
        let mut status = sample_status("vm");
        let mut events = zerosweep_wire::Recorded { file: "/t/a.bin".into(), ..Default::default() };
        status.events = Some(events.clone());
        assert!(alarms.look(&status).is_empty());
        events.lost = 7;
        status.events = Some(events.clone());
        assert_eq!(
            alarms.look(&status),
            ["events come faster than /t/a.bin can be written: some are missing"]
        );
        events.error = Some("No space left".into());
        status.events = Some(events);
        let told = ["/t/a.bin cannot be written: No space left; no more events are recorded"];
        assert_eq!(alarms.look(&status), told);
        assert!(alarms.look(&status).is_empty());
    }
}
