//! The thread that gets huge pages ready ahead of the guest.
//!
//! The cache counts slots, not memory: this thread puts memory behind those that come next, so that
//! a fault finds a cleared huge page waiting and the guest starts at once. When it is behind, the
//! fault thread helps itself. It never reads the guest's memory, and so it helps those who do and
//! wait at a hole.

use std::os::fd::AsFd;
use std::sync::{Arc, PoisonError};

use zerosweep::Mfn;

use crate::machine::place::Rescue;
use crate::memory::GuestMemory;
use crate::sys::poll::wait_one;

/// Superslots that are reserved at a time.
const BATCH: usize = 8;

/// Starts the thread. It ends when the service does.
pub(crate) fn start(memory: &Arc<GuestMemory>) -> std::io::Result<()> {
    crate::threads::spawn(memory, "zs-ahead", run)
}

fn run(memory: &GuestMemory) {
    let mut rescue = Rescue::new();
    while memory.is_served() {
        rescue.look(memory);
        let mut batch = [None; BATCH];
        reserve(memory, &mut batch);
        if batch[0].is_none() {
            // The time limit is for who waits at a hole, and in case that a call is lost.
            let _ = wait_one(memory.ahead.as_fd(), Some(1000));
            memory.ahead.clear();
            continue;
        }
        let _quiet = memory.backing.lock().unwrap_or_else(PoisonError::into_inner);
        for mfn in batch.into_iter().flatten() {
            // Without host memory the fault thread tries again, and says so if it must.
            let _ = memory.machine.back(mfn);
        }
    }
}

/// Reserves the next empty superslots of the cache. Only bits change under the lock.
fn reserve(memory: &GuestMemory, batch: &mut [Option<Mfn>; BATCH]) {
    let domain = memory.lock();
    let stock = memory.machine.stock() as usize;
    let superpages = domain.cache().superpages() as usize;
    let next = domain.cache().iter().take(superpages.min(stock)).map(|(mfn, _)| mfn);
    let reserved = next.filter(|&mfn| memory.machine.reserve_backing(mfn));
    for (slot, mfn) in batch.iter_mut().zip(reserved) {
        *slot = Some(mfn);
    }
}
