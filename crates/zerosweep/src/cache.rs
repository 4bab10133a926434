//! The PoD cache: the domain's own frames that back no gfn yet.
//!
//! Superpages and singles. A superpage is broken only when a single is wanted and there is none.
//! The rest is the policy's: [`Cache::fifo`] keeps both in the order of their arrival and never
//! rejoins singles, as Xen does; [`Cache::joining`] keeps singles by superframe, and when all 512
//! of one are home they are a superpage again, and it hands out the superpage that came last, which
//! is in the processor's caches and has memory behind it, while the one that came first goes back
//! to the host.
//!
//! Invariant ([INV-4]): a frame is cleared, or was just found zero, before it is put here. Frames
//! that are not cleared yet (rule [R11]) have a list of their own. They are counted, and not handed
//! out.
//!
//! [R11]: crate::rules#r11
//! [INV-4]: crate::rules#inv-4

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::error::OutOfTableMemory;
use crate::frame::{Mfn, Order, SUPERPAGE_PAGES, Superframe};
use crate::page_bits::PageBits;

/// Runs that may be waiting to be cleared before their list has to grow.
const EXPECTED_DIRTY: usize = 8192;

/// The frames that a domain holds and has not handed out.
pub struct Cache {
    superpages: VecDeque<Mfn>,
    singles: Singles,
    dirty: VecDeque<Dirty>,
    dirty_pages: u64,
}

/// A run that is to be cleared before it is handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dirty {
    /// First frame.
    pub(crate) mfn: Mfn,
    /// Size: a page or a superpage.
    pub(crate) order: Order,
    /// Whether no CPU can reach it any more.
    pub(crate) flushed: bool,
}

enum Singles {
    Fifo(VecDeque<Mfn>),
    Joining(Partials),
}

/// Superframes of which some pages, but not all, are in the cache.
#[derive(Default)]
struct Partials {
    partials: Vec<Partial>,
    /// For each superframe its index in `partials` plus one; 0: it has none.
    slots: Vec<u32>,
    pages: u64,
}

struct Partial {
    superframe: Superframe,
    /// Its frames that are in the cache, and how many these are.
    here: PageBits,
    count: u16,
}

impl Cache {
    /// An empty cache that never rejoins singles.
    pub(crate) fn fifo() -> Self {
        Self::with(Singles::Fifo(VecDeque::new()))
    }

    /// An empty cache that rejoins singles.
    pub(crate) fn joining() -> Self {
        Self::with(Singles::Joining(Partials::default()))
    }

    fn with(singles: Singles) -> Self {
        Self { superpages: VecDeque::new(), singles, dirty: VecDeque::new(), dirty_pages: 0 }
    }

