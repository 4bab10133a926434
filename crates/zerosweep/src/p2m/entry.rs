//! What is behind a page or a superpage, and how the table writes it down.

use crate::frame::{FRAME_LIMIT, Mfn};

/// What stands behind a page or a superpage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Nothing: ballooned out, or never there.
    Invalid,
    /// Promised; no frame yet.
    Pod,
    /// A frame, the first one if this is a superpage.
    Ram {
        /// The (first) frame.
        mfn: Mfn,
        /// Whether it is mapped, and may move.
        state: RamState,
    },
    /// Never reclaimed: MMIO, foreign, page tables. Outside all quantities.
    Special,
}

/// What may be done with the frame of a ram entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RamState {
    /// The guest reaches the frame. It may be checked, moved and stolen.
    Mapped,
    /// The guest reaches the frame, and a device may too: the frame stays where it is (rule [R16]).
    ///
    /// [R16]: crate::rules#r16
    Pinned,
    /// The frame could not be mapped after a check or a copy. The guest does not reach it; the next
    /// touch maps it.
    Detached,
}

/// The state of a superpage as a whole. Programs write it as a letter. A map with fewer cells than
/// superpages shows the greatest state of each cell: broken ranges are not hidden by whole ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SuperpageState {
    /// `.`: no page of it has a frame, and none is promised.
    Empty,
    /// `p`: promised, and without a frame.
    Promised,
    /// `W`: one entry with a superframe behind it.
    Whole,
    /// `r`: as [`SuperpageState::Whole`]; the guest has given back some of its pages, whose frames
    /// are retained.
    Retaining,
    /// `b`: single pages with frames.
    Broken,
}

impl SuperpageState {
    /// All states.
    pub const ALL: [Self; 5] =
        [Self::Empty, Self::Promised, Self::Whole, Self::Retaining, Self::Broken];

    /// Its letter in maps.
    #[must_use]
    pub const fn letter(self) -> u8 {
        match self {
            Self::Empty => b'.',
            Self::Promised => b'p',
            Self::Whole => b'W',
            Self::Retaining => b'r',
            Self::Broken => b'b',
        }
    }

    /// The state that this letter stands for.
    #[must_use]
    pub fn from_letter(letter: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.letter() == letter)
    }

    /// Whether the guest has it as one mapping.
    #[must_use]
    pub const fn is_whole(self) -> bool {
        matches!(self, Self::Whole | Self::Retaining)
    }
}

/// How many entries of each kind a broken range has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// PoD pages.
    pub pod: u64,
    /// Pages with a frame.
    pub ram: u64,
    /// Special pages.
    pub special: u64,
}

impl Tally {
    fn slot(&mut self, entry: Entry) -> Option<&mut u64> {
        match entry {
            Entry::Invalid => None,
            Entry::Pod => Some(&mut self.pod),
            Entry::Ram { .. } => Some(&mut self.ram),
            Entry::Special => Some(&mut self.special),
        }
    }

    /// A tally of one kind only.
    #[must_use]
    pub fn of(entry: Entry, pages: u64) -> Self {
        let mut tally = Self::default();
        tally.add(entry, pages);
        tally
    }

    pub(super) fn add(&mut self, entry: Entry, pages: u64) {
        if let Some(slot) = self.slot(entry) {
            *slot += pages;
        }
    }

    pub(super) fn remove(&mut self, entry: Entry, pages: u64) {
        if let Some(slot) = self.slot(entry) {
            debug_assert!(*slot >= pages);
            *slot -= pages;
        }
    }
}

pub(super) const KIND_MASK: u64 = 0xf;
pub(super) const INVALID: u64 = 0;
const POD: u64 = 1;
const RAM: u64 = 2;
const RAM_PINNED: u64 = 3;
const RAM_DETACHED: u64 = 4;
const SPECIAL: u64 = 5;
pub(super) const TABLE: u64 = 6;
pub(super) const NUMBER_SHIFT: u32 = 16;
const _: () = assert!(FRAME_LIMIT.ilog2() + NUMBER_SHIFT == 64);

pub(super) fn encode(entry: Entry) -> u64 {
    match entry {
        Entry::Invalid => INVALID,
        Entry::Pod => POD,
        Entry::Special => SPECIAL,
        Entry::Ram { mfn, state } => {
            debug_assert!(mfn.raw() < FRAME_LIMIT);
            let kind = match state {
                RamState::Mapped => RAM,
                RamState::Pinned => RAM_PINNED,
                RamState::Detached => RAM_DETACHED,
            };
            mfn.raw() << NUMBER_SHIFT | kind
        }
    }
}

pub(super) fn decode(raw: u64) -> Entry {
    let mfn = Mfn::new(raw >> NUMBER_SHIFT);
    match raw & KIND_MASK {
        POD => Entry::Pod,
        SPECIAL => Entry::Special,
        RAM => Entry::Ram { mfn, state: RamState::Mapped },
        RAM_PINNED => Entry::Ram { mfn, state: RamState::Pinned },
        RAM_DETACHED => Entry::Ram { mfn, state: RamState::Detached },
        _ => Entry::Invalid,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_what_it_was_written_as() {
        let holds = [RamState::Mapped, RamState::Pinned, RamState::Detached];
        let rams = holds.map(|state| Entry::Ram { mfn: Mfn::new(FRAME_LIMIT - 1), state });
        for entry in rams.into_iter().chain([Entry::Invalid, Entry::Pod, Entry::Special]) {
            assert_eq!(decode(encode(entry)), entry);
        }
    }
}
