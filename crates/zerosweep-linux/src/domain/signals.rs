//! Wake-up calls to the threads that serve a domain, and the flag that ends them.
//!
//! To notify costs a write to an eventfd at most, allocates nothing and never blocks.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::error::SysError;
use crate::sys::poll::{WakeEvent, wait_one};

/// One signal for each kind of thread.
pub(crate) struct Signals {
    stopping: AtomicBool,
    faults: Box<[FaultSignal]>,
    prefault: WakeEvent,
    upkeep: UpkeepSignal,
}

/// The signal of one thread that answers faults: an operation has ended, and what waits may be
/// possible now.
pub(crate) struct FaultSignal {
    event: WakeEvent,
    pending: AtomicU32,
}

/// The signal of the upkeep thread: there may be something to do.
pub(crate) struct UpkeepSignal {
    event: WakeEvent,
    /// The thread works, or was notified: nobody needs to notify it again.
    awake: AtomicBool,
}

impl Signals {
    /// Makes the signals for as many fault threads, one at least.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`, `ENOMEM`.
    pub(crate) fn new(fault_threads: usize) -> Result<Self, SysError> {
        let fault = || Ok(FaultSignal { event: WakeEvent::new()?, pending: AtomicU32::new(0) });
        Ok(Self {
            stopping: AtomicBool::new(false),
            faults: (0..fault_threads.max(1)).map(|_| fault()).collect::<Result<_, SysError>>()?,
            prefault: WakeEvent::new()?,
            upkeep: UpkeepSignal { event: WakeEvent::new()?, awake: AtomicBool::new(false) },
        })
    }

    /// Lets the fault threads that have pending faults try these again.
    pub(crate) fn notify_faults(&self) {
        let waits = |signal: &&FaultSignal| signal.pending.load(Ordering::SeqCst) > 0;
        self.faults.iter().filter(waits).for_each(|signal| signal.event.notify());
    }

    /// Lets the prefault thread look for empty superslots.
    pub(crate) fn notify_prefault(&self) {
        self.prefault.notify();
    }

    /// Lets the upkeep thread look for work.
    pub(crate) fn notify_upkeep(&self) {
        if !self.upkeep.awake.swap(true, Ordering::AcqRel) {
            self.upkeep.event.notify();
        }
    }

    /// Ends all threads.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.faults.iter().for_each(|signal| signal.event.notify());
        self.notify_prefault();
        self.notify_upkeep();
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// The signals of the fault threads, one for each.
    pub(crate) fn faults(&self) -> &[FaultSignal] {
        &self.faults
    }

    /// Waits for [`Signals::notify_prefault`], at most `timeout_ms` milliseconds.
    pub(crate) fn wait_for_prefault(&self, timeout_ms: u32) {
        let _ = wait_one(self.prefault.as_fd(), Some(timeout_ms));
        self.prefault.clear();
    }

    pub(crate) fn upkeep(&self) -> &UpkeepSignal {
        &self.upkeep
    }
}

impl FaultSignal {
    /// Notes how many faults wait at the thread: without any, nobody notifies it.
    pub(crate) fn set_pending(&self, pending: u32) {
        self.pending.store(pending, Ordering::SeqCst);
    }

    pub(crate) fn clear(&self) {
        self.event.clear();
    }
}

impl AsFd for FaultSignal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

impl UpkeepSignal {
    /// Notes that the thread works.
    pub(crate) fn set_awake(&self) {
        self.awake.store(true, Ordering::Release);
    }

    /// Notes that the thread is about to wait. It has to look for work once more after that: nobody
    /// may have notified it meanwhile.
    pub(crate) fn set_asleep(&self) {
        self.awake.store(false, Ordering::Release);
    }

    /// Waits for [`Signals::notify_upkeep`], at most `timeout_ms` milliseconds.
    pub(crate) fn wait(&self, timeout_ms: u32) {
        let _ = wait_one(self.event.as_fd(), Some(timeout_ms));
        self.event.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_notified(fd: BorrowedFd<'_>) -> bool {
        wait_one(fd, Some(0)).unwrap()
    }

    #[test]
    fn only_fault_threads_with_pending_faults_are_notified_until_the_end() {
        let signals = Signals::new(2).unwrap();
        signals.faults()[1].set_pending(3);
        signals.notify_faults();
        let notified = || [0, 1].map(|number| is_notified(signals.faults()[number].as_fd()));
        assert_eq!(notified(), [false, true]);
        signals.faults()[1].clear();
        assert_eq!(notified(), [false; 2]);
        assert!(!signals.is_stopping());
        signals.stop();
        assert_eq!(notified(), [true; 2]);
        assert!(signals.is_stopping());
    }

    #[test]
    fn an_upkeep_thread_that_works_is_not_notified() {
        let signals = Signals::new(0).unwrap();
        assert_eq!(signals.faults().len(), 1);
        signals.upkeep().set_awake();
        signals.notify_upkeep();
        assert!(!is_notified(signals.upkeep().event.as_fd()));
        signals.upkeep().set_asleep();
        signals.notify_upkeep();
        assert!(is_notified(signals.upkeep().event.as_fd()));
        signals.upkeep().wait(1000);
        assert!(!is_notified(signals.upkeep().event.as_fd()));
    }
}
