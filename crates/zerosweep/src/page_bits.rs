//! A set of pages of one superpage, or of frames of one superframe.

use crate::frame::SUPERPAGE_PAGES;

const PAGES: usize = SUPERPAGE_PAGES as usize;

/// A bit for each page of a superpage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageBits([u64; PAGES / 64]);

impl PageBits {
    /// Whether page `index` is in it.
    #[must_use]
    pub fn contains(&self, index: usize) -> bool {
        self.0[index / 64] >> (index % 64) & 1 == 1
    }

    /// Adds page `index`; false if it was there.
    pub fn insert(&mut self, index: usize) -> bool {
        let was = self.contains(index);
        self.0[index / 64] |= 1 << (index % 64);
        !was
    }

    /// Takes page `index` out; false if it was not there.
    pub fn remove(&mut self, index: usize) -> bool {
        let was = self.contains(index);
        self.0[index / 64] &= !(1 << (index % 64));
        was
    }

    /// How many pages are in it.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// No page.
    pub(crate) const EMPTY: Self = Self([0; PAGES / 64]);
    /// All pages.
    pub(crate) const ALL: Self = Self([u64::MAX; PAGES / 64]);

    /// Takes the first page out; `None` if it is empty.
    pub(crate) fn take_first(&mut self) -> Option<usize> {
        let word = self.0.iter().position(|&bits| bits != 0)?;
        let bit = self.0[word].trailing_zeros() as usize;
        self.0[word] &= self.0[word] - 1;
        Some(word * 64 + bit)
    }

    /// Its bits: page 0 is bit 0 of the first word.
    pub(crate) fn words(&self) -> [u64; PAGES / 64] {
        self.0
    }

    /// Its pages, ascending.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..PAGES).filter(move |&index| self.contains(index))
    }
}
