//! The programs `zerosweep`, which runs unmodified VMMs on populate-on-demand memory and looks after
//! the guests, and `zerosweep-qemu`, which libvirt runs in QEMU's place.
//!
//! ```text
//! cli        what can be asked for
//! commands   one file a command; `run` has a directory
//! emulator   `zerosweep-qemu`: becomes QEMU, and leaves a companion beside it
//! vmm        the VMM's program file and command line, understood before anything is started
//! client     asks the agent inside a VMM          \  both over
//! qmp        asks QEMU                            /  lines
//! runtime    sockets, locks and the directory they are in
//! trust      whose directory and whose socket it is
//! own_file   files that decide what is run: whose they are
//! printable  what comes from outside, as it may be shown
//! console    what a person sees of a long piece of work (standard error)
//! output     what a command answers (standard output)
//! ```

mod agent;
mod cli;
mod client;
mod commands;
mod console;
mod emulator;
mod error;
mod lines;
mod map;
mod output;
mod own_file;
mod printable;
mod qmp;
mod runtime;
mod size;
#[cfg(test)]
mod test_support;
mod trust;
mod vmm;

use std::process::ExitCode;

use clap::Parser as _;

use error::Failure;

/// The program `zerosweep`; its exit status.
#[must_use]
pub fn zerosweep() -> ExitCode {
    commands::dispatch(cli::Arguments::parse()).unwrap_or_else(told)
}

/// The program `zerosweep-qemu`: returns only when there is no QEMU to become.
#[must_use]
pub fn zerosweep_qemu() -> ExitCode {
    emulator::execute(std::env::args_os().skip(1).collect()).unwrap_or_else(told)
}

fn told(failure: Failure) -> ExitCode {
    console::complain(&format!("error: {failure}"));
    failure.exit_code()
}
