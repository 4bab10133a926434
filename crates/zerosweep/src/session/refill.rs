//! A broken range becomes a superpage again (rule [R6]).
//!
//! At a fault, when a superpage is at hand: the live pages are copied into it, what was promised is
//! there from now on, and pages that are out are retained in it, so that a guest that takes its
//! memory back makes one fault for each superpage and not 512.
//!
//! [R6]: crate::rules#r6

use super::Session;
use crate::cache::Dirty;
use crate::domain::Domain;
use crate::event::Event;
use crate::frame::{Gfn, Mfn, Order, PAGE_BYTES, SUPERPAGE_PAGES, Superpage};
use crate::machine::{Host, Machine, Mapped, Unmapped};
use crate::p2m::{Entry, RamState};
use crate::page_bits::PageBits;
use crate::run::Run;

const PAGES: usize = SUPERPAGE_PAGES as usize;

/// What is in a range that is to become a superpage.
struct Range {
    superpage: Superpage,
    live: PageBits,
    from: [Mfn; PAGES],
    pod: u64,
    invalid: PageBits,
}

impl Domain {
    /// Whether a superpage of the cache may be spent on a range that has part of its frames: while
    /// everything promised is backed, or there is plenty.
    fn can_spare_superpage(&self, increase: u64) -> bool {
        let plenty = self.cache.superpages() * SUPERPAGE_PAGES > self.target / 4;
        self.cache.superpages() > 0 && (self.debt() + increase as i64 <= 0 || plenty)
    }

    /// Whether the host may give one more superpage.
    fn has_room_for_superpage(&self) -> bool {
        self.total() + self.flight.incoming + SUPERPAGE_PAGES <= self.target
    }
}

impl<H: Host> Session<H> {
    /// Makes the claimed range around `gfn`, which the guest touched, a superpage if that is
    /// possible now. If not, nothing is changed.
    pub(super) fn refill(&mut self, gfn: Gfn) -> bool {
        let superpage = gfn.superpage();
        let domain = self.host.domain();
        if !domain.policy.keeps_whole() || !domain.p2m.is_full_superpage(superpage) {
            return false;
        }
        let whole = domain.p2m.whole(superpage);
        if whole.is_some_and(|entry| entry != Entry::Invalid) {
            return false;
        }
        let increase = u64::from(domain.p2m.get(gfn).0 == Entry::Invalid);
        if !domain.can_spare_superpage(increase) && !domain.has_room_for_superpage() {
            return false;
        }
        let Some(range) = self.range_to_refill(superpage) else { return false };
        let Some(run) = self.superpage_to_refill_with(increase) else { return false };
        let mfn = run.mfn();
        if let Err(run) = self.gather(&range, run) {
            let domain = self.host.domain();
            domain.flight.in_hand -= SUPERPAGE_PAGES;
            let _ = domain.put(run);
            return false;
        }
        let domain = self.host.domain();
        if increase > 0 && domain.p2m.retake(gfn) {
            domain.populated += 1;
        }
        let (first, order) = (superpage.first(), Order::SUPERPAGE);
        self.host.event(Event::Populate { gfn: first, mfn, order, fault: gfn });
        let _ = self.return_excess();
        true
    }

    /// What is in the range; `None` if something in it cannot move.
    fn range_to_refill(&mut self, superpage: Superpage) -> Option<Range> {
        let p2m = &self.host.domain().p2m;
        let mut range = Range {
            superpage,
            live: PageBits::default(),
            from: [Mfn::default(); PAGES],
            pod: 0,
            invalid: PageBits::default(),
        };
        for index in 0..PAGES {
            match p2m.get(superpage.page(index)).0 {
                Entry::Ram { mfn, state: RamState::Mapped } => {
                    range.live.insert(index);
                    range.from[index] = mfn;
                }
                Entry::Ram { .. } | Entry::Special => return None,
                Entry::Pod => range.pod += 1,
                Entry::Invalid => {
                    range.invalid.insert(index);
                }
            }
        }
        Some(range)
    }

