//! The software machine: guest memory made of real bytes in an arena.
//!
//! [`SoftwareMachine`] implements the engine's [`Machine`](zerosweep::Machine), so zero checks read
//! real zeros. It keeps its own table of what is mapped where, and checks every call against it.
//! [`SoftwareGuest`] joins it with a domain: reads and writes go through that table, and a touch of
//! a page that is not mapped is a fault. Everything is deterministic, and needs no privileges.
#![forbid(unsafe_code)]

mod guest;
mod machine;
mod random;

pub use guest::{NewGuestError, Recorder, SoftwareGuest, TouchError, touch, touch_at_rest};
pub use machine::{Failure, Kept, MachineCounters, SoftwareMachine};
pub use random::splitmix64;
