//! The commands, one file each.
//!
//! To add one: a variant in [`crate::cli::Command`], a module here, a line in [`dispatch`].

mod audit;
mod balance;
mod demo;
mod doctor;
mod documents;
pub(crate) mod experiment;
mod guest_image;
mod ps;
pub(crate) mod run;
mod script;
mod set_target;
mod status;
mod trace;
mod watch;
mod work;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use zerosweep_client::agent::Client;
use zerosweep_client::error::Failure;
use zerosweep_client::runtime::{self, HELLO_TIMEOUT};
use zerosweep_client::work::Work;
use zerosweep_wire::{Operation, Status};

use crate::Serve;
use crate::cli::{Arguments, Command};

/// Does what was asked; the exit status is 0 but for `run` and `audit`. `serve` is the server of
/// the program that is linked with one.
pub(crate) fn dispatch(arguments: Arguments, serve: Serve) -> Result<ExitCode, Failure> {
    match arguments.command {
        Command::Run(arguments) => run::execute(&arguments),
        Command::Status(arguments) => status::execute(&arguments),
        Command::Ps(arguments) => ps::execute(&arguments),
        Command::Watch(arguments) => watch::execute(&arguments),
        Command::Audit(arguments) => audit::execute(&arguments),
        Command::SetTarget(arguments) => set_target::execute(&arguments),
        Command::Balance(arguments) => balance::execute(&arguments),
        Command::Sweep(arguments) => work::execute(Work::Sweep, &arguments),
        Command::Consolidate(arguments) => work::execute(Work::Consolidate, &arguments),
        Command::Serve(arguments) => serve(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Demo(arguments) => demo::execute(&arguments),
        Command::Experiment(arguments) => experiment::execute(&arguments),
        Command::Script(arguments) => script::execute(&arguments),
        Command::Trace(command) => trace::execute(&command),
        Command::Doctor(arguments) => doctor::execute(&arguments),
        Command::GuestImage(arguments) => guest_image::execute(&arguments),
        Command::Completions(arguments) => documents::completions(&arguments),
        Command::Man(arguments) => documents::man(&arguments),
    }
}

/// Connects to the guest that the user named.
fn connect(name: &str) -> Result<Client, Failure> {
    let files = runtime::find(name)?;
    Client::connect(&files.socket, HELLO_TIMEOUT).map_err(|error| {
        if error.is_nobody_there() {
            let socket = files.socket.display();
            return Failure::work(format!(
                "no guest named {name} is running (nobody listens on {socket}); `zerosweep ps` \
                 lists those that are"
            ));
        }
        Failure::work(format!("guest {name}: {error}"))
    })
}

/// Asks the guest that the user named.
fn ask(client: &mut Client, name: &str, operation: Operation) -> Result<Status, Failure> {
    client.request(operation).map_err(|error| Failure::work(format!("guest {name}: {error}")))
}

/// Ctrl-C and a polite kill set `stop`; a second one ends the program.
fn stop_on_signals(stop: &Arc<AtomicBool>) -> Result<(), Failure> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    for signal in [SIGINT, SIGTERM] {
        let asked_twice = Arc::clone(stop);
        signal_hook::flag::register_conditional_shutdown(signal, 1, asked_twice)
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(stop)))
            .map_err(|error| Failure::work(format!("cannot catch signals: {error}")))?;
    }
    Ok(())
}
