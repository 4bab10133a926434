//! The engine's events as a file: Xen's binary trace, which `xenalyze` and `zerosweep trace` read.
//!
//! ```text
//! Host::event ── notes ──► Journal (bounded) ──► Recording, a thread ──► Writer ──► file
//!                  └──────────── where there is but one thread ───────────┘
//! ```
//!
//! | module | what |
//! | --- | --- |
//! | [`notes`](notes()) | what an event says in the words of a trace |
//! | [`Journal`] | where threads leave their notes: a short lock, no memory allocated, no waiting |
//! | [`Recording`] | a journal and the file that a thread empties it into |
//! | [`Writer`] | the records; [`record`] has their numbers |
//!
//! Invariant: a thread that adds a note waits only for other threads that add one, for some
//! instructions each. What does not fit is counted. A trace says where records are missing, and how
//! many.
//!
//! A recording ([`Detail::Guest`]) has what zero checks saw too, in a record that Xen has not. A
//! packed file ([`Packing::Gzip`]) has a gzip member for each window.
//!
//! Known holes: frames that are moved (rule [R13]), stolen, returned or retained are not in a
//! trace, because Xen has no record for it; neither are sweeps and exhaustion.
//!
//! [R13]: zerosweep::rules#r13
#![forbid(unsafe_code)]

mod journal;
mod note;
pub mod record;
mod recording;
mod writer;

pub use journal::{Batch, Journal};
pub use note::{Detail, Kind, Note, What, notes};
pub use recording::{Figures, Recording};
pub use writer::{Packing, Writer};
