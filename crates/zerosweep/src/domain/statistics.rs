//! What a domain has done.

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
