//! The superpage check of Xen's policies (rule [R5]).
//!
//! [R5]: crate::rules#r5

use super::{Check, WORDS_PER_PAGE};
use crate::frame::{Order, SUPERPAGE_BYTES, SUPERPAGE_PAGES, Superpage};
use crate::machine::{Host, Machine};
use crate::p2m::Entry;
use crate::page_bits::PageBits;
use crate::run::Run;
use crate::session::Session;

impl<H: Host> Session<H> {
    /// (Xen: `p2m_pod_zero_check_superpage`.)
    pub(super) fn check_xen(&mut self, superpage: Superpage) -> Check {
        let domain = self.host.domain();
        let Some(mfn) = domain.p2m.consecutive(superpage) else { return Check::NotEligible };
        if domain.cache.reserve(1, mfn, 0).is_err() {
            return Check::NotEligible;
        }
        domain.statistics.zero_checks_2m += 1;
        let (gfn, order) = (superpage.first(), Order::SUPERPAGE);
        let quick = self.host.machine(|m| m.quick_check(gfn, mfn, order));
        self.count_quick(quick, SUPERPAGE_PAGES);
        if let Some(word) = quick {
            self.report_live(superpage.page((word / WORDS_PER_PAGE) as usize));
            return Check::NotZero;
        }
        let Some(run) = self.unmap_flushed(gfn, mfn, order) else { return Check::NotEligible };
        let found = self.host.machine(|m| m.zero_check(mfn, order.pages()));
        let scanned = found.map_or(SUPERPAGE_BYTES, |word| u64::from(word + 1) * 8);
        self.domain().statistics.bytes_scanned += scanned;
        if let Some(word) = found {
            let mut seen = (PageBits::default(), PageBits::default());
            let last = (word / WORDS_PER_PAGE) as usize;
            (0..=last).for_each(|index| _ = seen.0.insert(index));
            seen.1.insert(last);
            self.report_checked(superpage, seen.0, seen.1);
            self.map_back(gfn, run);
            return Check::NotZero;
        }
        self.reclaim_xen(superpage, run);
        Check::Reclaimed
    }

    fn reclaim_xen(&mut self, superpage: Superpage, run: Run) {
        self.clear(&run);
        self.host.machine(|m| m.park(run.mfn().superframe()));
        let domain = self.host.domain();
        domain.p2m.set_whole(superpage, Entry::Pod);
        self.cache_reclaimed(superpage, run, SUPERPAGE_PAGES);
    }
}
