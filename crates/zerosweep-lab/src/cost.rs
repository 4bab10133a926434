//! Times on the software machine: modelled, never measured.
//!
//! A run there counts what was done; this says what that would cost on real memory, from figures
//! measured on Linux 6.18 on an x86-64 server. It knows nothing of caches or of virtual CPUs that
//! wait for each other.

use serde::{Deserialize, Serialize};
use zerosweep::Statistics;

/// What each kind of work costs, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CostModel {
    /// A fault, from the guest's touch to its next instruction, on a zero-mapped range.
    pub fault_ns: f64,
    /// Mapping a single, on top of its fault.
    pub map_4k_ns: f64,
    /// Taking a mapping away and waiting for all CPUs.
    pub flush_ns: f64,
    /// Reading a byte in a zero check (27 GB/s).
    pub scanned_byte_ns: f64,
    /// Clearing a byte (27 GB/s).
    pub cleared_byte_ns: f64,
}

impl Default for CostModel {
    fn default() -> Self {
        Self {
            fault_ns: 52_000.0,
            map_4k_ns: 1_000.0,
            flush_ns: 2_500.0,
            scanned_byte_ns: 1.0 / 27.0,
            cleared_byte_ns: 1.0 / 27.0,
        }
    }
}

impl CostModel {
    /// Seconds that the difference between two readings would take.
    #[must_use]
    pub fn seconds(&self, before: &Statistics, after: &Statistics) -> f64 {
        let more = |read: fn(&Statistics) -> u64| (read(after) - read(before)) as f64;
        let faults = more(|s| s.populates_2m) + more(|s| s.populates_4k) + more(|s| s.splinters);
        let ns = faults * self.fault_ns
            + more(|s| s.populates_4k) * self.map_4k_ns
            + more(|s| s.unmap_flushes) * self.flush_ns
            + more(|s| s.bytes_scanned) * self.scanned_byte_ns
            + more(|s| s.bytes_cleared) * self.cleared_byte_ns;
        ns / 1e9
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_difference_counts() {
        let before = Statistics { populates_2m: 10, ..Statistics::default() };
        let after = Statistics { populates_2m: 12, ..before };
        let model = CostModel::default();
        assert!((model.seconds(&before, &after) - 104e-6).abs() < 1e-9);
        assert!(model.seconds(&after, &after).abs() < 1e-12);
    }
}
