//! The program `zerosweep`; all of it is in the library beside it.

use std::process::ExitCode;

fn main() -> ExitCode {
    zerosweep_cli::zerosweep()
}
