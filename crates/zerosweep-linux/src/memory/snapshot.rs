//! Figures of a guest's memory at one moment, and the map of its superpages.

use zerosweep::{Forecast, Quantities, Statistics, Superpage, SuperpageState};

use super::GuestMemory;
use crate::addr::SUPERPAGE_BYTES;
use crate::outcome::FaultLatency;

/// Superpages that are read under the lock at a time: some microseconds.
const SNAPSHOT_STEP: usize = 1024;

/// Figures of one moment.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Snapshot {
    /// The engine's quantities.
    pub quantities: Quantities,
    /// Counters of what the engine did.
    pub statistics: Statistics,
    /// What the guest can still touch.
    pub forecast: Forecast,
    /// Superpages that are whole in the guest, as the engine counts.
    pub superpages_in_guest: u64,
    /// Ranges that are broken and hold a frame.
    pub broken: u64,
    /// Superpages in the cache.
    pub superpages_in_cache: u64,
    /// Superpages that have a cleared huge page ahead of the guest.
    pub prefaulted: u64,
    /// Faults answered.
    pub faults: u64,
    /// Threads that wait for a frame.
    pub stalled: u32,
    /// Pages held beyond the target because no frame could be found.
    pub borrowed: u64,
    /// Fault service times.
    pub fault_latency: FaultLatency,
    /// Why the cap is lifted, if it is.
    pub lifted: Option<String>,
}

impl GuestMemory {
    /// Returns the figures of this moment. Counts superpages in steps, so that faults are served
    /// meanwhile.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let (mut whole, mut broken) = (0, 0);
        self.for_each_superpage(0, u64::MAX, |state, _| {
            whole += u64::from(state.is_whole());
            broken += u64::from(state == SuperpageState::Broken);
        });
        let domain = self.domain.lock();
        let quantities = domain.quantities();
        let statistics = *domain.statistics();
        let superpages_in_cache = domain.cache().superpages();
        let borrowed = domain.borrowed();
        let forecast = domain.forecast();
        drop(domain);
        Snapshot {
            quantities,
            statistics,
            forecast,
            superpages_in_guest: whole,
            broken,
            superpages_in_cache,
            prefaulted: self.domain.machine.prefaulted(),
            faults: self.faults.faults(),
            stalled: self.faults.stalled(),
            borrowed,
            fault_latency: self.faults.latency(),
            lifted: self.domain.lift_state.reason(),
        }
    }

    /// Returns the letter of each superpage of the guest: see [`SuperpageState`].
    #[must_use]
    pub fn map_letters(&self) -> Vec<u8> {
        let superpages = self.guest().bytes().div_ceil(SUPERPAGE_BYTES);
        let mut letters = Vec::with_capacity(superpages as usize);
        self.for_each_superpage(0, u64::MAX, |state, _| letters.push(state.letter()));
        letters
    }

    /// Calls `visit` for each of `count` superpages from `first` on, with its state and the number
    /// of its pages that the guest has and that hold a frame. They are read under the lock, 1,024 at
    /// a time; `visit` is called without it, and may allocate.
    pub fn for_each_superpage(
        &self,
        first: u64,
        count: u64,
        mut visit: impl FnMut(SuperpageState, u64),
    ) {
        let superpages = self.guest().bytes().div_ceil(SUPERPAGE_BYTES);
        let last = first.saturating_add(count).min(superpages);
        let mut read = [(SuperpageState::Promised, 0); SNAPSHOT_STEP];
        for first in (first..last).step_by(SNAPSHOT_STEP) {
            let superpages = (first..last).map(Superpage::new);
            let domain = self.domain.lock();
            let p2m = domain.p2m();
            let mut count = 0;
            for (slot, superpage) in read.iter_mut().zip(superpages) {
                let live = p2m.tally(superpage).ram - p2m.outs(superpage);
                *slot = (p2m.state(superpage), live as u16);
                count += 1;
            }
            drop(domain);
            read[..count].iter().for_each(|&(state, live)| visit(state, live.into()));
        }
    }
}
