//! Running cargo, and other programs, in the workspace.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

/// The profile of ordinary tests, as arguments of cargo. It has every assertion. It is optimised,
/// because the zero-scan kernels are some fifty times slower otherwise.
pub(crate) const CHECKED: [&str; 2] = ["--profile", "checked"];
/// The profile for real guests: the one that users have.
pub(crate) const RELEASE: &str = "--release";

/// The root of the workspace.
pub(crate) fn workspace() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Where cargo builds.
pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

/// Whether a command succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Exit status 0.
    Passed,
    /// Any other.
    Failed,
}

/// Runs cargo with `arguments`; prints the command first, as a person would type it.
pub(crate) fn cargo(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Outcome> {
    eprintln!("\n=== {}", shown(arguments, variables));
    let status = command(arguments, variables).status().context("starting cargo")?;
    Ok(if status.success() { Outcome::Passed } else { Outcome::Failed })
}

/// Runs cargo with `arguments` as [`cargo`] does, and returns what it writes to its standard output.
pub(crate) fn output(arguments: &[&str], variables: &[(&str, &str)]) -> Result<(Outcome, String)> {
    eprintln!("\n=== {}", shown(arguments, variables));
    let output = command(arguments, variables).stderr(Stdio::inherit()).output();
    let output = output.context("starting cargo")?;
    let outcome = if output.status.success() { Outcome::Passed } else { Outcome::Failed };
    Ok((outcome, String::from_utf8_lossy(&output.stdout).into_owned()))
}

/// Whether cargo has a subcommand that is installed apart.
pub(crate) fn has(subcommand: &str) -> bool {
    let mut command = command(&[subcommand, "--version"], &[]);
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// What a program prints, without the end of the line.
pub(crate) fn said_by(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).current_dir(workspace()).output();
    let output = output.with_context(|| format!("starting {program}"))?;
    ensure!(output.status.success(), "{program} {}: {}", arguments.join(" "), output.status);
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Starts cargo and does not wait for it: a build that is needed later. Its output is shown when
/// the build is repeated.
pub(crate) fn start(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Child> {
    eprintln!("\n=== {} &", shown(arguments, variables));
    let mut command = command(arguments, variables);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("starting cargo")
}

fn command(arguments: &[&str], variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .args(arguments)
        .envs(variables.iter().copied())
        .current_dir(workspace())
        .stdin(Stdio::null());
    command
}

/// The command as a person would type it.
pub(crate) fn shown(arguments: &[&str], variables: &[(&str, &str)]) -> String {
    let variables = variables.iter().map(|(name, value)| format!("{name}='{value}' "));
    variables.collect::<String>() + "cargo " + &arguments.join(" ")
}
