//! Pages that are given back and keep their frame in a superpage that stays whole (rule [R12]).
//!
//! Such a page is *out*: made zero in place, no longer the guest's, its frame still the domain's. A
//! guest may take it again and say nothing, so being out is a hint: the page is checked once more
//! when nobody can reach it, before its frame is used for anything else.
//!
//! [R12]: crate::rules#r12

use super::Session;
use crate::event::Event;
use crate::frame::{Gfn, Mfn, Order, PAGE_BYTES, SUPERPAGE_PAGES, Superpage};
use crate::machine::{Content, Host, Machine};
use crate::p2m::{Entry, RamState};

impl<H: Host> Session<H> {
    /// Takes what the guest gives back of a whole superpage (claimed, order below 9) and leaves the
    /// frames where they are. Returns how many pages that were.
    pub(super) fn retain_run(&mut self, gfn: Gfn, order: Order) -> u64 {
        let superpage = gfn.superpage();
        if !self.domain().policy.keeps_whole() || order >= Order::SUPERPAGE {
            return 0;
        }
        let Some(first) = self.free_frames(superpage) else { return 0 };
        let mut given = 0;
        for page in (0..order.pages()).map(|i| gfn.offset(i)) {
            self.scrub(page, first.offset(page.index_in_superpage() as u64));
            let domain = self.host.domain();
            if domain.p2m.is_out(page) {
                // The guest took it again, said nothing, and gives it back again.
                continue;
            }
            if domain.p2m.retain(page) != Ok(true) {
                // No memory for the mark: the caller gives the page back in another way.
                break;
            }
            domain.populated -= 1;
            domain.statistics.pages_retained += 1;
            self.host.event(Event::Remove { gfn: page, order: Order::PAGE });
            given += 1;
        }
        given
    }

    /// The first frame of a whole superpage whose frames may stay where they are.
    pub(super) fn free_frames(&mut self, superpage: Superpage) -> Option<Mfn> {
        match self.domain().p2m.whole(superpage) {
            Some(Entry::Ram { mfn, state: RamState::Mapped }) => Some(mfn),
            _ => None,
        }
    }

    /// Makes a mapped page zero that the guest has given up.
    pub(super) fn scrub(&mut self, gfn: Gfn, mfn: Mfn) {
        let was = self.host.machine(|m| m.scrub(gfn, mfn));
        let statistics = &mut self.domain().statistics;
        statistics.bytes_scanned += PAGE_BYTES;
        if was == Content::Unknown {
            statistics.bytes_cleared += PAGE_BYTES;
            self.report_live(gfn);
        }
    }

    /// The guest says that it takes `pages` pages again, from `gfn` on. Those that are out and
    /// retained are its own again, without a fault. Returns how many these were; the others come
    /// when they are touched.
    pub fn retake(&mut self, gfn: Gfn, pages: u64) -> u64 {
        let last = gfn.offset(pages).raw().min(self.domain().p2m.pages());
        let mut retaken = 0;
        for page in (gfn.raw()..last).map(Gfn::new) {
            // What an operation has claimed it settles by itself, from what is in the page.
            let claimed = self.domain().p2m.in_transit(page.superpage());
            retaken += u64::from(!claimed && self.retake_page(page));
        }
        retaken
    }

    /// A page that is out is the guest's again; false if it was not out.
    pub(super) fn retake_page(&mut self, gfn: Gfn) -> bool {
        let domain = self.host.domain();
        let retaken = domain.p2m.retake(gfn);
        if retaken {
            domain.populated += 1;
            domain.statistics.pages_retaken += 1;
            self.host.event(Event::Retake { gfn });
        }
        retaken
    }

    /// Gives the retained pages of a claimed superpage back to the cache, so that its entry may be
    /// changed. False if that cannot be done now.
    pub(super) fn reclaim_retained(&mut self, superpage: Superpage) -> bool {
        if self.domain().p2m.outs(superpage) > 0 {
            self.check_ours(superpage, SUPERPAGE_PAGES);
        }
        self.domain().p2m.outs(superpage) == 0
    }

    /// A superpage with retained pages turned out to be in pieces: they are the guest's again.
    pub(crate) fn retake_all(&mut self, superpage: Superpage) {
        let outs = self.domain().p2m.out_bits(superpage);
        for index in outs.iter() {
            self.retake_page(superpage.page(index));
        }
    }
}
