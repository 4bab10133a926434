//! Guest models: what a guest writes and gives back, the same on every machine.
//!
//! A [`Guest`] has a name, parameters, and makes a [`Plan`] for a [`Shape`]; a run follows the plan
//! on the software machine or lets threads follow it on real memory. A plan depends on the shape
//! alone, and the seed is part of it.
//!
//! | guest | what it does | where that comes from |
//! | --- | --- | --- |
//! | `linux`, `linux-scrub`, `churn` | [`linux`] | the kernel's allocator and `init_on_free` |
//! | `windows` | [`windows`] | the zero-page threads, a late driver |
//! | `scrub` | [`scrub`] | the guest of Xen's published figures |
//! | `hostile` | [`hostile`] | an attack on zero checks |

mod buddy;
pub mod hostile;
pub mod linux;
mod parse;
mod plan;
mod random;
pub mod scrub;
pub mod windows;

use std::fmt;

pub use hostile::Hostile;
pub use linux::Linux;
pub use parse::{GuestError, parse_list};
pub use plan::{Plan, Shape, Store};
pub use scrub::Scrub;
pub use windows::Windows;

/// The seed of the published figures.
pub const DEFAULT_SEED: u64 = 7777;

/// A guest, with the name under which it was asked for: `scrub:dirty_percent=5,clustered`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    name: String,
    model: Model,
}

/// The models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Model {
    /// Linux, in its three kinds.
    Linux(Linux),
    /// Windows.
    Windows(Windows),
    /// The guest of Xen's figures.
    Scrub(Scrub),
    /// An attacker.
    Hostile(Hostile),
}

impl Guest {
    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is.
    #[must_use]
    pub fn model(&self) -> Model {
        self.model
    }

    /// What it is going to do.
    #[must_use]
    pub fn plan(&self, shape: &Shape) -> Plan {
        match self.model {
            Model::Linux(guest) => guest.plan(shape),
            Model::Windows(guest) => guest.plan(shape),
            Model::Scrub(guest) => guest.plan(shape),
            Model::Hostile(guest) => guest.plan(shape),
        }
    }
}

impl fmt::Display for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}
