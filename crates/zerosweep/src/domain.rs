//! A domain: its table, its cache, its quantities. It is only data: what is done with it is in
//! [`Session`](crate::Session).

mod config;
mod forecast;
mod quantities;
mod statistics;

pub use config::{Config, ConfigError, InvalidTouch, Upkeep};
pub use forecast::Forecast;
pub use quantities::Quantities;
pub use statistics::{Counter, Statistics};

use core::fmt;

use crate::cache::Cache;
use crate::cursors::Cursors;
use crate::error::OutOfTableMemory;
use crate::frame::FRAME_LIMIT;
use crate::p2m::{Entry, P2m};
use crate::policy::Policy;
use crate::ring::Rings;
use crate::run::Run;
use forecast::ReclaimRate;

/// Pages that operations are working on. The audit allows for them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Flight {
    /// Counted as populated, while their entries are still PoD.
    pub(crate) from_pod: u64,
    /// Counted as populated, while their entries are still invalid.
    pub(crate) from_invalid: u64,
    /// On their way from the host to the cache. Not counted yet.
    pub(crate) incoming: u64,
    /// Taken out of the cache to be cleared, joined or copied to. Counted as in the cache.
    pub(crate) in_hand: u64,
}

impl Flight {
    /// Counted as populated, while their entries are still what they were.
    pub(crate) fn from(&mut self, was: Entry) -> &mut u64 {
        match was {
            Entry::Pod => &mut self.from_pod,
            _ => &mut self.from_invalid,
        }
    }
}

/// The state of a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It runs.
    Alive,
    /// [`Session::teardown`](crate::Session::teardown) has begun; the next superpage to take down.
    Dying(u64),
    /// Every frame was returned to the host.
    Dead,
}

/// A domain on populate-on-demand memory.
///
/// ```
/// use zerosweep::{Config, Domain, Gfn, Order, Policy};
/// use zerosweep_sim::SoftwareMachine;
///
/// let mut machine = SoftwareMachine::new(1024);
/// let mut domain = Domain::new(Config::new(2048, 1024, Policy::Zerosweep)).unwrap();
/// let mut session = domain.with(&mut machine);
/// session.populate_on_demand(Gfn::new(0), Order::new(11).unwrap()).unwrap();
/// session.set_target(1024).unwrap();
/// session.fault(Gfn::new(700)).unwrap();
/// assert_eq!(domain.quantities().populated, 512);
/// assert_eq!(domain.quantities().total(), 1024);
/// domain.audit().unwrap();
/// ```
pub struct Domain {
    pub(crate) p2m: P2m,
    pub(crate) cache: Cache,
    pub(crate) policy: Policy,
    pub(crate) invalid_touch: InvalidTouch,
    pub(crate) fault_budget_bytes: u64,
    pub(crate) upkeep: Upkeep,
    pub(crate) target: u64,
    pub(crate) populated: u64,
    pub(crate) entries: u64,
    pub(crate) flight: Flight,
    pub(crate) rings: Rings,
    pub(crate) cursors: Cursors,
    reclaim_rate: ReclaimRate,
    /// The last forecast was low, and told.
    is_low: bool,
    pub(crate) swept_before_decrease: bool,
    /// The balloon has stopped short of the target.
    pub(crate) balloon_idle: bool,
    /// Pages borrowed since the total was last within the target.
    pub(crate) borrowed: u64,
    pub(crate) life: Life,
    pub(crate) statistics: Statistics,
}

