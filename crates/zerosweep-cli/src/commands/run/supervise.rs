//! The thread that looks after a running guest.
//!
//! ```text
//! agent answers → guest RAM is managed → ballooning → a look a second until the VMM ends
//!       └──────────────┴── not in time, or the agent says no: Event::Failed ends the VMM
//! ```
//!
//! Every call has a timeout. Once the guest is managed, nothing that goes wrong in here ends it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use zerosweep_client::agent::{Client, ClientError, Link};
use zerosweep_client::error::Failure;
use zerosweep_client::runtime::GuestFiles;
use zerosweep_client::size::Size;
use zerosweep_wire::{AgentConfig, Operation, State, Status};

use super::Event;
use super::absence::Absence;
use super::alarms::Alarms;
use super::balloon::{self, Balloon, BalloonMode, Delivery};
use super::drift::{self, Drift, Finding};
use crate::console::Console;

/// Longest wait for one answer of the agent.
const AGENT_TIMEOUT: Duration = Duration::from_secs(2);
const POLL_INTERVAL: Duration = Duration::from_millis(50);
const STOP_INTERVAL: Duration = Duration::from_millis(20);
/// Between two looks while the guest balloons.
const BALLOON_INTERVAL: Duration = Duration::from_millis(250);
/// Between two looks at the agent's figures.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// The VMM opens disks and firmware before it allocates guest RAM: it may take this many times
/// as long as the agent.
const RAM_PATIENCE: u32 = 3;
/// Looks without an answer after which the agent is reported as silent.
const SILENT_LOOKS: u32 = 5;

/// The VMM, which need not be a child of this process.
pub(crate) trait Process: Send + Sync + 'static {
    /// Whether it has not ended.
    fn is_running(&self) -> bool;

    /// Its process number, where that is known.
    fn pid(&self) -> Option<u32>;

    /// Whether it was sent a signal that ends it. QEMU that ends while it answers a request may hang.
    fn is_ending(&self) -> bool {
        false
    }

    /// A guest is managed: the agent is in this process.
    fn found(&self, _agent: u32) {}

    /// Sends a signal, unless it has ended.
    fn signal(&self, signal: Signal);

    /// Asks it to end, and ends it when it does not within `timeout`.
    fn stop(&self, timeout: Duration) {
        for signal in [Signal::TERM, Signal::KILL] {
            self.signal(signal);
            let deadline = Instant::now() + timeout;
            while Instant::now() < deadline {
                if !self.is_running() {
                    return;
                }
                std::thread::sleep(STOP_INTERVAL);
            }
        }
    }
}

/// Why the guest was not taken over.
enum NotManaged {
    /// The VMM ended; the main thread knows.
    VmmEnded,
    /// The guest must be ended.
    Failed(String),
}

/// What the thread works with.
pub(crate) struct Supervisor<P> {
    pub(crate) config: AgentConfig,
    /// The library that was preloaded.
    pub(crate) agent: PathBuf,
    pub(crate) files: GuestFiles,
    /// How long the agent may take to answer.
    pub(crate) wait_agent: Duration,
    /// How long the guest may give nothing back before that is reported.
    pub(crate) wait_balloon: Duration,
    pub(crate) vmm: Arc<P>,
    pub(crate) console: Arc<Console>,
}

