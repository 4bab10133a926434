//! The faults that wait at one fault thread.

use std::time::{Duration, Instant};

use zerosweep::PAGE_BYTES;

use crate::sys::uffd::{Fault, FaultBuffer};

/// More faults than this wait in the kernel, not here.
pub(super) const MAX_PENDING: usize = 4096;
/// How often a stalled fault is tried again without a signal.
const RETRY_MS: u32 = 20;

/// Why a fault is pending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PendingReason {
    /// It was not tried yet, or its budget was used up: it is next after the others.
    Queued,
    /// The range is in transit, or could not be mapped: tried when an operation ends, or soon.
    InTransit,
    /// There is no frame: tried when one comes free, or the target rises.
    Stalled,
}

/// A fault that waits for its answer. Each gets one ([INV-8]).
///
/// [INV-8]: zerosweep::rules#inv-8
#[derive(Clone, Copy, Debug)]
pub(super) struct Pending {
    pub(super) fault: Fault,
    pub(super) since: Instant,
    pub(super) reason: PendingReason,
    /// No frame was found for it yet. It counts as stalled also while memory is swept once more.
    pub(super) exhausted: bool,
    /// Since when no frame could be mapped for it.
    pub(super) map_fails: Option<Instant>,
    /// How often the same thread has asked for the same page again.
    pub(super) repeats: u32,
}

/// The pending faults, oldest first. Its memory is allocated before the thread starts.
pub(super) struct FaultQueue {
    pending: Vec<Pending>,
    /// When those that wait for more than their turn were tried last.
    tried: Instant,
}

impl FaultQueue {
    pub(super) fn new() -> Self {
        Self { pending: Vec::with_capacity(MAX_PENDING), tried: Instant::now() }
    }

    pub(super) fn len(&self) -> usize {
        self.pending.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Returns whether all faults of one read fit.
    pub(super) fn has_room(&self) -> bool {
        self.pending.len() + FaultBuffer::CAPACITY <= MAX_PENDING
    }

    /// Adds a fault. A signal makes a waiting thread fault again: the same fault is counted
    /// instead, for one answer wakes every thread that waits at the page. Otherwise a stalled
    /// thread that gets signals would fill the queue.
    pub(super) fn add(&mut self, fault: Fault, now: Instant) {
        let page = |fault: &Fault| (fault.thread_id, fault.address.as_u64() / PAGE_BYTES);
        let same = |pending: &&mut Pending| page(&pending.fault) == page(&fault);
        if let Some(pending) = self.pending.iter_mut().find(same) {
            pending.repeats = pending.repeats.saturating_add(1);
            return;
        }
        self.pending.push(Pending {
            fault,
            since: now,
            reason: PendingReason::Queued,
            exhausted: false,
            map_fails: None,
            repeats: 0,
        });
    }

    pub(super) fn get(&self, index: usize) -> Pending {
        self.pending[index]
    }

    pub(super) fn set(&mut self, index: usize, pending: Pending) {
        self.pending[index] = pending;
    }

    pub(super) fn remove(&mut self, index: usize) {
        self.pending.remove(index);
    }

    /// Notes that all faults were tried, also those that wait for more than their turn.
    pub(super) fn set_tried(&mut self) {
        self.tried = Instant::now();
    }

    /// Returns whether faults come so fast that those that wait were not tried for too long.
    pub(super) fn is_overdue(&self) -> bool {
        let waits = |pending: &Pending| pending.reason != PendingReason::Queued;
        self.pending.iter().any(waits)
            && self.tried.elapsed() >= Duration::from_millis(u64::from(RETRY_MS))
    }

    /// Returns how long to wait for further faults or a signal; `None` is for ever.
    pub(super) fn timeout_ms(&self) -> Option<u32> {
        self.pending
            .iter()
            .map(|pending| match pending.reason {
                PendingReason::Queued => 0,
                PendingReason::InTransit => 1,
                PendingReason::Stalled => RETRY_MS,
            })
            .min()
    }

    /// Returns the threads whose faults found no frame.
    pub(super) fn exhausted_threads(&self) -> impl Iterator<Item = u32> + '_ {
        let waits = self.pending.iter().filter(|pending| pending.exhausted);
        waits.map(|pending| pending.fault.thread_id).take(MAX_PENDING)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::HostAddr;
    use crate::sys::uffd::FaultKind;

    fn fault(thread_id: u32, address: usize) -> Fault {
        let address = HostAddr::new(address);
        Fault { address, kind: FaultKind::Missing, write: true, thread_id }
    }

    fn set_reason(queue: &mut FaultQueue, index: usize, reason: PendingReason) {
        queue.set(index, Pending { reason, ..queue.get(index) });
    }

    #[test]
    fn a_thread_that_faults_again_at_the_same_page_is_counted() {
        let mut queue = FaultQueue::new();
        let now = Instant::now();
        queue.add(fault(7, 0x1000), now);
        queue.add(fault(7, 0x1fff), now);
        queue.add(fault(8, 0x1000), now);
        queue.add(fault(7, 0x2000), now);
        assert_eq!(queue.len(), 3);
        assert_eq!([0, 1, 2].map(|index| queue.get(index).repeats), [1, 0, 0]);
    }

    #[test]
    fn the_most_urgent_fault_decides_how_long_to_wait() {
        let mut queue = FaultQueue::new();
        assert_eq!(queue.timeout_ms(), None);
        for thread in 0..3 {
            queue.add(fault(thread, 0x1000), Instant::now());
            set_reason(&mut queue, thread as usize, PendingReason::Stalled);
        }
        assert_eq!(queue.timeout_ms(), Some(RETRY_MS));
        set_reason(&mut queue, 1, PendingReason::InTransit);
        assert_eq!(queue.timeout_ms(), Some(1));
        set_reason(&mut queue, 2, PendingReason::Queued);
        assert_eq!(queue.timeout_ms(), Some(0));
    }

    #[test]
    fn only_a_fault_that_waits_for_more_than_its_turn_is_overdue() {
        let mut queue = FaultQueue::new();
        queue.add(fault(1, 0x1000), Instant::now());
        std::thread::sleep(Duration::from_millis(u64::from(RETRY_MS) + 1));
        assert!(!queue.is_overdue());
        set_reason(&mut queue, 0, PendingReason::InTransit);
        assert!(queue.is_overdue());
        queue.set_tried();
        assert!(!queue.is_overdue());
    }

    #[test]
    fn all_faults_of_one_read_fit_or_none_is_read() {
        let mut queue = FaultQueue::new();
        while queue.has_room() {
            queue.add(fault(queue.len() as u32, 0x1000), Instant::now());
        }
        assert_eq!(queue.len(), MAX_PENDING - FaultBuffer::CAPACITY + 1);
    }
}
