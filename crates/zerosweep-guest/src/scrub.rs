//! Writes zeros to nearly all free memory, as scrubbing guests do at boot, and frees it again.

use std::thread;

use crate::failure::Failure;
use crate::meminfo::MemInfo;
use crate::memory::{PAGE_BYTES, Page, reserve_unchecked};

/// Scrubs with one thread a CPU; returns the bytes written.
pub(crate) fn free_memory(cpus: usize) -> Result<u64, Failure> {
    // Each share is one mapping of its own, which the C library gives back as soon as it is freed.
    let pages = MemInfo::read()?.spare_bytes() / PAGE_BYTES / cpus as u64;
    let shares = (0..cpus)
        .map(|_| reserve_unchecked("scrub", pages as usize))
        .collect::<Result<Vec<Vec<Page>>, _>>()?;
    let zeroed = thread::scope(|scope| {
        let threads: Vec<_> = shares
            .into_iter()
            .map(|mut share| {
                scope.spawn(move || {
                    share.resize_with(share.capacity(), Page::zeroed);
                    share
                })
            })
            .collect();
        // All of it is held until the last thread is done, so that no page is scrubbed twice.
        threads.into_iter().map(|t| t.join().ok()).collect::<Option<Vec<_>>>()
    });
    let zeroed = zeroed.ok_or_else(|| Failure::new("scrub", "a scrubbing thread panicked"))?;
    Ok(zeroed.iter().map(|share| share.len() as u64 * PAGE_BYTES).sum())
}
