//! What a domain has done: the list of its counters.
//!
//! There is no other list. The structure, its documentation and [`Statistics::COUNTERS`] are made
//! from this one; messages, metrics and the C interface follow from them.
//!
//! Invariant: a new counter is the last one, because the order is the layout of the structure in C.

/// A counter: a field of [`Statistics`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counter {
    /// The field's name.
    pub name: &'static str,
    /// What it counts, in one sentence.
    pub help: &'static str,
}

macro_rules! counters {
    ($(#[doc = $help:literal] $name:ident,)+) => {
        /// The counters of a domain since it was made. Pages are of 4 KiB.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Statistics {
            $(#[doc = $help] pub $name: u64,)+
        }

        impl Statistics {
            /// All counters, in the order of the fields.
            pub const COUNTERS: &'static [Counter] =
                &[$(Counter { name: stringify!($name), help: $help.trim_ascii() },)+];

            /// Returns the values, in the order of [`COUNTERS`](Self::COUNTERS).
            #[must_use]
            pub const fn values(&self) -> [u64; Self::COUNTERS.len()] {
                [$(self.$name,)+]
            }

            fn values_mut(&mut self) -> [&mut u64; Self::COUNTERS.len()] {
                [$(&mut self.$name,)+]
            }
        }
    };
}

counters! {
    /// Superpages that were mapped at a fault, refills included.
    populates_2m,
    /// Single pages that were mapped at a fault.
    populates_4k,
    /// Zero checks of superpages.
    zero_checks_2m,
    /// Zero checks that found a zero superpage.
    zero_checks_2m_hit,
    /// Zero checks of single pages.
    zero_checks_4k,
    /// Zero checks that found a zero single page.
    zero_checks_4k_hit,
    /// Bytes that were read by zero checks.
    bytes_scanned,
    /// Bytes that were cleared.
    bytes_cleared,
    /// Bytes that were copied.
    bytes_copied,
    /// Ranges checked from the ring of recently populated ones.
    eager_checks,
    /// Steps of emergency sweeps.
    emergency_sweeps,
    /// PoD superpage entries that were broken.
    splinters,
    /// Ram superpage entries that were broken.
    shatters,
    /// Zero superpages whose frames went to the cache whole.
    superpages_reclaimed,
    /// Zero single pages whose frames went to the cache.
    singles_reclaimed,
    /// Pages whose frames went to the cache when they were given back.
    pages_stolen,
    /// Superpages returned to the host whole.
    superpages_returned,
    /// Single pages returned to the host.
    pages_returned_4k,
    /// Pages that the guest gave back.
    pages_given_back,
    /// Times that no frame could be found.
    exhaustions,
    /// Flushes of the TLBs after unmaps.
    unmap_flushes,
    /// Unmaps that the machine refused because something else used the page.
    busy,
    /// Pages that were taken beyond the target.
    borrowed,
    /// Superframes that the cache got back whole, single by single.
    rejoined,
    /// Superpages whose live pages were copied elsewhere.
    evacuations,
    /// Broken ranges that became superpages again because their live pages were copied together.
    refills,
    /// Pages that were given back and whose frame stayed in its superpage.
    pages_retained,
    /// Retained pages that the guest took again.
    pages_retaken,
    /// Pages that a consolidation moved.
    pages_consolidated,
    /// The most pages that were held at any moment.
    peak_total,
    /// Times that the guest was about to run out of frames.
    low_forecasts,
    /// Pages without frames that the host's own reads saw as zeros.
    pages_shown,
}

impl Statistics {
    /// Returns the counters with their values.
    pub fn iter(&self) -> impl Iterator<Item = (&'static Counter, u64)> {
        Self::COUNTERS.iter().zip(self.values())
    }

    /// Returns the counters with their values, to be set.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&'static Counter, &mut u64)> {
        Self::COUNTERS.iter().zip(self.values_mut())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_counter_has_a_sentence_and_its_own_value() {
        let mut statistics = Statistics::default();
        for (number, (counter, value)) in statistics.iter_mut().enumerate() {
            assert!(counter.help.ends_with('.') && counter.help.len() > 10, "{counter:?}");
            *value = number as u64;
        }
        let expect = Statistics { populates_4k: 1, bytes_scanned: 6, ..statistics };
        assert_eq!(statistics, expect);
        assert!(statistics.iter().map(|(_, value)| value).eq(0..statistics.values().len() as u64));
    }
}
