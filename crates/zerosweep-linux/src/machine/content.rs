//! What is in a page: zero checks, copies, clearing.
//!
//! A page at its slot is out of the guest's reach, so that what is read there is the truth. What is
//! read at the guest's address is a hint.

use zerosweep::{Content, Gfn, Mfn, Order};

use super::LinuxMachine;
use super::slots::Backing;
use crate::addr::PAGE_BYTES;

impl LinuxMachine {
    /// Returns the first non-zero word of `pages` frames from `mfn` on that are at their slots.
    pub(super) fn first_nonzero(&self, mfn: Mfn, pages: u64) -> Option<u32> {
        let slots = self.pool.span(mfn.raw() * PAGE_BYTES, pages * PAGE_BYTES).ok()?;
        slots.first_nonzero().map(|word| word as u32)
    }

    /// Copies a page that is at its slot to another slot. That one gets memory if it has none.
    pub(super) fn copy_page(&self, from: Mfn, to: Mfn) {
        let (Ok(source), Ok(target)) = (self.slot(from, Order::PAGE), self.slot(to, Order::PAGE))
        else {
            return;
        };
        self.back_page(to);
        // Lengths are equal: one page.
        let _ = target.copy_from(source);
        if !self.slots.is_present(to) {
            self.slots.set_present(to);
        }
    }

    /// Clears a mapped page of the guest, whose superpage the caller has claimed. Returns whether
    /// it was zero.
    pub(super) fn scrub(&self, gfn: Gfn) -> Content {
        let Ok(page) = self.range(gfn, Order::PAGE) else { return Content::Unknown };
        if page.first_nonzero().is_none() {
            return Content::Zero;
        }
        page.clear();
        Content::Unknown
    }

    /// Returns the first non-zero word among the first words of a page of the guest. A hint.
    pub(super) fn quick_check_page(&self, gfn: Gfn) -> Option<u32> {
        let head = self.range(gfn, Order::PAGE).ok()?.load_head(0).ok()?;
        head.iter().position(|&word| word != 0).map(|word| word as u32)
    }

    /// Clears a run that is at its slots. A superslot in pieces is dropped instead, which also
    /// makes it zero.
    pub(super) fn clear_run(&self, mfn: Mfn, order: Order) {
        let Some(_moving) = self.enter() else { return };
        if order == Order::SUPERPAGE && self.settled_backing(mfn.superframe()) != Backing::Whole {
            self.drop_superslot(mfn.superframe());
        } else if self.slots.is_present(mfn)
            && let Ok(slot) = self.slot(mfn, order)
        {
            slot.clear();
        }
    }
}
