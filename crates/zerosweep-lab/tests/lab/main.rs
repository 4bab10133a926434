//! Traces, recordings, scripts and the forecast, from outside the crate.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod corpus;
mod forecast;
mod recordings;
mod xentrace_writer;
