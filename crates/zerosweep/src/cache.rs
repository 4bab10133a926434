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

use crate::error::OutOfTableMemory;
use crate::frame::{Mfn, Order, SUPERPAGE_PAGES, Superframe};
use crate::run::{Run, Unflushed};
use crate::superframes::PartialSuperframes;

/// Runs that may be waiting to be cleared before their list has to grow.
const EXPECTED_DIRTY: usize = 8192;

/// The frames that a domain holds and has not handed out.
pub struct Cache {
    superpages: VecDeque<Superframe>,
    singles: Singles,
    dirty: VecDeque<Dirty>,
    dirty_pages: u64,
}

/// A run that is to be cleared before it is handed out.
#[must_use = "a run in hand goes to the cache, to the host or to an entry"]
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Dirty {
    /// No CPU can reach it.
    Flushed(Run),
    /// A CPU may reach it until the next flush.
    Unflushed(Unflushed),
}

impl Dirty {
    /// Its first frame.
    pub(crate) fn mfn(&self) -> Mfn {
        match self {
            Self::Flushed(run) => run.mfn(),
            Self::Unflushed(run) => run.mfn(),
        }
    }

    /// Its size: a page or a superpage.
    pub(crate) fn order(&self) -> Order {
        match self {
            Self::Flushed(run) => run.order(),
            Self::Unflushed(run) => run.order(),
        }
    }

    /// Its pages, each by itself.
    fn into_pages(self) -> impl Iterator<Item = Self> {
        let (mfn, order) = (self.mfn(), self.order());
        let is_flushed = matches!(self, Self::Flushed(_));
        (0..order.pages()).map(move |index| {
            let page = mfn.offset(index);
            match is_flushed {
                true => Self::Flushed(Run::page(page)),
                false => Self::Unflushed(Unflushed::new(page, Order::PAGE)),
            }
        })
    }
}

enum Singles {
    Fifo(VecDeque<Mfn>),
    Joining(PartialSuperframes),
}

impl Cache {
    /// An empty cache that never rejoins singles.
    pub(crate) fn fifo() -> Self {
        Self::with(Singles::Fifo(VecDeque::new()))
    }

