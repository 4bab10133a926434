//! The agent's configuration, which a tool passes in the environment of the VMM.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The environment variable that holds an [`AgentConfig`] as JSON.
///
/// An agent that does not find it does nothing: it passes every call on unchanged.
pub const CONFIG_VARIABLE: &str = "ZEROSWEEP_AGENT_CONFIG";

/// How the agent is to manage the guest memory of the VMM that it is loaded into.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentConfig {
    /// Version of the messages, [`PROTOCOL`](crate::PROTOCOL).
    pub protocol: u32,
    /// Name of the guest.
    pub name: String,
    /// Size of the guest's memory in bytes; the mapping of this length is taken for guest RAM.
    pub max_mem_bytes: u64,
    /// What the guest may hold, in bytes.
    pub target_bytes: u64,
    /// Name of the policy, as `zerosweep` spells it (`xen-2016`, `zerosweep`, …).
    pub policy: String,
    /// What happens when no frame can be found for a fault.
    pub on_exhaustion: OnExhaustion,
    /// When cache slots give their host memory back.
    pub return_mode: ReturnMode,
    /// Where the agent listens.
    pub socket: PathBuf,
    /// Files that the agent unlinks when the VMM exits (its socket is one of them).
    pub unlink_at_exit: Vec<PathBuf>,
    /// Where the target follows what another tool asks the guest's balloon for; `None` where only
    /// [`SetTarget`](crate::Operation::SetTarget) changes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follow: Option<Follow>,
    /// The file for a trace of Xen's, which records what happens to the guest's memory. It must
    /// exist and be empty; its path is absolute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events: Option<PathBuf>,
    /// Which events are recorded.
    #[serde(default)]
    pub event_detail: EventDetail,
}

/// Which events are recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventDetail {
    /// Events that Xen has records for; packed by gzip if the file's name ends in `.gz`.
    #[default]
    Xen,
    /// Also what zero checks saw; always packed.
    Guest,
}

/// The tool whose requests to the guest's balloon the target follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Follow {
    /// QMP sockets of the VMM on which that tool is a client: the agent also reads what comes in.
    pub monitors: Vec<PathBuf>,
    /// What a request means that comes before the guest runs.
    pub before_start: BeforeStart,
}

/// What a request means that comes before the guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BeforeStart {
    /// It is the first target. [`AgentConfig::target_bytes`] only holds until then; a guest that
    /// starts to run without a request gets all of its memory.
    Target,
    /// Nothing: the target was given otherwise.
    Nothing,
}

/// What happens when the cache is empty and nothing can be reclaimed (rule [R15]).
///
/// [R15]: https://github.com/zerosweep/zerosweep/blob/main/docs/rules.md#r15
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnExhaustion {
    /// The vCPU waits until frames become free or the target rises.
    #[default]
    Stall,
    /// Host memory beyond the target is taken, and reported.
    Borrow,
    /// The VMM is ended, as Xen does.
    Kill,
}

impl OnExhaustion {
    /// Every choice.
    pub const ALL: [Self; 3] = [Self::Stall, Self::Borrow, Self::Kill];

    /// Returns the word for it, in messages and for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stall => "stall",
            Self::Borrow => "borrow",
            Self::Kill => "kill",
        }
    }
}

/// When cache slots give their host memory back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReturnMode {
    /// Slots beyond a small stock give it back at once.
    Eager,
    /// Slots keep their host memory.
    #[default]
    Lazy,
}

impl ReturnMode {
    /// Every choice.
    pub const ALL: [Self; 2] = [Self::Eager, Self::Lazy];

    /// Returns the word for it, in messages and for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Eager => "eager",
            Self::Lazy => "lazy",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_those_of_messages() {
        for choice in OnExhaustion::ALL {
            assert_eq!(serde_json::to_value(choice).unwrap(), choice.name());
        }
        for choice in ReturnMode::ALL {
            assert_eq!(serde_json::to_value(choice).unwrap(), choice.name());
        }
    }
}
