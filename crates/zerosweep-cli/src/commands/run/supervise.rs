//! The thread that looks after a running guest.
//!
//! ```text
//! agent answers → guest RAM is managed → ballooning → a look a second until the VMM ends
//!       └──────────────┴── not in time, or the agent says no: Event::Failed ends the VMM
//! ```
//!
//! Every call has a timeout. Once the guest is managed, nothing that goes wrong in here ends it.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use zerosweep_wire::{AgentConfig, Operation, State, Status};

use super::Event;
use super::alarms::Alarms;
use super::balloon::{Balloon, Told};
use super::plan::Plan;
use super::process::Vmm;
use crate::cli::RunArguments;
use crate::client::{Client, ClientError};
use crate::console::Console;
use crate::error::Failure;
use crate::runtime::GuestFiles;
use crate::size::Size;

/// Longest wait for one answer of the agent.
const AGENT_TIMEOUT: Duration = Duration::from_secs(2);
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Between two looks while the guest balloons.
const BALLOON_INTERVAL: Duration = Duration::from_millis(250);
/// Between two looks at the agent's figures.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// The VMM opens disks and firmware before it allocates guest RAM: it may take this many times
/// as long as the agent.
const RAM_PATIENCE: u32 = 3;
/// So many looks without an answer are told.
const SILENT_LOOKS: u32 = 5;

/// Why the guest was not taken over.
enum NotManaged {
    /// The VMM ended; the main thread knows.
    VmmEnded,
    /// The guest must be ended.
    Failed(String),
}

/// What the thread works with.
pub(super) struct Supervisor {
    config: AgentConfig,
    files: GuestFiles,
    wait_agent: Duration,
    wait_balloon: Duration,
    vmm: Arc<Vmm>,
    console: Arc<Console>,
}

impl Supervisor {
    pub(super) fn new(
        plan: &Plan,
        arguments: &RunArguments,
        vmm: Arc<Vmm>,
        console: Arc<Console>,
    ) -> Self {
        Self {
            config: plan.config.clone(),
            files: plan.files.clone(),
            wait_agent: arguments.wait_agent,
            wait_balloon: arguments.wait_balloon,
            vmm,
            console,
        }
    }

    /// Starts the thread. It ends by itself when the VMM has ended.
    pub(super) fn start(self, events: Sender<Event>) -> Result<(), Failure> {
        std::thread::Builder::new()
            .name("supervise".into())
            .spawn(move || self.run(&events))
            .map(drop)
            .map_err(|error| Failure::work(format!("cannot start a thread: {error}")))
    }

    fn run(&self, events: &Sender<Event>) {
        let managed = self.wait_for_agent().and_then(|mut client| {
            self.wait_until_managing(&mut client)?;
            Ok(client)
        });
        match managed {
            Ok(client) => self.follow(client),
            Err(NotManaged::VmmEnded) => {}
            Err(NotManaged::Failed(reason)) => {
                let _ = events.send(Event::Failed(reason));
            }
        }
    }

    /// Connects as soon as the agent listens.
    fn wait_for_agent(&self) -> Result<Client, NotManaged> {
        let deadline = Instant::now() + self.wait_agent;
        loop {
            let began = Instant::now();
            let error = match Client::connect(&self.files.socket, AGENT_TIMEOUT) {
                Ok(client) => return Ok(client),
                Err(error @ ClientError::Version { .. }) => {
                    return Err(NotManaged::Failed(error.to_string()));
                }
                Err(error) => error,
            };
            self.pause(began, deadline, || {
                format!(
                    "the agent inside the VMM did not answer within {:?} ({error}). LD_PRELOAD was \
                     probably ignored: by a wrapper that clears the environment, a statically \
                     linked or privileged VMM behind a script, or another C library",
                    self.wait_agent
                )
            })?;
        }
    }

    /// Waits until guest RAM is found and taken over.
    fn wait_until_managing(&self, client: &mut Client) -> Result<(), NotManaged> {
        let deadline = Instant::now() + self.wait_agent * RAM_PATIENCE;
        loop {
            let began = Instant::now();
            let waiting_for = match client.request(Operation::Status) {
                Ok(status) => match status.state {
                    State::Managing => {
                        self.tell_managed(&status);
                        return Ok(());
                    }
                    // Goes on without a cap: that is told by the first look.
                    State::CapLifted => return Ok(()),
                    State::Failed => {
                        let reason = status.reason.unwrap_or_else(|| "no reason given".into());
                        let message = format!("guest memory cannot be managed: {reason}");
                        return Err(NotManaged::Failed(message));
                    }
                    State::WaitingForRam => format!(
                        "the VMM has not allocated one block of {} for the guest",
                        Size(self.config.max_mem_bytes)
                    ),
                },
                Err(error) => {
                    if let Ok(again) = Client::connect(&self.files.socket, AGENT_TIMEOUT) {
                        *client = again;
                    }
                    format!("the agent does not answer ({error})")
                }
            };
            self.pause(began, deadline, || {
                format!("{waiting_for} after {:?}", self.wait_agent * RAM_PATIENCE)
            })?;
        }
    }

