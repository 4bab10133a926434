//! The facts about real memory on which zerosweep builds, each with its test.
//!
//! `cargo test -p zerosweep-linux -- --include-ignored` runs those that need userfaultfd too;
//! `--nocapture` prints the times.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panic, like tests")]

mod bench;
mod collapse;
mod holes;
mod pin;
mod pinned;
mod superpages;
mod unregister;
mod unsuitable;
mod zero_page;

use zerosweep_linux::Span;
