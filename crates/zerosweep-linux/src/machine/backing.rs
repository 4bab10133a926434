//! Memory behind the slots: huge pages for superslots, ahead of the guest or in the face of a
//! fault, and single pages.

use std::sync::atomic::Ordering;

use zerosweep::{Mfn, Order, Superframe};

use super::backoff::Backoff;
use super::slots::Backing;
use super::{LinuxMachine, Parking};

impl LinuxMachine {
    /// Returns how many superslots are to have a huge page ahead of the guest.
    pub(crate) fn prefault_goal(&self) -> u64 {
        match self.parking {
            Parking::Lazy => 64,
            Parking::Eager(most) => most,
        }
    }

    /// Reserves an empty superslot for [`LinuxMachine::back`]. Returns false if it is not empty.
    /// The caller holds the domain's lock, so that nobody gives the frame away meanwhile.
    pub(crate) fn reserve_backing(&self, mfn: Mfn) -> bool {
        self.slots.advance(mfn.superframe(), Backing::Empty, Backing::Preparing)
    }

    /// Reserves a superslot with a huge page for [`LinuxMachine::back`], which then replaces that
    /// page. Returns false if it has none. Call it as [`LinuxMachine::reserve_backing`].
    pub(crate) fn reserve_rebacking(&self, mfn: Mfn) -> bool {
        let whole = self.slots.advance(mfn.superframe(), Backing::Whole, Backing::Preparing);
        if whole {
            self.prefaulted.fetch_sub(1, Ordering::Relaxed);
        }
        whole
    }

    /// Gets memory for a reserved superslot, a huge page if the host has one. Returns false if the
    /// host has no memory at all.
    pub(crate) fn back(&self, mfn: Mfn) -> bool {
        // An empty page table would make the kernel use small pages.
        self.drop_memory(mfn, Order::SUPERPAGE);
        let backed = self.back_rest(mfn);
        if !backed {
            self.drop_memory(mfn, Order::SUPERPAGE);
        }
        backed
    }

    /// Gets memory as [`LinuxMachine::back`] does, and keeps what is there.
    fn back_rest(&self, mfn: Mfn) -> bool {
        let index = mfn.superframe();
        let Ok(span) = self.slot(mfn, Order::SUPERPAGE) else { return false };
        if span.populate().is_err() {
            self.slots.drop_all(index);
            return false;
        }
        if self.pagemap.is_whole(span).unwrap_or(false) {
            self.prefaulted.fetch_add(1, Ordering::Relaxed);
            self.slots.fill(index, Backing::Whole);
        } else {
            self.counters.small_backing.fetch_add(1, Ordering::Relaxed);
            self.slots.fill(index, Backing::Pieces);
        }
        true
    }

    /// Returns the memory of a frame that nobody uses to the kernel.
    pub(crate) fn drop_memory(&self, mfn: Mfn, order: Order) {
        if let Ok(slot) = self.slot(mfn, order) {
            let _ = slot.discard();
        }
    }

    /// Makes sure that nobody gets a huge page for a superslot, which would drop what is there,
    /// while single pages of it are used.
    pub(super) fn open(&self, superslot: Superframe) {
        let mut backoff = Backoff::default();
        while !self.slots.open(superslot) {
            backoff.wait();
        }
    }

    /// Returns what is behind a superslot, once nobody is getting memory for it.
    pub(super) fn settled_backing(&self, superslot: Superframe) -> Backing {
        let mut backoff = Backoff::default();
        loop {
            match self.slots.backing(superslot) {
                Backing::Preparing => backoff.wait(),
                settled => return settled,
            }
        }
    }

    /// Gets memory for a slot before it is written to. The write alone would make the kernel put a
    /// huge page behind the whole superslot, and the table would not know of the other pages.
    pub(super) fn back_page(&self, mfn: Mfn) {
        let index = mfn.superframe();
        let is_out = || self.frames().is_wholly_out(index);
        if self.slots.backing(index) == Backing::Empty
            && is_out()
            && self.slots.advance(index, Backing::Empty, Backing::Preparing)
        {
            self.counters.late_backing.fetch_add(1, Ordering::Relaxed);
            // Another thread may be at work on a page of it.
            let _ = self.back_rest(mfn.align_down(Order::SUPERPAGE));
        }
        self.open(index);
        if !self.slots.is_present(mfn) {
            let _ = self.back_hole(mfn);
        }
    }

    /// Gets a page for a slot that has none. Returns false if the host has none.
    pub(super) fn back_hole(&self, mfn: Mfn) -> bool {
        let Ok(slot) = self.slot(mfn, Order::PAGE) else { return false };
        let fill = || {
            self.scratch
                .with_page(|page| page.populate().is_ok() && self.move_all(slot, page).is_ok())
        };
        // A reader from outside (a debugger) leaves the zero page in a hole of the pool.
        let backed = fill() || (slot.discard().is_ok() && fill());
        if backed {
            self.slots.set_present(mfn);
        }
        backed
    }

    /// Notes that a superslot whose pages are at their slots is no longer one huge page.
    pub(super) fn break_up_at_home(&self, superslot: Superframe) {
        if self.slots.break_up(superslot) {
            self.prefaulted.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
