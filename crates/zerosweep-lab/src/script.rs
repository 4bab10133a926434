//! A small language for the engine on the software machine: one step in each line.
//!
//! ```text
//! file    = { [ step ] [ "#" comment ] newline }
//! step    = "rd" GFN [ OFFSET ] | "wr" GFN OFFSET VALUE | "dec" GFN ORDER | "pop" GFN ORDER
//!         | "pod" GFN ORDER | "special" GFN ORDER | "target" PAGES
//!         | "sweep" | "consolidate" | "audit"
//! number  = decimal | "0x" hexadecimal, with "_" between digits
//! ```
//!
//! | module | what |
//! | --- | --- |
//! | `parse` | the grammar: text to [`Script`] |
//! | `run` | [`Runner`] does a [`Step`] on the software machine |
//! | `output` | [`Line`]: what it says, as JSON |
//!
//! All of a file is read before its first step runs. A step that fails answers with an error,
//! changes nothing, and the next step follows. `docs/script.md` has the meaning of each step, and
//! examples.

mod output;
mod parse;
mod run;

pub use output::{Line, Quantities, ShownEvent, StepResult};
pub use parse::{Script, Step, SyntaxError};
pub(crate) use run::superframes_for;
pub use run::{NewRunnerError, Runner};
