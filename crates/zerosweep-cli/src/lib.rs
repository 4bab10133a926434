//! The programs `zerosweep`, which runs unmodified VMMs on populate-on-demand memory and looks
//! after the guests, and `zerosweep-qemu`, which libvirt runs in QEMU's place.
//!
//! ```text
//! cli        what can be asked for
//! commands   one file a command; `run` has a directory
//! emulator   `zerosweep-qemu`: becomes QEMU, and leaves a companion beside it
//! vmm        the VMM's program file and command line, understood before anything is started
//! agent      the agent's library, as a file
//! map        the superpage map on a terminal
//! console    what a person sees of a long piece of work (standard error)
//! ```
//!
//! Guests are asked through `zerosweep-client`. The server of `zerosweep serve` is in
//! `zerosweep-serve`. Only the program `zerosweep` links that crate and hands it to this library
//! ([`Serve`]): libvirt runs `zerosweep-qemu` for every guest, and no web server belongs in it.

mod agent;
mod cli;
mod commands;
mod console;
mod emulator;
mod map;
mod vmm;

use std::process::ExitCode;

use clap::Parser as _;
use zerosweep_client::error::Failure;
use zerosweep_client::output::eprint_line;

pub use cli::ServeArguments;

/// What `zerosweep serve` runs.
pub type Serve = fn(&ServeArguments) -> Result<(), Failure>;

/// The program `zerosweep` with a server for `zerosweep serve`; its exit status.
#[must_use]
pub fn zerosweep(serve: Serve) -> ExitCode {
    commands::dispatch(cli::Arguments::parse(), serve).unwrap_or_else(told)
}

/// The program `zerosweep-qemu`: returns only when there is no QEMU to become.
#[must_use]
pub fn zerosweep_qemu() -> ExitCode {
    emulator::execute(std::env::args_os().skip(1).collect()).unwrap_or_else(told)
}

fn told(failure: Failure) -> ExitCode {
    eprint_line(&format!("error: {failure}"));
    failure.exit_code()
}
