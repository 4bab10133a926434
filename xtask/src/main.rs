//! Developer tasks: `cargo xtask setup`, `cargo xtask test`, `cargo xtask bench`,
//! `cargo xtask dist`, `cargo xtask ci`, `cargo xtask fresh`, `cargo xtask hosts`.
//!
//! - [`setup`] installs QEMU, fetches a guest kernel and builds the guest image;
//! - [`need`] knows what tests need, and installs it;
//! - [`tests`] runs every test that this machine allows, and says which it left out and why;
//! - [`mod@bench`] measures, and writes a record of it;
//! - [`dist`] builds what is installed, and a Debian package;
//! - [`ci`] is what CI runs: formatting, lints, documentation, then the tests;
//! - [`fresh`] runs the README's commands on an empty system;
//! - [`hosts`] runs zerosweep on other kernels, QEMUs and processors.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod aarch64;
mod apt;
mod bench;
mod cargo;
mod ci;
#[cfg(test)]
mod circles;
mod dist;
#[cfg(test)]
mod docs;
mod fresh;
mod hosts;
#[cfg(test)]
mod layers;
mod machine;
mod need;
mod setup;
#[cfg(test)]
mod sources;
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
    /// Install what a real guest needs, and build the guest image
    ///
    /// Where this is root on Debian or Ubuntu it installs QEMU and downloads a kernel package
    /// (without installing it); elsewhere it says what is missing and how to get it.
    Setup {
        /// Only say what is missing; exit status 1 if something is
        #[arg(long)]
        check: bool,
    },
    /// Run every test that this machine allows, and say which were left out
    ///
    /// As root on Debian or Ubuntu it installs first what the tests need.
    Test {
        /// Leave out the tests on real guests and those for aarch64, and install nothing
        #[arg(long)]
        quick: bool,
        /// Run the ordinary tests of another architecture instead, all of them, emulated
        #[arg(long, value_name = "ARCHITECTURE", conflicts_with = "quick")]
        arch: Option<tests::Emulated>,
    },
    /// Run the benches that this machine allows, and write a record to bench/record
    ///
    /// docs/benchmarks.md says what the cases are. Times mean something on a quiet machine only.
    Bench {
        /// Take a third of the time
        #[arg(long)]
        quick: bool,
        /// Run nothing: print two records side by side, and the second over the first
        #[arg(long, num_args = 2, value_names = ["BEFORE", "AFTER"], conflicts_with = "quick")]
        compare: Option<Vec<PathBuf>>,
    },
    /// Build what is installed: program, man pages, completions, and with cargo-deb a Debian package
    Dist,
    /// Run what CI runs: formatting, lints, documentation, tests
    Ci,
    /// Run the README's commands on an empty system, from a clean clone of the current commit
    ///
    /// Needs root on Debian or Ubuntu. The system is a directory with nothing in it but the
    /// distribution's smallest set of packages, a C compiler and this machine's Rust toolchain. It
    /// takes some 20 minutes and 10 GiB.
    Fresh {
        /// Where the root is made [default: fresh in the target directory]
        #[arg(long, value_name = "DIR")]
        root: Option<PathBuf>,
        /// Do not remove it at the end
        #[arg(long)]
        keep: bool,
    },
    /// Run zerosweep on other kernels and QEMUs, with KVM, and write docs/hosts.md's table
    ///
    /// Hosts are built of Debian's and Ubuntu's packages, which are unpacked and not installed, and
    /// booted under QEMU's software CPU with AMD's virtualisation. Needs root on Debian or Ubuntu.
    Hosts(hosts::Options),
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
        Task::Test { arch: Some(tests::Emulated::Aarch64), .. } => tests::run_emulated()?,
        Task::Test { quick: true, .. } => tests::run(tests::RealGuests::LeftOut)?,
        Task::Test { quick: false, .. } => tests::run(tests::RealGuests::Run)?,
        Task::Bench { compare: Some(records), .. } => {
            bench::compare(&records[0], &records[1]).map(|()| true)?
        }
        Task::Bench { quick: true, .. } => bench::run(bench::Pace::Quick)?,
        Task::Bench { quick: false, .. } => bench::run(bench::Pace::Full)?,
        Task::Dist => dist::run()?,
        Task::Ci => ci::run()?,
        Task::Hosts(options) => hosts::run(&options)?,
        Task::Fresh { root, keep } => fresh::run(&fresh::Options { root, keep })?,
    };
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
