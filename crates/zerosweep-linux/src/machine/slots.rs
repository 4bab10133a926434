//! The memory behind each frame of the pool.
//!
//! A frame is a *slot*: 4 KiB of addresses in the pool. 512 of them are a superslot. The memory of
//! a frame is either at its slot or, while the frame is mapped, at the guest's address; this table
//! knows which frames have memory at all, and whether a superslot's is one huge page.
//!
//! ```text
//!            prepare                      a page moves alone
//!  Empty ──► Preparing ──► Whole ───────────────────────────► Pieces
//!    ▲            └──────────► (the host had no huge page) ─────┘ │
//!    └──────── drop: given back to the host, or parked ◄──────────┘
//! ```
//!
//! The thread that moves a superslot out of `Empty` or `Preparing` owns it meanwhile. Everything is
//! atomic: the fault thread takes no lock here.

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use zerosweep::{Mfn, SUPERPAGE_PAGES, Superframe};

/// The memory behind a superslot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backing {
    /// Nothing.
    Empty,
    /// A thread is getting a huge page for it.
    Preparing,
    /// One huge page.
    Whole,
    /// Single pages, perhaps not all 512.
    Pieces,
}

impl Backing {
    const fn decode(raw: u8) -> Self {
        match raw {
            1 => Self::Preparing,
            2 => Self::Whole,
            3 => Self::Pieces,
            _ => Self::Empty,
        }
    }
}

struct Superslot {
    backing: AtomicU8,
    present: [AtomicU64; 8],
}

/// The table.
pub(crate) struct Slots {
    superslots: Vec<Superslot>,
}

impl Slots {
    /// `count` empty superslots.
    pub(crate) fn new(count: usize) -> Self {
        let empty = || Superslot {
            backing: AtomicU8::new(Backing::Empty as u8),
            present: Default::default(),
        };
        Self { superslots: core::iter::repeat_with(empty).take(count).collect() }
    }

    pub(crate) fn backing(&self, superslot: Superframe) -> Backing {
        Backing::decode(self.superslots[superslot.index()].backing.load(Ordering::Acquire))
    }

    /// Changes `from` to `to`. Returns false if it is not `from`.
    pub(crate) fn advance(&self, superslot: Superframe, from: Backing, to: Backing) -> bool {
        let backing = &self.superslots[superslot.index()].backing;
        backing.compare_exchange(from as u8, to as u8, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Makes sure that nobody gets a huge page for a superslot whose single pages are about to be
    /// used. Returns false while a thread is getting one: ask again.
    pub(crate) fn open(&self, superslot: Superframe) -> bool {
        match self.backing(superslot) {
            Backing::Preparing => false,
            Backing::Empty => self.advance(superslot, Backing::Empty, Backing::Pieces),
            Backing::Whole | Backing::Pieces => true,
        }
    }

    /// Notes that all 512 pages have memory, as one or in pieces.
    pub(crate) fn fill(&self, superslot: Superframe, backing: Backing) {
        let slot = &self.superslots[superslot.index()];
        slot.present.iter().for_each(|word| word.store(u64::MAX, Ordering::Relaxed));
        slot.backing.store(backing as u8, Ordering::Release);
    }

    /// Notes that no page has memory.
    pub(crate) fn drop_all(&self, superslot: Superframe) {
        let slot = &self.superslots[superslot.index()];
        slot.present.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        slot.backing.store(Backing::Empty as u8, Ordering::Release);
    }

    /// Returns whether a frame has memory.
    pub(crate) fn is_present(&self, mfn: Mfn) -> bool {
        let (word, bit) = self.bit(mfn);
        word.load(Ordering::Acquire) & bit != 0
    }

    /// Notes that a single page has memory. The superslot is in pieces.
    pub(crate) fn set_present(&self, mfn: Mfn) {
        let (word, bit) = self.bit(mfn);
        word.fetch_or(bit, Ordering::AcqRel);
        self.set_pieces(mfn);
    }

    /// Notes that a single page has no memory. The superslot is in pieces.
    pub(crate) fn clear_present(&self, mfn: Mfn) {
        let (word, bit) = self.bit(mfn);
        word.fetch_and(!bit, Ordering::AcqRel);
        self.set_pieces(mfn);
    }

    fn set_pieces(&self, mfn: Mfn) {
        let slot = &self.superslots[mfn.superframe().index()];
        slot.backing.store(Backing::Pieces as u8, Ordering::Release);
    }

    /// Notes that a page moves alone: the superslot is in pieces from now on. Returns whether it
    /// was whole.
    pub(crate) fn break_up(&self, superslot: Superframe) -> bool {
        self.advance(superslot, Backing::Whole, Backing::Pieces)
    }

    fn bit(&self, mfn: Mfn) -> (&AtomicU64, u64) {
        let index = mfn.raw() % SUPERPAGE_PAGES;
        let words = &self.superslots[mfn.superframe().index()].present;
        (&words[(index / 64) as usize], 1 << (index % 64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_superslot_goes_through_its_states() {
        let (slots, second) = (Slots::new(2), Superframe::new(1));
        assert_eq!(slots.backing(second), Backing::Empty);
        assert!(slots.advance(second, Backing::Empty, Backing::Preparing));
        assert!(!slots.advance(second, Backing::Empty, Backing::Preparing));
        slots.fill(second, Backing::Whole);
        let is_present = |mfn| slots.is_present(Mfn::new(mfn));
        assert!(is_present(512) && is_present(1023) && !is_present(511));
        assert!(slots.break_up(second) && !slots.break_up(second));
        assert_eq!(slots.backing(second), Backing::Pieces);
        slots.clear_present(Mfn::new(700));
        assert!(!is_present(700) && is_present(701));
        slots.drop_all(second);
        assert_eq!((slots.backing(second), is_present(701)), (Backing::Empty, false));
        assert!(slots.advance(second, Backing::Empty, Backing::Preparing) && !slots.open(second));
        slots.drop_all(second);
        assert!(slots.open(second) && !slots.advance(second, Backing::Empty, Backing::Preparing));
    }
}
