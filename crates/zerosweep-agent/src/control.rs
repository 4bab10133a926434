//! The control socket: one thread accepts, and each client has a thread. The number of clients is
//! bounded (`clients`), and a silent one makes room for others.
//!
//! Access is by file permission alone. Nothing here is on a fault's way.

use std::error::Error;
use std::io::{BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use zerosweep_linux::{GuestMemory, Progress, SetTargetError};
use zerosweep_wire::{
    AgentConfig, Answer, ErrorBody, ErrorKind, Hello, Operation, PROTOCOL, Request, Response,
};

use crate::clients::{Client, Clients};
use crate::{qmp_tap, report, state};

/// A client that is silent for longer is disconnected.
const SILENCE: Duration = Duration::from_secs(60);

/// The clients that are connected.
static CLIENTS: Clients = Clients::new(32);

/// Starts to listen. Without a socket the guest runs on, but no tool can ask about it.
pub(crate) fn start() {
    let Some(config) = state::config() else { return };
    let Ok(listener) = UnixListener::bind(&config.socket) else { return };
    let private = std::fs::Permissions::from_mode(0o600);
    let _ = std::fs::set_permissions(&config.socket, private);
    let builder = std::thread::Builder::new().name("zs-control".into());
    let _ = builder.spawn(move || state::guarded("zs-control", || accept(&listener, config)));
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
            state::guarded("zs-client", || {
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

/// Answers a request for work with how far the work has come.
fn going_on(config: &AgentConfig, done: Result<Progress, impl Error>) -> Answer {
    match done {
        Ok(progress) => report::going_on(config, progress.next()),
        Err(error) => refuse(ErrorKind::NotManaging, error.to_string()),
    }
}

fn refuse(kind: ErrorKind, message: String) -> Answer {
    Answer::Error(ErrorBody { kind, message })
}

/// Checks the threads that are to wait for memory: they are threads of the VMM, but not its main
/// thread, which would freeze the VMM.
fn check_vcpus(
    thread_ids: &[u32],
    process: u32,
    is_ours: impl Fn(u32) -> bool,
) -> Result<(), String> {
    if thread_ids.is_empty() {
        return Err("no thread is given: a guest has a virtual CPU".to_owned());
    }
    // The kernel's numbers are above 0, and signed.
    let is_thread = |&id: &u32| id > 0 && i32::try_from(id).is_ok() && is_ours(id);
    if let Some(id) = thread_ids.iter().find(|&id| !is_thread(id)) {
        return Err(format!("{id} is not a thread of the VMM (pid {process})"));
    }
    if thread_ids.contains(&process) {
        return Err(format!("{process} is the VMM's main thread, which runs no virtual CPU"));
    }
    Ok(())
}

/// Returns how many pages the balloon has if it left the guest this much.
fn check_actual(memory: &GuestMemory, actual_bytes: u64) -> Result<u64, Answer> {
    let max_bytes = memory.quantities().max * zerosweep::PAGE_BYTES;
    let ballooned = max_bytes.checked_sub(actual_bytes).ok_or_else(|| {
        let message = format!(
            "the balloon cannot have left the guest {actual_bytes} bytes of its {max_bytes}"
        );
        refuse(ErrorKind::BadValue, message)
    })?;
    Ok(ballooned / zerosweep::PAGE_BYTES)
}

fn perform(operation: &Operation, config: &AgentConfig) -> Answer {
    let memory = match state::guest() {
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
            return going_on(config, memory.consolidate(*first, WORK));
        }
        Operation::Map { first } => return report::map(config, memory, *first),
        Operation::Audit => {
            if let Err(error) = memory.audit() {
                return refuse(ErrorKind::AuditFailed, error.to_string());
            }
        }
        Operation::Ballooned { actual_bytes } => {
            if let Err(refusal) = check_actual(memory, *actual_bytes) {
                return refusal;
            }
            qmp_tap::ballooned(memory, *actual_bytes);
        }
        Operation::Reconcile { actual_bytes } => {
            let ballooned = match check_actual(memory, *actual_bytes) {
                Ok(ballooned) => ballooned,
                Err(refusal) => return refusal,
            };
            if let Err(lifted) = memory.reconcile(ballooned) {
                return refuse(ErrorKind::NotManaging, lifted.to_string());
            }
        }
        Operation::Vcpus { thread_ids } => {
            let is_ours = zerosweep_linux::sys::raw::is_thread_of_ours;
            if let Err(message) = check_vcpus(thread_ids, std::process::id(), is_ours) {
                return refuse(ErrorKind::BadValue, message);
            }
            memory.set_vcpus(thread_ids);
        }
        Operation::SetTarget { target_bytes } => {
            if !target_bytes.is_multiple_of(zerosweep::PAGE_BYTES) {
                let message = format!("a target of {target_bytes} bytes is not in whole pages");
                return refuse(ErrorKind::BadValue, message);
            }
            match qmp_tap::overrule(memory, *target_bytes) {
                Ok(()) => {}
                Err(SetTargetError::Lifted(lifted)) => {
                    let message = format!("{lifted}: there is no target");
                    return refuse(ErrorKind::NotManaging, message);
                }
                Err(SetTargetError::Target(error)) => {
                    return refuse(ErrorKind::BadValue, error.to_string());
                }
            }
        }
    }
    report::answer(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtual_cpus_are_threads_of_the_vmm_and_not_its_main_one() {
        let check = |ids: &[u32]| check_vcpus(ids, 10, |id| (10..20).contains(&id));
        assert_eq!(check(&[11, 12, 19]), Ok(()));
        assert_eq!(check(&[11, 4711]).unwrap_err(), "4711 is not a thread of the VMM (pid 10)");
        assert!(check(&[11, 10]).unwrap_err().contains("main thread"));
        assert!(check(&[]).unwrap_err().contains("no thread is given"));
        // Not numbers of threads at all, whatever the kernel says of them.
        for wrong in [0, 1 << 31, u32::MAX] {
            assert!(check_vcpus(&[wrong], 10, |_| true).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_kernel_says_which_threads_there_are() {
        let is_ours = zerosweep_linux::sys::raw::is_thread_of_ours;
        let (sender, id) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            sender.send(zerosweep_linux::sys::raw::thread_id()).unwrap();
            let _ = ended.recv();
        });
        let id = id.recv().unwrap();
        let process = std::process::id();
        assert_eq!(check_vcpus(&[id], process, is_ours), Ok(()));
        // The process that started this one.
        let parent = std::os::unix::process::parent_id();
        assert!(check_vcpus(&[id, parent], process, is_ours).is_err());
        drop(end);
        thread.join().unwrap();
    }
}
