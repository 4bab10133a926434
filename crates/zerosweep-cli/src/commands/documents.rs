//! `zerosweep completions SHELL` and `zerosweep man DIR`: from the arguments, as they are.

use std::process::ExitCode;

use clap::CommandFactory as _;
use zerosweep_client::error::Failure;
use zerosweep_client::output;

use crate::cli::{Arguments, CompletionsArguments, ManArguments};

/// Prints the completions.
pub(super) fn completions(arguments: &CompletionsArguments) -> Result<ExitCode, Failure> {
    let mut script = Vec::new();
    let mut command = Arguments::command();
    let name = command.get_name().to_owned();
    clap_complete::generate(arguments.shell, &mut command, name, &mut script);
    output::text(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}

/// Writes `zerosweep.1`, `zerosweep-run.1`, and so on.
pub(super) fn man(arguments: &ManArguments) -> Result<ExitCode, Failure> {
    let dir = &arguments.dir;
    let failed = |error| Failure::work(format!("cannot write to {}: {error}", dir.display()));
    std::fs::create_dir_all(dir).map_err(failed)?;
    clap_mangen::generate_to(Arguments::command(), dir).map_err(failed)?;
    Ok(ExitCode::SUCCESS)
}
