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
//! ```
//! use zerosweep::{Config, Domain, Fault, Gfn, Order, Policy};
//! use zerosweep_sim::SoftwareMachine;
//!
//! // Told that it has 64 MiB; may hold 16. The host has no more.
//! let (pages, target) = (64 * 256, 16 * 256);
//! let mut machine = SoftwareMachine::new(target);
//! let mut domain = Domain::new(Config::new(pages, target, Policy::Zerosweep))?;
//! for first in (0..pages).step_by(512) {
//!     domain.with(&mut machine).populate_on_demand(Gfn::new(first), Order::SUPERPAGE)?;
//! }
//! domain.with(&mut machine).set_target(target)?;
//!
//! // A touch of a page that has no frame.
//! let fault = domain.with(&mut machine).fault(Gfn::new(5))?;
//! assert_eq!(fault, Fault::Present { gfn: Gfn::new(0), order: Order::SUPERPAGE });
//! // The balloon gives it back. Its superpage stays whole, until its frames are needed.
//! assert_eq!(domain.with(&mut machine).decrease(Gfn::new(5), Order::PAGE)?, 1);
//! assert_eq!(domain.quantities().retained, 1);
//! assert_eq!(domain.quantities().total(), target);
//! domain.audit()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! What the engine does, exactly, is in the [rules]; its words are in the [glossary].
//! `examples/machine.rs` has a machine from scratch; the crate `zerosweep-linux` is real memory.
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
mod cursors;
mod domain;
mod error;
mod event;
mod frame;
mod machine;
mod p2m;
mod page_bits;
mod policy;
mod pool;
mod retained;
mod ring;
mod run;
mod session;
mod superframes;

#[doc = include_str!("../glossary.md")]
pub mod glossary {}

#[doc = include_str!("../rules.md")]
pub mod rules {}

pub use audit::AuditError;
pub use cache::Cache;
pub use domain::{
    Config, ConfigError, Counter, Domain, Forecast, InvalidTouch, Life, Quantities, Statistics,
    Upkeep,
};
pub use error::OutOfTableMemory;
pub use event::Event;
pub use frame::{
    FRAME_LIMIT, Gfn, Mfn, Order, PAGE_BYTES, SUPERPAGE_BYTES, SUPERPAGE_PAGES, Superframe,
    Superpage,
};
pub use machine::{
    Allocated, Content, Exclusive, Host, Machine, MapError, Mapped, OutOfFrames, QUICK_CHECK_WORDS,
    Shown, Unmapped,
};
pub use p2m::{Entry, P2m, RamState, SuperpageState, Tally};
pub use page_bits::PageBits;
pub use policy::{Gate, Policy, UnknownPolicy};
pub use pool::FramePool;
pub use session::{
    BuildError, Consolidation, DecreaseError, DiscardError, Fault, FaultError, FillError, Offline,
    Progress, Reconciliation, Session, TargetError,
};
