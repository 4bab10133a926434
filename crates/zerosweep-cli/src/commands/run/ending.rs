//! `SIGTERM` ends the VMM, whatever the VMM does.
//!
//! ```text
//! SIGTERM ──► passed on ──(quiet for a while: warn)──► killed after --wait-end
//!                │                                        ▲
//!                └── another signal, at least a second later: killed soon
//! ```
//!
//! `SIGINT`, `SIGHUP` and `SIGQUIT` alone are only passed on: a VMM may have its own use for them.
//! QEMU writes its disks out when it ends, so it has time for that.

use std::time::{Duration, Instant};

use rustix::process::Signal;

/// How long a VMM may take to end before a message says that it has not ended.
const QUIET: Duration = Duration::from_secs(5);
/// Signals within this time count as one: scripts signal a process and then its group.
const TWICE: Duration = Duration::from_secs(1);
/// How long a VMM may live after the second signal.
const HASTE: Duration = Duration::from_secs(1);
/// A process that still exists this long after it was killed waits in the kernel.
const KILLED: Duration = Duration::from_secs(10);

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing.
    Wait,
    /// Warn that the VMM has not ended: the time since SIGTERM, and the time until it is killed.
    Tell(Duration, Duration),
    /// The VMM has to be killed.
    Kill(Duration),
    /// It was killed, and has not ended.
    GiveUp,
}

/// A VMM on its way to its end.
#[derive(Debug)]
pub(super) struct Ending {
    /// What the VMM has from the first `SIGTERM` on.
    limit: Duration,
    /// The first `SIGTERM`.
    asked: Option<Instant>,
    kill_at: Option<Instant>,
    killed: Option<Instant>,
    told: bool,
    /// Any signal came.
    heard: bool,
}

impl Ending {
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, asked: None, kill_at: None, killed: None, told: false, heard: false }
    }

    /// A signal was passed on.
    pub(super) fn received(&mut self, signal: Signal, now: Instant) {
        self.heard = true;
        match self.asked {
            None if signal == Signal::TERM => {
                self.asked = Some(now);
                self.kill_at = Some(now + self.limit);
            }
            Some(asked) if now >= asked + TWICE => {
                self.kill_at = self.kill_at.map(|at| at.min(now + HASTE));
            }
            _ => {}
        }
    }

    /// Whether somebody wished the VMM to end, or said anything else to it.
    pub(super) fn was_told(&self) -> bool {
        self.heard
    }

    /// What to do with a VMM that runs.
    pub(super) fn step(&mut self, now: Instant) -> Step {
        let (Some(asked), Some(kill_at)) = (self.asked, self.kill_at) else { return Step::Wait };
        let waited = now.duration_since(asked);
        if let Some(killed) = self.killed {
            return if now >= killed + KILLED { Step::GiveUp } else { Step::Wait };
        }
        if now >= kill_at {
            self.killed = Some(now);
            return Step::Kill(waited);
        }
        if waited >= QUIET.min(self.limit / 2) && !std::mem::replace(&mut self.told, true) {
            return Step::Tell(waited, kill_at.duration_since(now));
        }
        Step::Wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    fn after(start: Instant, seconds: f64) -> Instant {
        start + Duration::from_secs_f64(seconds)
    }

    #[test]
    fn a_vmm_that_does_not_end_is_told_and_then_killed() {
        let start = Instant::now();
        let mut ending = Ending::new(LIMIT);
        assert_eq!(ending.step(after(start, 100.0)), Step::Wait, "nobody has asked");
        ending.received(Signal::TERM, start);
        assert_eq!(ending.step(after(start, 4.9)), Step::Wait);
        let left = LIMIT - QUIET;
        assert_eq!(ending.step(after(start, 5.0)), Step::Tell(QUIET, left));
        assert_eq!(ending.step(after(start, 29.9)), Step::Wait, "told once");
        assert_eq!(ending.step(after(start, 30.0)), Step::Kill(LIMIT));
        assert_eq!(ending.step(after(start, 39.9)), Step::Wait, "killed once");
        assert_eq!(ending.step(after(start, 40.0)), Step::GiveUp);
    }

    #[test]
    fn a_second_signal_hastens_it_if_it_is_meant() {
        for second in [Signal::TERM, Signal::INT, Signal::HUP] {
            let start = Instant::now();
            let mut ending = Ending::new(LIMIT);
            ending.received(Signal::TERM, start);
            ending.received(second, after(start, 0.9));
            assert_eq!(ending.step(after(start, 3.0)), Step::Wait, "one signal, sent twice");
            ending.received(second, after(start, 3.0));
            ending.received(second, after(start, 3.5));
            assert_eq!(ending.step(after(start, 3.9)), Step::Wait);
            assert_eq!(ending.step(after(start, 4.0)), Step::Kill(Duration::from_secs(4)));
        }
    }

    #[test]
    fn other_signals_are_the_vmms_own() {
        let start = Instant::now();
        let mut ending = Ending::new(LIMIT);
        for second in 0..5_u8 {
            ending.received(Signal::INT, after(start, second.into()));
            ending.received(Signal::QUIT, after(start, second.into()));
        }
        assert_eq!(ending.step(after(start, 1000.0)), Step::Wait);
    }
}
