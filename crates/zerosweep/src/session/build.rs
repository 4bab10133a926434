//! Building a domain: what is promised, what is populated, what is special (rules [R1], [R16]).
//!
//! [R1]: crate::rules#r1
//! [R16]: crate::rules#r16

use alloc::vec::Vec;
use core::fmt;

use super::Session;
use super::claim::superpages;
use crate::error::OutOfTableMemory;
use crate::frame::{Gfn, Order, SUPERPAGE_PAGES, Superpage};
use crate::machine::{Host, Machine};
use crate::p2m::{Entry, P2m, RamState};

/// A range could not be built. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BuildError {
    /// The range ends beyond the guest's memory.
    OutOfRange,
    /// Ram or special is in the way at this gfn.
    Busy(Gfn),
    /// Another operation is at work in the range: try again.
    InTransit,
    /// The domain would hold more than its target.
    OverTarget,
    /// The host has no frame, or the machine refused to map it.
    OutOfFrames,
    /// There is no memory for the tables.
    TableMemory,
    /// The domain is being taken down.
    Dying,
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfRange => f.write_str("the range ends beyond the guest's memory"),
            Self::Busy(gfn) => write!(f, "ram or special is in the way at gfn {gfn}"),
            Self::InTransit => f.write_str("the range is in transit"),
            Self::OverTarget => f.write_str("the domain would hold more than its target"),
            Self::OutOfFrames => f.write_str("the host has no frame to give"),
            Self::TableMemory => OutOfTableMemory.fmt(f),
            Self::Dying => f.write_str("the domain is being taken down"),
        }
    }
}

impl core::error::Error for BuildError {}

impl From<OutOfTableMemory> for BuildError {
    fn from(_: OutOfTableMemory) -> Self {
        Self::TableMemory
    }
}

impl<H: Host> Session<H> {
    /// Promises `[gfn, gfn + 2^order)`: a touch will populate it. What is PoD already stays so and
    /// is not counted again.
    ///
    /// # Errors
    /// Ram or special in the range; nothing is changed then. (Xen:
    /// `guest_physmap_mark_populate_on_demand`.)
    pub fn populate_on_demand(&mut self, gfn: Gfn, order: Order) -> Result<(), BuildError> {
        let refuse = |entry| matches!(entry, Entry::Ram { .. } | Entry::Special);
        self.change(gfn, order, refuse, |session, present| {
            session.set_run(gfn, order, Entry::Pod)?;
            session.domain().entries += present.invalid;
            Ok(())
        })
    }

    /// Marks a range as never to be reclaimed (MMIO, foreign, page tables). What was promised
    /// there no longer is.
    ///
    /// # Errors
    /// Ram in the range; nothing is changed then.
    pub fn set_special(&mut self, gfn: Gfn, order: Order) -> Result<(), BuildError> {
        let refuse = |entry| matches!(entry, Entry::Ram { .. });
        self.change(gfn, order, refuse, |session, present| {
            session.set_run(gfn, order, Entry::Special)?;
            session.domain().entries -= present.pod;
            Ok(())
        })
    }

    /// Populates a range with frames from the host, all or nothing. What is PoD there is replaced.
    ///
    /// # Errors
    /// Ram or special in the way, a total above the target, no frames; nothing is changed then.
    /// (Xen: `populate_physmap`.)
    pub fn populate_physmap(&mut self, gfn: Gfn, order: Order) -> Result<(), BuildError> {
        let refuse = |entry| matches!(entry, Entry::Ram { .. } | Entry::Special);
        self.build(gfn, order, |session| {
            session.present(gfn, order, refuse)?;
            session.populate_claimed(gfn, order)
        })
    }

    fn populate_claimed(&mut self, gfn: Gfn, order: Order) -> Result<(), BuildError> {
        let domain = self.host.domain();
        let pages = (0..order.pages()).map(|i| gfn.offset(i));
        let outs = pages.clone().filter(|&page| domain.p2m.is_out(page)).count() as u64;
        if domain.total() + order.pages() - outs > domain.target {
            return Err(BuildError::OverTarget);
        }
        let before = PodBits::of(&domain.p2m, gfn, order)?;
        let mut done = 0;
        while done < order.pages() {
            if self.domain().p2m.is_out(gfn.offset(done)) {
                done += 1;
                continue;
            }
            match self.populate_at(gfn.offset(done), order.pages() - done) {
                Ok(pages) => done += pages,
                Err(error) => {
                    self.unpopulate(gfn, done, &before);
                    return Err(error);
                }
            }
        }
        // Pages whose frames are still there are the guest's again at once.
        for page in pages {
            self.retake_page(page);
        }
        Ok(())
    }

