//! What CI runs.

use anyhow::Result;

use crate::cargo::{Outcome, cargo, has};
use crate::tests::{self, RealGuests};

/// Runs everything, also after a failure, so that one run shows all errors. Returns whether
/// everything passed.
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
    let knows_licences = has("deny");
    if knows_licences {
        // Advisories are not looked up here: they change without us, and need the network.
        step(&["deny", "--all-features", "check", "licenses", "bans", "sources"], &[])?;
    }
    let tests_passed = tests::run(RealGuests::Run)?;
    if !knows_licences {
        println!("skipped: cargo deny, which is not installed (cargo install cargo-deny)");
    }
    for step in &failed {
        println!("failed: cargo {step}");
    }
    Ok(tests_passed && failed.is_empty())
}
