//! Xen's binary trace, as `xentrace` writes it and `xenalyze` reads it.
//!
//! Words of 32 bits, little endian, one record after the other, without a header of the file:
//!
//! ```text
//! word 0      bits 27:0 event, 30:28 number of extra words, 31 a time stamp follows
//! [2 words]   time stamp counter, low and high
//! [0–7 words] the event's own
//! ```
//!
//! A file is made of windows: a record *CPU change* says whose records follow, and how many bytes
//! they take. Windows of several CPUs come in the order in which they were written, not in that of
//! time. A record without a time stamp has its CPU's last one.
//!
//! [`Writer`] writes one. [`Source`] is where one comes from, [`Reader`] takes a trace apart in
//! constant memory, [`Event`] is what populate on demand says in it, [`Summary`] counts, [`Course`]
//! says how it went, and [`guess`] finds out which of two layouts its records have.

mod course;
mod event;
mod guess;
mod pages;
mod reader;
mod recording;
mod replay;
mod source;
mod summary;

pub use course::{COLUMNS, Column, Course, Extent};
pub use event::{Event, EventError, Layout, PageKind};
pub use guess::{Guess, guess};
pub use pages::{PageStates, Tally};
pub use reader::{Broken, Reader, Reason, Record, open};
pub use recording::{Recording, RecordingError, Unknown};
pub use replay::{Replay, ReplayError};
pub use source::Source;
pub use summary::{ByOrder, DomainSummary, Looks, Summary};
pub use zerosweep_events::{Packing, Writer};

/// What the largest order is.
const MAX_ORDER: u32 = 18;
