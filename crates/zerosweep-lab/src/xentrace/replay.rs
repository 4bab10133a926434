//! What each policy would have done with a guest's side of a trace.
//!
//! Of a trace the guest's part is taken ([`Recording`]): the pages that it touched, the pages that
//! it gave back, and what was in them in between. That is done again on the software machine under
//! a policy; what was done then is left out.

use serde::Serialize;
use zerosweep::{
    Config, DecreaseError, Gfn, InvalidTouch, Order, Policy, SUPERPAGE_PAGES, Superpage,
};
use zerosweep_sim::{NewGuestError, SoftwareGuest, SoftwareMachine, TouchError};

use super::Recording;
use super::recording::Step;
use crate::script::superframes_for;

/// What a policy came to.
#[derive(Clone, Debug, Serialize)]
pub struct Replay {
    /// Its name.
    pub policy: String,
    /// Steps until no frame could be found; `None`: all of them were done.
    pub exhausted_after: Option<usize>,
    /// Populates of superpages.
    pub populates_2m: u64,
    /// Populates of single pages.
    pub populates_4k: u64,
    /// Checks of superpages.
    pub zero_checks_2m: u64,
    /// Checks of superpages that found them zero.
    pub zero_checks_2m_hit: u64,
    /// Checks of single pages.
    pub zero_checks_4k: u64,
    /// Bytes read by checks.
    pub bytes_scanned: u64,
    /// Bytes copied.
    pub bytes_copied: u64,
    /// Steps of emergency sweeps.
    pub emergency_sweeps: u64,
    /// Promised superpages broken.
    pub splinters: u64,
    /// Superpages of ram broken.
    pub shatters: u64,
    /// Superpages reclaimed.
    pub superpages_reclaimed: u64,
    /// Single pages reclaimed.
    pub singles_reclaimed: u64,
    /// Waits for all CPUs.
    pub unmap_flushes: u64,
    /// Whole superpages in the guest at the end.
    pub superpages_in_guest: u64,
    /// Whole superpages in the cache at the end.
    pub superpages_in_cache: u64,
    /// Pages promised without a frame at the end.
    pub entries: u64,
    /// Pages in the cache at the end.
    pub cache: u64,
    /// Pages held at the end.
    pub total: u64,
}

/// An invalid guest, or a step that cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// There is no such guest.
    #[error("{0}")]
    Guest(NewGuestError),
    /// A page cannot be touched.
    #[error("gfn {gfn} cannot be touched: {error}")]
    Touch {
        /// Which one.
        gfn: u64,
        /// Why.
        error: TouchError,
    },
    /// A range cannot be given back.
    #[error("gfn {gfn} cannot be given back: {error}")]
    Decrease {
        /// Its first page.
        gfn: u64,
        /// Why.
        error: DecreaseError,
    },
}

impl Recording {
    /// Does it again under `policy`, with a target of `target` pages.
    ///
    /// # Errors
    /// When there can be no such guest, or a step cannot be done.
    pub fn replay(&self, policy: Policy, target: u64) -> Result<Replay, ReplayError> {
        let machine = SoftwareMachine::new(superframes_for(target) * SUPERPAGE_PAGES);
        let invalid_touch =
            if self.takes_back { InvalidTouch::Increase } else { InvalidTouch::Refuse };
        let config = Config { invalid_touch, ..Config::new(self.max_pages, target, policy) };
        let mut guest = SoftwareGuest::on(machine, config).map_err(ReplayError::Guest)?;
        let mut exhausted_after = None;
        for (index, step) in self.steps.iter().enumerate() {
            if !done(&mut guest, step)? {
                exhausted_after = Some(index);
                break;
            }
        }
        Ok(Replay::of(&guest, policy, exhausted_after))
    }
}

/// False if there was no frame.
fn done(guest: &mut SoftwareGuest, step: &Step) -> Result<bool, ReplayError> {
    match *step {
        Step::Touch { gfn, zero } => touch(guest, gfn, u64::from(!zero)),
        Step::TouchSuperpage { gfn, ref data } => {
            let first = gfn & !(SUPERPAGE_PAGES - 1);
            let has_data = |index: u64| data[(index / 64) as usize] >> (index % 64) & 1 == 1;
            let faulting = gfn - first;
            let others = (0..SUPERPAGE_PAGES).filter(|&n| n != faulting && has_data(n));
            for index in std::iter::once(faulting).chain(others) {
                if !touch(guest, first + index, u64::from(has_data(index)))? {
                    return Ok(false);
                }
            }
            Ok(true)
        }
        Step::Decrease { gfn, order } => {
            let Some(order) = Order::new(order) else { return Ok(true) };
            match guest.session().decrease(Gfn::new(gfn), order) {
                Ok(_) => Ok(true),
                Err(error) => Err(ReplayError::Decrease { gfn, error }),
            }
        }
    }
}

fn touch(guest: &mut SoftwareGuest, gfn: u64, value: u64) -> Result<bool, ReplayError> {
    match guest.write(Gfn::new(gfn), 0, value) {
        Ok(()) => Ok(true),
        Err(TouchError::Exhausted) => Ok(false),
        Err(error) => Err(ReplayError::Touch { gfn, error }),
    }
}

impl Replay {
    fn of(guest: &SoftwareGuest, policy: Policy, exhausted_after: Option<usize>) -> Self {
        let (domain, statistics) = (&guest.domain, guest.domain.statistics());
        let p2m = domain.p2m();
        let is_whole = |&n: &u64| p2m.state(Superpage::new(n)).is_whole();
        let quantities = domain.quantities();
        Self {
            policy: policy.to_string(),
            exhausted_after,
            populates_2m: statistics.populates_2m,
            populates_4k: statistics.populates_4k,
            zero_checks_2m: statistics.zero_checks_2m,
            zero_checks_2m_hit: statistics.zero_checks_2m_hit,
            zero_checks_4k: statistics.zero_checks_4k,
            bytes_scanned: statistics.bytes_scanned,
            bytes_copied: statistics.bytes_copied,
            emergency_sweeps: statistics.emergency_sweeps,
            splinters: statistics.splinters,
            shatters: statistics.shatters,
            superpages_reclaimed: statistics.superpages_reclaimed,
            singles_reclaimed: statistics.singles_reclaimed,
            unmap_flushes: statistics.unmap_flushes,
            superpages_in_guest: (0..p2m.superpages()).filter(is_whole).count() as u64,
            superpages_in_cache: domain.cache().superpages(),
            entries: quantities.entries,
            cache: quantities.cache,
            total: quantities.total(),
        }
    }
}
