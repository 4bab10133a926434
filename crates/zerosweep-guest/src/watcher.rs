//! Verifies regions in the background while other things go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::failure::Failure;
use crate::memory::Region;
use crate::options::Check;

/// Rest between two passes: the guest's CPUs are for what is being tested.
const REST: Duration = Duration::from_millis(100);

/// A thread that verifies a region again and again.
pub(crate) struct Watcher {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(Region, u64)>,
}

impl Watcher {
    /// Starts verifying.
    pub(crate) fn start(mut region: Region, check: Check) -> Result<Self, Failure> {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let work = move || {
            let mut passes = 0;
            while !seen.load(Relaxed) {
                region.verify(check);
                passes += 1;
                thread::sleep(REST);
            }
            (region, passes)
        };
        let thread = thread::Builder::new()
            .name("verify".to_owned())
            .spawn(work)
            .map_err(|e| Failure::new("thread", format_args!("cannot start a thread: {e}")))?;
        Ok(Self { stop, thread })
    }

    /// Ends after the pass under way; gives the region back, and the number of passes.
    pub(crate) fn finish(self) -> Result<(Region, u64), Failure> {
        self.stop.store(true, Relaxed);
        self.thread.join().map_err(|_| Failure::new("thread", "the verifying thread panicked"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::reserve_unchecked;

    #[test]
    fn the_region_comes_back_verified() {
        let region = Region::fill(reserve_unchecked("test", 8).unwrap(), 1, 0);
        let watcher = Watcher::start(region, Check::Rewrite).unwrap();
        thread::sleep(Duration::from_millis(20));
        let (mut region, passes) = watcher.finish().unwrap();
        region.verify(Check::Read);
        assert!(passes >= 1);
        assert_eq!(region.bad_count(), 0);
    }
}
