//! Pages that are not where the engine thinks they are.
//!
//! A page is at its slot instead of the guest's address after a move that could not be taken back
//! (a page of it was pinned meanwhile), or when an operation is still at work while the cap is
//! lifted. And something outside may drop pages that the guest has. So before a hole is taken for
//! zeros, its page is looked for at its slot.

use std::time::{Duration, Instant};

use zerosweep::{Gfn, Mfn, Order};

use super::LinuxMachine;
use super::moves::ZeroPage;
use crate::addr::PAGE_BYTES;
use crate::sys::region::Span;
use crate::sys::uffd::{MoveOutcome, Wake};

/// Between two tries to move a page that is in use.
const PAUSE: Duration = Duration::from_millis(1);

impl LinuxMachine {
    /// Fills a hole at a page that has a frame, in a superpage that the caller has claimed: with
    /// the page at its slot, else with zeros. Changes nothing if the page is there after all.
    pub(crate) fn fill_hole(&self, gfn: Gfn, mfn: Mfn) {
        let Some(_moving) = self.enter() else { return };
        let (Ok(page), Ok(slot)) = (self.range(gfn, Order::PAGE), self.slot(mfn, Order::PAGE))
        else {
            return;
        };
        if self.has_memory(page, ZeroPage::Counts) {
            return;
        }
        let _ = self.slots.break_up(mfn.superframe());
        if self.has_memory(slot, ZeroPage::Ignored) {
            // If it does not move now, the guest faults again.
            let _ = self.move_pages(page, slot);
        } else {
            let _ = self.uffd.map_zero_pages(page, Wake::No);
        }
    }

    /// Moves what is at the slots of a run to the guest's addresses, where there is nothing. Copies
    /// pages that cannot move by `until`. Returns how many pages are lost because the host had no
    /// memory for a copy. For a machine that is closed.
    pub(crate) fn put_in_place(&self, gfn: Gfn, mfn: Mfn, order: Order, until: Instant) -> u64 {
        let (Ok(range), Ok(slot)) = (self.range(gfn, order), self.slot(mfn, order)) else {
            return 0;
        };
        // A hole is zero at either place. A zero page at a slot is what a reader from outside left.
        if self.pagemap.is_whole(range).unwrap_or(false)
            || !self.has_memory(slot, ZeroPage::Ignored)
        {
            return 0;
        }
        if order == Order::SUPERPAGE {
            if !self.has_memory(range, ZeroPage::Counts) {
                // Drops an empty page table: the huge page stays whole.
                let _ = range.discard();
            }
            if !self.pagemap.is_whole(slot).unwrap_or(false) {
                let pages = (0..order.pages()).map(|n| (gfn.offset(n), mfn.offset(n)));
                let single = |(gfn, mfn)| self.put_in_place(gfn, mfn, Order::PAGE, until);
                return pages.map(single).sum();
            }
        }
        let (mut at, mut lost) = (0, 0);
        while at < range.bytes() {
            let left = range.bytes() - at;
            let (Ok(to), Ok(from)) = (range.part(at, left), slot.part(at, left)) else { break };
            match self.move_pages(to, from) {
                MoveOutcome::Done | MoveOutcome::Hole => break,
                MoveOutcome::Partial { bytes } if bytes > 0 => at += bytes,
                // What the guest has is the newer one.
                MoveOutcome::AlreadyThere => at += PAGE_BYTES,
                MoveOutcome::Partial { .. } | MoveOutcome::Busy if Instant::now() < until => {
                    std::thread::sleep(PAUSE);
                }
                _ => {
                    lost += u64::from(!self.copy_in_place(range, slot, at));
                    at += PAGE_BYTES;
                }
            }
        }
        lost
    }

    /// Copies a page that cannot move: who uses it keeps it, and the guest gets the copy.
    fn copy_in_place(&self, range: Span<'_>, slot: Span<'_>, at: u64) -> bool {
        let (Ok(to), Ok(from)) = (range.part(at, PAGE_BYTES), slot.part(at, PAGE_BYTES)) else {
            return false;
        };
        !self.has_memory(from, ZeroPage::Ignored)
            || self.scratch.with_page(|page| {
                let copied = page.populate().is_ok() && page.copy_from(from).is_ok();
                copied
                    && matches!(
                        self.move_pages(to, page),
                        MoveOutcome::Done | MoveOutcome::AlreadyThere
                    )
            })
    }
}
