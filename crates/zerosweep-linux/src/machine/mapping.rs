//! Frames come to the guest, come back, and go back to the host.
//!
//! To map is to move from the slot to the guest's address, to unmap is to move back. A single whose
//! slot has no memory yet is built in a scratch page and moves in from there.

use std::sync::atomic::Ordering;

use zerosweep::{Gfn, MapError, Mapped, Mfn, Order, SUPERPAGE_PAGES, Superframe, Unmapped};

use super::moves::Stopped;
use super::slots::Backing;
use super::{LinuxMachine, Parking};
use crate::sys::region::Span;

impl LinuxMachine {
    pub(crate) fn map_superpage(&self, gfn: Gfn, mfn: Mfn) -> Result<Mapped, MapError> {
        let index = mfn.superframe();
        if self.slots.advance(index, Backing::Empty, Backing::Preparing) {
            self.counters.late_backing.fetch_add(1, Ordering::Relaxed);
            if !self.back(mfn) {
                return Err(MapError);
            }
        }
        let backing = self.settled_backing(index);
        let order = Order::SUPERPAGE;
        let (Ok(range), Ok(slot)) = (self.range(gfn, order), self.slot(mfn, order)) else {
            return Err(MapError);
        };
        if backing != Backing::Whole {
            // A hole would become the guest's, and our own read of it would wait for ever.
            for page in (0..SUPERPAGE_PAGES).map(|n| mfn.offset(n)) {
                if !self.slots.is_present(page) && !self.back_hole(page) {
                    return Err(MapError);
                }
            }
        }
        let _moving = self.enter().ok_or(MapError)?;
        // The range is PoD: zero pages, or nothing. The move needs it empty.
        self.empty(range)?;
        self.move_all(range, slot).map_err(|_| MapError)?;
        if backing != Backing::Whole {
            // From now on each page is a frame of the guest, with or without memory before.
            self.slots.fill(index, Backing::Pieces);
            return Ok(Mapped::Pieces);
        }
        self.prefaulted.fetch_sub(1, Ordering::Relaxed);
        Ok(Mapped::Whole)
    }

    pub(super) fn map_page(&self, gfn: Gfn, mfn: Mfn) -> Result<Mapped, MapError> {
        let order = Order::PAGE;
        let index = mfn.superframe();
        self.open(index);
        let (Ok(range), Ok(slot)) = (self.range(gfn, order), self.slot(mfn, order)) else {
            return Err(MapError);
        };
        let _moving = self.enter().ok_or(MapError)?;
        if self.keep_written(range, mfn)? {
            return Ok(Mapped::Whole);
        }
        self.empty(range)?;
        if self.slots.is_present(mfn) {
            self.break_up_at_home(index);
            return self.move_all(range, slot).map(|()| Mapped::Whole).map_err(|_| MapError);
        }
        let mapped = self
            .scratch
            .with_page(|page| page.populate().is_ok() && self.move_all(range, page).is_ok());
        if !mapped {
            return Err(MapError);
        }
        self.slots.set_present(mfn);
        Ok(Mapped::Whole)
    }

    pub(crate) fn unmap_run(&self, gfn: Gfn, mfn: Mfn, order: Order) -> Unmapped {
        let (Ok(range), Ok(slot)) = (self.range(gfn, order), self.slot(mfn, order)) else {
            return Unmapped::Busy;
        };
        let Some(_moving) = self.enter() else { return Unmapped::Busy };
        if order == Order::SUPERPAGE {
            // Drops the empty page table that single moves left: the huge page stays whole.
            let _ = slot.discard();
        } else {
            let _ = self.slots.break_up(mfn.superframe());
        }
        let mut moved = self.move_all(slot, range);
        if order == Order::PAGE && matches!(moved, Err(Stopped::Failed)) && self.is_there(range) {
            // The kernel has filled the slot of a frame that is not there.
            let _ = slot.discard();
            moved = self.move_all(slot, range);
        }
        match moved {
            Ok(()) => {
                if order == Order::PAGE && !self.slots.is_present(mfn) {
                    self.slots.set_present(mfn);
                }
                if self.slots.backing(mfn.superframe()) == Backing::Whole {
                    self.prefaulted.fetch_add(1, Ordering::Relaxed);
                }
                Unmapped::Done
            }
            Err(_) => {
                self.counters.busy.fetch_add(1, Ordering::Relaxed);
                if order == Order::SUPERPAGE && !self.pagemap.is_whole(range).unwrap_or(false) {
                    let _ = self.slots.break_up(mfn.superframe());
                }
                Unmapped::Busy
            }
        }
    }

    fn is_there(&self, page: Span<'_>) -> bool {
        self.pagemap.resident_pages(page) == Ok(1)
    }

    pub(super) fn free_run(&self, mfn: Mfn, order: Order) {
        let index = mfn.superframe();
        let backing = self.settled_backing(index);
        // Once the machine is closed, what is at a slot may be the only copy: it stays.
        if let Some(_moving) = self.enter() {
            if order == Order::SUPERPAGE {
                self.drop_superslot(mfn.superframe());
            } else if self.slots.is_present(mfn) {
                self.free_page_memory(mfn, backing);
            }
        }
        let freed = {
            let mut frames = self.frames();
            let freed = frames.free(mfn, order);
            if frames.is_wholly_free(index) {
                // It was the last of its pages: nobody has any of them, and none has memory.
                self.slots.drop_all(index);
            }
            freed
        };
        debug_assert!(freed, "INV-1: {mfn:?} was given back twice");
    }

    pub(super) fn free_page_memory(&self, mfn: Mfn, backing: Backing) {
        let Ok(slot) = self.slot(mfn, Order::PAGE) else { return };
        if backing == Backing::Whole {
            // Dropping a part of a huge page frees nothing: moving one page out splits it first.
            self.scratch.with_page(|page| {
                let _ = self.move_all(page, slot);
            });
        }
        let _ = slot.discard();
        self.break_up_at_home(mfn.superframe());
        self.slots.clear_present(mfn);
    }

    pub(super) fn drop_superslot(&self, superframe: Superframe) {
        if let Ok(slot) = self.slot(superframe.first(), Order::SUPERPAGE) {
            let _ = slot.discard();
        }
        self.break_up_at_home(superframe);
        self.slots.drop_all(superframe);
    }

    pub(super) fn park_superslot(&self, superframe: Superframe) {
        let Some(_moving) = self.enter() else { return };
        let whole = self.slots.backing(superframe) == Backing::Whole;
        let keeps = match self.parking {
            Parking::Lazy => true,
            // This superslot is itself among those that are prefaulted.
            Parking::Eager(most) => self.prefaulted() <= most,
        };
        if !whole || !keeps {
            self.drop_superslot(superframe);
        }
    }
}
