//! Runs go into the guest's view, and out of it.

use super::Session;
use crate::frame::{Gfn, Mfn, Order, Superpage};
use crate::machine::{Allocated, Content, Host, Machine, Mapped, Unmapped};
use crate::p2m::{Entry, RamState};
use crate::run::{Flushed, Run, Unflushed};

/// Why a range could not be populated from the host. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FromHostError {
    /// The host has no frame.
    OutOfFrames,
    /// The frame cannot be mapped.
    Map,
}

impl<H: Host> Session<H> {
    /// Unmaps a run of a claimed range. `None`: a device uses it, and it is mapped as before.
    pub(super) fn unmap(&mut self, gfn: Gfn, mfn: Mfn, order: Order) -> Option<Unflushed> {
        match self.host.machine(|m| m.unmap(gfn, mfn, order)) {
            Unmapped::Done => Some(Unflushed::new(mfn, order)),
            Unmapped::Busy => {
                self.domain().statistics.busy += 1;
                None
            }
        }
    }

    /// Waits until no CPU can reach what was unmapped before.
    pub(super) fn flush(&mut self) -> Flushed {
        self.host.machine(Machine::flush);
        self.domain().statistics.unmap_flushes += 1;
        Flushed::now()
    }

    /// Unmaps a run of a claimed range and flushes it. `None`: a device uses it, and it is mapped
    /// as before.
    pub(super) fn unmap_flushed(&mut self, gfn: Gfn, mfn: Mfn, order: Order) -> Option<Run> {
        let unmapped = self.host.machine(|m| {
            let unmapped = m.unmap(gfn, mfn, order);
            if unmapped == Unmapped::Done {
                m.flush();
            }
            unmapped
        });
        let statistics = &mut self.domain().statistics;
        match unmapped {
            Unmapped::Done => {
                statistics.unmap_flushes += 1;
                Some(Run::new(mfn, order))
            }
            Unmapped::Busy => {
                statistics.busy += 1;
                None
            }
        }
    }

    /// Maps a run in a claimed range, and sets its entries. A run that cannot be mapped is in the
    /// caller's hands again.
    pub(super) fn map(&mut self, at: Gfn, run: Run) -> Result<(), Run> {
        let (mfn, order) = (run.mfn(), run.order());
        match self.host.machine(|m| m.map(at, mfn, order)) {
            Ok(mapped) => {
                self.set_mapped(at, run, mapped);
                Ok(())
            }
            Err(_) => Err(run),
        }
    }

    /// Maps a run where it was before. If that fails the next touch does it.
    pub(super) fn map_back(&mut self, at: Gfn, run: Run) {
        if let Err(run) = self.map(at, run) {
            let order = run.order();
            let entry = Entry::Ram { mfn: run.into_mfn(), state: RamState::Detached };
            let p2m = &mut self.domain().p2m;
            match order {
                Order::SUPERPAGE => p2m.set_whole(at.superpage(), entry),
                _ => p2m.set_page(at, entry),
            }
        }
    }

    /// Sets the entries of a run that was just mapped: one, or one for each page.
    pub(super) fn set_mapped(&mut self, at: Gfn, run: Run, mapped: Mapped) {
        let order = run.order();
        let entry = Entry::Ram { mfn: run.into_mfn(), state: RamState::Mapped };
        let p2m = &mut self.host.domain().p2m;
        if order == Order::PAGE {
            p2m.set_page(at, entry);
            return;
        }
        p2m.set_whole(at.superpage(), entry);
        if mapped == Mapped::Pieces {
            self.retake_all(at.superpage());
            let p2m = &mut self.host.domain().p2m;
            // Without table memory the entry stays whole: one count is off, no page is.
            let _ = p2m.split(at.superpage());
        }
    }

    /// Tries again to map a claimed superpage that an earlier check could not map back, so that
    /// pages of it that are out can be settled.
    pub(super) fn attach(&mut self, superpage: Superpage) {
        if let Some(Entry::Ram { mfn, state: RamState::Detached }) =
            self.domain().p2m.whole(superpage)
        {
            self.map_back(superpage.first(), Run::new(mfn, Order::SUPERPAGE));
        }
    }

    /// Populates a superpage or page of a claimed range from the host; `was` is its entry now.
    /// Returns its first frame.
    pub(super) fn populate_from_host(
        &mut self,
        at: Gfn,
        was: Entry,
        order: Order,
    ) -> Result<Mfn, FromHostError> {
        self.count_from_host(was, order);
        let Ok(Allocated { mfn, content }) = self.host.machine(|m| m.allocate(order)) else {
            self.uncount_from_host(was, order);
            return Err(FromHostError::OutOfFrames);
        };
        let run = Run::new(mfn, order);
        if content == Content::Unknown {
            self.clear(&run);
        }
        match self.map(at, run) {
            Ok(()) => {
                *self.domain().flight.from(was) -= order.pages();
                Ok(mfn)
            }
            Err(run) => {
                let mfn = run.into_mfn();
                self.host.machine(|m| m.free(mfn, order));
                self.uncount_from_host(was, order);
                Err(FromHostError::Map)
            }
        }
    }

    /// Counts a run that comes from the host as populated, before it is mapped.
    fn count_from_host(&mut self, was: Entry, order: Order) {
        let domain = self.host.domain();
        let pages = order.pages();
        if was == Entry::Pod {
            domain.entries -= pages;
        }
        *domain.flight.from(was) += pages;
        domain.populated += pages;
        domain.note_peak();
    }

    fn uncount_from_host(&mut self, was: Entry, order: Order) {
        let domain = self.host.domain();
        let pages = order.pages();
        domain.populated -= pages;
        if was == Entry::Pod {
            domain.entries += pages;
        }
        *domain.flight.from(was) -= pages;
    }
}
