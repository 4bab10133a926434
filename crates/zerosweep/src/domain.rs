//! A domain: its table, its cache, its quantities. It is only data: what is done with it is in
//! [`Session`](crate::Session).

use core::fmt;

use crate::cache::Cache;
use crate::frame::{FRAME_LIMIT, Mfn, Order};
use crate::machine::{Exclusive, Machine};
use crate::p2m::{OutOfTableMemory, P2m};
use crate::policy::Policy;
use crate::ring::Rings;
use crate::session::Session;
use crate::sweep::Cursors;

/// The parameters of a new domain. Fields may be added: begin with [`Config::new`], as in
/// `Config { upkeep: Upkeep::Host, ..Config::new(pages, target, policy) }`.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// M: the pages that the guest is told that it has, gfns 0 to `max_pages`.
    pub max_pages: u64,
    /// T: the pages that the domain may hold.
    pub target: u64,
    /// The policy that it follows.
    pub policy: Policy,
    /// What a touch of a page that is ballooned out means.
    pub invalid_touch: InvalidTouch,
    /// Bytes that one fault may scan under [`Policy::Zerosweep`] before other faults are served.
    pub fault_budget_bytes: u64,
    /// Who does the maintenance: clearing frames, breaking superpages with retained pages,
    /// returning frames that are not needed.
    pub upkeep: Upkeep,
}

/// Who does the maintenance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upkeep {
    /// The operation that causes it, before it returns.
    Inline,
    /// A thread of the host. It calls [`Session::upkeep`] when [`Domain::wants_upkeep`] is true. An
    /// operation returns at most 64 runs of frames itself, because a guest may wait for it.
    Host,
}

impl Config {
    /// 8 MiB: four superpages that are not in the processor's caches, about 0.3 ms.
    pub const DEFAULT_FAULT_BUDGET_BYTES: u64 = 8 << 20;

    /// The default parameters for a guest of `max_pages` pages that may hold `target` of them.
    #[must_use]
    pub fn new(max_pages: u64, target: u64, policy: Policy) -> Self {
        Self {
            max_pages,
            target,
            policy,
            invalid_touch: InvalidTouch::Refuse,
            fault_budget_bytes: Self::DEFAULT_FAULT_BUDGET_BYTES,
            upkeep: Upkeep::Inline,
        }
    }
}

/// What a touch of a page that is ballooned out means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidTouch {
    /// An error of the guest, as under Xen.
    Refuse,
    /// The guest takes the page back, as under QEMU, where a guest need not say so. One more page
    /// is promised and populated at once.
    Increase,
}

/// An invalid [`Config`], or no memory for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// 0 pages, or more than frame numbers can address.
    MaxPages(u64),
    /// A target of 0 pages, or above the maximum.
    Target {
        /// The target that was asked for, in pages.
        target: u64,
        /// The greatest valid target, in pages.
        max: u64,
    },
    /// There is no memory for the tables.
    TableMemory(OutOfTableMemory),
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MaxPages(pages) => {
                write!(f, "invalid guest memory: {pages} pages (must be 1 to {FRAME_LIMIT})")
            }
            Self::Target { target, max } => {
                write!(f, "invalid target: {target} pages (must be 1 to {max})")
            }
            Self::TableMemory(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for ConfigError {}

/// The quantities of a domain, in pages.
///
/// `populated + entries` is B, what the guest has; `populated + cache + retained` is the total,
/// what the domain holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Quantities {
    /// M.
    pub max: u64,
    /// T.
    pub target: u64,
    /// P: pages with a frame.
    pub populated: u64,
    /// B − P: pages promised without one.
    pub entries: u64,
    /// Frames that back nothing.
    pub cache: u64,
    /// R: pages out whose frame stays in its superpage.
    pub retained: u64,
}

impl Quantities {
    /// P + cache + R.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.populated + self.cache + self.retained
    }

    /// B: what the guest has not given back.
    #[must_use]
    pub fn guest(&self) -> u64 {
        self.populated + self.entries
    }

    /// entries − cache − R: what must be found before everything promised is backed.
    #[must_use]
    pub fn debt(&self) -> i64 {
        self.entries as i64 - self.cache as i64 - self.retained as i64
    }

    /// Frames in the cache that back no promised page.
    #[must_use]
    pub fn excess(&self) -> u64 {
        (self.cache + self.retained).saturating_sub(self.entries).min(self.cache)
    }

    /// How far the total is above the target once the [excess](Quantities::excess) is returned.
    #[must_use]
    pub fn above_target(&self) -> u64 {
        (self.total() - self.excess()).saturating_sub(self.target)
    }

    /// B − T: pages that the guest has still to give back.
    #[must_use]
    pub fn owed(&self) -> i64 {
        self.guest() as i64 - self.target as i64
    }
}

