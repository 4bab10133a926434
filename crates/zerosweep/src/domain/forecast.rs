//! The forecast: how much the guest can still touch (rule [R15]).
//!
//! [R15]: crate::rules#r15

use super::Domain;

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

/// A decaying tally of recent zero checks, in pages.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ReclaimRate {
    looked: u64,
    found: u64,
}

impl ReclaimRate {
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

impl Domain {
    /// How much the guest can still touch (rule [R15]).
    ///
    /// [R15]: crate::rules#r15
    #[must_use]
    pub fn forecast(&self) -> Forecast {
        let q = self.quantities();
        let ReclaimRate { looked, found } = self.reclaim_rate;
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
        self.reclaim_rate.note(looked, found, self.populated);
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::tests::{domain, with_cache};

    #[test]
    fn old_finds_count_for_less() {
        let mut rate = ReclaimRate::default();
        rate.note(4096, 100, 0);
        assert_eq!((rate.looked, rate.found), (4096, 100));
        rate.note(2, 2, 0);
        assert_eq!((rate.looked, rate.found), (2049, 51));
        // A large guest's are remembered for longer.
        let mut rate = ReclaimRate::default();
        rate.note(10_000, 100, 80_000);
        assert_eq!((rate.looked, rate.found), (10_000, 100));
        rate.note(1, 0, 80_000);
        assert_eq!((rate.looked, rate.found), (5000, 50));
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
}