    /// Pins a ram page: its frame is not checked, moved or reclaimed until it is unpinned ([R16]).
    ///
    /// # Errors
    /// [`BuildError::Busy`] if the page has no frame, [`BuildError::InTransit`] if another operation
    /// is at work on it, [`BuildError::OutOfFrames`] if it cannot be mapped. Nothing was changed.
    ///
    /// [R16]: crate::rules#r16
    pub fn pin(&mut self, gfn: Gfn) -> Result<(), BuildError> {
        self.set_pinned(gfn, RamState::Pinned)
    }

    /// Ends what [`Session::pin`] began.
    ///
    /// # Errors
    /// See [`Session::pin`].
    pub fn unpin(&mut self, gfn: Gfn) -> Result<(), BuildError> {
        self.set_pinned(gfn, RamState::Mapped)
    }

    fn set_pinned(&mut self, gfn: Gfn, to: RamState) -> Result<(), BuildError> {
        if !self.domain().p2m.contains(gfn, Order::PAGE) {
            return Err(BuildError::OutOfRange);
        }
        self.claimed(gfn.superpage(), |session| session.set_pinned_claimed(gfn, to))
            .unwrap_or(Err(BuildError::InTransit))
    }

    fn set_pinned_claimed(&mut self, gfn: Gfn, to: RamState) -> Result<(), BuildError> {
        self.split_to_pin(gfn.superpage())?;
        let Entry::Ram { mfn, state } = self.domain().p2m.get(gfn).0 else {
            return Err(BuildError::Busy(gfn));
        };
        if state == RamState::Detached {
            let mapped = self.host.machine(|m| m.map(gfn, mfn, Order::PAGE));
            mapped.map_err(|_| BuildError::OutOfFrames)?;
        }
        self.domain().p2m.set_page(gfn, Entry::Ram { mfn, state: to });
        Ok(())
    }

    fn split_to_pin(&mut self, superpage: Superpage) -> Result<(), OutOfTableMemory> {
        match self.domain().p2m.whole(superpage) {
            Some(Entry::Ram { .. }) => self.split(superpage),
            _ => Ok(()),
        }
    }

    /// Runs `work` while a whole range is claimed.
    fn build(
        &mut self,
        gfn: Gfn,
        order: Order,
        work: impl FnOnce(&mut Self) -> Result<(), BuildError>,
    ) -> Result<(), BuildError> {
        if !self.is_alive() {
            return Err(BuildError::Dying);
        }
        if !self.domain().p2m.contains(gfn, order) {
            return Err(BuildError::OutOfRange);
        }
        self.claimed_run(gfn, order, work).unwrap_or(Err(BuildError::InTransit))
    }

    /// Runs `work`, which changes the entries of a claimed range and is told what is there, unless
    /// `refuse` says no to one of them. Pages that are out give up their frames before.
    fn change(
        &mut self,
        gfn: Gfn,
        order: Order,
        refuse: impl Fn(Entry) -> bool,
        work: impl FnOnce(&mut Self, Present) -> Result<(), BuildError>,
    ) -> Result<(), BuildError> {
        self.build(gfn, order, |session| {
            let mut present = session.present(gfn, order, &refuse)?;
            let has_outs = |s| session.host.domain().p2m.outs(s) > 0;
            if superpages(gfn, order).any(has_outs) {
                if !superpages(gfn, order).all(|s| session.reclaim_retained(s)) {
                    return Err(BuildError::Busy(gfn));
                }
                // What was out may turn out to be live.
                present = session.present(gfn, order, refuse)?;
            }
            work(session, present)
        })
    }