/// Counters of a domain since it was made: bytes where the name says so, otherwise pages of 4 KiB
/// or events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the program's JSON output")]
pub struct Statistics {
    pub populates_2m: u64,
    pub populates_4k: u64,
    pub zero_checks_2m: u64,
    pub zero_checks_2m_hit: u64,
    pub zero_checks_4k: u64,
    pub zero_checks_4k_hit: u64,
    pub bytes_scanned: u64,
    pub bytes_cleared: u64,
    pub bytes_copied: u64,
    pub eager_checks: u64,
    pub emergency_sweeps: u64,
    pub splinters: u64,
    pub shatters: u64,
    pub superpages_reclaimed: u64,
    pub singles_reclaimed: u64,
    pub pages_stolen: u64,
    pub superpages_returned: u64,
    pub pages_returned_4k: u64,
    pub pages_given_back: u64,
    pub exhaustions: u64,
    pub unmap_flushes: u64,
    pub busy: u64,
    pub borrowed: u64,
    pub rejoined: u64,
    pub evacuations: u64,
    pub refills: u64,
    pub pages_retained: u64,
    pub pages_retaken: u64,
    pub pages_consolidated: u64,
    pub peak_total: u64,
    pub low_forecasts: u64,
}

/// A decaying tally of recent zero checks, in pages.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Finds {
    looked: u64,
    found: u64,
}

impl Finds {
    /// The least number of checked pages before old results are halved.
    const LEAST: u64 = 8 * crate::SUPERPAGE_PAGES;

    fn note(&mut self, looked: u64, found: u64, populated: u64) {
        self.looked += looked;
        self.found += found;
        if self.looked > (populated / 8).max(Self::LEAST) {
            self.looked /= 2;
            self.found /= 2;
        }
    }
}

/// How much the guest can still touch before it is exhausted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Forecast {
    /// Pages that can be touched without a scan.
    pub certain: u64,
    /// More pages that can be touched if scans find as many zero pages as they found lately,
    /// retained pages included. 0 if nothing was checked lately, or the last sweep found nothing.
    pub likely: u64,
    /// Pages that are promised beyond both. A guest that touches them is exhausted.
    pub short: u64,
}

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

