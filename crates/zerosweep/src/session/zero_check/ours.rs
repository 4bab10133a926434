//! The superpage check under our policy (rules [R5], [R6], [R10], [R11]).
//!
//! Cheapest first: the word where the last check found something; then the first words of every
//! eighth page, from that place on and around, while the guest may write (of every page, they would
//! cost a quarter of a full look, for the cache lines that have to come); only then is the
//! superpage unmapped and looked at in full. Pages that are out and retained count as zero until
//! that last look, which is the truth about them too.
//!
//! What a check found in pages that are not reclaimed is reported:
//! [`Event::Checked`](crate::Event::Checked).
//!
//! [R5]: crate::rules#r5
//! [R6]: crate::rules#r6
//! [R10]: crate::rules#r10
//! [R11]: crate::rules#r11

use super::{Check, WORTH_COPYING};
use crate::frame::{Mfn, Order, PAGE_BYTES, SUPERPAGE_PAGES, Superpage};
use crate::machine::{Host, Machine, QUICK_CHECK_WORDS};
use crate::p2m::Entry;
use crate::page_bits::PageBits;
use crate::run::Run;
use crate::session::Session;

const WORDS_PER_PAGE: u64 = PAGE_BYTES / 8;
/// One page in this many is checked while it is mapped.
const STRIDE: u64 = 8;

/// What a sample of the mapped superpage says.
enum Sample {
    /// Too many pages are not zero.
    NotZero,
    /// Few pages may be live: a full scan is worth it, from this page on.
    Promising(u64),
}

/// What a full scan found.
#[derive(Default)]
pub(in crate::session) struct Findings {
    /// Pages that are not zero.
    pub(in crate::session) live: PageBits,
    /// How many these are.
    pub(in crate::session) count: u64,
    first_word: Option<u32>,
    bytes: u64,
    /// Where the scan began, and the number of pages that it reached, around the end of the
    /// superpage.
    start: u64,
    reached: u64,
}

impl Findings {
    /// The pages that were scanned.
    fn checked(&self) -> PageBits {
        let mut looked = PageBits::default();
        for n in 0..self.reached {
            looked.insert(((self.start + n) % SUPERPAGE_PAGES) as usize);
        }
        looked
    }
}

impl<H: Host> Session<H> {
    /// Checks a claimed superpage: if it is zero it is reclaimed; if at most `most` pages are not,
    /// these are put elsewhere.
    pub(in crate::session) fn check_ours(&mut self, superpage: Superpage, most: u64) -> Check {
        self.attach(superpage);
        let domain = self.host.domain();
        let Some(mfn) = domain.p2m.consecutive(superpage) else { return Check::NotEligible };
        if domain.cache.reserve(1, mfn, SUPERPAGE_PAGES - 1).is_err() {
            return Check::NotEligible;
        }
        domain.statistics.zero_checks_2m += 1;
        let outs = domain.p2m.out_bits(superpage);
        let Sample::Promising(start) = self.sample(superpage, mfn, most, outs) else {
            return Check::NotZero;
        };
        let (gfn, order) = (superpage.first(), Order::SUPERPAGE);
        let Some(run) = self.unmap_flushed(gfn, mfn, order) else { return Check::NotEligible };
        let found = self.full_scan(&run, start, most);
        self.domain().statistics.bytes_scanned += found.bytes;
        if found.count > 0 {
            self.report_checked(superpage, found.checked(), found.live);
        }
        if found.count > most {
            self.remember_non_zero(superpage, found.first_word, most);
            self.map_back(gfn, run);
            return Check::NotZero;
        }
        if found.count == SUPERPAGE_PAGES {
            // The guest has taken every page again that was out: there is nothing to reclaim.
            self.retake_all(superpage);
            self.map_back(gfn, run);
            return Check::NotZero;
        }
        if found.count > 0 {
            return self.evacuate(superpage, run, outs, &found);
        }
        self.reclaim(superpage, run, outs)
    }

