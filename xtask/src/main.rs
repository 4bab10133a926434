//! Developer tasks: `cargo xtask setup`, `cargo xtask test`, `cargo xtask ci`.
//!
//! - [`setup`] installs QEMU, fetches a guest kernel and builds the guest image;
//! - [`tests`] runs every test that this machine allows, and says which it left out and why;
//! - [`ci`] is what CI runs: formatting, lints, documentation, then the tests.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod apt;
mod cargo;
mod ci;
mod machine;
mod setup;
mod tests;

/// Developer tasks of zerosweep.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what tests on real guests need, and build the guest image
    ///
    /// Where this is root on Debian or Ubuntu it installs QEMU and downloads a kernel package
    /// (without installing it); elsewhere it says what is missing and how to get it.
    Setup {
        /// Only say what is missing; exit status 1 if anything is
        #[arg(long)]
        check: bool,
    },
    /// Run every test that this machine allows, and say which were left out
    Test {
        /// Leave out the tests on real guests
        #[arg(long)]
        quick: bool,
    },
    /// Run what CI runs: formatting, lints, documentation, tests
    Ci,
}

fn main() -> ExitCode {
    match run(Arguments::parse().task) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<ExitCode> {
    std::env::set_current_dir(cargo::workspace())?;
    let passed = match task {
        Task::Setup { check: true } => setup::check(),
        Task::Setup { check: false } => setup::run().map(|()| true)?,
        Task::Test { quick: true } => tests::run(tests::RealGuests::LeftOut)?,
        Task::Test { quick: false } => tests::run(tests::RealGuests::Run)?,
        Task::Ci => ci::run()?,
    };
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
