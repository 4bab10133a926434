//! `zerosweep script FILE`: runs the engine on the software machine, one step in each line.

use std::fs;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use zerosweep::Policy;
use zerosweep_client::error::Failure;
use zerosweep_client::output;
use zerosweep_client::size::PAGE_BYTES;
use zerosweep_lab::script::{Runner, Script};

use crate::cli::ScriptArguments;

/// Does all steps. An error in a step is a result, so the exit status is 0.
pub(super) fn execute(arguments: &ScriptArguments) -> Result<ExitCode, Failure> {
    let ScriptArguments { file, max_mem, target, .. } = arguments;
    for (name, size) in [("--max-mem", max_mem), ("--target", target)] {
        if !size.is_whole_pages() {
            return Err(Failure::usage(format!("{name} is {size}, but must be a multiple of 4K")));
        }
    }
    let policy: Policy = arguments.policy.parse().map_err(Failure::usage)?;
    let text = read(file)?;
    let script = Script::parse(&text)
        .map_err(|error| Failure::usage(format!("{}: {error}", file.display())))?;
    let (max_pages, target_pages) = (max_mem.0 / PAGE_BYTES, target.0 / PAGE_BYTES);
    let runner = Runner::new(&script, max_pages, target_pages, policy);
    let mut runner = runner.map_err(|error| {
        if error.is_usage() { Failure::usage(error) } else { Failure::work(error) }
    })?;
    for &step in &script.steps {
        output::json_line(&runner.run(step))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn read(file: &Path) -> Result<String, Failure> {
    let text = if file.as_os_str() == "-" {
        io::read_to_string(io::stdin())
    } else {
        fs::read_to_string(file)
    };
    text.map_err(|error| Failure::usage(format!("cannot read {}: {error}", file.display())))
}
