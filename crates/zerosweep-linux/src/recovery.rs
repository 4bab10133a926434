//! Pages that are not where the engine thinks they are are found: at a fault, at a hole that one of
//! our own threads waits at, and when the cap is lifted.
//!
//! The rules:
//!
//! - A machine that could not take back a move is *closed* ([`crate::machine`]): nothing moves and
//!   nothing is cleared or dropped any more, and the operation that asked lifts the cap ([`lift`]).
//!   An operation that still runs then finds its maps refused, and what it gives up keeps its
//!   content.
//! - A hole counts as zeros only after its page was looked for at its slot.
//! - A thread that never reads the guest's memory has a [`ReaderWatchdog`], which fills the hole
//!   that a reader waits at. No other thread may be able to: the reader has the superpage in
//!   transit, and every fault thread may be reading.

use std::time::{Duration, Instant};

use zerosweep::{Gfn, Order, SUPERPAGE_PAGES};

use crate::domain::SharedDomain;
use crate::machine::readers::LastReads;

pub(crate) mod lift;

/// A reader that is at the same page for this long waits at a hole.
const STUCK_TIME: Duration = Duration::from_secs(1);

/// Finds readers that wait at a hole, and fills it. For a thread that never reads the guest's
/// memory.
pub(crate) struct ReaderWatchdog {
    last: LastReads,
    polled: Instant,
}

impl ReaderWatchdog {
    pub(crate) fn new() -> Self {
        Self { last: LastReads::NONE, polled: Instant::now() }
    }

    /// Looks at the readers, at most once a second.
    pub(crate) fn poll(&mut self, domain: &SharedDomain) {
        if self.polled.elapsed() < STUCK_TIME {
            return;
        }
        self.polled = Instant::now();
        domain.machine.readers().mend_stuck(&mut self.last, |gfn| mend(domain, gfn));
    }
}

/// Fills the holes of a superpage that a waiting reader has claimed.
fn mend(domain: &SharedDomain, gfn: Gfn) {
    let first = gfn.align_down(Order::SUPERPAGE);
    let whole = domain.lock().p2m().whole(gfn.superpage()).is_some();
    // Of singles the reader may have unmapped others: only this one is known to be missing.
    let (from, count) = if whole { (first, SUPERPAGE_PAGES) } else { (gfn, 1) };
    for page in (0..count).map(|index| from.offset(index)) {
        if let Some(mfn) = domain.frame_of(page) {
            domain.machine.fill_hole(page, mfn);
        }
    }
    if let Ok(range) = domain.machine.range(first, Order::SUPERPAGE) {
        let _ = domain.machine.uffd.wake(range);
    }
}

/// Fills a hole that the guest touched at a page that has a frame, unless another operation has
/// claimed the superpage.
pub(crate) fn fill_hole(domain: &SharedDomain, gfn: Gfn) {
    domain.session().with_claim(gfn, |_| {
        if let Some(mfn) = domain.frame_of(gfn) {
            domain.machine.fill_hole(gfn, mfn);
        }
    });
}
