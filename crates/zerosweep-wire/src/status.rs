//! One guest's figures.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{Counters, OnExhaustion, ReturnMode};

/// Everything that the agent reports about its guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the messages, [`PROTOCOL`](crate::PROTOCOL).
    pub protocol: u32,
    /// Name of the guest.
    pub name: String,
    /// Process of the VMM.
    pub pid: u32,
    /// What the agent is doing.
    pub state: State,
    /// Why the state is `failed` or the cap is lifted; for people.
    pub reason: Option<String>,
    /// Size of the guest's memory in bytes.
    pub max_mem_bytes: u64,
    /// What the guest may hold, in bytes.
    pub target_bytes: u64,
    /// Name of the policy.
    pub policy: String,
    /// What happens on exhaustion.
    pub on_exhaustion: OnExhaustion,
    /// When cache slots give their host memory back.
    pub return_mode: ReturnMode,
    /// The quantities of the engine.
    pub pages: Pages,
    /// Superpages, by the engine and by the kernel.
    pub superpages: Superpages,
    /// What has been done since the start.
    pub counters: Counters,
    /// Fault service times: from the message's arrival to the answer.
    pub fault_latency: FaultLatency,
    /// What the host's kernel says.
    pub host: HostMemory,
    /// Threads that wait for a frame now.
    pub stalled_threads: u32,
    /// Pages held beyond the target because no frame could be found.
    pub borrowed_pages: u64,
    /// The size that the tool last asked the guest's balloon for, where the target follows a tool's
    /// requests. `None` where the target follows no tool, or there was no request yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balloon_request_bytes: Option<u64>,
    /// The recording of events; `None` if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events: Option<Recorded>,
    /// Where the operation goes on at the next request; `None` when it is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
    /// A part of the superpage map, if it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub map: Option<Map>,
}

/// What the agent is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The VMM has not allocated guest RAM yet.
    WaitingForRam,
    /// Guest memory is populated on demand, within the target.
    Managing,
    /// Something of ours failed: the guest goes on, without the cap.
    CapLifted,
    /// Guest RAM could not be taken over: it is the VMM's own, unmanaged.
    Failed,
}

/// The quantities of the engine, in pages of 4 KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pages {
    /// Pages that the guest could have.
    pub max: u64,
    /// Pages that the domain may hold.
    pub target: u64,
    /// Promised pages without a frame.
    pub entries: u64,
    /// Pages with a frame.
    pub populated: u64,
    /// Slots in the PoD cache.
    pub cache: u64,
    /// Pages that are out but whose frame stays in its superpage.
    pub retained: u64,
    /// populated + cache + retained.
    pub total: u64,
    /// Pages that are ballooned out.
    pub ballooned_out: u64,
    /// entries − cache − retained; what must be reclaimed or ballooned before all is backed.
    pub debt: i64,
    /// What the guest has still to give back.
    pub owed: i64,
    /// How much the guest can certainly still touch: cache and retained.
    pub can_touch: u64,
    /// How much more a sweep should find, by the results of the last checks. 0 from an older agent.
    #[serde(default)]
    pub likely: u64,
    /// Promised pages beyond both: when the guest touches these, it is exhausted. 0 from an older
    /// agent.
    #[serde(default)]
    pub short: u64,
}

/// Superpages of 2 MiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Superpages {
    /// Whole in the guest, by the engine.
    pub in_guest: u64,
    /// Whole in the guest, by the kernel (`PAGEMAP_SCAN`), when it was asked.
    pub in_guest_by_kernel: Option<u64>,
    /// Whole in the cache.
    pub in_cache: u64,
    /// Ranges of the guest that are broken into 4 KiB entries and hold a frame.
    pub broken: u64,
    /// Cleared before they are needed.
    pub cleared_ahead: u64,
}

/// The most superpages that fit into one answer.
pub const MAP_SUPERPAGES: u64 = 8192;

/// Superpages of the guest, in the order of their addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Map {
    /// Number of the first one: gfn / 512.
    pub first: u64,
    /// A letter each: `W` whole, `r` whole although pages of it were given back, `b` broken, `p`
    /// promised, `.` given back.
    pub letters: String,
    /// Three hexadecimal digits each: how many of its pages the guest has and that hold a frame.
    pub live: String,
}

/// A trace of what happens to a guest's memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// The file.
    pub file: PathBuf,
    /// Records that were written.
    pub records: u64,
    /// Length of the file in bytes.
    pub bytes: u64,
    /// Records that are missing because they came too fast.
    pub lost: u64,
    /// Why nothing is written any more; for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Fault service times in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultLatency {
    /// Median.
    pub p50_ns: u64,
    /// 99th percentile.
    pub p99_ns: u64,
    /// Longest.
    pub max_ns: u64,
}

/// What the host's kernel says of the VMM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostMemory {
    /// `RssAnon` of the VMM, its own memory included.
    pub rss_anon_bytes: u64,
}
