//! The audit (rule [R19]): every counter is recomputed from the tables ([INV-1], [INV-2]).
//!
//! [R19]: crate::rules#r19
//! [INV-1]: crate::rules#inv-1
//! [INV-2]: crate::rules#inv-2

use alloc::vec::Vec;
use core::fmt;

use crate::domain::Domain;
use crate::error::OutOfTableMemory;
use crate::frame::{Mfn, Order, Superpage};
use crate::p2m::{Entry, Tally};
use crate::page_bits::PageBits;
use crate::superframes::PerSuperframe;

/// The first difference that an audit found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AuditError {
    /// A counter is not what the tables say.
    Counter {
        /// Which.
        name: &'static str,
        /// What it says.
        counter: u64,
        /// What was counted.
        recount: u64,
    },
    /// A broken range's tally is not what its entries say.
    Tally(Superpage),
    /// A frame is in two places ([INV-1]).
    ///
    /// [INV-1]: crate::rules#inv-1
    FrameTwice(Mfn),
    /// There is no memory to audit with.
    OutOfMemory,
}

impl fmt::Display for AuditError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Counter { name, counter, recount } => {
                write!(f, "{name} is {counter}, but the tables say {recount}")
            }
            Self::Tally(superpage) => write!(f, "the tally of {superpage:?} is wrong"),
            Self::FrameTwice(mfn) => write!(f, "frame {mfn} is in two places"),
            Self::OutOfMemory => f.write_str("no memory to audit with"),
        }
    }
}

impl core::error::Error for AuditError {}

impl From<OutOfTableMemory> for AuditError {
    fn from(_: OutOfTableMemory) -> Self {
        Self::OutOfMemory
    }
}

impl Domain {
    /// Recomputes every counter from the tables, and names the first difference. Operations in
    /// other threads may be under way: what they hold is allowed for. Nothing may change meanwhile;
    /// it takes a millisecond or two for each GiB that is all singles, and next to nothing for
    /// superpages that are whole.
    ///
    /// # Errors
    /// The first difference.
    pub fn audit(&self) -> Result<(), AuditError> {
        let mut frames = Frames::default();
        let counted = self.recount(&mut frames)?;
        let flight = &self.flight;
        let expect = |name, counter: u64, recount| {
            if counter == recount {
                Ok(())
            } else {
                Err(AuditError::Counter { name, counter, recount })
            }
        };
        expect("entries", self.entries + flight.from_pod, counted.pod)?;
        let in_flight = flight.from_pod + flight.from_invalid;
        let retained = self.recount_retained();
        expect("retained", self.p2m.retained_pages(), retained)?;
        expect("populated and retained", self.populated + retained - in_flight, counted.ram)?;
        let cached = self.cache.iter().map(|(_, order)| order.pages()).sum();
        expect("cache", self.cache.pages(), cached)?;
        self.cache.iter().try_for_each(|(mfn, order)| frames.insert(mfn, order))
    }

    fn recount_retained(&self) -> u64 {
        let superpages = (0..self.p2m.superpages()).map(Superpage::new);
        superpages.map(|superpage| self.p2m.out_bits(superpage).count()).sum()
    }

    fn recount(&self, frames: &mut Frames) -> Result<Tally, AuditError> {
        let mut all = Tally::default();
        for superpage in (0..self.p2m.superpages()).map(Superpage::new) {
            let mut here = Tally::default();
            if let Some(entry) = self.p2m.whole(superpage) {
                here = Tally::of(entry, Order::SUPERPAGE.pages());
                if let Entry::Ram { mfn, .. } = entry {
                    frames.insert(mfn, Order::SUPERPAGE)?;
                }
            } else {
                for index in 0..512 {
                    let (entry, _) = self.p2m.get(superpage.page(index));
                    let one = Tally::of(entry, 1);
                    here.pod += one.pod;
                    here.ram += one.ram;
                    here.special += one.special;
                    if let Entry::Ram { mfn, .. } = entry {
                        frames.insert_single(mfn)?;
                    }
                }
            }
            if here != self.p2m.tally(superpage) {
                return Err(AuditError::Tally(superpage));
            }
            all.pod += here.pod;
            all.ram += here.ram;
        }
        Ok(all)
    }
}