    /// Pages in the cache.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.clean_pages() + self.dirty_pages
    }

    /// Pages that can be handed out.
    #[must_use]
    pub fn clean_pages(&self) -> u64 {
        self.superpages() * SUPERPAGE_PAGES + self.singles()
    }

    /// Pages that are still to be cleared.
    #[must_use]
    pub fn dirty_pages(&self) -> u64 {
        self.dirty_pages
    }

    /// Whole superpages in the cache that can be handed out.
    #[must_use]
    pub fn superpages(&self) -> u64 {
        self.superpages.len() as u64
    }

    /// Singles in the cache that can be handed out.
    #[must_use]
    pub fn singles(&self) -> u64 {
        match &self.singles {
            Singles::Fifo(list) => list.len() as u64,
            Singles::Joining(partials) => partials.pages,
        }
    }

    /// Makes sure that `superpages` and the singles of one run at `mfn` can be put in without
    /// asking for memory.
    ///
    /// # Errors
    /// When there is no memory. Nothing was changed.
    pub(crate) fn reserve(
        &mut self,
        superpages: u64,
        mfn: Mfn,
        singles: u64,
    ) -> Result<(), OutOfTableMemory> {
        let superpages = usize::try_from(superpages).map_err(|_| OutOfTableMemory)?;
        // One more than asked for: singles may become a superpage.
        self.superpages.try_reserve(superpages + 1).map_err(|_| OutOfTableMemory)?;
        // Every run that is to be cleared may be a single.
        let dirty = usize::try_from(singles.max(1)).map_err(|_| OutOfTableMemory)?;
        self.dirty.try_reserve(dirty).map_err(|_| OutOfTableMemory)?;
        match &mut self.singles {
            Singles::Fifo(list) => {
                let singles = usize::try_from(singles).map_err(|_| OutOfTableMemory)?;
                list.try_reserve(singles).map_err(|_| OutOfTableMemory)
            }
            Singles::Joining(partials) => partials.reserve(mfn.offset(singles)),
        }
    }

    /// Makes room for frames 0 to `frames`, so that nothing has to grow later.
    ///
    /// # Errors
    /// When there is no memory.
    pub(crate) fn expect_frames(&mut self, frames: u64) -> Result<(), OutOfTableMemory> {
        let superframes = usize::try_from(frames.div_ceil(SUPERPAGE_PAGES));
        let superframes = superframes.map_err(|_| OutOfTableMemory)?;
        self.superpages.try_reserve(superframes + 1).map_err(|_| OutOfTableMemory)?;
        self.dirty.try_reserve(EXPECTED_DIRTY).map_err(|_| OutOfTableMemory)?;
        if let Singles::Joining(partials) = &mut self.singles {
            partials.partials.try_reserve(superframes).map_err(|_| OutOfTableMemory)?;
            partials.reserve(Mfn::new(frames.saturating_sub(1)))?;
        }
        Ok(())
    }

    /// Puts in a run: superpages of an order ≥ 9, singles of a smaller one. A superframe that
    /// becomes complete is not kept but handed back: the caller puts it in as a superpage.
    ///
    /// The caller has [reserved](Cache::reserve) room where it cannot do without.
    #[must_use = "a superframe that has become whole is in the caller's hands"]
    pub(crate) fn put(&mut self, mfn: Mfn, order: Order) -> Option<Mfn> {
        if order >= Order::SUPERPAGE {
            debug_assert!(mfn.is_aligned(Order::SUPERPAGE));
            let steps = order.pages() / SUPERPAGE_PAGES;
            self.superpages.extend((0..steps).map(|i| mfn.offset(i * SUPERPAGE_PAGES)));
            return None;
        }
        let run = (0..order.pages()).map(|i| mfn.offset(i));
        match &mut self.singles {
            Singles::Fifo(list) => {
                list.extend(run);
                None
            }
            // A run of less than a superpage lies within one: at most one is completed.
            Singles::Joining(partials) => run.filter_map(|page| partials.put(page)).last(),
        }
    }

    /// Puts a superpage in that could not be used: every other one is handed out before it.
    pub(crate) fn put_last(&mut self, mfn: Mfn) {
        match self.singles {
            Singles::Fifo(_) => self.superpages.push_back(mfn),
            Singles::Joining(_) => self.superpages.push_front(mfn),
        }
    }

    /// Puts in a run that is to be cleared; room was [reserved](Cache::reserve).
    pub(crate) fn put_dirty(&mut self, dirty: Dirty) {
        self.dirty_pages += dirty.order.pages();
        if dirty.order >= Order::SUPERPAGE {
            self.dirty.push_front(dirty);
        } else {
            self.dirty.push_back(dirty);
        }
    }

    /// Takes a run that is to be cleared, superpages first.
    pub(crate) fn take_dirty(&mut self) -> Option<Dirty> {
        let dirty = self.dirty.pop_front()?;
        self.dirty_pages -= dirty.order.pages();
        Some(dirty)
    }

    /// Whether a superpage is to be cleared.
    #[must_use]
    pub fn has_dirty_superpage(&self) -> bool {
        self.dirty.front().is_some_and(|dirty| dirty.order >= Order::SUPERPAGE)
    }

    /// Takes a superpage to use it.
    pub(crate) fn take_superpage(&mut self) -> Option<Mfn> {
        match self.singles {
            Singles::Fifo(_) => self.superpages.pop_front(),
            Singles::Joining(_) => self.superpages.pop_back(),
        }
    }

    /// Takes a superpage to give it back to the host: the oldest.
    pub(crate) fn take_superpage_to_return(&mut self) -> Option<Mfn> {
        self.superpages.pop_front()
    }

    /// Takes a single; breaks the next superpage if there is none.
    pub(crate) fn take_single(&mut self) -> Option<Mfn> {
        if self.singles() == 0 {
            let broken = match self.singles {
                Singles::Fifo(_) => *self.superpages.front()?,
                Singles::Joining(_) => *self.superpages.back()?,
            };
            match &mut self.singles {
                Singles::Fifo(list) => {
                    list.try_reserve(SUPERPAGE_PAGES as usize).ok()?;
                    list.extend((0..SUPERPAGE_PAGES).map(|i| broken.offset(i)));
                }
                Singles::Joining(partials) => partials.put_whole(broken).ok()?,
            }
            let _ = self.take_superpage();
        }
        match &mut self.singles {
            Singles::Fifo(list) => list.pop_front(),
            Singles::Joining(partials) => partials.take(),
        }
    }

    /// Takes a single of the superframe at `superframe`, if one is here to be handed out.
    pub(crate) fn take_single_in(&mut self, superframe: Mfn) -> Option<Mfn> {
        match &mut self.singles {
            Singles::Fifo(list) => {
                let run = superframe.raw()..superframe.raw() + SUPERPAGE_PAGES;
                let index = list.iter().position(|mfn| run.contains(&mfn.raw()))?;
                list.remove(index)
            }
            Singles::Joining(partials) => {
                partials.take_at(partials.slot_of(superframe.superframe())?)
            }
        }
    }

    /// Takes one frame out, wherever it is; of a superpage the other 511 stay, as singles. False if
    /// it is not here.
    ///
    /// # Errors
    /// When there is no memory to keep the others; nothing is changed then.
    pub(crate) fn take_out(&mut self, mfn: Mfn) -> Result<bool, OutOfTableMemory> {
        let first = mfn.align_down(Order::SUPERPAGE);
        if let Some(index) = self.superpages.iter().position(|&run| run == first) {
            self.reserve(0, first, SUPERPAGE_PAGES)?;
            self.superpages.remove(index);
            let others = (0..SUPERPAGE_PAGES).map(|i| first.offset(i)).filter(|&page| page != mfn);
            // One is missing: they do not join.
            for page in others {
                let _ = self.put(page, Order::PAGE);
            }
            return Ok(true);
        }
        let here = |dirty: &Dirty| dirty.mfn == mfn.align_down(dirty.order);
        if let Some(index) = self.dirty.iter().position(here) {
            self.dirty.try_reserve(SUPERPAGE_PAGES as usize).map_err(|_| OutOfTableMemory)?;
            let Some(run) = self.dirty.remove(index) else { return Ok(false) };
            self.dirty_pages -= run.order.pages();
            let others = (0..run.order.pages()).map(|i| run.mfn.offset(i));
            others.filter(|&page| page != mfn).for_each(|page| {
                self.put_dirty(Dirty { mfn: page, order: Order::PAGE, flushed: run.flushed });
            });
            return Ok(true);
        }
        Ok(match &mut self.singles {
            Singles::Fifo(list) => match list.iter().position(|&page| page == mfn) {
                Some(index) => list.remove(index).is_some(),
                None => false,
            },
            Singles::Joining(partials) => partials.take_out(mfn),
        })
    }

    /// Every run in the cache, with its order; superpages first, in the order in which they go.
    pub fn iter(&self) -> impl Iterator<Item = (Mfn, Order)> + '_ {
        let reversed = matches!(self.singles, Singles::Joining(_));
        let count = self.superpages.len();
        let nth = move |n: usize| self.superpages[if reversed { count - 1 - n } else { n }];
        let superpages = (0..count).map(move |n| (nth(n), Order::SUPERPAGE));
        let (fifo, joining) = match &self.singles {
            Singles::Fifo(list) => (Some(list.iter().copied()), None),
            Singles::Joining(partials) => (None, Some(partials.iter())),
        };
        let singles = fifo.into_iter().flatten().chain(joining.into_iter().flatten());
        let dirty = self.dirty.iter().map(|dirty| (dirty.mfn, dirty.order));
        superpages.chain(singles.map(|mfn| (mfn, Order::PAGE))).chain(dirty)
    }
}

