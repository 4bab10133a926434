//! The client side: finds the guests of this host, asks their agents and QEMUs, and sets their
//! targets. The commands and the page of `zerosweep serve` are on top of it.
//!
//! | module | what |
//! | --- | --- |
//! | [`agent`] | asks the agent inside a VMM |
//! | [`qmp`] | asks QEMU |
//! | [`lines`] | the stream of lines that both are asked over |
//! | [`runtime`] | sockets, locks and the directory that they are in |
//! | [`trust`] | whose directory and whose socket it is |
//! | [`poll`] | polls a guest once: its figures and its superpage map |
//! | [`list`] | all guests and their figures, as a document |
//! | [`target`] | sets a guest's target, and has its balloon follow |
//! | [`work`] | sweeps and consolidations |
//! | [`audit`] | has the agent recount its figures |
//! | [`own_file`] | files that decide what is run: whose they are |
//! | [`size`] | sizes as people write them |
//! | [`printable`] | text from outside, escaped so that a terminal can show it |
//! | [`output`] | standard output and standard error |
//! | [`error`] | a message for a person, and an exit status |
//!
//! Every question blocks, and has a timeout. Neither an agent nor QEMU is believed: what they send
//! has a largest size, and what is shown of it is escaped.

pub mod agent;
pub mod audit;
pub mod error;
pub mod lines;
pub mod list;
pub mod output;
pub mod own_file;
pub mod poll;
pub mod printable;
pub mod qmp;
pub mod runtime;
pub mod size;
pub mod target;
#[cfg(any(test, feature = "test-support"))]
pub mod test_support;
pub mod trust;
pub mod work;
