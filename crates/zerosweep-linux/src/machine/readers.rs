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

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn a_reader_that_stays_is_mended_and_goes_on() {
        let readers = Readers::new();
        let (entered, is_there) = channel();
        let (release, released) = channel::<()>();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let index = readers.join();
                let read = readers.read(index, Gfn::new(700), move || {
                    entered.send(()).unwrap();
                    released.recv().unwrap();
                    5
                });
                readers.leave(index);
                read
            });
            is_there.recv().unwrap();
            let (mut last, mut mended) = (LastReads::NONE, Vec::new());
            readers.mend_stuck(&mut last, |gfn| mended.push(gfn));
            assert_eq!(mended, [], "it may be only slow");
            readers.mend_stuck(&mut last, |gfn| {
                mended.push(gfn);
                // The reader has what it waited for, and stays until the superpage is mended.
                release.send(()).unwrap();
                std::thread::sleep(std::time::Duration::from_millis(20));
                assert!(!reader.is_finished());
            });
            assert_eq!(mended, [Gfn::new(700)]);
            assert_eq!(reader.join().unwrap(), 5);
            readers.mend_stuck(&mut last, |gfn| panic!("nobody reads at {gfn:?}"));
        });
    }

    #[test]
    fn each_reader_has_an_entry_of_its_own() {
        let readers = Readers::new();
        let mut entries: Vec<_> = (0..READERS).map(|_| readers.join()).collect();
        readers.leave(7);
        assert_eq!(readers.join(), 7);
        entries.dedup();
        assert_eq!(entries.len(), READERS);
    }
}