/// Which frames were seen.
#[derive(Default)]
struct Frames {
    /// For each superframe 0, or one more than its slot in `partly`, or [`WHOLE`].
    slots: PerSuperframe<u32>,
    partly: Vec<PageBits>,
}

/// All frames of a superframe were seen, as one.
const WHOLE: u32 = u32::MAX;

impl Frames {
    fn insert(&mut self, mfn: Mfn, order: Order) -> Result<(), AuditError> {
        if order == Order::SUPERPAGE && mfn.is_aligned(order) {
            let slot = self.slots.get_mut(mfn.superframe())?;
            let first = *slot == 0;
            *slot = WHOLE;
            return if first { Ok(()) } else { Err(AuditError::FrameTwice(mfn)) };
        }
        (0..order.pages()).try_for_each(|i| self.insert_single(mfn.offset(i)))
    }

    fn insert_single(&mut self, mfn: Mfn) -> Result<(), AuditError> {
        let slot = self.slots.get_mut(mfn.superframe())?;
        if *slot == 0 {
            self.partly.try_reserve(1).map_err(|_| AuditError::OutOfMemory)?;
            self.partly.push(PageBits::default());
            *slot = self.partly.len() as u32;
        }
        let index = mfn.index_in_superframe();
        let seen = self.partly.get_mut(*slot as usize - 1);
        let first = seen.is_some_and(|seen| seen.insert(index));
        if first { Ok(()) } else { Err(AuditError::FrameTwice(mfn)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Config;
    use crate::p2m::RamState;
    use crate::policy::Policy;
    use crate::run::Run;

    fn domain() -> Domain {
        Domain::new(Config::new(1024, 1024, Policy::Zerosweep)).unwrap()
    }

    #[test]
    fn a_counter_that_is_off_is_named() {
        let mut d = domain();
        assert_eq!(d.audit(), Ok(()));
        d.entries = 3;
        let error = AuditError::Counter { name: "entries", counter: 3, recount: 0 };
        assert_eq!(d.audit(), Err(error));
    }

    #[test]
    fn what_other_threads_hold_is_allowed_for() {
        let mut d = domain();
        let ram = Entry::Ram { mfn: Mfn::new(512), state: RamState::Mapped };
        d.p2m.set_whole(Superpage::new(0), ram);
        d.p2m.set_whole(Superpage::new(1), Entry::Pod);
        (d.populated, d.entries) = (512 + 7, 512 - 5);
        (d.flight.from_pod, d.flight.from_invalid) = (5, 2);
        assert_eq!(d.audit(), Ok(()));
        d.flight.from_invalid = 3;
        let name = "populated and retained";
        let error = AuditError::Counter { name, counter: 511, recount: 512 };
        assert_eq!(d.audit(), Err(error));
    }

    #[test]
    fn a_frame_that_is_both_mapped_and_cached_is_found() {
        let mut d = domain();
        let ram = Entry::Ram { mfn: Mfn::new(512), state: RamState::Mapped };
        d.p2m.set_whole(Superpage::new(0), ram);
        d.populated = 512;
        assert_eq!(d.audit(), Ok(()));
        assert_eq!(d.cache.put(Run::page(Mfn::new(700))), None);
        assert_eq!(d.audit(), Err(AuditError::FrameTwice(Mfn::new(700))));
    }

    #[test]
    fn a_frame_is_seen_once_alone_or_in_its_superpage() {
        let twice = |mfn| Err(AuditError::FrameTwice(Mfn::new(mfn)));
        let mut frames = Frames::default();
        let (page, superpage) = (Order::PAGE, Order::SUPERPAGE);
        for (mfn, order) in [(1024, superpage), (5, page), (511, page), (512, page), (6, page)] {
            assert_eq!(frames.insert(Mfn::new(mfn), order), Ok(()));
        }
        for (mfn, order) in [(1024, superpage), (1024, page), (1535, page), (5, page)] {
            assert_eq!(frames.insert(Mfn::new(mfn), order), twice(mfn));
        }
        assert_eq!(frames.insert(Mfn::new(512), superpage), twice(512));
        // A run that is none of the usual ones is its pages.
        assert_eq!(frames.insert(Mfn::new(16), Order::new(3).unwrap()), Ok(()));
        assert_eq!(frames.insert(Mfn::new(23), page), twice(23));
        assert_eq!(frames.insert(Mfn::new(24), page), Ok(()));
    }
}