impl Domain {
    /// A domain without a page: see [`Session::populate_on_demand`](crate::Session::populate_on_demand) and
    /// [`Session::set_target`](crate::Session::set_target).
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        let Config { max_pages, target, policy, invalid_touch, fault_budget_bytes, upkeep } =
            config;
        if max_pages == 0 || max_pages > FRAME_LIMIT {
            return Err(ConfigError::MaxPages(max_pages));
        }
        if target == 0 || target > max_pages {
            return Err(ConfigError::Target { target, max: max_pages });
        }
        Ok(Self {
            p2m: P2m::new(max_pages).map_err(ConfigError::TableMemory)?,
            cache: if policy.keeps_whole() { Cache::joining() } else { Cache::fifo() },
            policy,
            invalid_touch,
            fault_budget_bytes,
            upkeep,
            target,
            populated: 0,
            entries: 0,
            flight: Flight::default(),
            rings: Rings::default(),
            cursors: Cursors::default(),
            reclaim_rate: ReclaimRate::default(),
            is_low: false,
            swept_before_decrease: false,
            balloon_idle: false,
            borrowed: 0,
            life: Life::Alive,
            statistics: Statistics::default(),
        })
    }

    /// Reserves memory in the cache's lists for a machine with frames 0 to `frames`, so that they
    /// do not grow while the guest runs.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn expect_frames(&mut self, frames: u64) -> Result<(), OutOfTableMemory> {
        self.cache.expect_frames(frames)
    }

    /// The quantities, now.
    #[must_use]
    pub fn quantities(&self) -> Quantities {
        Quantities {
            max: self.p2m.pages(),
            target: self.target,
            populated: self.populated,
            entries: self.entries,
            cache: self.cache.pages() + self.flight.in_hand,
            retained: self.p2m.retained_pages(),
        }
    }

    /// What has been done so far.
    #[must_use]
    pub fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    /// The table.
    #[must_use]
    pub fn p2m(&self) -> &P2m {
        &self.p2m
    }

    /// The cache.
    #[must_use]
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// The policy.
    #[must_use]
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// Pages that were borrowed and are still held beyond the target. Pages beyond a lowered target
    /// that the balloon has still to bring are not counted.
    #[must_use]
    pub fn borrowed(&self) -> u64 {
        self.borrowed.min(self.total().saturating_sub(self.target))
    }

    pub(crate) fn note_borrowed(&mut self) {
        if self.total() <= self.target {
            self.borrowed = 0;
        }
        self.borrowed += 1;
        self.statistics.borrowed += 1;
    }

    /// What a touch of a page that is ballooned out means.
    #[must_use]
    pub fn invalid_touch(&self) -> InvalidTouch {
        self.invalid_touch
    }

    /// The state of the domain.
    #[must_use]
    pub fn life(&self) -> Life {
        self.life
    }

    /// Pages that the cache should get from the host: until cache + R = min(T − P, entries).
    pub(crate) fn wants_fill(&self) -> u64 {
        let q = self.quantities();
        let room = q.target.saturating_sub(q.populated).min(q.entries);
        room.saturating_sub(q.cache + q.retained + self.flight.incoming)
    }

    /// Whether superpages should be found before they are wanted.
    pub(crate) fn is_cache_low(&self) -> bool {
        self.cache.superpages() * crate::SUPERPAGE_PAGES < self.target / 8
    }

    pub(crate) fn debt(&self) -> i64 {
        self.quantities().debt()
    }

    pub(crate) fn total(&self) -> u64 {
        self.quantities().total()
    }

    /// `pages` PoD entries are given frames from the cache: counted before they are mapped.
    pub(crate) fn count_populate(&mut self, pages: u64) {
        self.entries -= pages;
        self.populated += pages;
        self.note_peak();
    }

    /// `pages` populated pages become PoD.
    pub(crate) fn count_unpopulate(&mut self, pages: u64) {
        self.populated -= pages;
        self.entries += pages;
    }

    pub(crate) fn note_peak(&mut self) {
        self.statistics.peak_total = self.statistics.peak_total.max(self.total());
    }

    /// Puts a clean run into the cache; room was reserved. A superframe that becomes whole is
    /// handed out: `Session::finish_join` brings it back.
    #[must_use]
    pub(crate) fn put(&mut self, run: Run) -> Option<Run> {
        let joined = self.cache.put(run);
        if let Some(whole) = &joined {
            self.flight.in_hand += whole.pages();
        }
        self.note_peak();
        joined
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Domain")
            .field("policy", &self.policy)
            .field("quantities", &self.quantities())
            .field("life", &self.life)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Superframe;

    pub(super) fn domain(target: u64) -> Domain {
        Domain::new(Config::new(1 << 20, target, Policy::Xen2012)).unwrap()
    }

    pub(super) fn with_cache(domain: &mut Domain, superpages: u64) {
        for n in 0..superpages {
            assert_eq!(domain.put(Run::superframe(Superframe::new(n))), None);
        }
    }

    #[test]
    fn the_cache_wants_what_is_promised_and_may_be_held() {
        let mut domain = domain(2000);
        with_cache(&mut domain, 1);
        (domain.populated, domain.entries, domain.flight.incoming) = (600, 1000, 8);
        assert_eq!(domain.wants_fill(), 480);
        domain.entries = 5000;
        assert_eq!(domain.wants_fill(), 880);
    }

    #[test]
    fn the_cache_is_low_below_an_eighth_of_the_target() {
        let mut domain = domain(8192);
        assert!(domain.is_cache_low());
        with_cache(&mut domain, 1);
        assert!(domain.is_cache_low());
        with_cache(&mut domain, 1);
        assert!(!domain.is_cache_low());
    }

    #[test]
    fn what_is_borrowed_is_counted_while_it_is_held() {
        let mut domain = domain(100);
        domain.populated = 103;
        domain.note_borrowed();
        domain.note_borrowed();
        assert_eq!(domain.borrowed(), 2);
        domain.populated = 101;
        assert_eq!(domain.borrowed(), 1);
        domain.populated = 100;
        assert_eq!(domain.borrowed(), 0);
        domain.note_borrowed();
        domain.populated = 110;
        assert_eq!((domain.borrowed(), domain.statistics.borrowed), (1, 3));
    }

    #[test]
    fn it_is_of_the_policy_that_it_was_made_for_and_remembers_its_peak() {
        let mut domain = domain(100);
        assert_eq!(domain.policy(), Policy::Xen2012);
        domain.entries = 30;
        domain.count_populate(20);
        domain.count_unpopulate(5);
        assert_eq!((domain.statistics.peak_total, domain.total(), domain.entries), (20, 15, 15));
    }
}
