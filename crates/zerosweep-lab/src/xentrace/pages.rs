//! What each page of a domain was last, by the trace's records of the p2m.

use std::collections::HashMap;

use super::PageKind;

const CHUNK_PAGES: u64 = zerosweep::SUPERPAGE_PAGES;
/// Ranges of 2 MiB that are known page by page: 1 TiB of them.
const MOST_CHUNKS: usize = 1 << 19;
const KIND_BITS: u32 = 3;

/// How many pages are what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Tally {
    /// They have a frame.
    pub ram: u64,
    /// They are promised.
    pub pod: u64,
    /// They are not the guest's any more.
    pub invalid: u64,
    /// Anything else.
    pub other: u64,
}

impl Tally {
    fn of(&mut self, code: u64) -> Option<&mut u64> {
        match code {
            1 => Some(&mut self.ram),
            2 => Some(&mut self.pod),
            3 => Some(&mut self.invalid),
            4 => Some(&mut self.other),
            _ => None,
        }
    }

    fn change(&mut self, from: u64, to: u64, pages: u64) {
        if let Some(count) = self.of(from) {
            *count -= pages;
        }
        if let Some(count) = self.of(to) {
            *count += pages;
        }
    }
}

/// Time and kind of a page's last record, in one word; 0: none.
type Last = u64;

enum Chunk {
    Whole(Last),
    Pages(Box<[Last; CHUNK_PAGES as usize]>),
}

/// Every page's last state. Records may come in any order: of two the one of the later time counts,
/// of the same time the one that came later.
#[derive(Default)]
pub struct PageStates {
    places: HashMap<u64, usize>,
    chunks: Vec<Chunk>,
    recent: Option<(u64, usize)>,
    tally: Tally,
    overflowed: bool,
}

impl PageStates {
    /// How many pages are what; `None` if there were more than can be kept.
    #[must_use]
    pub fn tally(&self) -> Option<Tally> {
        (!self.overflowed).then_some(self.tally)
    }

    /// `2^order` pages from `gfn` on are of `kind` since `tsc`.
    pub fn set(&mut self, gfn: u64, order: u8, kind: PageKind, tsc: u64) {
        let code = match kind {
            PageKind::Ram => 1,
            PageKind::Pod => 2,
            PageKind::Invalid => 3,
            PageKind::Other(_) => 4,
        };
        let last = tsc << KIND_BITS | code;
        let pages = 1_u64 << order;
        let gfn = gfn & !(pages - 1);
        if pages >= CHUNK_PAGES {
            for number in gfn / CHUNK_PAGES..(gfn + pages) / CHUNK_PAGES {
                self.set_chunk(number, last);
            }
        } else {
            let first = (gfn % CHUNK_PAGES) as usize;
            self.set_pages(gfn / CHUNK_PAGES, first..first + pages as usize, last);
        }
    }

    fn place(&mut self, number: u64) -> Option<usize> {
        if let Some((_, place)) = self.recent.filter(|&(recent, _)| recent == number) {
            return Some(place);
        }
        let next = self.chunks.len();
        let place = match self.places.get(&number) {
            Some(&place) => place,
            None if next == MOST_CHUNKS => {
                self.overflowed = true;
                return None;
            }
            None => {
                self.chunks.push(Chunk::Whole(0));
                self.places.insert(number, next);
                next
            }
        };
        self.recent = Some((number, place));
        Some(place)
    }

    fn set_chunk(&mut self, number: u64, last: Last) {
        let Some(place) = self.place(number) else { return };
        match &mut self.chunks[place] {
            Chunk::Whole(before) => {
                if is_newer(last, *before) {
                    self.tally.change(code(*before), code(last), CHUNK_PAGES);
                    *before = last;
                }
            }
            Chunk::Pages(_) => self.set_pages(number, 0..CHUNK_PAGES as usize, last),
        }
    }

    fn set_pages(&mut self, number: u64, range: std::ops::Range<usize>, last: Last) {
        let Some(place) = self.place(number) else { return };
        if let Chunk::Whole(before) = self.chunks[place] {
            self.chunks[place] = Chunk::Pages(Box::new([before; CHUNK_PAGES as usize]));
        }
        let Chunk::Pages(pages) = &mut self.chunks[place] else { return };
        for before in &mut pages[range] {
            if is_newer(last, *before) {
                self.tally.change(code(*before), code(last), 1);
                *before = last;
            }
        }
    }
}

fn code(last: Last) -> u64 {
    last & ((1 << KIND_BITS) - 1)
}

fn is_newer(new: Last, old: Last) -> bool {
    new >> KIND_BITS >= old >> KIND_BITS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_later_record_counts_whichever_comes_first() {
        let mut states = PageStates::default();
        states.set(0, 18, PageKind::Pod, 1);
        states.set(512, 9, PageKind::Ram, 5);
        states.set(700, 0, PageKind::Invalid, 4);
        assert_eq!(states.tally().unwrap(), Tally { ram: 512, pod: 261_632, ..Tally::default() });
        states.set(700, 0, PageKind::Invalid, 6);
        states.set(600, 9, PageKind::Pod, 6);
        let expected = Tally { ram: 0, pod: 262_144, ..Tally::default() };
        assert_eq!(states.tally().unwrap(), expected, "order 9 is from 512 on, and came last");
        states.set(1 << 40, 2, PageKind::Other(13), 9);
        assert_eq!(states.tally().unwrap().other, 4);
    }
}