    /// An empty cache that rejoins singles.
    pub(crate) fn joining() -> Self {
        Self::with(Singles::Joining(PartialSuperframes::default()))
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
            Singles::Joining(partials) => partials.pages(),
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
            Singles::Joining(partials) => partials.reserve(mfn.offset(singles).superframe()),
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
            partials.reserve_partials(superframes)?;
            partials.reserve(Mfn::new(frames.saturating_sub(1)).superframe())?;
        }
        Ok(())
    }

    /// Puts in a run: superpages of an order ≥ 9, singles of a smaller one. A superframe that
    /// becomes complete is not kept but handed back: the caller puts it in as a superpage.
    ///
    /// The caller has [reserved](Cache::reserve) room where it cannot do without.
    #[must_use = "a superframe that has become whole is in the caller's hands"]
    pub(crate) fn put(&mut self, run: Run) -> Option<Run> {
        if run.order() >= Order::SUPERPAGE {
            self.superpages.extend(run.into_superframes());
            return None;
        }
        match &mut self.singles {
            Singles::Fifo(list) => {
                list.extend(run.frames());
                None
            }
            // A run of less than a superpage lies within one: at most one is completed.
            Singles::Joining(partials) => {
                run.frames().filter_map(|page| partials.put(page)).last().map(Run::superframe)
            }
        }
    }

    /// Puts a superpage in that could not be used: every other one is handed out before it.
    pub(crate) fn put_last(&mut self, run: Run) {
        let superframe = run.into_mfn().superframe();
        match self.singles {
            Singles::Fifo(_) => self.superpages.push_back(superframe),
            Singles::Joining(_) => self.superpages.push_front(superframe),
        }
    }

    /// Puts in a run that is to be cleared; room was [reserved](Cache::reserve).
    pub(crate) fn put_dirty(&mut self, dirty: Dirty) {
        self.dirty_pages += dirty.order().pages();
        if dirty.order() >= Order::SUPERPAGE {
            self.dirty.push_front(dirty);
        } else {
            self.dirty.push_back(dirty);
        }
    }

    /// Takes a run that is to be cleared, superpages first.
    pub(crate) fn take_dirty(&mut self) -> Option<Dirty> {
        let dirty = self.dirty.pop_front()?;
        self.dirty_pages -= dirty.order().pages();
        Some(dirty)
    }

    /// Whether a superpage is to be cleared.
    #[must_use]
    pub fn has_dirty_superpage(&self) -> bool {
        self.dirty.front().is_some_and(|dirty| dirty.order() >= Order::SUPERPAGE)
    }

    /// Takes a superpage to use it.
    pub(crate) fn take_superpage(&mut self) -> Option<Run> {
        let superframe = match self.singles {
            Singles::Fifo(_) => self.superpages.pop_front(),
            Singles::Joining(_) => self.superpages.pop_back(),
        };
        superframe.map(Run::superframe)
    }

    /// Takes a superpage to give it back to the host: the oldest.
    pub(crate) fn take_superpage_to_return(&mut self) -> Option<Run> {
        self.superpages.pop_front().map(Run::superframe)
    }

    /// Takes a single; breaks the next superpage if there is none.
    pub(crate) fn take_single(&mut self) -> Option<Run> {
        if self.singles() == 0 {
            match &mut self.singles {
                Singles::Fifo(list) => {
                    let broken = self.superpages.front()?;
                    list.try_reserve(SUPERPAGE_PAGES as usize).ok()?;
                    list.extend(Run::superframe(*broken).frames());
                    self.superpages.pop_front();
                }
                Singles::Joining(partials) => {
                    partials.put_whole(*self.superpages.back()?).ok()?;
                    self.superpages.pop_back();
                }
            }
        }
        let mfn = match &mut self.singles {
            Singles::Fifo(list) => list.pop_front(),
            Singles::Joining(partials) => partials.take(),
        };
        mfn.map(Run::page)
    }

    /// Takes a single of the given superframe, if one is here to be handed out.
    pub(crate) fn take_single_in(&mut self, superframe: Superframe) -> Option<Run> {
        let mfn = match &mut self.singles {
            Singles::Fifo(list) => {
                let index = list.iter().position(|mfn| mfn.superframe() == superframe)?;
                list.remove(index)
            }
            Singles::Joining(partials) => partials.take_in(superframe),
        };
        mfn.map(Run::page)
    }

    /// Takes one frame out, wherever it is; of a superpage the other 511 stay, as singles. False if
    /// it is not here.
    ///
    /// # Errors
    /// When there is no memory to keep the others; nothing is changed then.
    pub(crate) fn take_out(&mut self, mfn: Mfn) -> Result<bool, OutOfTableMemory> {
        let superframe = mfn.superframe();
        if let Some(index) = self.superpages.iter().position(|&whole| whole == superframe) {
            self.reserve(0, superframe.first(), SUPERPAGE_PAGES)?;
            self.superpages.remove(index);
            // One is missing: they do not join.
            for page in Run::superframe(superframe).into_pages().filter(|page| page.mfn() != mfn) {
                let _ = self.put(page);
            }
            return Ok(true);
        }
        let here = |dirty: &Dirty| dirty.mfn() == mfn.align_down(dirty.order());
        if let Some(index) = self.dirty.iter().position(here) {
            self.dirty.try_reserve(SUPERPAGE_PAGES as usize).map_err(|_| OutOfTableMemory)?;
            let Some(dirty) = self.dirty.remove(index) else { return Ok(false) };
            self.dirty_pages -= dirty.order().pages();
            let others = dirty.into_pages().filter(|page| page.mfn() != mfn);
            others.for_each(|page| self.put_dirty(page));
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
        let superpages = (0..count).map(move |n| (nth(n).first(), Order::SUPERPAGE));
        let (fifo, joining) = match &self.singles {
            Singles::Fifo(list) => (Some(list.iter().copied()), None),
            Singles::Joining(partials) => (None, Some(partials.iter())),
        };
        let singles = fifo.into_iter().flatten().chain(joining.into_iter().flatten());
        let dirty = self.dirty.iter().map(|dirty| (dirty.mfn(), dirty.order()));
        superpages.chain(singles.map(|mfn| (mfn, Order::PAGE))).chain(dirty)
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    fn page(mfn: u64) -> Run {
        Run::page(Mfn::new(mfn))
    }

    fn superframe(mfn: u64) -> Run {
        Run::new(Mfn::new(mfn), Order::SUPERPAGE)
    }

    #[test]
    fn a_superpage_is_broken_only_for_want_of_a_single_and_in_ascending_order() {
        let mut cache = Cache::fifo();
        assert_eq!(cache.put(superframe(512)), None);
        assert_eq!(cache.put(page(7)), None);
        assert_eq!(cache.take_single(), Some(page(7)));
        assert_eq!(cache.take_single(), Some(page(512)));
        assert_eq!(cache.take_single(), Some(page(513)));
        assert_eq!(cache.take_superpage(), None);
        assert_eq!(cache.pages(), 510);
    }

    #[test]
    fn runs_go_to_the_list_of_their_size() {
        for mut cache in [Cache::fifo(), Cache::joining()] {
            assert_eq!(cache.put(Run::new(Mfn::new(0), Order::new(10).unwrap())), None);
            assert_eq!(cache.put(Run::new(Mfn::new(2048), Order::new(3).unwrap())), None);
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
            assert_eq!(cache.put(superframe(mfn)), None);
        }
        let taken: Vec<_> = (0..700).map(|_| cache.take_single().unwrap()).collect();
        assert_eq!((&taken[0], &taken[512]), (&page(1024), &page(512)));
        assert_eq!((cache.superpages(), cache.singles()), (0, 324));
        let mut whole = Vec::new();
        for run in taken.into_iter().rev() {
            whole.extend(cache.put(run));
        }
        assert_eq!(whole, [superframe(512), superframe(1024)]);
        assert_eq!((cache.pages(), cache.iter().count()), (0, 0));
        assert_eq!(cache.take_single(), None);
    }

    #[test]
    fn a_single_of_a_certain_superframe_is_found_there() {
        for mut cache in [Cache::fifo(), Cache::joining()] {
            for mfn in [1024, 2047, 513, 1535, 700] {
                assert_eq!(cache.put(page(mfn)), None);
            }
            let taken = core::iter::from_fn(|| cache.take_single_in(Superframe::new(2)));
            let mut found: Vec<_> = taken.map(Run::into_mfn).collect();
            found.sort_unstable();
            assert_eq!(found, [Mfn::new(1024), Mfn::new(1535)]);
            assert_eq!(cache.take_single_in(Superframe::new(8)), None);
            assert_eq!(cache.singles(), 3);
        }
    }

    #[test]
    fn what_is_to_be_cleared_comes_back_superpages_first() {
        let mut cache = Cache::joining();
        cache.put_dirty(Dirty::Flushed(page(3)));
        assert!(!cache.has_dirty_superpage());
        cache.put_dirty(Dirty::Flushed(superframe(512)));
        assert!(cache.has_dirty_superpage());
        assert_eq!(cache.dirty_pages(), 513);
        assert_eq!(cache.take_dirty().map(|dirty| dirty.mfn()), Some(Mfn::new(512)));
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
                    let (partial, superframes) = partials.capacity();
                    assert!(partial >= 1 && superframes == 7);
                }
            }
        }
        let mut cache = Cache::joining();
        cache.expect_frames(10 * 512).unwrap();
        assert!(cache.superpages.capacity() >= 11 && cache.dirty.capacity() >= EXPECTED_DIRTY);
        let Singles::Joining(partials) = &cache.singles else { unreachable!() };
        let (partial, superframes) = partials.capacity();
        assert!(partial >= 10 && superframes == 10);
    }

    #[test]
    fn one_frame_is_taken_out_and_the_others_stay() {
        for mut cache in [Cache::fifo(), Cache::joining()] {
            cache.reserve(2, Mfn::new(2048), 1024).unwrap();
            assert_eq!(cache.put(superframe(512)), None);
            assert_eq!(cache.put(page(5)), None);
            cache.put_dirty(Dirty::Flushed(superframe(1024)));
            for (mfn, here) in [(512, true), (512, false), (1535, true), (5, true), (6, false)] {
                assert_eq!(cache.take_out(Mfn::new(mfn)), Ok(here), "{mfn}");
            }
            assert_eq!((cache.superpages(), cache.singles(), cache.dirty_pages()), (0, 511, 511));
            assert!(cache.iter().all(|(mfn, order)| mfn.raw() != 512 && order == Order::PAGE));
            assert!(!cache.has_dirty_superpage());
            let dirty: Vec<_> = core::iter::from_fn(|| cache.take_dirty()).collect();
            assert_eq!(
                (dirty.len(), dirty[0].mfn().raw(), dirty[510].mfn().raw()),
                (511, 1024, 1534)
            );
        }
    }
}
