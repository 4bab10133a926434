//! What populate on demand says in a trace.

use zerosweep_events::record::{
    DECREASE_RESERVATION, LOOK, POD_POPULATE, POD_SUPERPAGE_SPLINTER, POD_ZERO_RECLAIM,
    SET_P2M_ENTRY, TYPE_INVALID, TYPE_POD, TYPE_RAM,
};

use super::MAX_ORDER;
use super::reader::{Record, long, word};

/// How domain and order are written. Nothing in a file says which it is; [`super::guess`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// Xen 4.18 and newer: two words.
    Words,
    /// Before: two halves of one word, and a word of rubbish.
    Halves,
}

/// What a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageKind {
    /// It has a frame.
    Ram,
    /// It is not the guest's.
    Invalid,
    /// It is promised.
    Pod,
    /// Anything else, by Xen's number.
    Other(u32),
}

impl PageKind {
    fn decode(raw: u32) -> Self {
        match raw {
            TYPE_RAM => Self::Ram,
            TYPE_INVALID => Self::Invalid,
            TYPE_POD => Self::Pod,
            other => Self::Other(other),
        }
    }
}

/// An event of populate on demand. Gfns and mfns count pages of 4 KiB; domains are Xen's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// An entry of the p2m was set.
    SetEntry {
        /// First page.
        gfn: u64,
        /// First frame, or what is written where there is none.
        mfn: u64,
        /// What the pages are now.
        kind: PageKind,
        /// Whose they are.
        domain: u32,
        /// Size.
        order: u8,
    },
    /// The guest gave a range back.
    Decrease {
        /// First page.
        gfn: u64,
        /// Whose it was.
        domain: u32,
        /// Size.
        order: u8,
    },
    /// A promised range got a frame.
    Populate {
        /// The page that was touched.
        gfn: u64,
        /// First frame.
        mfn: u64,
        /// Who touched it.
        domain: u32,
        /// Size.
        order: u8,
    },
    /// A range of zeros was promised again.
    Reclaim {
        /// First page.
        gfn: u64,
        /// A frame of it: of a superpage the last.
        mfn: u64,
        /// Whose it is.
        domain: u32,
        /// Size.
        order: u8,
    },
    /// A promised superpage was broken.
    Splinter {
        /// The page that was touched.
        gfn: u64,
        /// Who touched it.
        domain: u32,
        /// Size.
        order: u8,
    },
    /// A zero check saw pages. Only recordings of ours say so.
    Look {
        /// The first of 64 pages; bit n is page n.
        gfn: u64,
        /// Those that were looked at.
        looked: u64,
        /// Those of them that are not zero.
        live: u64,
        /// Whose they are.
        domain: u32,
    },
}

/// An invalid record of populate on demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// It has not as many words as such records have.
    #[error("event {event:#x} with {words} words, but it has {expected}")]
    Words {
        /// Event number.
        event: u32,
        /// How many there are.
        words: usize,
        /// How many there must be.
        expected: usize,
    },
    /// Its order is above 18: the layout is another one, or the trace is damaged.
    #[error("event {event:#x} with order {order}; is it the other layout?")]
    Order {
        /// Event number.
        event: u32,
        /// What stands there.
        order: u32,
    },
    /// Its page is beyond the addresses that there are.
    #[error("event {event:#x} with gfn {gfn:#x}, which is no page")]
    Gfn {
        /// Event number.
        event: u32,
        /// What stands there.
        gfn: u64,
    },
}

/// Addresses have at most 64 bits.
const GFN_END: u64 = 1 << 52;

