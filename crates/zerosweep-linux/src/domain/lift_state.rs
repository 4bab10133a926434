//! Whether the cap is lifted, why, and how many operations a lift has to wait for.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

/// Not lifted at first, and lifted once for good.
#[derive(Default)]
pub(crate) struct LiftState {
    lifted: AtomicBool,
    reason: Mutex<Option<String>>,
    running: AtomicU32,
}

/// An operation that runs. It ends when this is dropped.
pub(crate) struct Running<'a>(&'a LiftState);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

impl LiftState {
    pub(crate) fn is_lifted(&self) -> bool {
        self.lifted.load(Ordering::SeqCst)
    }

    /// Begins the lift. Returns false if it has begun before.
    pub(crate) fn begin(&self, reason: &str) -> bool {
        let begins = !self.lifted.swap(true, Ordering::SeqCst);
        if begins {
            self.set_reason(reason.to_owned());
        }
        begins
    }

    pub(crate) fn set_reason(&self, reason: String) {
        *self.reason.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
    }

    /// Returns why the cap is lifted, or `None` if it is not.
    pub(crate) fn reason(&self) -> Option<String> {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Begins an operation, or returns `None` once the lift has begun.
    pub(crate) fn enter(&self) -> Option<Running<'_>> {
        self.running.fetch_add(1, Ordering::SeqCst);
        let running = Running(self);
        (!self.is_lifted()).then_some(running)
    }

    /// Returns whether an operation runs.
    pub(crate) fn is_any_running(&self) -> bool {
        self.running.load(Ordering::SeqCst) > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lift_begins_once_and_no_operation_after_it() {
        let state = LiftState::default();
        let running = state.enter();
        assert!(running.is_some() && state.is_any_running());
        assert!(state.begin("first") && !state.begin("second"));
        assert!(state.enter().is_none());
        assert_eq!(state.reason().as_deref(), Some("first"));
        assert!(state.is_any_running());
        drop(running);
        assert!(!state.is_any_running() && state.is_lifted());
    }
}
