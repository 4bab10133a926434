//! Moves live singles together, so that whole superframes become free (rule [R13]).
//!
//! Independent of PoD and of the policy. First every single is counted where it lies; the
//! superframes that hold the most stay, as few as can hold all; then the singles of the others are
//! copied into what is free in these. Nothing is moved twice. In the end the domain holds its whole
//! superpages and `ceil(live singles / 512)` superframes more, but for pages that are pinned or
//! busy, and for free pages of those superframes that the host has given to others.
//!
//! It works in steps, on one claimed range after the other, while the guest runs.
//!
//! [R13]: crate::rules#r13

use alloc::vec::Vec;

use super::{Progress, Session};
use crate::cache::Dirty;
use crate::error::OutOfTableMemory;
use crate::frame::{Mfn, Order, PAGE_BYTES, SUPERPAGE_PAGES, Superframe, Superpage};
use crate::machine::{Allocated, Host, Machine, OutOfFrames, Unmapped};
use crate::p2m::{Entry, RamState};
use crate::page_bits::PageBits;
use crate::run::Run;
use crate::superframes::PerSuperframe;

const PAGES: usize = SUPERPAGE_PAGES as usize;
/// Pages that may be held beyond the target while they are copied, if there is no other way.
const OVER_PAGES: u64 = 16;

/// The progress of a consolidation. The caller keeps it between the steps, and makes a new one for
/// each consolidation.
#[derive(Default)]
pub struct Consolidation {
    phase: Phase,
    next: u64,
    /// Live singles of each superframe, and whether one of them is pinned.
    lying: PerSuperframe<Lying>,
    /// Superframes that stay, the fullest first, and how many of them have no room any more.
    stay: Vec<Superframe>,
    full: usize,
    moved: u64,
}

#[derive(Clone, Copy, Default)]
struct Lying {
    live: u16,
    pinned: bool,
    stays: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Counting,
    Moving,
    Done,
}

impl Consolidation {
    /// Pages that were moved so far.
    #[must_use]
    pub fn moved(&self) -> u64 {
        self.moved
    }

    fn count(&mut self, mfn: Mfn, pinned: bool) -> Result<(), OutOfTableMemory> {
        let lying = self.lying.get_mut(mfn.superframe())?;
        lying.live += 1;
        lying.pinned |= pinned;
        Ok(())
    }

    /// Decides which superframes stay.
    fn choose(&mut self) -> Result<(), OutOfTableMemory> {
        let used = || self.lying.iter().filter(|(_, lying)| lying.live > 0);
        self.stay.try_reserve_exact(used().count()).map_err(|_| OutOfTableMemory)?;
        let live: u64 = used().map(|(_, lying)| u64::from(lying.live)).sum();
        self.stay.extend(used().map(|(superframe, _)| superframe));
        self.stay.sort_unstable_by_key(|&superframe| {
            let lying = self.lying.get(superframe).copied().unwrap_or_default();
            core::cmp::Reverse((lying.pinned, lying.live))
        });
        self.stay.truncate(live.div_ceil(SUPERPAGE_PAGES) as usize);
        for &superframe in &self.stay {
            self.lying.get_mut(superframe)?.stays = true;
        }
        Ok(())
    }

    fn stays(&self, mfn: Mfn) -> bool {
        // What was not there when it was counted is left alone.
        self.lying.get(mfn.superframe()).is_none_or(|lying| lying.stays)
    }
}

impl<H: Host> Session<H> {
    /// Goes on with a consolidation, for up to `superpages` ranges.
    ///
    /// # Errors
    /// When there is no memory for the plan. Nothing was moved.
    pub fn consolidate(
        &mut self,
        work: &mut Consolidation,
        superpages: u64,
    ) -> Result<Progress, OutOfTableMemory> {
        if !self.is_alive() {
            return Ok(Progress::Done);
        }
        let all = self.domain().p2m.superpages();
        let last = work.next.saturating_add(superpages).min(all);
        for superpage in (work.next..last).map(Superpage::new) {
            match work.phase {
                Phase::Counting => self.count_singles(work, superpage)?,
                Phase::Moving => self.bring_together(work, superpage),
                Phase::Done => return Ok(Progress::Done),
            }
        }
        work.next = last;
        if last < all {
            return Ok(Progress::More);
        }
        if work.phase == Phase::Counting {
            work.choose()?;
            (work.phase, work.next) = (Phase::Moving, 0);
            return Ok(Progress::More);
        }
        work.phase = Phase::Done;
        self.upkeep_inline();
        Ok(self.return_excess())
    }

    fn count_singles(
        &mut self,
        work: &mut Consolidation,
        superpage: Superpage,
    ) -> Result<(), OutOfTableMemory> {
        let mut singles = [None; PAGES];
        let p2m = &self.host.domain().p2m;
        if p2m.whole(superpage).is_some() {
            return Ok(());
        }
        for (index, single) in singles.iter_mut().enumerate() {
            if let Entry::Ram { mfn, state } = p2m.get(superpage.page(index)).0 {
                *single = Some((mfn, state == RamState::Pinned));
            }
        }
        // The table of counts may grow: not under the lock.
        let mut counted = Ok(());
        self.host.machine(|_| {
            counted = singles.into_iter().flatten().try_for_each(|(mfn, pin)| work.count(mfn, pin));
        });
        counted
    }

    /// Moves the singles of one range that lie where nothing stays.
    fn bring_together(&mut self, work: &mut Consolidation, superpage: Superpage) {
        let p2m = &self.host.domain().p2m;
        if p2m.whole(superpage).is_some() || p2m.tally(superpage).ram == 0 {
            return;
        }
        let claimed = self.claimed(superpage, |session| {
            let all_live = session.domain().p2m.tally(superpage).ram == SUPERPAGE_PAGES;
            if !(all_live && session.refill(superpage.first())) {
                // As many at a time as there is room for.
                while session.move_singles(work, superpage) > 0 {}
            }
        });
        if claimed.is_none() {
            return;
        }
        // The older policies know no frames that are still to be cleared.
        while !self.domain().policy.keeps_whole() && self.clean_batch() {}
    }

