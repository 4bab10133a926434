//! Whether the VMM's main thread hangs on a lock.
//!
//! `/proc/self/task/PID/syscall` says which system call a thread is blocked in, with arguments and
//! stack pointer. The same futex call at every look means that it waits for one lock all the while;
//! a main loop with nothing to do sits in `ppoll` instead.

use std::ffi::CString;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crate::sys::raw;

/// The main thread, as seen from another.
pub(super) struct MainThread {
    path: Option<CString>,
    last: [u8; 128],
    since: Option<Instant>,
}

impl MainThread {
    pub(super) fn of_this_process() -> Self {
        let path = format!("/proc/self/task/{}/syscall", std::process::id());
        Self { path: CString::new(path).ok(), last: [0; 128], since: None }
    }

    /// Nobody waits any more.
    pub(super) fn forget(&mut self) {
        self.since = None;
    }

    /// Since when every look has seen the same futex call. The first look says 0.
    pub(super) fn stuck_for(&mut self) -> Duration {
        let now = self.look();
        let in_futex = now.starts_with(b"202 ");
        if !in_futex {
            self.since = None;
        } else if now != self.last || self.since.is_none() {
            self.since = Some(Instant::now());
        }
        self.last = now;
        self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Looks once more, if the last look saw a futex call: time between two looks counts.
    pub(super) fn look_again(&mut self) {
        if self.since.is_some() {
            self.stuck_for();
        }
    }

    fn look(&self) -> [u8; 128] {
        let mut text = [0; 128];
        if let Some(path) = &self.path
            && let Ok(file) = raw::open(path, libc::O_RDONLY)
        {
            let _ = raw::read(file.as_fd(), &mut text);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_look_says_nothing() {
        let mut main = MainThread::of_this_process();
        assert!(main.stuck_for() < super::super::STUCK);
        main.path = None;
        assert_eq!(main.stuck_for(), Duration::ZERO);
    }
}
