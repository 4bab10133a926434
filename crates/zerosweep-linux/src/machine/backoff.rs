//! A short wait for what another thread is about to finish.

use std::time::Duration;

/// Yields the CPU at first, then sleeps: the other thread may wait for memory of the host.
#[derive(Default)]
pub(super) struct Backoff {
    turns: u32,
}

impl Backoff {
    const TURNS: u32 = 32;
    const SLEEP: Duration = Duration::from_micros(100);

    pub(super) fn wait(&mut self) {
        if self.turns < Self::TURNS {
            self.turns += 1;
            std::thread::yield_now();
        } else {
            std::thread::sleep(Self::SLEEP);
        }
    }
}
