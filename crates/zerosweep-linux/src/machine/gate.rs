//! The gate that moves pass: it counts those under way, and closes for good.
//!
//! Everything that moves or destroys content passes it. A copy does not: it destroys nothing, and
//! the engine relies on it.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

/// Between two looks at whether moves are still under way.
const PAUSE: Duration = Duration::from_millis(1);

/// The gate. It starts open.
#[derive(Default)]
pub(super) struct MoveGate {
    closed: AtomicBool,
    moving: AtomicU32,
}

/// A move under way. It ends when this is dropped.
pub(super) struct Moving<'a>(&'a MoveGate);

impl Drop for Moving<'_> {
    fn drop(&mut self) {
        self.0.moving.fetch_sub(1, Ordering::SeqCst);
    }
}

impl MoveGate {
    /// Begins a move, or returns `None` once the gate is closed.
    pub(super) fn enter(&self) -> Option<Moving<'_>> {
        self.moving.fetch_add(1, Ordering::SeqCst);
        let moving = Moving(self);
        (!self.is_closed()).then_some(moving)
    }

    /// Lets no further move begin.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Waits for the moves under way, which are bounded.
    pub(super) fn wait_for_moves(&self) {
        while self.moving.load(Ordering::SeqCst) > 0 {
            std::thread::sleep(PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_gate_lets_nobody_in_and_waits_for_those_within() {
        let gate = MoveGate::default();
        let moving = gate.enter();
        assert!(moving.is_some() && !gate.is_closed());
        gate.close();
        assert!(gate.enter().is_none() && gate.is_closed());
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| gate.wait_for_moves());
            std::thread::sleep(PAUSE * 5);
            assert!(!waits.is_finished());
            drop(moving);
        });
    }
}
