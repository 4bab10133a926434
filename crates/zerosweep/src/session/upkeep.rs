//! What can wait: clearing frames that came back dirty (rule [R11]), breaking superpages of which
//! pages are retained, once it is known which (rules [R2], [R12]), giving back what is left over of
//! the cache, and filling it when retained pages were taken again.
//!
//! While the guest still owes pages, more may come out of the same superpages, so nothing is
//! broken that has live pages. When it owes no more, those with the fewest go first, until the
//! total is within the target.
//!
//! [R2]: crate::rules#r2
//! [R11]: crate::rules#r11
//! [R12]: crate::rules#r12

use super::{Progress, Session};
use crate::cache::Dirty;
use crate::domain::{Domain, Upkeep};
use crate::frame::{Order, SUPERPAGE_PAGES};
use crate::machine::{Host, Machine};
use crate::run::Run;

/// Pages that are cleared with one flush.
const CLEAN_PAGES: u64 = SUPERPAGE_PAGES;
/// Inline upkeep begins to clear at this many dirty pages.
const INLINE_DIRTY_PAGES: u64 = SUPERPAGE_PAGES;

impl Domain {
    /// Whether [`Session::upkeep`] has something to do. `idle`: the balloon has stopped, although
    /// it may be short of the target.
    #[must_use]
    pub fn wants_upkeep(&self, idle: bool) -> bool {
        self.cache.dirty_pages() > 0
            || self.wants_break(idle)
            || self.wants_cache_fill()
            || self.wants_return(idle)
    }

    fn wants_cache_fill(&self) -> bool {
        self.policy.keeps_whole() && self.wants_fill() >= SUPERPAGE_PAGES
    }

    fn wants_break(&self, idle: bool) -> bool {
        let q = self.quantities();
        self.p2m.has_all_out()
            || (q.total() > q.target && (idle || q.owed() <= 0) && self.p2m.fewest_live().is_some())
    }
}

impl<H: Host> Session<H> {
    /// Does maintenance, in at most `steps` steps of about a superpage each.
    pub fn upkeep(&mut self, steps: u64, idle: bool) -> Progress {
        self.domain().balloon_idle = idle;
        for _ in 0..steps {
            if !self.is_alive() {
                return Progress::Done;
            }
            self.return_excess_superpages();
            // Singles of one superpage take the live pages of the next: they are given back last.
            let breaks = self.needs_break(idle);
            let more = self.clean_batch()
                || (breaks && self.break_one())
                || (self.domain().wants_cache_fill() && self.fill(1).is_ok())
                || self.return_excess() == Progress::More;
            if !more {
                return Progress::Done;
            }
        }
        Progress::More
    }

    /// Upkeep where no thread does it.
    pub(crate) fn upkeep_inline(&mut self) {
        if self.domain().upkeep == Upkeep::Host {
            return;
        }
        while self.domain().cache.dirty_pages() >= INLINE_DIRTY_PAGES && self.clean_batch() {}
        if self.domain().wants_break(false) {
            self.return_excess_superpages();
            while self.needs_break(false) && self.break_one() {
                self.return_excess_superpages();
            }
            let _ = self.return_excess();
        }
    }

    /// Whether a superpage must be broken, or can be without loss.
    fn needs_break(&mut self, idle: bool) -> bool {
        let domain = self.host.domain();
        let gains = domain.p2m.has_all_out() || domain.quantities().above_target() > 0;
        gains && domain.wants_break(idle)
    }

    /// Breaks the superpage with the fewest live pages of those with retained ones. False if there
    /// is none, or the one is busy: another comes next time.
    pub(crate) fn break_one(&mut self) -> bool {
        self.prepare_tables();
        let Some((superpage, _)) = self.domain().p2m.fewest_live() else { return false };
        self.check_superpage(superpage, SUPERPAGE_PAGES);
        let p2m = &mut self.host.domain().p2m;
        let settled = p2m.outs(superpage) == 0;
        if !settled {
            p2m.defer(superpage);
        }
        settled
    }

    /// Clears some of what came back dirty, with one flush. False if there is nothing.
    pub(crate) fn clean_batch(&mut self) -> bool {
        let mut batch = [const { None }; CLEAN_PAGES as usize];
        let cache = &mut self.host.domain().cache;
        let mut pages = 0;
        for slot in &mut batch {
            if pages >= CLEAN_PAGES {
                break;
            }
            let Some(dirty) = cache.take_dirty() else { break };
            pages += dirty.order().pages();
            *slot = Some(dirty);
        }
        if pages == 0 {
            return false;
        }
        self.domain().flight.in_hand += pages;
        // One flush is for all: they were unmapped before.
        let mut flushed = None;
        let mut runs = [const { None }; CLEAN_PAGES as usize];
        for (slot, dirty) in runs.iter_mut().zip(batch.into_iter().map_while(|dirty| dirty)) {
            *slot = Some(match dirty {
                Dirty::Flushed(run) => run,
                Dirty::Unflushed(run) => run.after(flushed.get_or_insert_with(|| self.flush())),
            });
        }
        self.host.machine(|m| {
            for run in runs.iter().map_while(Option::as_ref) {
                m.clear(run.mfn(), run.order());
                if run.order() == Order::SUPERPAGE {
                    m.park(run.mfn().superframe());
                }
            }
        });
        self.domain().statistics.bytes_cleared += pages * crate::PAGE_BYTES;
        for run in runs.into_iter().map_while(|run| run) {
            self.domain().flight.in_hand -= run.pages();
            self.put(run);
        }
        true
    }

    /// Makes sure that no CPU can reach a run that came back.
    pub(crate) fn flush_dirty(&mut self, dirty: Dirty) -> Run {
        match dirty {
            Dirty::Flushed(run) => run,
            Dirty::Unflushed(run) => run.after(&self.flush()),
        }
    }
}
