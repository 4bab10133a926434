//! What is installed: the release build, man pages, completions, and a Debian package of them.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cargo::{Outcome, RELEASE, cargo, target, workspace};
use crate::machine;

/// Shells, and where Debian has the completions of each.
const SHELLS: [(&str, &str); 3] =
    [("bash", "zerosweep"), ("zsh", "_zerosweep"), ("fish", "zerosweep.fish")];

/// Builds everything. Returns whether the package was built too, as far as that is possible here.
pub(crate) fn run() -> Result<bool> {
    let build = ["build", RELEASE, "-p", "zerosweep-cli", "-p", "zerosweep-agent"];
    if cargo(&build, &[])? == Outcome::Failed {
        return Ok(false);
    }
    let program = target().join("release/zerosweep");
    let dist = workspace().join("target/dist");
    write_documents(&program, &dist).context("writing man pages and completions")?;
    println!("man pages and completions are in {}", dist.display());
    if machine::program("cargo-deb").is_none() {
        println!("no Debian package: cargo-deb is not on the PATH: `cargo install cargo-deb`");
        return Ok(true);
    }
    Ok(cargo(&["deb", "--no-build", "-p", "zerosweep-cli"], &[])? == Outcome::Passed)
}

fn write_documents(program: &Path, dist: &Path) -> Result<()> {
    let man = dist.join("man");
    if man.is_dir() {
        // A command that is gone has no page any more.
        fs::remove_dir_all(&man)?;
    }
    fs::create_dir_all(dist.join("completions"))?;
    let status = Command::new(program).arg("man").arg(&man).status()?;
    ensure!(status.success(), "`zerosweep man` failed: {status}");
    for (shell, file) in SHELLS {
        let output = Command::new(program).args(["completions", shell]).output()?;
        ensure!(output.status.success(), "`zerosweep completions {shell}` failed");
        fs::write(dist.join("completions").join(file), output.stdout)?;
    }
    Ok(())
}