impl Partials {
    fn reserve(&mut self, last: Mfn) -> Result<(), OutOfTableMemory> {
        let superframes = usize::try_from(last.superframe().number() + 1);
        let superframes = superframes.map_err(|_| OutOfTableMemory)?;
        if superframes > self.slots.len() {
            let more = superframes - self.slots.len();
            self.slots.try_reserve(more).map_err(|_| OutOfTableMemory)?;
            self.slots.resize(superframes, 0);
        }
        self.partials.try_reserve(1).map_err(|_| OutOfTableMemory)
    }

    /// The slot of a superframe, made for it if it has none.
    fn slot(&mut self, superframe: Superframe) -> usize {
        if self.slots.len() <= superframe.index() {
            // Not reserved: as infallible as any other growth.
            self.slots.resize(superframe.index() + 1, 0);
        }
        let slot = &mut self.slots[superframe.index()];
        if *slot == 0 {
            self.partials.push(Partial { superframe, here: PageBits::default(), count: 0 });
            *slot = self.partials.len() as u32;
        }
        *slot as usize - 1
    }

    /// Puts a page in; its superframe, taken out again, if that makes it whole.
    fn put(&mut self, mfn: Mfn) -> Option<Mfn> {
        let superframe = mfn.superframe();
        let slot = self.slot(superframe);
        let partial = &mut self.partials[slot];
        let is_new = partial.here.insert(mfn.index_in_superframe());
        debug_assert!(is_new, "INV-1: {mfn:?} is cached already");
        partial.count += 1;
        self.pages += 1;
        if u64::from(partial.count) < SUPERPAGE_PAGES {
            return None;
        }
        self.remove(slot);
        self.pages -= SUPERPAGE_PAGES;
        Some(superframe.first())
    }