    fn sample(&mut self, superpage: Superpage, mfn: Mfn, most: u64, outs: PageBits) -> Sample {
        let domain = self.host.domain();
        let mut start = 0;
        if let Some(word) = domain.p2m.hint(superpage) {
            let too_many = most == 0 || (domain.p2m.is_dense(superpage) && most <= WORTH_COPYING);
            domain.statistics.bytes_scanned += 8;
            let value = self.host.machine(|m| m.peek(superpage.first(), mfn, word));
            if value != 0 && too_many {
                self.report_live(superpage.page((u64::from(word) / WORDS_PER_PAGE) as usize));
                return Sample::NotZero;
            }
            start = u64::from(word) / WORDS_PER_PAGE;
        }
        if most > WORTH_COPYING {
            return Sample::Promising(start);
        }
        let quick = |m: &mut H::Machine| {
            let mut found = (0, None);
            let mut live = PageBits::default();
            let mut looked = 0;
            for n in 0..SUPERPAGE_PAGES / STRIDE {
                let index = (start + n * STRIDE) % SUPERPAGE_PAGES;
                if outs.contains(index as usize) {
                    continue;
                }
                looked += 1;
                let gfn = superpage.page(index as usize);
                if let Some(word) = m.quick_check(gfn, mfn.offset(index), Order::PAGE) {
                    found.0 += 1;
                    live.insert(index as usize);
                    found.1.get_or_insert(index as u32 * WORDS_PER_PAGE as u32 + word);
                    if found.0 * STRIDE > most * 2 {
                        break;
                    }
                }
            }
            (found.0, found.1, live, looked)
        };
        let (count, first, live, looked) = self.host.machine(quick);
        let bytes = looked * u64::from(QUICK_CHECK_WORDS) * 8;
        let domain = self.host.domain();
        domain.statistics.bytes_scanned += bytes;
        domain.cursors.looks += looked;
        // Twice as many as could be copied: not worth an unmap, whatever the others are.
        if count * STRIDE > most * 2 {
            self.report_checked(superpage, live, live);
            self.remember_non_zero(superpage, first, most);
            return Sample::NotZero;
        }
        Sample::Promising(start)
    }

    /// Scans all of a superframe, from page `start` on and around, until
    /// more than `most` pages were found that are not zero.
    fn full_scan(&mut self, run: &Run, start: u64, most: u64) -> Findings {
        let mfn = run.mfn();
        self.host.machine(|m| {
            let mut found = Findings { start, ..Findings::default() };
            for (from, to) in [(start, SUPERPAGE_PAGES), (0, start)] {
                let mut at = from;
                while at < to && found.count <= most {
                    let Some(word) = m.zero_check(mfn.offset(at), to - at) else {
                        found.bytes += (to - at) * PAGE_BYTES;
                        at = to;
                        break;
                    };
                    found.bytes += u64::from(word + 1) * 8;
                    let word = at * WORDS_PER_PAGE + u64::from(word);
                    let page = word / WORDS_PER_PAGE;
                    found.live.insert(page as usize);
                    found.count += 1;
                    found.first_word.get_or_insert(word as u32);
                    at = page + 1;
                }
                found.reached += at - from;
            }
            found
        })
    }

    fn remember_non_zero(&mut self, superpage: Superpage, word: Option<u32>, most: u64) {
        let p2m = &mut self.host.domain().p2m;
        p2m.set_hint(superpage, word);
        if most >= WORTH_COPYING {
            p2m.set_dense(superpage);
        }
    }

    /// A superpage was found zero: pages that were out stay out, the others are PoD.
    fn reclaim(&mut self, superpage: Superpage, run: Run, outs: PageBits) -> Check {
        let zeros = SUPERPAGE_PAGES - outs.count();
        let mixed = zeros > 0 && zeros < SUPERPAGE_PAGES;
        if mixed && self.domain().p2m.split(superpage).is_err() {
            self.map_back(superpage.first(), run);
            return Check::NotEligible;
        }
        self.host.machine(|m| m.park(run.mfn().superframe()));
        let domain = self.host.domain();
        domain.p2m.forget_outs(superpage);
        domain.p2m.set_hint(superpage, None);
        if mixed {
            for index in 0..SUPERPAGE_PAGES as usize {
                let out = outs.contains(index);
                let entry = if out { Entry::Invalid } else { Entry::Pod };
                domain.p2m.set_page(superpage.page(index), entry);
            }
        } else {
            let entry = if zeros > 0 { Entry::Pod } else { Entry::Invalid };
            domain.p2m.set_whole(superpage, entry);
        }
        self.cache_reclaimed(superpage, run, zeros);
        Check::Reclaimed
    }
}
