//! The audit (rule R19): every counter is recomputed from the tables.

use alloc::vec::Vec;
use core::fmt;

use crate::domain::Domain;
use crate::frame::{Mfn, Order, Superpage};
use crate::p2m::{Entry, Tally};

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
    /// A frame is in two places (INV-1).
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

impl Domain {
    /// Recomputes every counter from the tables, and names the first difference. Operations in
    /// other threads may be under way: what they hold is allowed for.
    ///
    /// # Errors
    /// The first difference.
    pub fn audit(&self) -> Result<(), AuditError> {
        let mut frames = Vec::new();
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
        for (mfn, order) in self.cache.iter() {
            push(&mut frames, mfn, order.pages())?;
        }
        no_frame_twice(&mut frames)
    }

    fn recount_retained(&self) -> u64 {
        let superpages = (0..self.p2m.superpages()).map(Superpage::new);
        superpages.map(|superpage| self.p2m.out_bits(superpage).count()).sum()
    }

    fn recount(&self, frames: &mut Vec<(u64, u64)>) -> Result<Tally, AuditError> {
        let mut all = Tally::default();
        for superpage in (0..self.p2m.superpages()).map(Superpage::new) {
            let mut here = Tally::default();
            if let Some(entry) = self.p2m.whole(superpage) {
                here = Tally::of(entry, Order::SUPERPAGE.pages());
                if let Entry::Ram { mfn, .. } = entry {
                    push(frames, mfn, Order::SUPERPAGE.pages())?;
                }
            } else {
                for index in 0..512 {
                    let (entry, _) = self.p2m.get(superpage.page(index));
                    let one = Tally::of(entry, 1);
                    here.pod += one.pod;
                    here.ram += one.ram;
                    here.special += one.special;
                    if let Entry::Ram { mfn, .. } = entry {
                        push(frames, mfn, 1)?;
                    }
                }
            }
            if here != self.p2m.tally(superpage) {
                return Err(AuditError::Tally(superpage));
            }
            all.pod += here.pod;
            all.ram += here.ram;
            all.special += here.special;
        }
        Ok(all)
    }
}

fn push(frames: &mut Vec<(u64, u64)>, mfn: Mfn, pages: u64) -> Result<(), AuditError> {
    frames.try_reserve(1).map_err(|_| AuditError::OutOfMemory)?;
    frames.push((mfn.raw(), pages));
    Ok(())
}

fn no_frame_twice(frames: &mut [(u64, u64)]) -> Result<(), AuditError> {
    frames.sort_unstable();
    match frames.windows(2).find(|pair| pair[0].0 + pair[0].1 > pair[1].0) {
        Some(pair) => Err(AuditError::FrameTwice(Mfn::new(pair[1].0))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Config;
    use crate::p2m::Hold;
    use crate::policy::Policy;

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
        let ram = Entry::Ram { mfn: Mfn::new(512), hold: Hold::Free };
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
        let ram = Entry::Ram { mfn: Mfn::new(512), hold: Hold::Free };
        d.p2m.set_whole(Superpage::new(0), ram);
        d.populated = 512;
        assert_eq!(d.audit(), Ok(()));
        assert_eq!(d.cache.put(Mfn::new(700), Order::PAGE), None);
        assert_eq!(d.audit(), Err(AuditError::FrameTwice(Mfn::new(700))));
    }
}
