//! Pages that are out but whose frames stay in their mapped superpage (rule [R12]).
//!
//! A bit for each page of each superpage that has any, and a queue by count: the superpage with the
//! most pages out, that is, with the fewest live ones, is found in constant time.
//!
//! ```text
//!  occupied: one bit a count   heads: by count      places: bits, count, neighbours
//!  [ … 0 1 0 0 1 ]             [ … ] ─────────────► [ ]◄─►[ ]◄─►[ ]
//! ```
//!
//! [R12]: crate::rules#r12

use alloc::vec::Vec;

use crate::error::OutOfTableMemory;
use crate::frame::{SUPERPAGE_PAGES, Superpage};
use crate::page_bits::PageBits;

const PAGES: usize = SUPERPAGE_PAGES as usize;
/// No place.
const NONE: u32 = u32::MAX;

struct Place {
    superpage: u64,
    bits: PageBits,
    count: u16,
    next: u32,
    previous: u32,
}

/// All pages that are out and have a frame. See the module's text.
pub(crate) struct Retained {
    places: Vec<Place>,
    /// The first free place; they are linked by `next`.
    free: u32,
    heads: [u32; PAGES + 1],
    occupied: [u64; PAGES / 64 + 1],
    pages: u64,
}

impl Retained {
    /// An empty set for a table of `superpages` superpages.
    ///
    /// # Errors
    /// When there is no address space for its list.
    pub(crate) fn new(superpages: usize) -> Result<Self, OutOfTableMemory> {
        let mut places = Vec::new();
        // Address space for the worst case. The host takes memory only for what is used.
        places.try_reserve_exact(superpages).map_err(|_| OutOfTableMemory)?;
        Ok(Self {
            places,
            free: NONE,
            heads: [NONE; PAGES + 1],
            occupied: [0; PAGES / 64 + 1],
            pages: 0,
        })
    }

    /// R: how many pages there are.
    pub(crate) fn pages(&self) -> u64 {
        self.pages
    }

    /// The pages of a place.
    pub(crate) fn bits(&self, place: u32) -> PageBits {
        self.places[place as usize].bits
    }

    /// How many pages of a place are out.
    pub(crate) fn count(&self, place: u32) -> u64 {
        u64::from(self.places[place as usize].count)
    }

    /// A place for a superpage of which no page is out yet.
    pub(crate) fn open(&mut self, superpage: Superpage) -> Result<u32, OutOfTableMemory> {
        let place = Place {
            superpage: superpage.number(),
            bits: PageBits::default(),
            count: 0,
            next: NONE,
            previous: NONE,
        };
        let number = if self.free == NONE {
            self.places.try_reserve(1).map_err(|_| OutOfTableMemory)?;
            self.places.push(place);
            self.places.len() as u32 - 1
        } else {
            let number = self.free;
            self.free = self.places[number as usize].next;
            self.places[number as usize] = place;
            number
        };
        self.link(number);
        Ok(number)
    }

    /// Forgets a place; returns how many pages were out.
    pub(crate) fn close(&mut self, place: u32) -> u64 {
        self.unlink(place);
        let count = self.count(place);
        self.pages -= count;
        self.places[place as usize].next = self.free;
        self.free = place;
        count
    }

    /// Marks a page as out or not; false if it was so already.
    pub(crate) fn set(&mut self, place: u32, index: usize, out: bool) -> bool {
        let bits = &mut self.places[place as usize].bits;
        let changed = if out { bits.insert(index) } else { bits.remove(index) };
        if changed {
            self.unlink(place);
            let count = &mut self.places[place as usize].count;
            if out {
                *count += 1;
                self.pages += 1;
            } else {
                *count -= 1;
                self.pages -= 1;
            }
            self.link(place);
        }
        changed
    }

    /// The superpage with the fewest live pages of those that `wanted` accepts, and how many of its
    /// pages are out.
    pub(crate) fn fewest_live(
        &self,
        wanted: impl Fn(Superpage) -> bool,
    ) -> Option<(Superpage, u64)> {
        for word in (0..self.occupied.len()).rev() {
            let mut counts = self.occupied[word];
            while counts != 0 {
                let bit = 63 - counts.leading_zeros() as usize;
                counts &= !(1 << bit);
                let mut number = self.heads[word * 64 + bit];
                while number != NONE {
                    let place = &self.places[number as usize];
                    let superpage = Superpage::new(place.superpage);
                    if place.count > 0 && wanted(superpage) {
                        return Some((superpage, u64::from(place.count)));
                    }
                    number = place.next;
                }
            }
        }
        None
    }

    /// Whether all pages of some superpage are out.
    pub(crate) fn has_full(&self) -> bool {
        self.heads[PAGES] != NONE
    }

    fn link(&mut self, number: u32) {
        let count = usize::from(self.places[number as usize].count);
        let head = self.heads[count];
        let place = &mut self.places[number as usize];
        place.next = head;
        place.previous = NONE;
        if head != NONE {
            self.places[head as usize].previous = number;
        }
        self.heads[count] = number;
        self.occupied[count / 64] |= 1 << (count % 64);
    }

    fn unlink(&mut self, number: u32) {
        let Place { count, next, previous, .. } = self.places[number as usize];
        let count = usize::from(count);
        if next != NONE {
            self.places[next as usize].previous = previous;
        }
        if previous != NONE {
            self.places[previous as usize].next = next;
            return;
        }
        self.heads[count] = next;
        if next == NONE {
            self.occupied[count / 64] &= !(1 << (count % 64));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(_: Superpage) -> bool {
        true
    }

    #[test]
    fn the_superpage_with_the_fewest_live_pages_comes_first() {
        let mut retained = Retained::new(3).unwrap();
        let places = [5_u64, 6, 7].map(|n| retained.open(Superpage::new(n)).unwrap());
        for (place, count) in places.into_iter().zip([3, 511, 64]) {
            (0..count).for_each(|index| assert!(retained.set(place, index, true)));
        }
        assert_eq!(retained.pages(), 578);
        assert_eq!(retained.fewest_live(any), Some((Superpage::new(6), 511)));
        let others = |superpage: Superpage| superpage.number() != 6;
        assert_eq!(retained.fewest_live(others), Some((Superpage::new(7), 64)));
        assert!(!retained.has_full());
        assert!(retained.set(places[1], 511, true) && retained.has_full());
        assert!(!retained.set(places[1], 511, true), "it is out already");
        assert_eq!(retained.close(places[1]), 512);
        assert!(retained.set(places[2], 63, false));
        assert_eq!(retained.fewest_live(any), Some((Superpage::new(7), 63)));
        assert_eq!(retained.bits(places[2]).iter().count(), 63);
        assert_eq!(retained.open(Superpage::new(9)).unwrap(), places[1], "used again");
        assert_eq!(retained.pages(), 66);
    }

    #[test]
    fn a_place_of_which_nothing_is_out_is_not_found() {
        let mut retained = Retained::new(3).unwrap();
        let place = retained.open(Superpage::new(1)).unwrap();
        assert_eq!(retained.fewest_live(any), None);
        assert!(retained.set(place, 8, true) && retained.set(place, 8, false));
        assert_eq!((retained.fewest_live(any), retained.pages()), (None, 0));
        assert_eq!(retained.close(place), 0);
        assert_eq!(retained.occupied, [0; 9], "nothing is to be looked through");
    }
}
