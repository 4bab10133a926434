//! Xen's sweeps, with their limits and gaps: they neither wrap nor reach gfn 0.

use crate::event::Event;
use crate::frame::{Gfn, SUPERPAGE_PAGES, Superpage};
use crate::machine::Host;
use crate::p2m::Entry;
use crate::session::claim::BATCH;
use crate::session::zero_check::WORTH_COPYING;
use crate::session::{Progress, Session};

/// A sweep visits at least this many pages, even if it finds something before.
const LIMIT: u64 = 1024;

impl<H: Host> Session<H> {
    /// The 4K sweep. (Xen: `p2m_pod_emergency_sweep`.)
    pub(crate) fn sweep_singles_down(&mut self) {
        let domain = self.host.domain();
        domain.statistics.emergency_sweeps += 1;
        let found_before = domain.statistics.singles_reclaimed;
        let cursors = &mut domain.cursors;
        if cursors.single == 0 {
            cursors.single = cursors.highest_fault;
        }
        let start = cursors.single;
        let limit = start.saturating_sub(LIMIT);
        let mut batch = [Gfn::default(); BATCH];
        let mut len = 0;
        let mut at = start;
        while at > 0 {
            if matches!(self.domain().p2m.get(Gfn::new(at)).0, Entry::Ram { .. }) {
                batch[len] = Gfn::new(at);
                len += 1;
                if len == BATCH {
                    self.check_singles(&batch);
                    len = 0;
                }
            }
            if at < limit && self.domain().cache.pages() > 0 {
                break;
            }
            at -= 1;
        }
        self.check_singles(&batch[..len]);
        let domain = self.host.domain();
        domain.cursors.single = at.saturating_sub(1);
        let reclaimed = domain.statistics.singles_reclaimed - found_before;
        self.host.event(Event::Sweep { gfn: Gfn::new(start), reclaimed });
    }

    /// The 2M sweep. (Xen, 2011: `p2m_pod_emergency_sweep_super`.)
    pub(crate) fn sweep_superpages_down(&mut self) {
        let domain = self.host.domain();
        domain.statistics.emergency_sweeps += 1;
        let found_before = domain.statistics.superpages_reclaimed;
        let cursors = &mut domain.cursors;
        if cursors.superpage == 0 {
            let highest = cursors.highest_fault / SUPERPAGE_PAGES * SUPERPAGE_PAGES;
            cursors.superpage = highest.saturating_sub(SUPERPAGE_PAGES);
        }
        let start = cursors.superpage;
        let limit = start.saturating_sub(LIMIT);
        let mut at = start;
        while at > 0 {
            let _ = self.check_superpage(Gfn::new(at).superpage(), 0);
            if at < limit && self.domain().cache.superpages() > 0 {
                break;
            }
            at -= SUPERPAGE_PAGES;
        }
        let domain = self.host.domain();
        domain.cursors.superpage = at.saturating_sub(SUPERPAGE_PAGES);
        let reclaimed = domain.statistics.superpages_reclaimed - found_before;
        let reclaimed = reclaimed * SUPERPAGE_PAGES;
        self.host.event(Event::Sweep { gfn: Gfn::new(start), reclaimed });
    }

    /// Checks up to `count` superpages from `next` on, ascending, whatever the cache holds (rule
    /// [R8]). `next` is moved on; start with 0. Under our policy superpages with few live pages are
    /// evacuated, while there is debt. Where a thread of the host does the maintenance, more calls
    /// return the frames that became free.
    ///
    /// [R8]: crate::rules#r8
    pub fn sweep_full(&mut self, next: &mut u64, count: u64) -> Progress {
        let first = *next;
        let all = self.domain().p2m.superpages();
        *next = first.saturating_add(count).min(all);
        let mut reclaimed = 0;
        for superpage in (first..*next).map(Superpage::new) {
            let most = if self.domain().debt() > 0 { WORTH_COPYING } else { 0 };
            reclaimed += self.check_superpage(superpage, most).freed();
        }
        let returned = self.return_excess();
        if first < all {
            self.host.event(Event::Sweep { gfn: Superpage::new(first).first(), reclaimed });
        }
        if *next < all { Progress::More } else { returned }
    }

    pub(crate) fn sweep_all_superpages(&mut self) {
        let mut next = 0;
        while self.sweep_full(&mut next, u64::MAX) == Progress::More {}
    }
}
