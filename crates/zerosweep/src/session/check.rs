//! Zero checks: is a range all zero, and if so, take its frame back (rules [R5], [R10], [R11]).
//!
//! The order matters for [INV-5]. A quick check of the mapped range is a hint and saves most of the
//! work; then the range is unmapped and flushed; only what is found after that is the truth.
//!
//! [R5]: crate::rules#r5
//! [R10]: crate::rules#r10
//! [R11]: crate::rules#r11
//! [INV-5]: crate::rules#inv-5

use super::Session;
use crate::event::Event;
use crate::frame::{Gfn, Mfn, Order, PAGE_BYTES, SUPERPAGE_BYTES, SUPERPAGE_PAGES, Superpage};
use crate::machine::{Host, Machine, QUICK_CHECK_WORDS, Unmapped};
use crate::p2m::{Entry, RamState};
use crate::retained::PageBits;

/// What a superpage check found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
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
    pub(crate) fn freed(self) -> u64 {
        match self {
            Self::Reclaimed => SUPERPAGE_PAGES,
            Self::Evacuated(pages) => pages,
            Self::NotZero | Self::NotEligible => 0,
        }
    }
}

/// Singles are checked this many at a time, with one flush.
pub(crate) const BATCH: usize = 16;

const WORDS_PER_PAGE: u32 = (PAGE_BYTES / 8) as u32;
const QUICK_BYTES: u64 = QUICK_CHECK_WORDS as u64 * 8;

impl<H: Host> Session<H> {
    /// Checks a superpage that nobody has claimed; one that is in transit is not eligible. Under
    /// our policy up to `most` live pages may be put elsewhere; the others know no such thing.
    pub(crate) fn check_superpage(&mut self, superpage: Superpage, most: u64) -> Check {
        if superpage.number() >= self.domain().p2m.superpages() || !self.claim(superpage) {
            return Check::NotEligible;
        }
        let check = self.check_claimed_superpage(superpage, most);
        self.release(superpage);
        check
    }

    /// Checks a superpage that this operation has claimed. (Xen:
    /// `p2m_pod_zero_check_superpage`.)
    pub(crate) fn check_claimed_superpage(&mut self, superpage: Superpage, most: u64) -> Check {
        let check = match self.domain().policy.keeps_whole() {
            true => self.examine(superpage, most),
            false => self.examine_as_xen(superpage),
        };
        if check != Check::NotEligible {
            self.domain().note_finds(SUPERPAGE_PAGES, check.freed());
        }
        check
    }

    fn examine_as_xen(&mut self, superpage: Superpage) -> Check {
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
        if self.unmap_flushed(gfn, mfn, order) == Unmapped::Busy {
            return Check::NotEligible;
        }
        let found = self.host.machine(|m| m.zero_check(mfn, order.pages()));
        let scanned = found.map_or(SUPERPAGE_BYTES, |word| u64::from(word + 1) * 8);
        self.domain().statistics.bytes_scanned += scanned;
        if let Some(word) = found {
            let mut seen = (PageBits::default(), PageBits::default());
            let last = (word / WORDS_PER_PAGE) as usize;
            (0..=last).for_each(|index| _ = seen.0.insert(index));
            seen.1.insert(last);
            self.report_checked(superpage, seen.0, seen.1);
            self.map_back_superpage(superpage, mfn);
            return Check::NotZero;
        }
        self.reclaim_superpage(superpage, mfn);
        Check::Reclaimed
    }

    fn count_quick(&mut self, found: Option<u32>, pages: u64) {
        let bytes = found.map_or(pages * QUICK_BYTES, |word| {
            u64::from(word / WORDS_PER_PAGE) * QUICK_BYTES
                + u64::from(word % WORDS_PER_PAGE + 1) * 8
        });
        self.domain().statistics.bytes_scanned += bytes;
    }

    /// The check failed: one superpage entry again, as Xen leaves it.
    pub(crate) fn map_back_superpage(&mut self, superpage: Superpage, mfn: Mfn) {
        let (gfn, order) = (superpage.first(), Order::SUPERPAGE);
        match self.host.machine(|m| m.map(gfn, mfn, order)) {
            Ok(mapped) => self.set_mapped(gfn, mfn, order, mapped),
            Err(_) => {
                let entry = Entry::Ram { mfn, state: RamState::Detached };
                self.domain().p2m.set_whole(superpage, entry);
            }
        }
    }

    /// Tries again to map a claimed superpage that an earlier check could not map back, so that
    /// pages of it that are out can be settled.
    pub(super) fn attach(&mut self, superpage: Superpage) {
        if let Some(Entry::Ram { mfn, state: RamState::Detached }) =
            self.domain().p2m.whole(superpage)
        {
            self.map_back_superpage(superpage, mfn);
        }
    }

    fn reclaim_superpage(&mut self, superpage: Superpage, mfn: Mfn) {
        self.clear(mfn, Order::SUPERPAGE);
        self.host.machine(|m| m.park(mfn));
        let domain = self.host.domain();
        domain.p2m.set_whole(superpage, Entry::Pod);
        self.cache_reclaimed(superpage, mfn, SUPERPAGE_PAGES);
    }