/// The state of a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It runs.
    Alive,
    /// [`Session::teardown`] has begun; the next superpage to take down.
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
    finds: Finds,
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
    /// A domain without a page: see [`Session::populate_on_demand`] and [`Session::set_target`].
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
            finds: Finds::default(),
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

    /// Joins this domain and a machine that no other thread uses.
    pub fn with<'a, M: Machine>(&'a mut self, machine: &'a mut M) -> Session<Exclusive<'a, M>> {
        Session::new(Exclusive::new(self, machine))
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

    /// How much the guest can still touch (rule [R15]).
    ///
    /// [R15]: crate::rules#r15
    #[must_use]
    pub fn forecast(&self) -> Forecast {
        let q = self.quantities();
        let Finds { looked, found } = self.finds;
        let share = match self.cursors.bounded.is_fruitless() {
            true => 0,
            false => q.populated.saturating_mul(found).checked_div(looked).unwrap_or(0),
        };
        let certain = q.cache.min(q.entries);
        let likely = (q.retained + share.min(q.populated)).min(q.entries - certain);
        Forecast { certain, likely, short: q.entries - certain - likely }
    }

    /// Notes a check of `looked` pages, of which `found` were reclaimed.
    pub(crate) fn note_finds(&mut self, looked: u64, found: u64) {
        self.finds.note(looked, found, self.populated);
    }

    /// The forecast, if it has become low: the guest can touch less than a sixteenth of its target.
    pub(crate) fn low_forecast(&mut self) -> Option<Forecast> {
        if !self.is_low && self.cache.pages() > self.target / 16 {
            return None;
        }
        let forecast = self.forecast();
        let can_touch = forecast.certain + forecast.likely;
        let was = self.is_low;
        // Once it was reported, it must double before it is reported again.
        self.is_low = forecast.short > 0 && can_touch < self.target >> if was { 3 } else { 4 };
        self.statistics.low_forecasts += u64::from(self.is_low && !was);
        (self.is_low && !was).then_some(forecast)
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
    /// handed out: [`Session::finish_join`] brings it back.
    #[must_use]
    pub(crate) fn put(&mut self, mfn: Mfn, order: Order) -> Option<Mfn> {
        let joined = self.cache.put(mfn, order);
        if joined.is_some() {
            self.flight.in_hand += Order::SUPERPAGE.pages();
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

    fn domain(target: u64) -> Domain {
        Domain::new(Config::new(1 << 20, target, Policy::Xen2012)).unwrap()
    }

    fn with_cache(domain: &mut Domain, superpages: u64) {
        for n in 0..superpages {
            assert_eq!(domain.put(Mfn::new(n * 512), Order::SUPERPAGE), None);
        }
    }

    #[test]
    fn quantities_are_what_their_equations_say() {
        let quantities = |target, populated, entries, cache, retained| Quantities {
            max: 100,
            target,
            populated,
            entries,
            cache,
            retained,
        };
        let in_debt = quantities(40, 20, 30, 12, 5);
        assert_eq!((in_debt.total(), in_debt.guest(), in_debt.debt()), (37, 50, 13));
        assert_eq!((in_debt.excess(), in_debt.above_target(), in_debt.owed()), (0, 0, 10));
        let in_excess = quantities(24, 20, 10, 12, 5);
        assert_eq!((in_excess.debt(), in_excess.excess()), (-7, 7));
        assert_eq!((in_excess.above_target(), in_excess.owed()), (6, 6));
        let all_of_the_cache = quantities(80, 20, 3, 12, 5);
        assert_eq!((all_of_the_cache.excess(), all_of_the_cache.owed()), (12, -57));
    }

    #[test]
    fn old_finds_count_for_less() {
        let mut finds = Finds::default();
        finds.note(4096, 100, 0);
        assert_eq!((finds.looked, finds.found), (4096, 100));
        finds.note(2, 2, 0);
        assert_eq!((finds.looked, finds.found), (2049, 51));
        // A large guest's are remembered for longer.
        let mut finds = Finds::default();
        finds.note(10_000, 100, 80_000);
        assert_eq!((finds.looked, finds.found), (10_000, 100));
        finds.note(1, 0, 80_000);
        assert_eq!((finds.looked, finds.found), (5000, 50));
    }

    #[test]
    fn a_forecast_is_made_of_the_cache_and_of_what_checks_found() {
        let mut domain = domain(2048);
        with_cache(&mut domain, 1);
        (domain.populated, domain.entries) = (600, 1000);
        let forecast = domain.forecast();
        assert_eq!(forecast, Forecast { certain: 512, likely: 0, short: 488 });
        domain.note_finds(400, 100);
        let forecast = domain.forecast();
        assert_eq!(forecast, Forecast { certain: 512, likely: 150, short: 338 });
        domain.entries = 100;
        let forecast = domain.forecast();
        assert_eq!(forecast, Forecast { certain: 100, likely: 0, short: 0 });
    }

    #[test]
    fn a_low_forecast_is_told_once_until_it_was_twice_as_good() {
        let mut domain = domain(16_384);
        (domain.populated, domain.entries) = (8192, 100_000);
        with_cache(&mut domain, 3);
        assert_eq!(domain.low_forecast(), None, "1,536 pages are more than a sixteenth");
        assert!(domain.cache.take_superpage().is_some() && domain.cache.take_superpage().is_some());
        let told = domain.low_forecast().unwrap();
        assert_eq!((told.certain, told.likely, told.short), (512, 0, 99_488));
        assert_eq!(domain.low_forecast(), None, "told already");
        with_cache(&mut domain, 2);
        assert_eq!((domain.cache.pages(), domain.low_forecast()), (1536, None));
        assert!(domain.cache.take_superpage().is_some() && domain.cache.take_superpage().is_some());
        assert_eq!(domain.low_forecast(), None, "it was not twice as good");
        with_cache(&mut domain, 3);
        assert_eq!((domain.cache.pages(), domain.low_forecast()), (2048, None));
        for _ in 0..3 {
            assert!(domain.cache.take_superpage().is_some());
        }
        assert!(domain.low_forecast().is_some(), "it was twice as good meanwhile");
        assert_eq!(domain.statistics.low_forecasts, 2);
        // A guest all of whose memory is backed runs out of nothing.
        domain.is_low = false;
        domain.entries = 512;
        assert_eq!(domain.low_forecast(), None);
    }

    #[test]
    fn what_checks_find_keeps_a_forecast_from_being_low() {
        let mut domain = domain(16_384);
        (domain.populated, domain.entries) = (8192, 100_000);
        domain.note_finds(4, 1);
        assert_eq!(domain.forecast().likely, 2048);
        assert_eq!(domain.low_forecast(), None);
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
