//! The few live pages of a superpage go elsewhere, and its frame comes free whole (rule [R6]).
//!
//! The superpage is claimed, unmapped and flushed when this begins: nobody can write to it. Live
//! pages are copied to singles of the cache, and only what was copied is cleared. Where the cache
//! has not enough singles, the live pages stay in their frames, and the others go to the cache.
//!
//! At every moment each live page's entry names a frame that holds its content: the frames that
//! were copied from are cleared only when the entries name the copies. A host may stop an operation
//! between any two calls and put every page where its entry says ([INV-10]).
//!
//! [R6]: crate::rules#r6
//! [INV-10]: crate::rules#inv-10

use super::Session;
use super::zero_check::{Check, Findings};
use crate::event::Event;
use crate::frame::{Mfn, Order, PAGE_BYTES, SUPERPAGE_PAGES, Superpage};
use crate::machine::{Host, Machine};
use crate::p2m::{Entry, RamState};
use crate::page_bits::PageBits;
use crate::run::Run;

const PAGES: usize = SUPERPAGE_PAGES as usize;

/// Where the live pages are now.
struct Moved {
    to: [Mfn; PAGES],
    /// Those that could not be mapped: the next touch does it.
    detached: PageBits,
}

impl<H: Host> Session<H> {
    pub(super) fn evacuate(
        &mut self,
        superpage: Superpage,
        run: Run,
        outs: PageBits,
        found: &Findings,
    ) -> Check {
        if self.domain().p2m.split(superpage).is_err() {
            self.map_back(superpage.first(), run);
            return Check::NotEligible;
        }
        let mfn = run.mfn();
        let mut moved = Moved { to: [Mfn::default(); PAGES], detached: PageBits::default() };
        let copies = self.take_singles(found, &mut moved.to);
        if !copies {
            found.live.iter().for_each(|index| moved.to[index] = mfn.offset(index as u64));
        }
        self.host.machine(|m| {
            for index in found.live.iter() {
                let (from, to) = (mfn.offset(index as u64), moved.to[index]);
                if copies {
                    m.copy(from, to);
                }
                if m.map(superpage.page(index), to, Order::PAGE).is_err() {
                    moved.detached.insert(index);
                }
            }
        });
        self.set_evacuated(superpage, outs, found, &moved);
        let domain = self.host.domain();
        if copies {
            // The singles are the guest's now; the superframe is in this operation's hands.
            domain.flight.in_hand += SUPERPAGE_PAGES - found.count;
            self.host.machine(|m| {
                for index in found.live.iter() {
                    m.clear(mfn.offset(index as u64), Order::PAGE);
                }
                m.park(mfn.superframe());
            });
        }
        let domain = self.host.domain();
        if copies {
            domain.flight.in_hand -= SUPERPAGE_PAGES;
            let _ = domain.put(run);
            domain.statistics.bytes_copied += found.count * PAGE_BYTES;
            domain.statistics.bytes_cleared += found.count * PAGE_BYTES;
        } else {
            for (index, page) in run.into_pages().enumerate() {
                if found.live.contains(index) {
                    // It is in its entry.
                    let _ = page.into_mfn();
                } else {
                    let _ = domain.put(page);
                }
            }
        }
        domain.statistics.evacuations += 1;
        self.host.event(Event::Evacuate { gfn: superpage.first(), mfn, live: found.count });
        Check::Evacuated(SUPERPAGE_PAGES - found.count)
    }

    /// Takes a single for each live page out of the cache, or none.
    fn take_singles(&mut self, found: &Findings, to: &mut [Mfn; PAGES]) -> bool {
        while self.domain().cache.clean_pages() < found.count && self.clean_batch() {}
        let domain = self.host.domain();
        if domain.cache.clean_pages() < found.count {
            return false;
        }
        let mut taken = 0;
        for index in found.live.iter() {
            let Some(single) = domain.cache.take_single() else { break };
            to[index] = single.into_mfn();
            taken += 1;
        }
        if taken == found.count {
            domain.flight.in_hand += taken;
            return true;
        }
        // No memory for the cache's own lists: it breaks no superpage then.
        for index in found.live.iter().take(taken as usize) {
            let _ = domain.cache.put(Run::page(to[index]));
        }
        false
    }

    /// The entries and quantities of a superpage whose live pages have gone elsewhere.
    fn set_evacuated(
        &mut self,
        superpage: Superpage,
        outs: PageBits,
        found: &Findings,
        moved: &Moved,
    ) {
        let domain = self.host.domain();
        domain.p2m.forget_outs(superpage);
        domain.p2m.set_hint(superpage, None);
        let (mut zeros, mut retaken) = (0, 0);
        for index in 0..PAGES {
            let out = outs.contains(index);
            let entry = if found.live.contains(index) {
                retaken += u64::from(out);
                let detached = moved.detached.contains(index);
                let state = if detached { RamState::Detached } else { RamState::Mapped };
                Entry::Ram { mfn: moved.to[index], state }
            } else if out {
                Entry::Invalid
            } else {
                zeros += 1;
                Entry::Pod
            };
            domain.p2m.set_page(superpage.page(index), entry);
        }
        domain.populated += retaken;
        domain.count_unpopulate(zeros);
        domain.statistics.pages_retaken += retaken;
    }
}
