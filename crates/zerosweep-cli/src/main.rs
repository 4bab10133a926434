//! The program `zerosweep`: the commands of the library beside it, and the server of
//! `zerosweep-serve`.

use std::process::ExitCode;

use zerosweep_cli::ServeArguments;
use zerosweep_client::error::Failure;
use zerosweep_serve::Options;

fn main() -> ExitCode {
    zerosweep_cli::zerosweep(serve)
}

fn serve(arguments: &ServeArguments) -> Result<(), Failure> {
    zerosweep_serve::serve(&Options {
        listen: arguments.listen,
        allow_remote: arguments.allow_remote,
        allow_host: arguments.allow_host.clone(),
        private: arguments.private,
        token_file: arguments.token_file.clone(),
        json: arguments.json,
    })
}
