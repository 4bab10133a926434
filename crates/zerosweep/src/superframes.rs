//! A value for each superframe, and sets of frames that know which superframes they hold in part.

use alloc::vec::Vec;

use crate::error::OutOfTableMemory;
use crate::frame::{Mfn, SUPERPAGE_PAGES, Superframe};
use crate::page_bits::PageBits;

/// A value for each superframe; the default one where none was set. It grows up to the highest
/// superframe that was asked for.
#[derive(Default)]
pub(crate) struct PerSuperframe<T> {
    values: Vec<T>,
}

impl<T: Clone + Default> PerSuperframe<T> {
    /// Makes room for superframes 0 to `last`.
    ///
    /// # Errors
    /// When there is no memory. Nothing was changed.
    #[inline]
    pub(crate) fn reserve(&mut self, last: Superframe) -> Result<(), OutOfTableMemory> {
        if last.number() < self.values.len() as u64 { Ok(()) } else { self.grow(last) }
    }

    #[cold]
    fn grow(&mut self, last: Superframe) -> Result<(), OutOfTableMemory> {
        let count = usize::try_from(last.number() + 1).map_err(|_| OutOfTableMemory)?;
        let more = count - self.values.len();
        self.values.try_reserve(more).map_err(|_| OutOfTableMemory)?;
        self.values.resize(count, T::default());
        Ok(())
    }

    /// Returns the value of a superframe, if it was ever asked for.
    pub(crate) fn get(&self, superframe: Superframe) -> Option<&T> {
        self.values.get(superframe.index())
    }

    /// Returns the value of a superframe, to change it.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub(crate) fn get_mut(&mut self, superframe: Superframe) -> Result<&mut T, OutOfTableMemory> {
        self.reserve(superframe)?;
        Ok(&mut self.values[superframe.index()])
    }

    /// As [`PerSuperframe::get_mut`] where room was reserved. Without it, this is as infallible as
    /// any other growth.
    fn reserved(&mut self, superframe: Superframe) -> &mut T {
        if self.values.len() <= superframe.index() {
            self.values.resize(superframe.index() + 1, T::default());
        }
        &mut self.values[superframe.index()]
    }

    /// Every superframe up to the highest one, with its value.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Superframe, &T)> {
        self.values.iter().enumerate().map(|(n, value)| (Superframe::new(n as u64), value))
    }
}

/// Single frames, by superframe. A superframe all of whose frames are here leaves the set at once.
///
/// ```text
///  slots: one a superframe          partials: one for each superframe that is here in part
///  [ 0 2 0 0 1 0 … ]  ───────────►  [ superframe 4, its bits ] [ superframe 1, its bits ]
/// ```
#[derive(Default)]
pub(crate) struct PartialSuperframes {
    partials: Vec<Partial>,
    /// For each superframe its index in `partials` plus one; 0: it has none.
    slots: PerSuperframe<u32>,
    pages: u64,
}

struct Partial {
    superframe: Superframe,
    /// Its frames that are here, and how many these are.
    here: PageBits,
    count: u16,
}

impl PartialSuperframes {
    /// How many frames are here.
    pub(crate) fn pages(&self) -> u64 {
        self.pages
    }

    /// Makes room for frames of superframes 0 to `last`, of which one more than now may be partial.
    ///
    /// # Errors
    /// When there is no memory.
    #[inline]
    pub(crate) fn reserve(&mut self, last: Superframe) -> Result<(), OutOfTableMemory> {
        self.reserve_partials(1)?;
        self.slots.reserve(last)
    }

    /// Makes room for `more` superframes that are here in part.
    ///
    /// # Errors
    /// When there is no memory.
    #[inline]
    pub(crate) fn reserve_partials(&mut self, more: usize) -> Result<(), OutOfTableMemory> {
        self.partials.try_reserve(more).map_err(|_| OutOfTableMemory)
    }

    /// Returns whether a frame is here.
    pub(crate) fn contains(&self, mfn: Mfn) -> bool {
        self.slot_of(mfn.superframe())
            .is_some_and(|slot| self.partials[slot].here.contains(mfn.index_in_superframe()))
    }

    /// Returns whether some frame of a superframe is here.
    pub(crate) fn has_any_of(&self, superframe: Superframe) -> bool {
        self.slot_of(superframe).is_some()
    }

    /// Puts a frame in. Returns its superframe, which left the set, if that made it whole.
    pub(crate) fn put(&mut self, mfn: Mfn) -> Option<Superframe> {
        let superframe = mfn.superframe();
        let slot = self.slot(superframe);
        let partial = &mut self.partials[slot];
        let is_new = partial.here.insert(mfn.index_in_superframe());
        debug_assert!(is_new, "INV-1: {mfn:?} is here already");
        partial.count += 1;
        self.pages += 1;
        if u64::from(partial.count) < SUPERPAGE_PAGES {
            return None;
        }
        self.remove(slot);
        self.pages -= SUPERPAGE_PAGES;
        Some(superframe)
    }

