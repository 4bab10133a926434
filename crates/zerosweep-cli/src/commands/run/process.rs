//! The VMM's process.
//!
//! It is a plain child: same terminal, same process group, no death signal, because the guest
//! must outlive a tool that is killed. The lock around the child makes sure that a signal is
//! never sent to a process number that was given to somebody else.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use rustix::termios::{OptionalActions, Termios};
use zerosweep_wire::CONFIG_VARIABLE;

use super::plan::Plan;
use crate::error::Failure;

const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A VMM that was started.
#[derive(Debug)]
pub(super) struct Vmm {
    child: Mutex<Child>,
    pid: u32,
}

impl Vmm {
    /// Starts the VMM with the agent preloaded.
    pub(super) fn spawn(plan: &Plan) -> Result<Self, Failure> {
        let config = serde_json::to_string(&plan.config).map_err(|error| {
            Failure::work(format!("cannot write the agent's settings: {error}"))
        })?;
        let mut preload = std::env::var_os("LD_PRELOAD").unwrap_or_default();
        if !preload.is_empty() {
            preload.push(":");
        }
        preload.push(OsString::from(&plan.agent));
        let child = Command::new(&plan.program)
            .arg0(&plan.program_name)
            .args(&plan.arguments)
            .env("LD_PRELOAD", preload)
            .env(CONFIG_VARIABLE, config)
            .spawn()
            .map_err(|error| {
                Failure::work(format!("cannot start {}: {error}", plan.program.display()))
            })?;
        let pid = child.id();
        Ok(Self { child: Mutex::new(child), pid })
    }

    /// Its process number.
    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// How it ended, if it did.
    pub(super) fn try_wait(&self) -> io::Result<Option<ExitStatus>> {
        self.lock().try_wait()
    }

    /// Whether it has not ended.
    pub(super) fn is_running(&self) -> bool {
        matches!(self.try_wait(), Ok(None))
    }

    /// Sends a signal, unless it has ended.
    pub(super) fn signal(&self, signal: Signal) {
        let mut child = self.lock();
        // Not waited for yet, so the number is still its own.
        if let Ok(None) = child.try_wait() {
            let _ = rustix::process::kill_process(Pid::from_child(&child), signal);
        }
    }

    /// Asks it to end, and ends it when it does not within `timeout`.
    pub(super) fn stop(&self, timeout: Duration) {
        for (signal, patience) in [(Signal::TERM, timeout), (Signal::KILL, timeout)] {
            self.signal(signal);
            let deadline = Instant::now() + patience;
            while Instant::now() < deadline {
                if !self.is_running() {
                    return;
                }
                std::thread::sleep(POLL_INTERVAL);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The terminal's settings before the VMM got it: one that is killed leaves it raw.
#[derive(Debug)]
pub(super) struct TerminalMode(Option<Termios>);

impl TerminalMode {
    /// Remembers them, if standard input is a terminal.
    pub(super) fn save() -> Self {
        Self(rustix::termios::tcgetattr(io::stdin()).ok())
    }

    /// Puts them back, if the terminal is still ours: from the background this would stop us.
    pub(super) fn restore(&self) {
        let ours = rustix::termios::tcgetpgrp(io::stdin()) == Ok(rustix::process::getpgrp());
        if let (Some(mode), true) = (&self.0, ours) {
            let _ = rustix::termios::tcsetattr(io::stdin(), OptionalActions::Now, mode);
        }
    }
}
