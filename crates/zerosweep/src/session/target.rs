//! The target, the cache that follows from it, and frames going back (rules [R2], [R4]).
//!
//! [R2]: crate::rules#r2
//! [R4]: crate::rules#r4

use core::fmt;

use super::{Progress, Session};
use crate::cache::Dirty;
use crate::domain::{Domain, Upkeep};
use crate::error::OutOfTableMemory;
use crate::event::Event;
use crate::frame::{Mfn, Order, SUPERPAGE_PAGES};
use crate::machine::{Allocated, Content, Host, Machine};
use crate::run::Run;

/// The cache could not be filled; what was got so far stays, and the target stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FillError {
    /// The host has no frame to give.
    OutOfFrames,
    /// There is no memory for the cache's own lists.
    TableMemory,
}

/// A target that was not taken, or not filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetError {
    /// 0, or above the maximum; nothing was changed.
    OutOfRange {
        /// The target that was asked for, in pages.
        target: u64,
        /// The greatest valid target, in pages.
        max: u64,
    },
    /// The domain is being taken down.
    Dying,
    /// The target is set, but the cache is not full.
    Fill(FillError),
}

impl fmt::Display for FillError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfFrames => f.write_str("the host has no frame to give"),
            Self::TableMemory => OutOfTableMemory.fmt(f),
        }
    }
}

impl fmt::Display for TargetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfRange { target, max } => {
                write!(f, "invalid target: {target} pages (must be 1 to {max})")
            }
            Self::Dying => f.write_str("the domain is being taken down"),
            Self::Fill(error) => {
                write!(f, "the target is set, but the cache could not be filled: {error}")
            }
        }
    }
}

impl core::error::Error for FillError {}

impl core::error::Error for TargetError {}

/// How many steps [`Session::set_target`] takes at a time.
const FILL_STEPS: u64 = 1024;
/// Where a thread of the host does the maintenance, an operation returns at most this many runs:
/// there may be a million singles to return, and a guest waits for the operation.
const RETURN_RUNS: u64 = 64;

/// What the cache gives back next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Excess {
    Dirty,
    Superpage,
    Single,
}

impl Domain {
    /// Whether [`Session::return_excess`] has something to give back.
    pub(crate) fn wants_return(&self, idle: bool) -> bool {
        self.excess(Order::PAGE, idle).is_some()
    }

    /// What goes back next, of at least this order. `idle`: see [`Domain::wants_upkeep`].
    fn excess(&self, least: Order, idle: bool) -> Option<Excess> {
        let q = self.quantities();
        // While the balloon works, what is retained may be taken out any moment: only the cache
        // counts, and superpages in it wait for the pages that the guest touches to give them back.
        let working = self.policy.returns_superframes() && q.owed() > 0 && !idle;
        let backing = if working { q.cache } else { q.cache + q.retained };
        let excess = backing.checked_sub(q.entries).filter(|&pages| pages > 0)?;
        let over = q.total() > q.target;
        let cache = &self.cache;
        let single = (cache.clean_pages() > 0).then_some(Excess::Single);
        if self.policy.returns_superframes() {
            // What is to be cleared goes first: nobody needs to clear it then.
            if excess >= SUPERPAGE_PAGES {
                if cache.has_dirty_superpage() {
                    return Some(Excess::Dirty);
                }
                if cache.superpages() > 0 {
                    return Some(Excess::Superpage);
                }
            }
            if !over || least == Order::SUPERPAGE {
                return None;
            }
            if cache.dirty_pages() > 0 && !cache.has_dirty_superpage() {
                return Some(Excess::Dirty);
            }
            return single;
        }
        if cache.superpages() > 0 && excess > SUPERPAGE_PAGES {
            return Some(Excess::Superpage);
        }
        single
    }
}

impl<H: Host> Session<H> {
    /// Sets the target, fills the cache up to it, and breaks superpages with retained pages while
    /// the total is above it. (Xen: `p2m_pod_set_mem_target`.)
    ///
    /// # Errors
    /// See [`TargetError`]. After [`TargetError::Fill`] a call of [`Session::fill`] goes on.
    pub fn set_target(&mut self, target: u64) -> Result<(), TargetError> {
        self.begin_target(target)?;
        // A guest may take pages again as fast as they are broken: the rest is left to the upkeep.
        let all = self.domain().p2m.superpages();
        let _ = self.shrink(all);
        while self.fill(FILL_STEPS).map_err(TargetError::Fill)? == Progress::More {}
        Ok(())
    }

