//! Anonymous memory with the pattern in it.
//!
//! The words are atomics, so that the compiler neither keeps nor drops a load: what is compared is
//! what memory holds.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::console;
use crate::failure::Failure;
use crate::meminfo::MemInfo;
use crate::options::Check;
use crate::pattern::{PagePattern, WORDS};

/// Bytes in a page.
pub(crate) const PAGE_BYTES: u64 = 4096;

/// How many `damaged` lines are printed, at most.
const DAMAGE_LINES_MAX: usize = 10;

/// One page of memory, aligned like one.
#[repr(C, align(4096))]
pub(crate) struct Page([AtomicU64; WORDS]);

impl Page {
    fn filled(pattern: PagePattern) -> Self {
        Self(std::array::from_fn(|index| AtomicU64::new(pattern.word(index))))
    }

    /// A page of zeros that is really written.
    pub(crate) fn zeroed() -> Self {
        Self([const { AtomicU64::new(0) }; WORDS])
    }

    /// The first word that is not the pattern's: its index, and what it holds.
    fn first_damage(&self, pattern: PagePattern) -> Option<(usize, u64)> {
        self.0.iter().enumerate().find_map(|(index, word)| {
            let found = word.load(Relaxed);
            (found != pattern.word(index)).then_some((index, found))
        })
    }

    fn write(&self, pattern: PagePattern) {
        for (index, word) in self.0.iter().enumerate() {
            word.store(pattern.word(index), Relaxed);
        }
    }
}

/// Room for `bytes` (rounded up to whole pages), not yet touched.
///
/// # Errors
/// A failure in `stage` when the kernel says that `bytes` are not available. Without it, the kernel
/// would kill process 1 later.
pub(crate) fn reserve(stage: &'static str, bytes: u64) -> Result<Vec<Page>, Failure> {
    let spare_bytes = MemInfo::read()?.spare_bytes();
    if bytes > spare_bytes {
        return Err(Failure::new(
            stage,
            format_args!("asked for {bytes} bytes, the guest has {spare_bytes} to spare"),
        ));
    }
    reserve_unchecked(stage, bytes.div_ceil(PAGE_BYTES) as usize)
}

/// Room for `pages` pages, whatever the kernel has free.
pub(crate) fn reserve_unchecked(stage: &'static str, pages: usize) -> Result<Vec<Page>, Failure> {
    let mut room = Vec::new();
    room.try_reserve_exact(pages)
        .map_err(|e| Failure::new(stage, format_args!("cannot allocate {pages} pages: {e}")))?;
    Ok(room)
}

/// Memory filled with the pattern, and what was found wrong in it so far.
pub(crate) struct Region {
    pages: Vec<Page>,
    first_page: u64,
    seed: u64,
    generation: u64,
    bad: BTreeSet<u64>,
}

impl Region {
    /// Fills `room` to its capacity. Pages are numbered from `first_page` on.
    pub(crate) fn fill(mut room: Vec<Page>, seed: u64, first_page: u64) -> Self {
        let count = room.capacity() as u64;
        room.extend(
            (0..count).map(|page| Page::filled(PagePattern::new(seed, 0, first_page + page))),
        );
        Self { pages: room, first_page, seed, generation: 0, bad: BTreeSet::new() }
    }

    /// Pages of the region.
    pub(crate) fn page_count(&self) -> u64 {
        self.pages.len() as u64
    }

    /// Pages that were wrong in any pass.
    pub(crate) fn bad_count(&self) -> u64 {
        self.bad.len() as u64
    }

    /// Bytes of the region.
    pub(crate) fn bytes(&self) -> u64 {
        self.page_count() * PAGE_BYTES
    }

    /// Compares every page with the pattern; prints the first damages.
    pub(crate) fn verify(&mut self, check: Check) {
        for (number, page) in (self.first_page..).zip(&self.pages) {
            let pattern = PagePattern::new(self.seed, self.generation, number);
            if let Some((index, found)) = page.first_damage(pattern)
                && self.bad.insert(number)
                && self.bad.len() <= DAMAGE_LINES_MAX
            {
                let (offset, expected) = (index * 8, pattern.word(index));
                console::mark(format_args!(
                    "damaged page={number} offset={offset} expected={expected:#018x} \
                     found={found:#018x}"
                ));
            }
            if check == Check::Rewrite {
                page.write(PagePattern::new(self.seed, self.generation + 1, number));
            }
        }
        if check == Check::Rewrite {
            self.generation += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region() -> Region {
        Region::fill(reserve_unchecked("test", 40).unwrap(), 5, 100)
    }

    #[test]
    fn pages_are_aligned_and_exactly_as_many_as_asked_for() {
        let region = region();
        assert_eq!((region.page_count(), region.bytes()), (40, 40 * 4096));
        assert_eq!(region.pages.as_ptr() as usize % 4096, 0);
        assert_eq!(size_of::<Page>(), 4096);
    }

    #[test]
    fn an_untouched_region_is_whole_in_every_generation() {
        let mut region = region();
        for check in [Check::Read, Check::Rewrite, Check::Read, Check::Rewrite, Check::Read] {
            region.verify(check);
        }
        assert_eq!((region.generation, region.bad_count()), (2, 0));
    }

    #[test]
    fn lost_doubled_moved_and_outdated_pages_are_found() {
        let mut region = region();
        for word in &region.pages[3].0 {
            word.store(0, Relaxed);
        }
        region.pages[9].write(PagePattern::new(5, 0, 108));
        region.pages[12].0[511].fetch_xor(1, Relaxed);
        region.verify(Check::Rewrite);
        assert_eq!(region.bad, BTreeSet::from([103, 109, 112]));
        region.pages[20].write(PagePattern::new(5, 0, 120));
        region.verify(Check::Read);
        assert_eq!(region.bad, BTreeSet::from([103, 109, 112, 120]));
    }

    #[test]
    fn more_than_the_machine_has_is_refused() {
        let failure = reserve("fill", 1 << 60).err().unwrap();
        assert_eq!(failure.reason, "fill");
    }
}