    /// A superpage in this operation's hands, counted as in the cache.
    fn superpage_to_refill_with(&mut self, increase: u64) -> Option<Run> {
        let domain = self.host.domain();
        // Room for the frames that will be left over, and for this one.
        domain.cache.reserve(1, Mfn::default(), SUPERPAGE_PAGES).ok()?;
        if domain.can_spare_superpage(increase) {
            let run = domain.cache.take_superpage()?;
            domain.flight.in_hand += SUPERPAGE_PAGES;
            return Some(run);
        }
        if !domain.has_room_for_superpage() {
            return None;
        }
        let run = self.take_from_host(Order::SUPERPAGE)?;
        let domain = self.host.domain();
        domain.flight.in_hand += SUPERPAGE_PAGES;
        domain.note_peak();
        Some(run)
    }

    /// Copies the live pages into the superpage and maps it. If one of them is busy or it cannot be
    /// mapped, all is as before, and the superpage is in the caller's hands again.
    fn gather(&mut self, range: &Range, run: Run) -> Result<(), Run> {
        let mfn = run.mfn();
        let Range { superpage, live, from, .. } = range;
        let mut unmapped = PageBits::default();
        let mut detached = PageBits::default();
        let mapped = self.host.machine(|m| {
            let all = live.iter().all(|index| {
                let done = m.unmap(superpage.page(index), from[index], Order::PAGE);
                done == Unmapped::Done && unmapped.insert(index)
            });
            if all {
                if unmapped.count() > 0 {
                    m.flush();
                }
                live.iter().for_each(|index| m.copy(from[index], mfn.offset(index as u64)));
                if let Ok(mapped) = m.map(superpage.first(), mfn, Order::SUPERPAGE) {
                    return Some(mapped);
                }
                live.iter().for_each(|index| m.clear(mfn.offset(index as u64), Order::PAGE));
            }
            for index in unmapped.iter() {
                if m.map(superpage.page(index), from[index], Order::PAGE).is_err() {
                    detached.insert(index);
                }
            }
            if !all && detached.count() > 0 {
                // What stays unmapped must be out of every CPU's reach.
                m.flush();
            }
            None
        });
        let domain = self.host.domain();
        domain.statistics.unmap_flushes += u64::from(unmapped.count() > 0);
        let Some(mapped) = mapped else {
            domain.statistics.busy += u64::from(unmapped != *live);
            for index in detached.iter() {
                let entry = Entry::Ram { mfn: from[index], state: RamState::Detached };
                domain.p2m.set_page(superpage.page(index), entry);
            }
            return Err(run);
        };
        self.count_refilled(range, run, mapped);
        Ok(())
    }

    /// The superpage is mapped: entries and quantities.
    fn count_refilled(&mut self, range: &Range, run: Run, mapped: Mapped) {
        let superpage = range.superpage;
        self.set_mapped(superpage.first(), run, mapped);
        let domain = self.host.domain();
        domain.p2m.set_hint(superpage, None);
        let live = range.live.count();
        let mut out = 0;
        if domain.p2m.whole(superpage).is_some() {
            for index in range.invalid.iter() {
                // Without memory for the mark the page is the guest's: nothing is lost.
                out += u64::from(domain.p2m.retain(superpage.page(index)) == Ok(true));
            }
        }
        domain.entries -= range.pod;
        domain.populated += range.pod + range.invalid.count() - out;
        domain.flight.in_hand -= SUPERPAGE_PAGES;
        for index in range.live.iter() {
            domain.cache.put_dirty(Dirty::Flushed(Run::page(range.from[index])));
        }
        domain.statistics.refills += 1;
        domain.statistics.populates_2m += 1;
        domain.statistics.bytes_copied += live * PAGE_BYTES;
        domain.note_peak();
    }
}
