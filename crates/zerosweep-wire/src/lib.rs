//! Versioned messages between the agent inside a VMM and the tools around it.
//!
//! The agent listens on a Unix stream socket, `NAME.sock` in the [runtime directory](runtime).
//! Each message is one JSON document on a line of its own:
//!
//! ```text
//! agent  → client   Hello        once, as soon as the client is connected
//! client → agent    Request      {"id":1,"op":"status"}
//! agent  → client   Response     {"id":1,"ok":{…}}  or  {"id":1,"error":{…}}
//! ```
//!
//! Access is by file permission alone: the directory is 0700 and the socket 0600.
//! Fields may be added within a [`PROTOCOL`] version; a field that goes or changes its meaning
//! takes a new version. A client compares [`Hello::protocol`] with its own before it asks.

mod config;
mod counters;
mod line;
mod message;
pub mod runtime;
mod status;

pub use config::{
    AgentConfig, BeforeStart, CONFIG_VARIABLE, EventDetail, Follow, OnExhaustion, ReturnMode,
};
pub use counters::Counters;
pub use line::read_line;
pub use message::{Answer, ErrorBody, ErrorKind, Hello, Operation, Request, Response};
pub use status::{
    FaultLatency, HostMemory, MAP_SUPERPAGES, Map, Pages, Recorded, State, Status, Superpages,
};
pub use zerosweep::Counter;

/// Version of the messages in this crate.
pub const PROTOCOL: u32 = 1;

/// Longest line that either side accepts, in bytes without the line end. A longer one ends the
/// connection.
pub const MAX_LINE_BYTES: usize = 64 * 1024;
