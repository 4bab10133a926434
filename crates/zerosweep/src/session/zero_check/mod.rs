//! Zero checks: is a range all zero, and if so, take its frame back (rules [R5], [R10], [R11]).
//!
//! The order matters for [INV-5]. A quick check of the mapped range is a hint and saves most of the
//! work; then the range is unmapped and flushed; only what is found after that is the truth.
//!
//! [R5]: crate::rules#r5
//! [R10]: crate::rules#r10
//! [R11]: crate::rules#r11
//! [INV-5]: crate::rules#inv-5
//!
//! [`xen`] and [`ours`] check a superpage, [`singles`] checks single pages for both.

mod ours;
mod singles;
mod xen;

pub(super) use ours::Findings;

use super::Session;
use crate::event::Event;
use crate::frame::{Gfn, Order, PAGE_BYTES, SUPERPAGE_PAGES, Superpage};
use crate::machine::{Host, QUICK_CHECK_WORDS};
use crate::page_bits::PageBits;
use crate::run::Run;

/// What a superpage check found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Check {
    /// Zero: it is PoD now, and its frame is in the cache.
    Reclaimed,
    /// Something in it is not zero.
    NotZero,
    /// It is not 512 free ram pages of one superframe, it is in use, or in transit.
    NotEligible,
    /// Its live pages are singles now. The number of its pages that went to the cache.
    Evacuated(u64),
}

impl Check {
    /// Pages that went to the cache.
    pub(super) fn freed(self) -> u64 {
        match self {
            Self::Reclaimed => SUPERPAGE_PAGES,
            Self::Evacuated(pages) => pages,
            Self::NotZero | Self::NotEligible => 0,
        }
    }
}

/// The most live pages of a superpage that are worth copying elsewhere.
pub(super) const WORTH_COPYING: u64 = 64;

const WORDS_PER_PAGE: u32 = (PAGE_BYTES / 8) as u32;
const QUICK_BYTES: u64 = QUICK_CHECK_WORDS as u64 * 8;

impl<H: Host> Session<H> {
    /// Claims and checks a superpage. One that is in transit is not eligible. Under our policy up to
    /// `most` live pages may be evacuated; Xen's policies evacuate nothing.
    pub(super) fn check_superpage(&mut self, superpage: Superpage, most: u64) -> Check {
        if superpage.number() >= self.domain().p2m.superpages() {
            return Check::NotEligible;
        }
        self.claimed(superpage, |session| session.check_claimed_superpage(superpage, most))
            .unwrap_or(Check::NotEligible)
    }

    /// Checks a superpage that this operation has claimed. (Xen:
    /// `p2m_pod_zero_check_superpage`.)
    pub(super) fn check_claimed_superpage(&mut self, superpage: Superpage, most: u64) -> Check {
        let check = if self.domain().policy.keeps_whole() {
            self.check_ours(superpage, most)
        } else {
            self.check_xen(superpage)
        };
        if check != Check::NotEligible {
            self.domain().note_finds(SUPERPAGE_PAGES, check.freed());
        }
        check
    }

    /// Of a superpage that was found zero, `zeros` pages are PoD now; its frame goes to the cache.
    pub(super) fn cache_reclaimed(&mut self, superpage: Superpage, run: Run, zeros: u64) {
        let mfn = run.mfn();
        let domain = self.host.domain();
        domain.count_unpopulate(zeros);
        let _ = domain.put(run);
        domain.statistics.zero_checks_2m_hit += 1;
        domain.statistics.superpages_reclaimed += 1;
        let event = Event::Reclaim { gfn: superpage.first(), mfn, order: Order::SUPERPAGE };
        self.host.event(event);
    }

    /// Counts the bytes of a quick check of `pages` pages.
    fn count_quick(&mut self, found: Option<u32>, pages: u64) {
        let bytes = found.map_or(pages * QUICK_BYTES, |word| {
            u64::from(word / WORDS_PER_PAGE) * QUICK_BYTES
                + u64::from(word % WORDS_PER_PAGE + 1) * 8
        });
        self.domain().statistics.bytes_scanned += bytes;
    }

    /// Reports what a check found in a superpage.
    pub(super) fn report_checked(
        &mut self,
        superpage: Superpage,
        checked: PageBits,
        live: PageBits,
    ) {
        let words = checked.words().into_iter().zip(live.words());
        for (group, (checked, live)) in words.enumerate() {
            if checked != 0 {
                let gfn = superpage.page(group * 64);
                self.host.event(Event::Checked { gfn, checked, live });
            }
        }
    }

    /// Reports that a page is not zero.
    pub(super) fn report_live(&mut self, gfn: Gfn) {
        let bit = 1 << (gfn.raw() % 64);
        let gfn = Gfn::new(gfn.raw() & !63);
        self.host.event(Event::Checked { gfn, checked: bit, live: bit });
    }
}
