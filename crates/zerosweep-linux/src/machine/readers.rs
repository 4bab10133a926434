//! The threads that read the guest's memory, and where.
//!
//! A reader of a hole waits for a fault thread. The reader has claimed the superpage, and every
//! fault thread may be a reader itself: nobody may be able to answer. So each reader announces its
//! gfn here, and a thread that never reads the guest's memory finds those that wait too long
//! ([`crate::recovery`]) and mends their superpage.
//!
//! ```text
//!  FREE ── join ──► IDLE ── read ──► READING ── mend ──► MENDED
//!    ▲                │ ▲               │                  │
//!    └──── leave ─────┘ └───────────────┴──────────────────┘
//! ```

use std::sync::atomic::{AtomicU64, Ordering};

use zerosweep::Gfn;

/// The most threads that read at the same time; others wait for an entry.
const READERS: usize = 64;
const FREE: u64 = 0;
const IDLE: u64 = 1;
/// The gfn is in the bits above.
const READING: u64 = 2;
/// As [`READING`], and the superpage is being mended: the reader waits until that is done.
const MENDED: u64 = 3;
const STATE_BITS: u32 = 2;

/// One entry for each reader.
pub(crate) struct Readers([AtomicU64; READERS]);

/// What [`Readers::mend_stuck`] saw the last time.
pub(crate) struct LastReads([u64; READERS]);

impl LastReads {
    pub(crate) const NONE: Self = Self([FREE; READERS]);
}

impl Readers {
    pub(super) const fn new() -> Self {
        Self([const { AtomicU64::new(FREE) }; READERS])
    }

    /// Takes an entry for one thread, and returns its index.
    pub(super) fn join(&self) -> usize {
        loop {
            let take = |entry: &AtomicU64| {
                entry.compare_exchange(FREE, IDLE, Ordering::AcqRel, Ordering::Relaxed).is_ok()
            };
            if let Some(index) = self.0.iter().position(take) {
                return index;
            }
            std::thread::yield_now();
        }
    }

    pub(super) fn leave(&self, index: usize) {
        self.0[index].store(FREE, Ordering::Release);
    }

    /// Announces a read at `gfn`, whose superpage the caller has claimed, and runs it.
    pub(super) fn read<R>(&self, index: usize, gfn: Gfn, work: impl FnOnce() -> R) -> R {
        let entry = &self.0[index];
        let reading = gfn.raw() << STATE_BITS | READING;
        entry.store(reading, Ordering::Release);
        let result = work();
        while entry.compare_exchange(reading, IDLE, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            std::thread::yield_now();
        }
        result
    }

    /// Calls `mend` for the gfn of each reader that was there at the last call, too. A reader that
    /// is only slow loses nothing by it.
    pub(crate) fn mend_stuck(&self, last: &mut LastReads, mut mend: impl FnMut(Gfn)) {
        for (entry, last) in self.0.iter().zip(&mut last.0) {
            let now = entry.load(Ordering::Acquire);
            let is_stuck = now & MENDED == READING && now == *last;
            *last = now;
            let mended = now | MENDED;
            let order = Ordering::AcqRel;
            if is_stuck && entry.compare_exchange(now, mended, order, Ordering::Relaxed).is_ok() {
                mend(Gfn::new(now >> STATE_BITS));
                // Fails if the reader has left: it panicked.
                let _ = entry.compare_exchange(mended, now, order, Ordering::Relaxed);
            }
        }
    }
}