    /// Puts all pages of a superframe in as singles.
    fn put_whole(&mut self, mfn: Mfn) -> Result<(), OutOfTableMemory> {
        self.reserve(mfn)?;
        let slot = self.slot(mfn.superframe());
        let partial = &mut self.partials[slot];
        partial.here = PageBits::ALL;
        partial.count = SUPERPAGE_PAGES as u16;
        self.pages += SUPERPAGE_PAGES;
        Ok(())
    }

    /// Takes the lowest page of the superframe that was broken last.
    fn take(&mut self) -> Option<Mfn> {
        self.take_at(self.partials.len().checked_sub(1)?)
    }

    /// Takes the lowest page of the superframe in a slot.
    fn take_at(&mut self, slot: usize) -> Option<Mfn> {
        let partial = self.partials.get_mut(slot)?;
        let mfn = partial.superframe.frame(partial.here.take_first()?);
        self.count_taken(slot);
        Some(mfn)
    }

    /// Takes a given page. Returns false if it is not here.
    fn take_out(&mut self, mfn: Mfn) -> bool {
        let Some(slot) = self.slot_of(mfn.superframe()) else { return false };
        let here = self.partials[slot].here.remove(mfn.index_in_superframe());
        if here {
            self.count_taken(slot);
        }
        here
    }

    fn slot_of(&self, superframe: Superframe) -> Option<usize> {
        (*self.slots.get(superframe.index())? as usize).checked_sub(1)
    }

    /// Counts a page that was taken out of a slot.
    fn count_taken(&mut self, slot: usize) {
        let partial = &mut self.partials[slot];
        partial.count -= 1;
        self.pages -= 1;
        if partial.count == 0 {
            self.remove(slot);
        }
    }

    fn remove(&mut self, slot: usize) {
        let gone = self.partials.swap_remove(slot);
        self.slots[gone.superframe.index()] = 0;
        if let Some(moved) = self.partials.get(slot) {
            self.slots[moved.superframe.index()] = slot as u32 + 1;
        }
    }