impl Event {
    /// What a record says; `None` if it is not of populate on demand.
    ///
    /// # Errors
    /// When the record is one of populate on demand and is invalid.
    pub fn decode(record: &Record<'_>, layout: Layout) -> Result<Option<Self>, EventError> {
        let (event, extra) = (record.event, record.extra);
        let expected = match event {
            SET_P2M_ENTRY | POD_POPULATE | POD_ZERO_RECLAIM => 6,
            DECREASE_RESERVATION | POD_SUPERPAGE_SPLINTER => 4,
            LOOK => 7,
            _ => return Ok(None),
        };
        let words = extra.len() / 4;
        if words != expected {
            return Err(EventError::Words { event, words, expected });
        }
        let gfn = long(extra, 0);
        if gfn >= GFN_END {
            return Err(EventError::Gfn { event, gfn });
        }
        let tail = |at| word(extra, at).unwrap_or(0);
        let last = extra.len() - 8;
        if event == SET_P2M_ENTRY {
            let (kind, owner) = (PageKind::decode(tail(last)), tail(last + 4));
            let (domain, order) = (owner & 0xffff, checked(event, owner >> 16)?);
            return Ok(Some(Self::SetEntry { gfn, mfn: long(extra, 8), kind, domain, order }));
        }
        if event == LOOK {
            let (looked, live) = (long(extra, 8), long(extra, 16));
            return Ok(Some(Self::Look { gfn, looked, live: live & looked, domain: tail(24) }));
        }
        let (domain, order) = match layout {
            Layout::Words => (tail(last), tail(last + 4)),
            // A splinter said no order then: it was always a superpage.
            Layout::Halves if event == POD_SUPERPAGE_SPLINTER => (tail(last) & 0xffff, 9),
            Layout::Halves => (tail(last) & 0xffff, tail(last) >> 16),
        };
        let order = checked(event, order)?;
        let mfn = long(extra, 8);
        Ok(Some(match event {
            DECREASE_RESERVATION => Self::Decrease { gfn, domain, order },
            POD_POPULATE => Self::Populate { gfn, mfn, domain, order },
            POD_ZERO_RECLAIM => Self::Reclaim { gfn, mfn, domain, order },
            _ => Self::Splinter { gfn, domain, order },
        }))
    }

    /// Whose pages it is about.
    #[must_use]
    pub fn domain(&self) -> u32 {
        match *self {
            Self::SetEntry { domain, .. }
            | Self::Decrease { domain, .. }
            | Self::Populate { domain, .. }
            | Self::Reclaim { domain, .. }
            | Self::Splinter { domain, .. }
            | Self::Look { domain, .. } => domain,
        }
    }
}

fn checked(event: u32, order: u32) -> Result<u8, EventError> {
    if order > MAX_ORDER { Err(EventError::Order { event, order }) } else { Ok(order as u8) }
}

/// Whether a record's domain and order are written in one of the two layouts.
pub(super) fn is_laid_out(record: &Record<'_>) -> bool {
    matches!(
        record.event,
        DECREASE_RESERVATION | POD_POPULATE | POD_ZERO_RECLAIM | POD_SUPERPAGE_SPLINTER
    )
}

/// The two words in which domain and order are written.
pub(super) fn owner_words(record: &Record<'_>) -> Option<(u32, u32)> {
    let last = record.extra.len().checked_sub(8)?;
    Some((word(record.extra, last)?, word(record.extra, last + 4)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(event: u32, words: &[u32], layout: Layout) -> Result<Option<Event>, EventError> {
        let extra: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        Event::decode(&Record { offset: 0, cpu: 0, tsc: 0, event, extra: &extra }, layout)
    }

    #[test]
    fn both_layouts_say_the_same() {
        let expected = Event::Populate { gfn: 1 << 32 | 5, mfn: 7, domain: 1, order: 9 };
        let new = decode(POD_POPULATE, &[5, 1, 7, 0, 1, 9], Layout::Words);
        let old = decode(POD_POPULATE, &[5, 1, 7, 0, 9 << 16 | 1, 0xdead_beef], Layout::Halves);
        assert_eq!((new, old), (Ok(Some(expected)), Ok(Some(expected))));
        let splinter = Event::Splinter { gfn: 5, domain: 2, order: 9 };
        let old = decode(POD_SUPERPAGE_SPLINTER, &[5, 0, 0xffff_0002, 77], Layout::Halves);
        assert_eq!(old, Ok(Some(splinter)));
        assert_eq!(
            decode(POD_SUPERPAGE_SPLINTER, &[5, 0, 2, 9], Layout::Words),
            Ok(Some(splinter))
        );
        let set =
            decode(SET_P2M_ENTRY, &[5, 0, u32::MAX, u32::MAX, 6, 18 << 16 | 1], Layout::Words);
        let kind = PageKind::Pod;
        let entry = Event::SetEntry { gfn: 5, mfn: u64::MAX, kind, domain: 1, order: 18 };
        assert_eq!(set, Ok(Some(entry)));
        assert_eq!(decode(0x21_002, &[1], Layout::Words), Ok(None));
    }

    #[test]
    fn what_cannot_be_is_told() {
        let short = decode(DECREASE_RESERVATION, &[5, 0, 1], Layout::Words);
        let event = DECREASE_RESERVATION;
        assert_eq!(short, Err(EventError::Words { event, words: 3, expected: 4 }));
        let order = decode(event, &[5, 0, 1, 19], Layout::Words);
        assert_eq!(order, Err(EventError::Order { event, order: 19 }));
        let beyond = decode(event, &[0, 1 << 20, 1, 0], Layout::Words);
        assert_eq!(beyond, Err(EventError::Gfn { event, gfn: 1 << 52 }));
    }
}
