//! The parameters of a domain.

use core::fmt;

use crate::error::OutOfTableMemory;
use crate::frame::FRAME_LIMIT;
use crate::policy::Policy;

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
    /// A thread of the host. It calls [`Session::upkeep`](crate::Session::upkeep) when
    /// [`Domain::wants_upkeep`](crate::Domain::wants_upkeep) is true. An operation returns at most
    /// 64 runs of frames itself, because a guest may wait for it.
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
