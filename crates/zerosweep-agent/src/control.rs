//! The control socket: one thread that accepts, one for each client, and not many of them
//! (`clients`): whoever connects and says nothing makes room for others.
//!
//! Access is by file permission alone. Nothing here is on a fault's way.

use std::io::{BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use zerosweep_wire::{
    AgentConfig, Answer, ErrorBody, ErrorKind, Hello, Operation, PROTOCOL, Request, Response,
};

use crate::clients::{Client, Clients};
use crate::{adopt, report};

/// A client that says nothing for so long is let go.
const SILENCE: Duration = Duration::from_secs(60);

/// Those that are served at the same time.
static CLIENTS: Clients = Clients::new(32);

/// Starts to listen. Without a socket the guest runs on; only nobody can ask about it.
pub(crate) fn start() {
    let Some(config) = adopt::config() else { return };
    let Ok(listener) = UnixListener::bind(&config.socket) else { return };
    let private = std::fs::Permissions::from_mode(0o600);
    let _ = std::fs::set_permissions(&config.socket, private);
    let builder = std::thread::Builder::new().name("zs-control".into());
    let _ = builder.spawn(move || adopt::guarded("zs-control", || accept(&listener, config)));
}

fn accept(listener: &UnixListener, config: &'static AgentConfig) {
    zerosweep_linux::sys::raw::block_signals();
    for client in listener.incoming() {
        let Ok(client) = client else {
            // Out of descriptors, most likely: the VMM needs them more than we do.
            std::thread::sleep(Duration::from_millis(100));
            continue;
        };
        let Some(seat) = CLIENTS.admit(client) else { continue };
        let serve = move || {
            adopt::guarded("zs-client", || {
                zerosweep_linux::sys::raw::block_signals();
                let _ = converse(&seat.client, config);
            });
        };
        // Without a thread the seat is given up with what was to run.
        let builder = std::thread::Builder::new().name("zs-client".into());
        let _ = builder.spawn(serve);
    }
}

/// How long one request may work.
const WORK: Duration = Duration::from_millis(250);

fn converse(client: &Client, config: &AgentConfig) -> std::io::Result<()> {
    let stream = &client.stream;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    let hello = Hello {
        protocol: PROTOCOL,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        name: config.name.clone(),
        pid: std::process::id(),
    };
    send(stream, &hello)?;
    let mut reader = BufReader::new(stream);
    while let Some(line) = zerosweep_wire::read_line(&mut reader)? {
        let Some(answer) = client.serve(|| answer(&line, config)) else { return Ok(()) };
        send(stream, &answer)?;
    }
    Ok(())
}

fn send(mut client: &UnixStream, message: &impl serde::Serialize) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    client.write_all(&line)
}

fn answer(line: &[u8], config: &AgentConfig) -> Response {
    match Request::read(line) {
        Ok(request) => Response { id: request.id, answer: perform(&request.operation, config) },
        Err(response) => response,
    }
}

/// The answer to a request for work; `None`: the cap was lifted meanwhile.
fn going_on(config: &AgentConfig, next: Option<Option<u64>>) -> Answer {
    match next {
        Some(next) => report::going_on(config, next),
        None => refuse(ErrorKind::NotManaging, "the cap is lifted".to_owned()),
    }
}

fn refuse(kind: ErrorKind, message: String) -> Answer {
    Answer::Error(ErrorBody { kind, message })
}

fn perform(operation: &Operation, config: &AgentConfig) -> Answer {
    let memory = match adopt::guest() {
        Some(Ok(memory)) => memory,
        _ if *operation == Operation::Status => return report::answer(config),
        Some(Err(reason)) => return refuse(ErrorKind::NotManaging, reason.clone()),
        None => {
            let message = "the VMM has not allocated guest RAM yet".to_owned();
            return refuse(ErrorKind::NotManaging, message);
        }
    };
    match operation {
        Operation::Status => {}
        Operation::Sweep { first } => {
            return going_on(config, memory.sweep(*first, WORK));
        }
        Operation::Consolidate { first } => {
            return match memory.consolidate(*first == 0, WORK) {
                Ok(done) => going_on(config, done),
                Err(error) => refuse(ErrorKind::NotManaging, error.to_string()),
            };
        }
        Operation::Map { first } => return report::map(config, memory, *first),
        Operation::Audit => {
            if let Err(error) = memory.audit() {
                return refuse(ErrorKind::AuditFailed, error.to_string());
            }
        }
        Operation::Ballooned { actual_bytes } => crate::follow::ballooned(memory, *actual_bytes),
        Operation::Vcpus { thread_ids } => memory.set_vcpus(thread_ids),
        Operation::SetTarget { target_bytes } => {
            if !target_bytes.is_multiple_of(zerosweep::PAGE_BYTES) {
                let message = format!("a target of {target_bytes} bytes is not in whole pages");
                return refuse(ErrorKind::BadValue, message);
            }
            match crate::follow::overrule(memory, *target_bytes) {
                Ok(true) => {}
                Ok(false) => {
                    let message = "the cap is lifted: there is no target".to_owned();
                    return refuse(ErrorKind::NotManaging, message);
                }
                Err(error) => return refuse(ErrorKind::BadValue, error.to_string()),
            }
        }
    }
    report::answer(config)
}