impl<P: Process> Supervisor<P> {
    /// Starts the thread. It ends by itself when the VMM has ended.
    pub(crate) fn start(self, events: Sender<Event>) -> Result<(), Failure> {
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

    /// Connects as soon as the agent listens, which is when it has found guest RAM.
    fn wait_for_agent(&self) -> Result<Client, NotManaged> {
        let start = Instant::now();
        let mut patience = self.wait_agent;
        loop {
            let began = Instant::now();
            match Client::connect(&self.files.socket, AGENT_TIMEOUT) {
                Ok(client) => return Ok(client),
                Err(error @ ClientError::Version { .. }) => {
                    return Err(NotManaged::Failed(error.to_string()));
                }
                Err(_) => {}
            }
            if began >= start + self.wait_agent && patience == self.wait_agent {
                // A VMM that has the agent in it may still allocate guest RAM.
                if let Absence::NoRam { .. } = self.absence() {
                    patience = self.wait_agent * RAM_PATIENCE;
                }
            }
            self.pause(began, start + patience, || {
                self.absence().explain(Size(self.config.max_mem_bytes), patience)
            })?;
        }
    }

    fn absence(&self) -> Absence {
        self.vmm.pid().map_or(Absence::NotLoaded, |pid| Absence::look(pid, &self.agent))
    }

    /// Waits until guest RAM is found and taken over.
    fn wait_until_managing(&self, client: &mut Client) -> Result<(), NotManaged> {
        let deadline = Instant::now() + self.wait_agent * RAM_PATIENCE;
        loop {
            let began = Instant::now();
            let waiting_for = match client.request(Operation::Status) {
                Ok(status) => match status.state {
                    State::Managing => {
                        self.vmm.found(status.pid);
                        self.tell_managed(&status);
                        return Ok(());
                    }
                    // The guest goes on without a cap: the first `look` reports that.
                    State::CapLifted => {
                        self.vmm.found(status.pid);
                        return Ok(());
                    }
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
        let has = match BalloonMode::of(&self.config) {
            BalloonMode::Followed => format!("has what its balloon is asked for, of {max}"),
            BalloonMode::Asked | BalloonMode::AskedOnceItRuns => format!("has {target} of {max}"),
        };
        self.console.note(&format!(
            "guest {} (pid {}) {has}, policy {}",
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

    /// Balloons the guest to its target and reports alarms, until the VMM ends.
    fn follow(&self, client: Client) {
        let link = Link::with(client, self.files.socket.clone(), AGENT_TIMEOUT);
        let mut link = AgentLink { link, silent_looks: 0, told: false };
        let mut alarms = Alarms::default();
        let mut balloon = Balloon::new(&self.config, &self.files, &self.console, self.wait_balloon);
        let (mut target_bytes, mut request_bytes) = (self.config.target_bytes, None);
        let mut drift = Drift::default();
        let mut next_look = Instant::now();
        let mut next_drift = next_look;
        let mut is_private = false;
        while self.vmm.is_running() {
            if Instant::now() >= next_look {
                next_look = Instant::now() + LOOK_INTERVAL;
                is_private = is_private || self.files.make_private();
                if let Some(status) = self.look(&mut link) {
                    (target_bytes, request_bytes) =
                        (status.target_bytes, status.balloon_request_bytes);
                    alarms.look(&status).iter().for_each(|line| self.console.warn(line));
                    if balloon.runs_unasked(&status) {
                        self.lift_first_target(&mut link);
                    }
                    if balloon.is_done() && !self.vmm.is_ending() && Instant::now() >= next_drift {
                        next_drift = Instant::now() + drift::INTERVAL;
                        self.see_to_drift(&mut drift, &status, &mut link);
                    }
                }
            }
            if self.vmm.is_ending() {
                std::thread::sleep(BALLOON_INTERVAL);
                continue;
            }
            if !balloon.is_done() {
                balloon.step(target_bytes, |threads| self.tell_vcpus(&mut link, threads));
            } else if request_bytes.is_some_and(|request| request < target_bytes) {
                if let Some(status) = self.tell_ballooned(&mut link) {
                    target_bytes = status.target_bytes;
                }
            } else {
                std::thread::sleep(LOOK_INTERVAL);
                continue;
            }
            std::thread::sleep(if balloon.is_paused() { LOOK_INTERVAL } else { BALLOON_INTERVAL });
        }
    }

    /// Sees to a balloon that is not where it should be. Without an answer, or with a refusal, it is
    /// looked at again the next time: there may be no balloon device at the moment.
    fn see_to_drift(&self, drift: &mut Drift, status: &Status, link: &mut AgentLink) {
        let Ok(Some(actual_bytes)) = balloon::actual_of_running(&self.files) else { return };
        let mode = BalloonMode::of(&self.config);
        let (name, actual) = (&self.config.name, Size(actual_bytes).rounded());
        let target = Size(status.target_bytes).rounded();
        let seen =
            format!("guest {name}: its balloon has left it {actual}, its target is {target}");
        match drift.look(mode, actual_bytes, status, Instant::now()) {
            Finding::Nothing => {}
            Finding::Reconcile => {
                if link.link.request(Operation::Reconcile { actual_bytes }).is_ok() {
                    self.console.verbose(&format!(
                        "guest {name}: its balloon and the engine counted different pages"
                    ));
                }
            }
            Finding::Above => {
                self.console.warn(&format!(
                    "{seen}. The guest was reset, loaded a snapshot, or took memory back \
                     (deflate-on-oom), or another program asked its balloon. It is asked for \
                     {target} again; `zerosweep set-target {name} {actual}` lets it keep what it has"
                ));
                let _ = balloon::ask(&self.files, status.target_bytes);
            }
            Finding::Below => {
                self.console.note(&format!(
                    "{seen}. The guest loaded a snapshot, or another program asked its balloon. It \
                     is asked for {target} again"
                ));
                let _ = balloon::ask(&self.files, status.target_bytes);
            }
            Finding::DoesNotFollow => self.console.warn(&format!(
                "{seen}. It was asked several times and does not follow; it is not asked again. It \
                 stalls when it touches more than {target}: raise the target with `zerosweep \
                 set-target {name} SIZE`, or give the guest less to do"
            )),
        }
    }

    /// Another tool asked the balloon for less than the target: the target goes down with the
    /// guest. QEMU that does not answer is asked again at the next look.
    fn tell_ballooned(&self, link: &mut AgentLink) -> Option<Status> {
        let actual_bytes = balloon::actual(&self.files).ok()?;
        link.link.request(Operation::Ballooned { actual_bytes }).ok()
    }

    /// The agent missed what the other tool said: better no limit than one that nobody asked for.
    fn lift_first_target(&self, link: &mut AgentLink) {
        let target_bytes = self.config.max_mem_bytes;
        if link.link.request(Operation::SetTarget { target_bytes }).is_ok() {
            self.console.warn(&format!(
                "guest {} runs, and no request to its balloon was seen; it may have all of its \
                 {}. `zerosweep set-target {0} SIZE` sets a target",
                self.config.name,
                Size(target_bytes)
            ));
        }
    }

    /// Returns the guest's figures. An agent that stays silent is reported once.
    fn look(&self, link: &mut AgentLink) -> Option<Status> {
        match link.link.request(Operation::Status) {
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

    fn tell_vcpus(&self, link: &mut AgentLink, thread_ids: Vec<u32>) -> Delivery {
        let count = thread_ids.len();
        match link.link.request(Operation::Vcpus { thread_ids }) {
            Ok(_) => {
                self.console.verbose(&format!("the agent knows {count} vCPU threads"));
                Delivery::Settled
            }
            Err(ClientError::Refused(body)) => {
                self.console.warn(&format!(
                    "guest {}: the agent refuses the vCPU threads ({}); it will borrow memory \
                     where they should wait",
                    self.config.name, body.message
                ));
                Delivery::Settled
            }
            // `look` reports an agent that stays silent.
            Err(_) => Delivery::Again,
        }
    }
}

/// The agent, and for how long it has been silent.
struct AgentLink {
    link: Link,
    silent_looks: u32,
    told: bool,
}
