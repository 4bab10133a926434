//! The thread that gets huge pages ahead of the guest.
//!
//! The cache counts slots, not memory. This thread puts memory behind the slots that come next, so
//! that a fault finds a cleared huge page and the guest goes on at once. When it is behind, the
//! fault thread gets the memory itself. It never reads the guest's memory, and so it can help a
//! thread that does and waits at a hole.

use std::sync::Arc;

use zerosweep::Mfn;

use crate::domain::SharedDomain;
use crate::recovery::ReaderWatchdog;

/// Superslots that are reserved at a time.
const BATCH: usize = 8;
/// The thread looks for itself this often: at readers that wait at a hole, and in case that a
/// signal is lost.
const POLL_MS: u32 = 1000;

/// Starts the thread. It ends when the domain is no longer served.
pub(crate) fn start(domain: &Arc<SharedDomain>) -> std::io::Result<()> {
    super::spawn(domain, "zs-prefault", run)
}

/// Notifies the thread if few prefaulted superslots are left.
pub(crate) fn notify_if_low(domain: &SharedDomain) {
    if domain.machine.prefaulted() < domain.machine.prefault_goal() / 2 {
        domain.signals.notify_prefault();
    }
}

fn run(domain: &SharedDomain) {
    let mut watchdog = ReaderWatchdog::new();
    while domain.is_served() {
        watchdog.poll(domain);
        let mut batch = [None; BATCH];
        reserve(domain, &mut batch);
        if batch[0].is_none() {
            domain.signals.wait_for_prefault(POLL_MS);
            continue;
        }
        let _prefaulting = domain.machine.lock_prefaulting();
        for mfn in batch.into_iter().flatten() {
            // Without memory of the host the fault thread tries again, and reports it if it must.
            let _ = domain.machine.back(mfn);
        }
    }
}

/// Reserves the next empty superslots of the cache. Only bits change under the lock.
fn reserve(domain: &SharedDomain, batch: &mut [Option<Mfn>; BATCH]) {
    let locked = domain.lock();
    let goal = domain.machine.prefault_goal() as usize;
    let superpages = locked.cache().superpages() as usize;
    let next = locked.cache().iter().take(superpages.min(goal)).map(|(mfn, _)| mfn);
    let reserved = next.filter(|&mfn| domain.machine.reserve_backing(mfn));
    for (entry, mfn) in batch.iter_mut().zip(reserved) {
        *entry = Some(mfn);
    }
}