    fn iter(&self) -> impl Iterator<Item = Mfn> + '_ {
        self.partials
            .iter()
            .flat_map(|partial| partial.here.iter().map(|index| partial.superframe.frame(index)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_superpage_is_broken_only_for_want_of_a_single_and_in_ascending_order() {
        let mut cache = Cache::fifo();
        assert_eq!(cache.put(Mfn::new(512), Order::SUPERPAGE), None);
        assert_eq!(cache.put(Mfn::new(7), Order::PAGE), None);
        assert_eq!(cache.take_single(), Some(Mfn::new(7)));
        assert_eq!(cache.take_single(), Some(Mfn::new(512)));
        assert_eq!(cache.take_single(), Some(Mfn::new(513)));
        assert_eq!(cache.take_superpage(), None);
        assert_eq!(cache.pages(), 510);
    }

    #[test]
    fn runs_go_to_the_list_of_their_size() {
        for mut cache in [Cache::fifo(), Cache::joining()] {
            assert_eq!(cache.put(Mfn::new(0), Order::new(10).unwrap()), None);
            assert_eq!(cache.put(Mfn::new(2048), Order::new(3).unwrap()), None);
            assert_eq!((cache.superpages(), cache.singles()), (2, 8));
            let mut frames: Vec<_> = cache.iter().map(|(mfn, _)| mfn.raw()).collect();
            frames.sort_unstable();
            assert_eq!(frames, [0, 512, 2048, 2049, 2050, 2051, 2052, 2053, 2054, 2055]);
        }
    }

    #[test]
    fn singles_that_are_all_home_are_a_superpage_again() {
        let mut cache = Cache::joining();
        for mfn in [512, 1024] {
            cache.reserve(1, Mfn::new(mfn), 0).unwrap();
            assert_eq!(cache.put(Mfn::new(mfn), Order::SUPERPAGE), None);
        }
        let taken: Vec<_> = (0..700).map(|_| cache.take_single().unwrap()).collect();
        assert_eq!((taken[0], taken[512]), (Mfn::new(1024), Mfn::new(512)));
        assert_eq!((cache.superpages(), cache.singles()), (0, 324));
        let mut whole = Vec::new();
        for mfn in taken.into_iter().rev() {
            whole.extend(cache.put(mfn, Order::PAGE));
        }
        assert_eq!(whole, [Mfn::new(512), Mfn::new(1024)]);
        assert_eq!((cache.pages(), cache.iter().count()), (0, 0));
        assert_eq!(cache.take_single(), None);
    }

    #[test]
    fn a_single_of_a_certain_superframe_is_found_there() {
        for mut cache in [Cache::fifo(), Cache::joining()] {
            for mfn in [1024, 2047, 513, 1535, 700] {
                assert_eq!(cache.put(Mfn::new(mfn), Order::PAGE), None);
            }
            let mut found: Vec<_> =
                core::iter::from_fn(|| cache.take_single_in(Mfn::new(1024))).collect();
            found.sort_unstable();
            assert_eq!(found, [Mfn::new(1024), Mfn::new(1535)]);
            assert_eq!(cache.take_single_in(Mfn::new(4096)), None);
            assert_eq!(cache.singles(), 3);
        }
    }

    #[test]
    fn what_is_to_be_cleared_comes_back_superpages_first() {
        let mut cache = Cache::joining();
        let dirty = |mfn, order| Dirty { mfn: Mfn::new(mfn), order, flushed: true };
        cache.put_dirty(dirty(3, Order::PAGE));
        assert!(!cache.has_dirty_superpage());
        cache.put_dirty(dirty(512, Order::SUPERPAGE));
        assert!(cache.has_dirty_superpage());
        assert_eq!(cache.dirty_pages(), 513);
        assert_eq!(cache.take_dirty().map(|dirty| dirty.mfn), Some(Mfn::new(512)));
        assert_eq!((cache.has_dirty_superpage(), cache.dirty_pages()), (false, 1));
    }

    #[test]
    fn what_was_reserved_needs_no_growth() {
        for mut cache in [Cache::fifo(), Cache::joining()] {
            cache.reserve(4, Mfn::new(5 * 512), 700).unwrap();
            assert!(cache.superpages.capacity() >= 5 && cache.dirty.capacity() >= 700);
            match &cache.singles {
                Singles::Fifo(list) => assert!(list.capacity() >= 700),
                Singles::Joining(partials) => {
                    assert_eq!((partials.slots.len(), partials.partials.len()), (7, 0));
                    assert!(partials.partials.capacity() >= 1);
                }
            }
        }
        let mut cache = Cache::joining();
        cache.expect_frames(10 * 512).unwrap();
        assert!(cache.superpages.capacity() >= 11 && cache.dirty.capacity() >= EXPECTED_DIRTY);
        let Singles::Joining(partials) = &cache.singles else { unreachable!() };
        assert_eq!(partials.slots.len(), 10);
        assert!(partials.partials.capacity() >= 10);
    }

    #[test]
    fn one_frame_is_taken_out_and_the_others_stay() {
        let superpage = |n| Dirty { mfn: Mfn::new(n), order: Order::SUPERPAGE, flushed: true };
        for mut cache in [Cache::fifo(), Cache::joining()] {
            cache.reserve(2, Mfn::new(2048), 1024).unwrap();
            assert_eq!(cache.put(Mfn::new(512), Order::SUPERPAGE), None);
            assert_eq!(cache.put(Mfn::new(5), Order::PAGE), None);
            cache.put_dirty(superpage(1024));
            for (mfn, here) in [(512, true), (512, false), (1535, true), (5, true), (6, false)] {
                assert_eq!(cache.take_out(Mfn::new(mfn)), Ok(here), "{mfn}");
            }
            assert_eq!((cache.superpages(), cache.singles(), cache.dirty_pages()), (0, 511, 511));
            assert!(cache.iter().all(|(mfn, order)| mfn.raw() != 512 && order == Order::PAGE));
            assert!(!cache.has_dirty_superpage());
            let dirty: Vec<_> = core::iter::from_fn(|| cache.take_dirty()).collect();
            assert_eq!(
                (dirty.len(), dirty[0].mfn, dirty[510].mfn.raw()),
                (511, Mfn::new(1024), 1534)
            );
        }
    }
}