    /// What is in a claimed range.
    ///
    /// # Errors
    /// If `refuse` says no to one of its entries.
    fn present(
        &mut self,
        gfn: Gfn,
        order: Order,
        refuse: impl Fn(Entry) -> bool,
    ) -> Result<Present, BuildError> {
        let mut present = Present::default();
        let p2m = &self.host.domain().p2m;
        let mut at = gfn;
        let end = gfn.offset(order.pages());
        while at < end {
            let (entry, entry_order) = p2m.get(at);
            if refuse(entry) {
                return Err(BuildError::Busy(at));
            }
            let next = at.align_down(entry_order).offset(entry_order.pages()).min(end);
            let pages = next.raw() - at.raw();
            match entry {
                Entry::Invalid => present.invalid += pages,
                Entry::Pod => present.pod += pages,
                Entry::Ram { .. } | Entry::Special => {}
            }
            at = next;
        }
        Ok(present)
    }

    /// Makes every entry of a claimed range `entry`; splits what it must before it sets anything.
    fn set_run(&mut self, gfn: Gfn, order: Order, entry: Entry) -> Result<(), OutOfTableMemory> {
        let end = gfn.offset(order.pages());
        let p2m = &mut self.host.domain().p2m;
        let whole = |s: Superpage| s.first() >= gfn && s.page(512) <= end;
        for superpage in superpages(gfn, order).filter(|&s| !whole(s)) {
            p2m.split(superpage)?;
        }
        for superpage in superpages(gfn, order) {
            if whole(superpage) {
                p2m.set_whole(superpage, entry);
            } else {
                let first = superpage.first().max(gfn).raw();
                let last = superpage.page(512).min(end).raw();
                (first..last).for_each(|g| p2m.set_page(Gfn::new(g), entry));
            }
        }
        Ok(())
    }

    /// Populates the superpage or page at `at` in a claimed range. Returns its pages.
    fn populate_at(&mut self, at: Gfn, left: u64) -> Result<u64, BuildError> {
        let p2m = &mut self.host.domain().p2m;
        let is_whole = at.is_aligned(Order::SUPERPAGE)
            && left >= SUPERPAGE_PAGES
            && p2m.whole(at.superpage()).is_some();
        let order = if is_whole { Order::SUPERPAGE } else { Order::PAGE };
        if !is_whole {
            p2m.split(at.superpage())?;
        }
        let was = p2m.get(at).0;
        let populated = self.populate_from_host(at, was, order);
        populated.map(|_| order.pages()).map_err(|_| BuildError::OutOfFrames)
    }

    /// Takes back the first `pages` of a claimed range that was being populated.
    fn unpopulate(&mut self, gfn: Gfn, pages: u64, before: &PodBits) {
        let mut at = gfn;
        let end = gfn.offset(pages);
        while at < end {
            let (entry, order) = self.domain().p2m.get(at);
            let Entry::Ram { mfn, .. } = entry else {
                at = at.offset(1);
                continue;
            };
            if let Some(run) = self.unmap_flushed(at, mfn, order) {
                self.restore(at, order, gfn, before);
                self.free(run);
            }
            at = at.offset(order.pages());
        }
    }

    /// Sets the entries of a run that was unmapped again to what they were.
    fn restore(&mut self, at: Gfn, order: Order, start: Gfn, before: &PodBits) {
        let domain = self.host.domain();
        domain.populated -= order.pages();
        let entry = |page: Gfn| {
            if before.get(page.raw() - start.raw()) { Entry::Pod } else { Entry::Invalid }
        };
        if order == Order::SUPERPAGE {
            domain.p2m.set_whole(at.superpage(), entry(at));
        } else {
            domain.p2m.set_page(at, entry(at));
        }
        if entry(at) == Entry::Pod {
            domain.entries += order.pages();
        }
    }
}

/// Which pages of a range are PoD.
struct PodBits(Vec<u64>);

impl PodBits {
    fn of(p2m: &P2m, gfn: Gfn, order: Order) -> Result<Self, OutOfTableMemory> {
        let words = order.pages().div_ceil(64) as usize;
        let mut bits = Vec::new();
        bits.try_reserve_exact(words).map_err(|_| OutOfTableMemory)?;
        bits.resize(words, 0);
        for i in 0..order.pages() {
            if p2m.get(gfn.offset(i)).0 == Entry::Pod {
                bits[(i / 64) as usize] |= 1 << (i % 64);
            }
        }
        Ok(Self(bits))
    }

    fn get(&self, i: u64) -> bool {
        self.0[(i / 64) as usize] >> (i % 64) & 1 == 1
    }
}

/// What was in a range.
#[derive(Clone, Copy, Debug, Default)]
struct Present {
    invalid: u64,
    pod: u64,
}
