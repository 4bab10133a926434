//! Checks of single pages (rules [R5], [R7]).
//!
//! [R5]: crate::rules#r5
//! [R7]: crate::rules#r7

use crate::event::Event;
use crate::frame::{Gfn, Order, PAGE_BYTES, SUPERPAGE_PAGES};
use crate::machine::{Host, Machine};
use crate::p2m::{Entry, RamState};
use crate::run::{Run, Unflushed};
use crate::session::Session;
use crate::session::claim::BATCH;

impl<H: Host> Session<H> {
    /// Checks up to [`BATCH`] single pages, with one flush. Returns how many were reclaimed.
    /// (Xen: `p2m_pod_zero_check`.)
    pub(in crate::session) fn check_singles(&mut self, gfns: &[Gfn]) -> u64 {
        debug_assert!(gfns.len() <= BATCH);
        let reclaimed = self.claimed_batch(|session, claims| {
            let mut batch = [const { None }; BATCH];
            for (slot, &gfn) in batch.iter_mut().zip(gfns) {
                if session.add_to_batch(claims, gfn.superpage()) {
                    *slot = session.detach_single(gfn).map(|run| (gfn, run));
                }
            }
            let mut reclaimed = 0;
            if batch.iter().any(Option::is_some) {
                let flushed = session.flush();
                for (gfn, run) in batch.into_iter().flatten() {
                    reclaimed += u64::from(session.finish_single(gfn, run.after(&flushed)));
                }
            }
            reclaimed
        });
        self.domain().note_finds(gfns.len() as u64, reclaimed);
        reclaimed
    }

    /// Unmaps one page of a claimed superpage if a quick check has nothing against it.
    fn detach_single(&mut self, gfn: Gfn) -> Option<Unflushed> {
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
        self.unmap(gfn, mfn, Order::PAGE)
    }

    /// The full check of a page that nobody can reach: reclaimed, or mapped back.
    fn finish_single(&mut self, gfn: Gfn, run: Run) -> bool {
        let mfn = run.mfn();
        let found = self.host.machine(|m| m.zero_check(mfn, 1));
        let scanned = found.map_or(PAGE_BYTES, |word| u64::from(word + 1) * 8);
        self.domain().statistics.bytes_scanned += scanned;
        if found.is_some() {
            self.report_live(gfn);
            self.map_back(gfn, run);
            return false;
        }
        // Xen clears what it has just found zero.
        if !self.domain().policy.keeps_whole() {
            self.clear(&run);
        }
        let domain = self.host.domain();
        domain.p2m.set_page(gfn, Entry::Pod);
        domain.count_unpopulate(1);
        let joined = domain.put(run);
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
