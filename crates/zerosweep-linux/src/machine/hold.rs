//! Holds up one call of the engine's, for tests.

use std::sync::{Condvar, Mutex};
use std::time::Duration;

/// What is held up, and how far it is.
#[derive(Default)]
pub(crate) struct Hold {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The thread whose calls count, and how many more of them pass.
    waits_for: Option<(std::thread::ThreadId, u64)>,
    passed: u64,
    held: bool,
    released: bool,
}

impl Hold {
    /// From now on calls of this thread count; the one after `calls` others is held up.
    pub(crate) fn after(&self, calls: u64) {
        let thread = std::thread::current().id();
        let waits_for = Some((thread, calls));
        *self.state.lock().unwrap() = State { waits_for, ..State::default() };
    }

    /// A call is about to be made.
    pub(crate) fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        let Some((thread, left)) = &mut state.waits_for else { return };
        if *thread != std::thread::current().id() {
            return;
        }
        if *left > 0 {
            *left -= 1;
            state.passed += 1;
            return;
        }
        state.waits_for = None;
        state.held = true;
        self.changed.notify_all();
        let waited = self.changed.wait_timeout_while(state, LIMIT, |state| !state.released);
        assert!(!waited.unwrap().1.timed_out(), "nobody released it");
    }

    /// Waits until the call is held up, or `ended` says that it never will be. Whether it is.
    pub(crate) fn is_reached(&self, ended: impl Fn() -> bool) -> bool {
        loop {
            let state = self.state.lock().unwrap();
            if state.held || ended() {
                return state.held;
            }
            drop(self.changed.wait_timeout(state, Duration::from_millis(1)).unwrap());
        }
    }

    /// How many calls have passed.
    pub(crate) fn passed(&self) -> u64 {
        self.state.lock().unwrap().passed
    }

    /// Lets it go on.
    pub(crate) fn release(&self) {
        self.state.lock().unwrap().released = true;
        self.changed.notify_all();
    }
}

const LIMIT: Duration = Duration::from_secs(30);