    /// Returns how many were moved; then there may be more.
    fn move_singles(&mut self, work: &mut Consolidation, superpage: Superpage) -> u64 {
        let mut from = [Mfn::default(); PAGES];
        let mut to = [Mfn::default(); PAGES];
        let mut moving = PageBits::default();
        let mut from_host = 0;
        if self.domain().cache.reserve(1, Mfn::default(), SUPERPAGE_PAGES).is_err() {
            return 0;
        }
        for index in 0..PAGES {
            let entry = self.domain().p2m.get(superpage.page(index)).0;
            let Entry::Ram { mfn, state: RamState::Mapped } = entry else { continue };
            if work.stays(mfn) {
                continue;
            }
            let Some(single) = self.single_where_it_stays(work, from_host) else { break };
            from_host += u64::from(single.1);
            (from[index], to[index]) = (mfn, single.0.into_mfn());
            moving.insert(index);
        }
        let moved = self.copy_singles(superpage, &from, &to, moving);
        self.commit_moves(superpage, &from, &to, moving, moved);
        self.give_back_dirty(from_host);
        work.moved += moved.done.count();
        moved.done.count()
    }

    /// A free page of a superframe that stays, counted as in the cache, and whether it came from
    /// the host.
    fn single_where_it_stays(
        &mut self,
        work: &mut Consolidation,
        from_host: u64,
    ) -> Option<(Run, bool)> {
        while let Some(&superframe) = work.stay.get(work.full) {
            let domain = self.host.domain();
            if let Some(single) = domain.cache.take_single_in(superframe) {
                domain.flight.in_hand += 1;
                return Some((single, false));
            }
            if !self.has_room_for_one(from_host) {
                return None;
            }
            match self.allocate_in(superframe) {
                Ok(single) => return Some((single, true)),
                Err(OutOfFrames) => work.full += 1,
            }
        }
        None
    }

    /// Whether one more page may be held for a moment; gives one back if that makes room.
    fn has_room_for_one(&mut self, from_host: u64) -> bool {
        let domain = self.host.domain();
        let has_room =
            |domain: &crate::Domain| domain.total() + domain.flight.incoming < domain.target;
        if has_room(domain) {
            return true;
        }
        self.give_back_dirty(1);
        let domain = self.host.domain();
        if !has_room(domain) {
            if from_host >= OVER_PAGES {
                return false;
            }
            domain.statistics.borrowed += 1;
        }
        true
    }

    fn allocate_in(&mut self, superframe: Superframe) -> Result<Run, OutOfFrames> {
        self.domain().flight.incoming += 1;
        let allocated = self.host.machine(|m| m.allocate_in(superframe));
        let domain = self.host.domain();
        domain.flight.incoming -= 1;
        // Its content is of no interest: a page is copied over it.
        let Allocated { mfn, .. } = allocated?;
        domain.flight.in_hand += 1;
        Ok(Run::page(mfn))
    }

    /// Unmaps, flushes once, copies, maps.
    fn copy_singles(
        &mut self,
        superpage: Superpage,
        from: &[Mfn; PAGES],
        to: &[Mfn; PAGES],
        moving: PageBits,
    ) -> Moved {
        let mut moved = Moved::default();
        if moving.count() == 0 {
            return moved;
        }
        self.host.machine(|m| {
            for index in moving.iter() {
                let unmapped = m.unmap(superpage.page(index), from[index], Order::PAGE);
                if unmapped == Unmapped::Done {
                    moved.done.insert(index);
                }
            }
            m.flush();
            for index in moved.done.iter() {
                m.copy(from[index], to[index]);
                if m.map(superpage.page(index), to[index], Order::PAGE).is_err() {
                    moved.detached.insert(index);
                }
            }
        });
        let statistics = &mut self.domain().statistics;
        let done = moved.done.count();
        statistics.unmap_flushes += 1;
        statistics.busy += moving.count() - done;
        statistics.bytes_copied += done * PAGE_BYTES;
        statistics.pages_consolidated += done;
        moved
    }

    fn commit_moves(
        &mut self,
        superpage: Superpage,
        from: &[Mfn; PAGES],
        to: &[Mfn; PAGES],
        moving: PageBits,
        moved: Moved,
    ) {
        let domain = self.host.domain();
        domain.flight.in_hand -= moving.count();
        for index in moving.iter() {
            // What was taken for a page that is busy goes to the cache, with what was moved away.
            let left = if moved.done.contains(index) {
                let detached = moved.detached.contains(index);
                let state = if detached { RamState::Detached } else { RamState::Mapped };
                domain.p2m.set_page(superpage.page(index), Entry::Ram { mfn: to[index], state });
                from[index]
            } else {
                to[index]
            };
            domain.cache.put_dirty(Dirty::Flushed(Run::page(left)));
        }
    }

    /// Gives up to `pages` singles back to the host that are still to be cleared.
    fn give_back_dirty(&mut self, pages: u64) {
        for _ in 0..pages {
            let cache = &mut self.host.domain().cache;
            if cache.has_dirty_superpage() {
                return;
            }
            let Some(dirty) = cache.take_dirty() else { return };
            let run = self.flush_dirty(dirty);
            self.free(run);
        }
    }
}

/// The outcome of moving pages.
#[derive(Clone, Copy, Default)]
struct Moved {
    done: PageBits,
    /// Copied, but not mapped: the next touch does it.
    detached: PageBits,
}
