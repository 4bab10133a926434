//! What CI runs.

use anyhow::Result;

use crate::cargo::{Outcome, cargo};
use crate::tests::{self, RealGuests};

/// Runs everything, also after a failure, so that one run shows all that is wrong; whether all of
/// it passed.
pub(crate) fn run() -> Result<bool> {
    let mut failed = Vec::new();
    let mut step = |arguments: &[&'static str], variables: &[(&str, &str)]| -> Result<()> {
        if cargo(arguments, variables)? == Outcome::Failed {
            failed.push(arguments[0]);
        }
        Ok(())
    };
    step(&["fmt", "--all", "--check"], &[])?;
    step(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"], &[])?;
    step(&["doc", "--workspace", "--no-deps"], &[("RUSTDOCFLAGS", "-D warnings")])?;
    let tests_passed = tests::run(RealGuests::Run)?;
    for step in &failed {
        println!("failed: cargo {step}");
    }
    Ok(tests_passed && failed.is_empty())
}
