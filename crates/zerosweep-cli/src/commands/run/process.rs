//! The VMM's process.
//!
//! It is a plain child: same terminal, same process group, no death signal, because the guest
//! must outlive a tool that is killed. The lock around the child makes sure that a signal is
//! never sent to a process number that was given to somebody else.

use std::io;
use std::process::{Child, ExitStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::process::{Pid, Signal};
use rustix::termios::{OptionalActions, Termios};

use super::plan::Plan;
use super::supervise::Process;
use crate::error::Failure;

/// A VMM that was started.
#[derive(Debug)]
pub(super) struct Vmm {
    child: Mutex<Child>,
    pid: u32,
}

impl Vmm {
    /// Starts the VMM with the agent preloaded.
    pub(super) fn spawn(plan: &Plan) -> Result<Self, Failure> {
        let child = plan.command()?.spawn().map_err(|error| {
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

    fn lock(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Process for Vmm {
    fn is_running(&self) -> bool {
        matches!(self.try_wait(), Ok(None))
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
        let Some(mode) = &self.0 else { return };
        let front = rustix::termios::tcgetpgrp(io::stdin()).ok();
        if front.is_some() && front == own_group() {
            let _ = rustix::termios::tcsetattr(io::stdin(), OptionalActions::Now, mode);
        }
    }
}

/// The process group. In a container it may be one from outside, which has no number here:
/// `rustix::process::getpgrp` does not allow for that.
fn own_group() -> Option<Pid> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // PID (NAME) STATE PARENT GROUP; the name may have anything in it.
    let (_, fields) = stat.rsplit_once(") ")?;
    Pid::from_raw(fields.split(' ').nth(2)?.parse().ok()?)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_process_group_is_the_kernels() {
        assert_eq!(super::own_group(), Some(rustix::process::getpgrp()));
    }
}