    /// Of a superpage that was found zero, `zeros` pages are PoD now; its frame goes to the cache.
    pub(super) fn cache_reclaimed(&mut self, superpage: Superpage, mfn: Mfn, zeros: u64) {
        let domain = self.host.domain();
        domain.count_unpopulate(zeros);
        let _ = domain.put(mfn, Order::SUPERPAGE);
        domain.statistics.zero_checks_2m_hit += 1;
        domain.statistics.superpages_reclaimed += 1;
        let event = Event::Reclaim { gfn: superpage.first(), mfn, order: Order::SUPERPAGE };
        self.host.event(event);
    }

    /// Checks up to [`BATCH`] single pages, with one flush. Returns how many were reclaimed.
    /// (Xen: `p2m_pod_zero_check`.)
    pub(crate) fn check_singles(&mut self, gfns: &[Gfn]) -> u64 {
        debug_assert!(gfns.len() <= BATCH);
        let mut claims = Claims::default();
        let mut batch = [None; BATCH];
        for (slot, &gfn) in batch.iter_mut().zip(gfns) {
            if self.claim_for_batch(&mut claims, gfn.superpage()) {
                *slot = self.detach_single(gfn);
            }
        }
        let mut reclaimed = 0;
        if batch.iter().any(Option::is_some) {
            self.host.machine(Machine::flush);
            self.domain().statistics.unmap_flushes += 1;
            for (gfn, mfn) in batch.into_iter().flatten() {
                reclaimed += u64::from(self.settle_single(gfn, mfn));
            }
        }
        claims.iter().for_each(|superpage| self.release(superpage));
        self.domain().note_finds(gfns.len() as u64, reclaimed);
        reclaimed
    }

    fn claim_for_batch(&mut self, claims: &mut Claims, superpage: Superpage) -> bool {
        claims.iter().any(|s| s == superpage)
            || (self.claim(superpage) && {
                claims.push(superpage);
                true
            })
    }

    /// Unmaps one page of a claimed superpage if a quick check has nothing against it.
    fn detach_single(&mut self, gfn: Gfn) -> Option<(Gfn, Mfn)> {
        let domain = self.host.domain();
        let (Entry::Ram { mfn, state: RamState::Mapped }, _) = domain.p2m.get(gfn) else {
            return None;
        };
        domain.statistics.zero_checks_4k += 1;
        domain.cursors.looks += 1;
        let quick = self.host.machine(|m| m.quick_check(gfn, mfn, Order::PAGE));
        self.count_quick(quick, 1);
        if quick.is_some() {
            self.report_live(gfn);
            return None;
        }
        if self.split(gfn.superpage()).is_err() {
            return None;
        }
        // The split may have moved it, or taken it: pages that are out are settled first.
        let (Entry::Ram { mfn, state: RamState::Mapped }, _) = self.domain().p2m.get(gfn) else {
            return None;
        };
        // A batch may put in that many before anyone reserves again.
        if self.domain().cache.reserve(1, mfn, BATCH as u64).is_err() {
            return None;
        }
        match self.host.machine(|m| m.unmap(gfn, mfn, Order::PAGE)) {
            Unmapped::Done => Some((gfn, mfn)),
            Unmapped::Busy => {
                self.domain().statistics.busy += 1;
                None
            }
        }
    }

    /// The full check of a page that nobody can reach: reclaimed, or mapped back.
    fn settle_single(&mut self, gfn: Gfn, mfn: Mfn) -> bool {
        let found = self.host.machine(|m| m.zero_check(mfn, 1));
        let scanned = found.map_or(PAGE_BYTES, |word| u64::from(word + 1) * 8);
        self.domain().statistics.bytes_scanned += scanned;
        if found.is_some() {
            self.report_live(gfn);
            if self.host.machine(|m| m.map(gfn, mfn, Order::PAGE)).is_err() {
                let entry = Entry::Ram { mfn, state: RamState::Detached };
                self.domain().p2m.set_page(gfn, entry);
            }
            return false;
        }
        // Xen clears what it has just found zero.
        if !self.domain().policy.keeps_whole() {
            self.clear(mfn, Order::PAGE);
        }
        let domain = self.host.domain();
        domain.p2m.set_page(gfn, Entry::Pod);
        domain.count_unpopulate(1);
        let joined = domain.put(mfn, Order::PAGE);
        domain.statistics.zero_checks_4k_hit += 1;
        domain.statistics.singles_reclaimed += 1;
        if domain.policy.keeps_whole() && domain.p2m.tally(gfn.superpage()).pod == SUPERPAGE_PAGES {
            domain.p2m.set_whole(gfn.superpage(), Entry::Pod);
        }
        self.host.event(Event::Reclaim { gfn, mfn, order: Order::PAGE });
        self.finish_join(joined);
        true
    }
}

/// The superpages that a batch has claimed.
#[derive(Default)]
struct Claims {
    superpages: [Option<Superpage>; BATCH],
    len: usize,
}

impl Claims {
    fn push(&mut self, superpage: Superpage) {
        self.superpages[self.len] = Some(superpage);
        self.len += 1;
    }

    fn iter(&self) -> impl Iterator<Item = Superpage> + '_ {
        self.superpages.iter().flatten().copied()
    }
}
