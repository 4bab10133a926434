//! What the fault threads share with each other, and with those who ask about them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use hdrhistogram::Histogram;
use zerosweep::PAGE_BYTES;

use super::queue::MAX_PENDING;
use crate::outcome::FaultLatency;
use crate::sys::uffd::Fault;

const MAX_VCPUS: usize = 1024;

/// The most recent fault of each thread, whichever fault thread answered it. Several threads may
/// share an entry.
struct RecentFaults([AtomicU64; 256]);

impl RecentFaults {
    /// Notes a fault. Returns whether the last fault of the thread was at the same page. It may
    /// have been forgotten: a thread at a hole faults again.
    fn is_second(&self, fault: &Fault) -> bool {
        let page = fault.address.as_u64() / PAGE_BYTES;
        let entry = &self.0[fault.thread_id as usize % self.0.len()];
        let fault = page << 22 ^ u64::from(fault.thread_id);
        entry.swap(fault, Ordering::AcqRel) == fault
    }
}

/// The shared state. All of its memory is allocated when it is made.
pub(crate) struct FaultService {
    /// For each fault thread the threads that wait for a frame. A thread that faults again after a
    /// signal may be in several.
    stalled: Box<[Mutex<Vec<u32>>]>,
    faults: AtomicU64,
    vcpus: Mutex<Vec<u32>>,
    latency: Mutex<Option<Histogram<u32>>>,
    recent: RecentFaults,
}

impl FaultService {
    pub(crate) fn new(fault_threads: usize) -> Self {
        let stalled = || Mutex::new(Vec::with_capacity(MAX_PENDING));
        // 100 ns to 100 s in two digits: allocated here, never resized.
        let latency = Histogram::new_with_bounds(100, 100_000_000_000, 2).ok();
        Self {
            stalled: (0..fault_threads).map(|_| stalled()).collect(),
            faults: AtomicU64::new(0),
            vcpus: Mutex::new(Vec::with_capacity(MAX_VCPUS)),
            latency: Mutex::new(latency),
            recent: RecentFaults([const { AtomicU64::new(0) }; 256]),
        }
    }

    /// Returns how many faults were answered.
    pub(crate) fn faults(&self) -> u64 {
        self.faults.load(Ordering::Relaxed)
    }

    /// Returns how many threads wait for a frame.
    pub(crate) fn stalled(&self) -> u32 {
        // Allocated before a lock that a fault thread takes: the allocator may wait for the guest.
        let mut threads = Vec::with_capacity(self.stalled.len() * MAX_PENDING);
        for number in 0..self.stalled.len() {
            threads.extend_from_slice(&self.lock_stalled(number));
        }
        threads.sort_unstable();
        threads.dedup();
        threads.len() as u32
    }

    pub(super) fn is_any_stalled(&self) -> bool {
        (0..self.stalled.len()).any(|number| !self.lock_stalled(number).is_empty())
    }

    /// Replaces the stalled threads of one fault thread.
    pub(super) fn set_stalled(&self, number: usize, threads: impl Iterator<Item = u32>) {
        let mut stalled = self.lock_stalled(number);
        stalled.clear();
        stalled.extend(threads);
    }

    fn lock_stalled(&self, number: usize) -> MutexGuard<'_, Vec<u32>> {
        self.stalled[number].lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_vcpus(&self, thread_ids: &[u32]) {
        let mut vcpus = self.vcpus();
        vcpus.clear();
        vcpus.extend(thread_ids.iter().take(MAX_VCPUS));
    }

    pub(crate) fn add_vcpu(&self, thread_id: u32) {
        let mut vcpus = self.vcpus();
        if vcpus.len() < MAX_VCPUS && !vcpus.contains(&thread_id) {
            vcpus.push(thread_id);
        }
    }

    pub(super) fn is_vcpu(&self, thread_id: u32) -> bool {
        self.vcpus().contains(&thread_id)
    }

    fn vcpus(&self) -> MutexGuard<'_, Vec<u32>> {
        self.vcpus.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the fault service times so far.
    pub(crate) fn latency(&self) -> FaultLatency {
        let latency = self.latency.lock().unwrap_or_else(PoisonError::into_inner);
        latency.as_ref().map_or_else(FaultLatency::default, |histogram| FaultLatency {
            p50_ns: histogram.value_at_quantile(0.5),
            p99_ns: histogram.value_at_quantile(0.99),
            max_ns: histogram.max(),
        })
    }

    /// Counts an answered fault that came at `since`.
    pub(super) fn record(&self, since: Instant) {
        self.faults.fetch_add(1, Ordering::Relaxed);
        let ns = u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let mut latency = self.latency.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(histogram) = latency.as_mut() {
            histogram.saturating_record(ns);
        }
    }

    /// Notes a fault. Returns whether the last fault of its thread was at the same page.
    pub(super) fn is_second(&self, fault: &Fault) -> bool {
        self.recent.is_second(fault)
    }
}