    /// Puts all frames of a superframe in. It stays, until the last of them is taken.
    ///
    /// # Errors
    /// When there is no memory. Nothing was changed.
    pub(crate) fn put_whole(&mut self, superframe: Superframe) -> Result<(), OutOfTableMemory> {
        self.reserve(superframe)?;
        let slot = self.slot(superframe);
        let partial = &mut self.partials[slot];
        partial.here = PageBits::ALL;
        partial.count = SUPERPAGE_PAGES as u16;
        self.pages += SUPERPAGE_PAGES;
        Ok(())
    }

    /// Takes the lowest frame of the superframe that became partial last.
    pub(crate) fn take(&mut self) -> Option<Mfn> {
        self.take_at(self.partials.len().checked_sub(1)?)
    }

    /// Takes the lowest frame of a superframe.
    pub(crate) fn take_in(&mut self, superframe: Superframe) -> Option<Mfn> {
        self.take_at(self.slot_of(superframe)?)
    }

    /// Takes a given frame. Returns false if it is not here.
    pub(crate) fn take_out(&mut self, mfn: Mfn) -> bool {
        let Some(slot) = self.slot_of(mfn.superframe()) else { return false };
        let here = self.partials[slot].here.remove(mfn.index_in_superframe());
        if here {
            self.count_taken(slot);
        }
        here
    }

    /// Every frame, by superframe.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Mfn> + '_ {
        self.partials
            .iter()
            .flat_map(|partial| partial.here.iter().map(|index| partial.superframe.frame(index)))
    }

    /// How many superframes may be here in part, and how many there may be in all, before this grows.
    #[cfg(test)]
    pub(crate) fn capacity(&self) -> (usize, usize) {
        (self.partials.capacity(), self.slots.values.len())
    }

    fn take_at(&mut self, slot: usize) -> Option<Mfn> {
        let partial = self.partials.get_mut(slot)?;
        let mfn = partial.superframe.frame(partial.here.take_first()?);
        self.count_taken(slot);
        Some(mfn)
    }

    fn slot_of(&self, superframe: Superframe) -> Option<usize> {
        (*self.slots.get(superframe)? as usize).checked_sub(1)
    }

    /// The slot of a superframe, made for it if it has none.
    fn slot(&mut self, superframe: Superframe) -> usize {
        let slot = self.slots.reserved(superframe);
        if *slot == 0 {
            self.partials.push(Partial { superframe, here: PageBits::EMPTY, count: 0 });
            *slot = self.partials.len() as u32;
        }
        *slot as usize - 1
    }

    /// Counts a frame that was taken out of a slot.
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
        *self.slots.reserved(gone.superframe) = 0;
        if let Some(moved) = self.partials.get(slot) {
            *self.slots.reserved(moved.superframe) = slot as u32 + 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_was_never_set_is_the_default_one() {
        let mut map = PerSuperframe::<u32>::default();
        assert_eq!(map.get(Superframe::new(2)), None);
        *map.get_mut(Superframe::new(2)).unwrap() = 7;
        let all: Vec<_> =
            map.iter().map(|(superframe, &value)| (superframe.number(), value)).collect();
        assert_eq!(all, [(0, 0), (1, 0), (2, 7)]);
        assert_eq!(map.get_mut(Superframe::new(u64::MAX / 512 - 1)).err(), Some(OutOfTableMemory));
    }

    #[test]
    fn a_superframe_leaves_the_set_when_it_is_whole() {
        let mut set = PartialSuperframes::default();
        set.reserve(Superframe::new(5)).unwrap();
        assert_eq!((set.slots.values.len(), set.pages()), (6, 0));
        let frame = |index| Superframe::new(5).frame(index);
        for index in (1..512).rev() {
            assert_eq!(set.put(frame(index)), None);
        }
        assert_eq!(set.put(Mfn::new(7)), None);
        assert!(set.contains(frame(1)) && !set.contains(frame(0)) && !set.contains(Mfn::new(8)));
        assert_eq!(set.put(frame(0)), Some(Superframe::new(5)));
        assert_eq!((set.pages(), set.iter().collect::<Vec<_>>()), (1, [Mfn::new(7)].to_vec()));
        assert!(set.has_any_of(Superframe::new(0)) && !set.has_any_of(Superframe::new(5)));
    }

    #[test]
    fn frames_are_taken_lowest_first_from_what_was_broken_last() {
        let mut set = PartialSuperframes::default();
        set.put_whole(Superframe::new(1)).unwrap();
        set.put_whole(Superframe::new(0)).unwrap();
        assert_eq!(set.take(), Some(Mfn::new(0)));
        assert_eq!(set.take_in(Superframe::new(1)), Some(Mfn::new(512)));
        assert!(set.take_out(Mfn::new(700)) && !set.take_out(Mfn::new(700)));
        assert_eq!(set.take_in(Superframe::new(9)), None);
        let rest: Vec<_> = core::iter::from_fn(|| set.take()).collect();
        assert_eq!((rest.len(), rest[0], set.pages()), (511 + 510, Mfn::new(1), 0));
    }
}
