//! Pages in which singles are built: one for each thread that builds one at the same time.

use std::sync::atomic::{AtomicU64, Ordering};

use super::backoff::Backoff;
use crate::addr::PAGE_BYTES;
use crate::sys::region::{Region, Span};

/// One bit of [`ScratchPages::used`] for each page.
const PAGES: u32 = u64::BITS;

/// The scratch region. Its pages are empty while nobody uses them.
pub(super) struct ScratchPages {
    region: Region,
    used: AtomicU64,
}

impl ScratchPages {
    /// The length of the region that [`ScratchPages::new`] takes.
    pub(super) const BYTES: u64 = PAGES as u64 * PAGE_BYTES;

    pub(super) const fn new(region: Region) -> Self {
        Self { region, used: AtomicU64::new(0) }
    }

    pub(super) fn span(&self) -> Span<'_> {
        self.region.all()
    }

    /// Lends a page to `work`, and drops what `work` leaves in it. Waits while all are in use.
    pub(super) fn with_page<R>(&self, work: impl FnOnce(Span<'_>) -> R) -> R {
        let index = self.take();
        let page = self.region.page(u64::from(index) * PAGE_BYTES);
        let page = page.expect("INV: the scratch region has a page for each bit");
        let result = work(page);
        let _ = page.discard();
        self.used.fetch_and(!(1 << index), Ordering::AcqRel);
        result
    }

    fn take(&self) -> u32 {
        let mut backoff = Backoff::default();
        loop {
            let used = self.used.load(Ordering::Acquire);
            let index = (!used).trailing_zeros();
            if index >= PAGES {
                backoff.wait();
                continue;
            }
            let taken = used | 1 << index;
            let order = (Ordering::AcqRel, Ordering::Acquire);
            if self.used.compare_exchange(used, taken, order.0, order.1).is_ok() {
                return index;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_page_is_lent_to_one_and_comes_back_empty() {
        let scratch = ScratchPages::new(Region::new(ScratchPages::BYTES).unwrap());
        let first = scratch.with_page(|page| {
            page.store_word(8, 7).unwrap();
            let other = scratch.with_page(|other| other.start());
            assert_ne!(other, page.start());
            page.start()
        });
        scratch.with_page(|page| {
            assert_eq!(page.start(), first);
            assert_eq!(page.load_word(8), Ok(0));
        });
    }

    #[test]
    fn a_thread_waits_while_all_pages_are_lent() {
        let scratch = ScratchPages::new(Region::new(ScratchPages::BYTES).unwrap());
        let taken: Vec<_> = (0..PAGES).map(|_| scratch.take()).collect();
        assert_eq!(taken, (0..PAGES).collect::<Vec<_>>());
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| scratch.with_page(|page| page.start()));
            std::thread::sleep(std::time::Duration::from_millis(5));
            assert!(!waits.is_finished());
            scratch.used.fetch_and(!(1 << 9), Ordering::AcqRel);
            let page = scratch.region.page(9 * PAGE_BYTES).unwrap();
            assert_eq!(waits.join().unwrap(), page.start());
        });
    }
}