    fn tell_managed(&self, status: &Status) {
        let (target, max) = (Size(status.target_bytes), Size(status.max_mem_bytes));
        self.console.note(&format!(
            "guest {} (pid {}) has {target} of {max}, policy {}",
            status.name, status.pid, status.policy
        ));
    }

    /// Sleeps after a look that `began` then, unless the VMM has ended or the look began too late:
    /// when this process was stopped meanwhile, what it saw is old.
    fn pause(
        &self,
        began: Instant,
        deadline: Instant,
        why: impl FnOnce() -> String,
    ) -> Result<(), NotManaged> {
        if !self.vmm.is_running() {
            return Err(NotManaged::VmmEnded);
        }
        if began >= deadline {
            return Err(NotManaged::Failed(why()));
        }
        std::thread::sleep(POLL_INTERVAL);
        Ok(())
    }

    /// Balloons the guest to its target and tells troubles, until the VMM ends.
    fn follow(&self, client: Client) {
        let mut link = AgentLink { client: Some(client), silent_looks: 0, told: false };
        let mut alarms = Alarms::default();
        let mut balloon = Balloon::new(&self.config, &self.files, &self.console, self.wait_balloon);
        let mut target_bytes = self.config.target_bytes;
        let mut next_look = Instant::now();
        while self.vmm.is_running() {
            if Instant::now() >= next_look {
                next_look = Instant::now() + LOOK_INTERVAL;
                if let Some(status) = self.look(&mut link) {
                    target_bytes = status.target_bytes;
                    alarms.look(&status).iter().for_each(|line| self.console.warn(line));
                }
            }
            if balloon.is_done() {
                std::thread::sleep(LOOK_INTERVAL);
            } else {
                balloon.step(target_bytes, |threads| self.tell_vcpus(&mut link, threads));
                std::thread::sleep(BALLOON_INTERVAL);
            }
        }
    }

    /// The guest's figures; an agent that stays silent is told once.
    fn look(&self, link: &mut AgentLink) -> Option<Status> {
        match link.request(&self.files, Operation::Status) {
            Ok(status) => {
                (link.silent_looks, link.told) = (0, false);
                Some(status)
            }
            Err(error) => {
                link.silent_looks += 1;
                if link.silent_looks >= SILENT_LOOKS && !std::mem::replace(&mut link.told, true) {
                    let name = &self.config.name;
                    self.console.warn(&format!("guest {name}: its agent does not answer: {error}"));
                }
                None
            }
        }
    }

    fn tell_vcpus(&self, link: &mut AgentLink, thread_ids: Vec<u32>) -> Told {
        let count = thread_ids.len();
        match link.request(&self.files, Operation::Vcpus { thread_ids }) {
            Ok(_) => {
                self.console.verbose(&format!("the agent knows {count} vCPU threads"));
                Told::Settled
            }
            Err(ClientError::Refused(body)) => {
                self.console.warn(&format!(
                    "guest {}: the agent does not take the vCPU threads ({}); it will borrow \
                     where it should wait",
                    self.config.name, body.message
                ));
                Told::Settled
            }
            // An agent that stays silent is told by `look`.
            Err(_) => Told::Again,
        }
    }
}

/// A connection to the agent that is made again when it breaks.
struct AgentLink {
    client: Option<Client>,
    silent_looks: u32,
    told: bool,
}

impl AgentLink {
    fn request(&mut self, files: &GuestFiles, operation: Operation) -> Result<Status, ClientError> {
        let mut client = match self.client.take() {
            Some(client) => client,
            None => Client::connect(&files.socket, AGENT_TIMEOUT)?,
        };
        let answer = client.request(operation);
        // After a timeout the next line would be the answer to this request: start afresh.
        if matches!(answer, Ok(_) | Err(ClientError::Refused(_))) {
            self.client = Some(client);
        }
        answer
    }
}
