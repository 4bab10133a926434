//! The results of runs: the JSON documents that scripts of users read.

use serde::{Deserialize, Serialize};
use zerosweep::Statistics;

use crate::host::HostFacts;
use crate::timeline::Sample;

/// The policy's name in a run of QEMU without zerosweep.
pub(crate) const PLAIN: &str = "plain";

/// Version of the documents.
pub const SCHEMA: u32 = 1;

/// The results of one invocation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The machine that it ran on.
    pub host: HostFacts,
    /// The runs.
    pub runs: Vec<Run>,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The guest did all of its work.
    Ok,
    /// No frame could be found, and the guest was given up.
    Exhausted,
    /// A virtual CPU waited for a frame until the run was given up.
    Stalled,
    /// The guest was ended.
    Killed,
}

/// Where times come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeKind {
    /// A clock.
    Measured,
    /// [`crate::cost`].
    Modelled,
}

/// Those of the engine's counters, at the end of a run, that are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "each is the field of `Statistics` with its name")]
pub struct EngineFigures {
    pub populates_2m: u64,
    pub populates_4k: u64,
    pub zero_checks_2m: u64,
    pub zero_checks_2m_hit: u64,
    pub zero_checks_4k: u64,
    pub bytes_scanned: u64,
    pub bytes_cleared: u64,
    pub bytes_copied: u64,
    pub eager_checks: u64,
    pub emergency_sweeps: u64,
    pub splinters: u64,
    pub shatters: u64,
    pub superpages_reclaimed: u64,
}

impl From<&Statistics> for EngineFigures {
    fn from(statistics: &Statistics) -> Self {
        Self {
            populates_2m: statistics.populates_2m,
            populates_4k: statistics.populates_4k,
            zero_checks_2m: statistics.zero_checks_2m,
            zero_checks_2m_hit: statistics.zero_checks_2m_hit,
            zero_checks_4k: statistics.zero_checks_4k,
            bytes_scanned: statistics.bytes_scanned,
            bytes_cleared: statistics.bytes_cleared,
            bytes_copied: statistics.bytes_copied,
            eager_checks: statistics.eager_checks,
            emergency_sweeps: statistics.emergency_sweeps,
            splinters: statistics.splinters,
            shatters: statistics.shatters,
            superpages_reclaimed: statistics.superpages_reclaimed,
        }
    }
}

/// One guest under one policy. Pages are of 4 KiB. A figure that was not measured is `null`.
///
/// `peak_total_bytes` and `end_total_bytes` are the memory held (populated, cached and retained):
/// the most at any moment, and at the end.
///
/// `limit_superpages_free` and `limit_bytes_scanned` are the best possible results of any policy
/// ([`crate::ledger::Limit`]). The actual results are [`Run::superpages_free`] and `bytes_scanned`.
/// `live_on_superpages` is, of the live pages that the guest has at the end, the share in whole
/// superpages; 1 if there are no live pages.
///
/// For a real guest under QEMU (`machine` is `qemu`, `accelerator` is `tcg` or `kvm`), some figures
/// come from the host's kernel: the memory held (without the VMM's own,
/// [`crate::real_guest::held`]), the number of superpages in the guest, and `live_on_superpages`
/// (the share of guest RAM with a frame that is in huge pages). `boot_seconds` is the time until
/// the first message of the guest's init. `balloon_seconds` is the time from the start of its
/// balloon driver until the target is reached. The best possible results are not known, so the
/// limits are `null`. The other figures are the engine's; under `plain`, which is QEMU without
/// zerosweep, there is no engine, and they are 0.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "names are those of the documented JSON")]
pub struct Run {
    pub guest: String,
    pub policy: String,
    pub machine: String,
    pub seed: u64,
    pub vcpus: u32,
    pub max_mem_bytes: u64,
    pub target_bytes: u64,
    pub outcome: Outcome,
    pub boot_seconds: f64,
    pub balloon_seconds: f64,
    pub time_kind: TimeKind,
    #[serde(flatten)]
    pub engine: EngineFigures,
    pub superpages_in_guest: u64,
    pub superpages_in_cache: u64,
    #[serde(default)]
    pub singles_in_cache: u64,
    pub superpages_returned: u64,
    pub pages_returned_4k: u64,
    pub emergency_sweeps_ballooning: u64,
    pub bytes_scanned_ballooning: u64,
    #[serde(default)]
    pub superpages_reclaimed_ballooning: u64,
    pub peak_total_bytes: u64,
    #[serde(default)]
    pub end_total_bytes: u64,
    pub unmap_flushes: u64,
    pub live_on_superpages: f64,
    pub fault_ns_p50: Option<u64>,
    pub fault_ns_p99: Option<u64>,
    pub fault_ns_max: Option<u64>,
    #[serde(default)]
    pub limit_superpages_free: Option<u64>,
    #[serde(default)]
    pub limit_bytes_scanned: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accelerator: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<Vec<Sample>>,
}

impl Run {
    /// Superpages of the target that are free at the end: in the cache, or with the host.
    #[must_use]
    pub fn superpages_free(&self) -> u64 {
        self.superpages_in_cache + self.superpages_returned
    }

    /// Whether both are runs of the same experiment, whatever their results are.
    #[must_use]
    pub fn is_repeat_of(&self, other: &Self) -> bool {
        self.identity() == other.identity()
    }

    fn identity(&self) -> (&str, &str, &str, [u64; 4]) {
        let numbers = [self.seed, u64::from(self.vcpus), self.max_mem_bytes, self.target_bytes];
        (&self.guest, &self.policy, &self.machine, numbers)
    }
}

impl Run {
    /// Whether it is a real guest under QEMU.
    #[must_use]
    pub fn is_real_guest(&self) -> bool {
        self.machine == "qemu"
    }

    /// Whether it is QEMU without zerosweep: then there are no figures of an engine.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.policy == PLAIN
    }

    /// Returns how it ended, for people.
    #[must_use]
    pub fn ending(&self) -> &'static str {
        match self.outcome {
            Outcome::Ok => "ok",
            Outcome::Exhausted if self.is_real_guest() => {
                "exhausted: no frame was found, it went on beyond its target"
            }
            Outcome::Stalled if self.is_real_guest() => "stalled: it did not get to its end",
            Outcome::Killed if self.is_real_guest() => "killed: its kernel or the VMM gave up",
            Outcome::Exhausted => "exhausted: no frame was found for the guest",
            Outcome::Stalled => "stalled: no frame was found for the guest",
            Outcome::Killed => "the guest was ended",
        }
    }

    /// Returns where it ran, as words to put after the guest's name.
    #[must_use]
    pub fn location(&self) -> &'static str {
        match self.machine.as_str() {
            "linux" => "on real memory",
            "qemu" => match self.accelerator.as_deref() {
                Some("kvm") => "under QEMU with KVM",
                Some("tcg") => "under QEMU on its software CPU",
                _ => "under QEMU",
            },
            _ => "on the software machine",
        }
    }
}
