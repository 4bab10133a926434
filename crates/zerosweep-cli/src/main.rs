//! The program `zerosweep`: runs unmodified VMMs on populate-on-demand memory and looks after
//! the guests.
//!
//! ```text
//! cli        what can be asked for
//! commands   one file a command; `run` has a directory
//! vmm        the VMM's program file and command line, understood before anything is started
//! client     asks the agent inside a VMM          \  both over
//! qmp        asks QEMU                            /  lines
//! runtime    sockets, locks and the directory they are in
//! console    what a person sees of a long piece of work (standard error)
//! output     what a command answers (standard output)
//! ```

mod agent;
mod cli;
mod client;
mod commands;
mod console;
mod error;
mod lines;
mod map;
mod output;
mod qmp;
mod runtime;
mod size;
#[cfg(test)]
mod test_support;
mod vmm;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    commands::dispatch(cli::Arguments::parse()).unwrap_or_else(|failure| {
        console::complain(&format!("error: {failure}"));
        failure.exit_code()
    })
}
