//! Populate-on-demand guest memory that keeps superpages whole: the engine.
//!
//! A guest is told that it has `max` pages and may hold only `target` of them. Pages are promised
//! ([PoD](Session::populate_on_demand)) and get a frame on first touch ([`Session::fault`]); the
//! guest gives pages back ([`Session::decrease`]); frames behind zeros are found and taken back by
//! zero checks and sweeps, whole superpages first. A [`Policy`] says when: ours, or one of those
//! that Xen had.
//!
//! The engine does no I/O and knows no time, threads or randomness. It asks a [`Machine`] to move
//! frames, and a [`Host`] joins machine and [`Domain`]; an operation is one call on a [`Session`].
//!
//! ```text
//!  guest touches, gives back        ┌───────────┐  allocate, free      ┌──────────────────┐
//!  ────────────────────────────────►│  Session  │  map, unmap, flush   │ Machine          │
//!  Fault, pages given back ◄────────│  Domain   │ ────────────────────►│  software arena  │
//!  Event ◄──────────────────────────│ p2m cache │  check, clear        │  Linux memory    │
//!                                   └───────────┘                      └──────────────────┘
//! ```
//!
//! Under our policy pages move: the few live pages of a superpage are copied elsewhere so that its
//! frame comes free whole (*evacuate*), and back into one when memory allows (*refill*); pages that
//! are given back one by one keep their frames in a superpage that stays whole until the frames are
//! needed (*retain*).
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod audit;
mod cache;
mod domain;
mod event;
mod frame;
mod machine;
mod p2m;
mod policy;
mod pool;
mod retained;
mod ring;
mod session;
mod sweep;

pub use audit::AuditError;
pub use cache::{Cache, Dirty};
pub use domain::{
    Config, ConfigError, Domain, Forecast, InvalidTouch, Life, Quantities, Statistics, Upkeep,
};
pub use event::Event;
pub use frame::{
    FRAME_LIMIT, Gfn, Mfn, Order, PAGE_BYTES, SUPERPAGE_BYTES, SUPERPAGE_PAGES, Superpage,
};
pub use machine::{
    Allocated, Content, Exclusive, Host, Machine, MapError, Mapped, OutOfFrames, QUICK_CHECK_WORDS,
    Unmapped,
};
pub use p2m::{Entry, Hold, OutOfTableMemory, P2m, SpareTable, Tally};
pub use policy::{Gate, Policy, UnknownPolicy};
pub use pool::FramePool;
pub use retained::PageBits;
pub use session::{
    BuildError, Consolidation, DecreaseError, Fault, FaultError, FillError, Offline, Progress,
    Session, TargetError,
};
