//! Programs for aarch64 on a machine that is none: built with a cross linker, run by QEMU's user
//! emulation (`xtask/run-aarch64`).
//!
//! The emulation has no userfaultfd. It also keeps the memory order of the host's CPU, so that races
//! that only aarch64 has stay hidden.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::cargo::workspace;
use crate::machine;

/// As cargo names it.
pub(crate) const TARGET: &str = "aarch64-unknown-linux-gnu";
/// Debian's and Ubuntu's packages: the linker, the C library, the emulator.
pub(crate) const PACKAGES: &[&str] =
    &["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross", "qemu-user-static"];
/// How to get the rest, where it is not Debian.
pub(crate) const HINT: &str = "Arch: `pacman -S aarch64-linux-gnu-gcc qemu-user-static`; then \
                               `rustup target add aarch64-unknown-linux-gnu`, and Linux 6.7 or newer";
/// What cargo is told of it. The second path is one below the workspace.
pub(crate) const VARIABLES: [(&str, &str); 2] = [
    ("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", LINKER),
    ("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER", RUNNER),
];
/// A C compiler, with which Rust programs are linked.
pub(crate) const LINKER: &str = "aarch64-linux-gnu-gcc";
const RUNNER: &str = "xtask/run-aarch64";
const EMULATORS: [&str; 2] = ["qemu-aarch64-static", "qemu-aarch64"];

/// Whether programs for aarch64 can be built and run.
///
/// # Errors
/// What is missing.
pub(crate) fn check() -> Result<(), String> {
    has_programs()?;
    if !has_target() {
        return Err(format!("this Rust toolchain cannot compile for {TARGET}"));
    }
    let output = run(Path::new("true")).output();
    let output = output.map_err(|error| format!("{RUNNER}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("programs for aarch64 cannot be started here: {}", said.trim().replace('\n', "; ")))
}

/// Whether what is missing is something that [`get_target`] and the packages bring.
pub(crate) fn can_be_installed() -> bool {
    let rustup = machine::program("rustup").is_some();
    (has_programs().is_err() || !has_target()) && (has_target() || rustup)
}

/// Gets the standard library for aarch64, where the toolchain has none.
///
/// # Errors
/// What rustup says.
pub(crate) fn get_target() -> Result<()> {
    if has_target() {
        return Ok(());
    }
    eprintln!("=== rustup target add {TARGET}");
    let mut command = Command::new("rustup");
    command.args(["target", "add", TARGET]).current_dir(workspace()).stdin(Stdio::null());
    let output = command.output().context("starting rustup")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "rustup target add {TARGET}: {}", said.trim_end());
    Ok(())
}

/// A command that runs this program. Programs that it starts are emulated too.
pub(crate) fn run(program: &Path) -> Command {
    let mut command = Command::new(workspace().join(RUNNER));
    command.arg(program).stdin(Stdio::null());
    command
}

fn has_programs() -> Result<(), String> {
    if machine::program(LINKER).is_none() {
        return Err(format!("{LINKER} is not on the PATH"));
    }
    if EMULATORS.iter().all(|name| machine::program(name).is_none()) {
        return Err(format!("{} is not on the PATH", EMULATORS[0]));
    }
    Ok(())
}

fn has_target() -> bool {
    let mut command = Command::new("rustc");
    command.args(["--print", "target-libdir", "--target", TARGET]).current_dir(workspace());
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output();
    output.is_ok_and(|output| Path::new(String::from_utf8_lossy(&output.stdout).trim()).is_dir())
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn cargo_is_told_by_variables_of_this_target() {
        let name = TARGET.to_uppercase().replace('-', "_");
        for (variable, value) in VARIABLES {
            assert!(variable.starts_with(&format!("CARGO_TARGET_{name}_")), "{variable}");
            assert!(!value.contains('/') || workspace().join(value).is_file(), "{value}");
        }
        assert!(HINT.contains(TARGET));
    }
}
