//! The VMM's process.
//!
//! It is a plain child: same terminal, same process group, no death signal, because the guest
//! must outlive a tool that is killed. The lock around the child makes sure that a signal is
//! never sent to a process number that was given to somebody else.

use std::io;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::process::{Pid, Signal};
use rustix::termios::{OptionalActions, Termios};

use super::plan::Plan;
use super::supervise::Process;
use super::words::Words;
use crate::error::Failure;

/// A VMM that was started.
#[derive(Debug)]
pub(super) struct Vmm {
    child: Mutex<Child>,
    /// Its process number.
    pub(super) pid: u32,
    /// What it says.
    pub(super) words: Words,
}

impl Vmm {
    /// Starts the VMM with the agent preloaded.
    pub(super) fn spawn(plan: &Plan) -> Result<Self, Failure> {
        let cannot = |error: io::Error| {
            Failure::work(format!("cannot start {}: {error}", plan.program.display()))
        };
        let mut child = plan.command()?.stderr(Stdio::piped()).spawn().map_err(cannot)?;
        let pid = child.id();
        let Some(errors) = child.stderr.take() else {
            return Err(cannot(io::Error::other("it has no standard error")));
        };
        let words = Words::pass_on(errors).map_err(cannot)?;
        Ok(Self { child: Mutex::new(child), pid, words })
    }

    /// How it ended, if it did.
    pub(super) fn try_wait(&self) -> io::Result<Option<ExitStatus>> {
        self.lock().try_wait()
    }

    fn lock(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Process for Vmm {
    fn is_running(&self) -> bool {
        matches!(self.try_wait(), Ok(None))
    }

    fn pid(&self) -> Option<u32> {
        Some(self.pid)
    }

    fn signal(&self, signal: Signal) {
        let mut child = self.lock();
        // Not waited for yet, so the number is still its own.
        if let Ok(None) = child.try_wait() {
            let _ = rustix::process::kill_process(Pid::from_child(&child), signal);
        }
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