    /// Breaks superpages with retained pages, those with the fewest live ones first, while the
    /// total is above the target, at most `steps`, and gives back what is left over. Where the host
    /// does what can wait, [`Progress::More`] may be for the latter.
    pub fn shrink(&mut self, steps: u64) -> Progress {
        let mut left = steps;
        while left > 0 && self.wants_frames_from_retained() && self.break_one() {
            self.return_excess_superpages();
            left -= 1;
        }
        let returned = self.return_excess();
        if left > 0 { returned } else { Progress::More }
    }

    fn wants_frames_from_retained(&mut self) -> bool {
        let q = self.domain().quantities();
        q.above_target() > 0 && q.retained > 0
    }

    /// Sets the target only: [`Session::shrink`] and [`Session::fill`] do the rest in steps.
    ///
    /// # Errors
    /// When the target is not valid. Nothing was changed.
    pub fn begin_target(&mut self, target: u64) -> Result<(), TargetError> {
        if !self.is_alive() {
            return Err(TargetError::Dying);
        }
        let domain = self.domain();
        let max = domain.p2m.pages();
        if target == 0 || target > max {
            return Err(TargetError::OutOfRange { target, max });
        }
        domain.borrowed = domain.borrowed();
        domain.target = target;
        domain.p2m.clear_deferred();
        Ok(())
    }

    /// Takes frames from the host until cache + R = min(T − P, entries), at most `steps` runs.
    ///
    /// # Errors
    /// When there are none; what was got stays in the cache.
    pub fn fill(&mut self, steps: u64) -> Result<Progress, FillError> {
        for _ in 0..steps {
            let wanted = self.domain().wants_fill();
            if wanted == 0 {
                return Ok(Progress::Done);
            }
            if wanted < SUPERPAGE_PAGES || !self.fill_run(Order::SUPERPAGE)? {
                let got = self.fill_run(Order::PAGE)?;
                if !got {
                    return Err(FillError::OutOfFrames);
                }
            }
        }
        Ok(Progress::More)
    }

    pub(super) fn fill_run(&mut self, order: Order) -> Result<bool, FillError> {
        let Some(run) = self.take_from_host(order) else { return Ok(false) };
        if self.domain().cache.reserve(1, run.mfn(), run.pages()).is_err() {
            let mfn = run.into_mfn();
            self.host.machine(|m| m.free(mfn, order));
            return Err(FillError::TableMemory);
        }
        self.put(run);
        Ok(true)
    }

    /// A cleared run from the host, if it has one. Until then it is counted as incoming; the caller
    /// counts it in the same breath.
    pub(super) fn take_from_host(&mut self, order: Order) -> Option<Run> {
        self.domain().flight.incoming += order.pages();
        let allocated = self.host.machine(|m| m.allocate(order));
        let run = allocated.map(|Allocated { mfn, content }| {
            let run = Run::new(mfn, order);
            if content == Content::Unknown {
                self.clear(&run);
            }
            run
        });
        self.domain().flight.incoming -= order.pages();
        run.ok()
    }

    /// Gives back to the host what the cache has beyond the entries, by policy. Where the host does
    /// what can wait, a part of it: [`Progress::More`] if there may be more.
    pub(crate) fn return_excess(&mut self) -> Progress {
        self.return_runs(Order::PAGE)
    }

    /// As [`Session::return_excess`], but whole superpages only.
    pub(crate) fn return_excess_superpages(&mut self) {
        let _ = self.return_runs(Order::SUPERPAGE);
    }

    fn return_runs(&mut self, least: Order) -> Progress {
        let most = match self.domain().upkeep {
            Upkeep::Inline => u64::MAX,
            Upkeep::Host => RETURN_RUNS,
        };
        for _ in 0..most {
            let Some(run) = self.take_excess(least) else { return Progress::Done };
            let run = self.flush_dirty(run);
            self.free(run);
        }
        Progress::More
    }

    fn take_excess(&mut self, least: Order) -> Option<Dirty> {
        let domain = self.host.domain();
        let excess = domain.excess(least, domain.balloon_idle)?;
        let cache = &mut domain.cache;
        match excess {
            Excess::Dirty => cache.take_dirty(),
            Excess::Superpage => cache.take_superpage_to_return().map(Dirty::Flushed),
            Excess::Single => cache.take_single().map(Dirty::Flushed),
        }
    }

    /// An event for a range whose frame went to the cache.
    pub(crate) fn note_steal(&mut self, gfn: crate::Gfn, mfn: Mfn, order: Order) {
        self.domain().statistics.pages_stolen += order.pages();
        self.host.event(Event::Steal { gfn, mfn, order });
    }
}
