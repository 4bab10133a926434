//! The balloon driver: loads it and waits until it has done its work.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use crate::failure::Failure;
use crate::meminfo::MemInfo;
use crate::modules::{self, Loaded};

const SYSFS_DRIVER: &str = "/sys/bus/virtio/drivers/virtio_balloon";

/// How long memory must keep its size to count as settled.
const STILL: Duration = Duration::from_secs(1);

/// Loads the driver; the number of balloon devices it found.
pub(crate) fn load() -> Result<usize, Failure> {
    let loaded = modules::load(modules::BALLOON)?;
    let Ok(entries) = fs::read_dir(SYSFS_DRIVER) else {
        let detail = match loaded {
            Loaded::Yes => format!("{SYSFS_DRIVER} is missing"),
            Loaded::Absent => format!("no /modules/{}.ko, and not built in", modules::BALLOON),
        };
        return Err(Failure::new("balloon", detail));
    };
    let is_device =
        |name: &str| name.strip_prefix("virtio").is_some_and(|n| n.parse::<u32>().is_ok());
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.filter(|name| is_device(name)).count())
}

/// Decides, from one look at memory after another, when the balloon is done.
pub(crate) struct Settling {
    first: Duration,
    longest: Duration,
    total_kib: u64,
    changed_at: Option<Duration>,
}

impl Settling {
    /// Starts with memory at `total_kib`. The balloon has `first` to begin (at least the second
    /// that memory must be still) and `longest` for everything.
    pub(crate) fn new(total_kib: u64, first: Duration, longest: Duration) -> Self {
        Self { first: first.max(STILL), longest, total_kib, changed_at: None }
    }

    /// Looks at the balloon; `now` is the time since the start. Returns whether the wait is over.
    pub(crate) fn is_over(&mut self, total_kib: u64, now: Duration) -> bool {
        if total_kib != self.total_kib {
            (self.total_kib, self.changed_at) = (total_kib, Some(now));
        }
        let still_until = self.changed_at.map_or(self.first, |at| at + STILL);
        now >= still_until.min(self.longest)
    }
}

/// Waits until `MemTotal` has been still for a second; what it was at last.
pub(crate) fn settle(
    before: MemInfo,
    first: Duration,
    longest: Duration,
) -> Result<MemInfo, Failure> {
    let start = Instant::now();
    let mut settling = Settling::new(before.total_kib, first, longest);
    loop {
        let info = MemInfo::read()?;
        if settling.is_over(info.total_kib, start.elapsed()) {
            return Ok(info);
        }
        thread::sleep(Duration::from_millis(50));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_balloon_that_never_begins_is_waited_for_only_so_long() {
        let mut settling = Settling::new(100, ms(3000), ms(60000));
        assert!(!settling.is_over(100, ms(2900)));
        assert!(settling.is_over(100, ms(3000)));
    }

    #[test]
    fn a_second_without_change_is_the_end() {
        let mut settling = Settling::new(100, ms(0), ms(60000));
        assert!(!settling.is_over(90, ms(500)));
        assert!(!settling.is_over(80, ms(1400)));
        assert!(!settling.is_over(80, ms(2300)));
        assert!(settling.is_over(80, ms(2400)));
    }

    #[test]
    fn a_balloon_that_never_ends_is_cut_short() {
        let mut settling = Settling::new(100, ms(0), ms(2000));
        assert!(!settling.is_over(90, ms(1900)));
        assert!(settling.is_over(80, ms(2000)));
    }
}
