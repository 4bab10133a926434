//! The VMM's process.
//!
//! It is a plain child: same terminal, same process group, no death signal, because the guest
//! must outlive a tool that is killed. The lock around the child makes sure that a signal is
//! never sent to a process number that was given to somebody else.
//!
//! Behind a script that does not `exec` its VMM, the VMM is a process of its own. The agent says
//! which. It belongs to what was started: the script may die of a signal that the VMM did not get.

use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::termios::{OptionalActions, Termios};
use zerosweep_client::error::Failure;

use super::absence::family;
use super::plan::Plan;
use super::supervise::Process;
use super::words::Words;

/// Signals that end a VMM.
const ENDING: [Signal; 5] = [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM, Signal::KILL];

/// A VMM that was started: a program, or a script with a VMM behind it.
#[derive(Debug)]
pub(super) struct Vmm {
    child: Mutex<Child>,
    /// The VMM behind a script.
    behind: OnceLock<OwnedFd>,
    /// SIGTERM, if a script got it: a VMM that outlives the script has not got it.
    unheard: Mutex<Option<Signal>>,
    /// Its process number.
    pub(super) pid: u32,
    /// What it says.
    pub(super) words: Words,
    /// A guest in it was managed.
    managed: AtomicBool,
    /// Whether it was sent a signal that ends it.
    ending: AtomicBool,
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
        let (behind, unheard) = (OnceLock::new(), Mutex::new(None));
        let managed = AtomicBool::new(false);
        let ending = AtomicBool::new(false);
        Ok(Self { child: Mutex::new(child), behind, unheard, pid, words, managed, ending })
    }

    /// Whether a guest in it was ever managed.
    pub(super) fn was_managed(&self) -> bool {
        self.managed.load(Ordering::Relaxed)
    }

    /// How it ended, if it did. A script has not while its VMM runs.
    pub(super) fn try_wait(&self) -> io::Result<Option<ExitStatus>> {
        let Some(status) = self.lock().try_wait()? else { return Ok(None) };
        let Some(vmm) = self.behind.get().filter(|vmm| is_running(vmm)) else {
            return Ok(Some(status));
        };
        let unheard = self.unheard.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(signal) = unheard {
            let _ = rustix::process::pidfd_send_signal(vmm, signal);
        }
        Ok(None)
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

    fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Relaxed)
    }

    fn signal(&self, signal: Signal) {
        if ENDING.contains(&signal) {
            self.ending.store(true, Ordering::Relaxed);
        }
        let mut child = self.lock();
        // Not waited for yet, so the number is still its own.
        let has_ended = !matches!(child.try_wait(), Ok(None));
        if !has_ended {
            if signal == Signal::TERM {
                *self.unheard.lock().unwrap_or_else(PoisonError::into_inner) = Some(signal);
            }
            let _ = rustix::process::kill_process(Pid::from_child(&child), signal);
        }
        // A script may have its own way to end its VMM, but not for this one.
        if let Some(vmm) = self.behind.get().filter(|_| has_ended || signal == Signal::KILL) {
            let _ = rustix::process::pidfd_send_signal(vmm, signal);
        }
    }

    fn found(&self, agent: u32) {
        self.managed.store(true, Ordering::Relaxed);
        let pid = i32::try_from(agent).ok().and_then(Pid::from_raw);
        if agent == self.pid || !family(self.pid).contains(&agent) {
            return;
        }
        if let Some(vmm) =
            pid.and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok())
        {
            let _ = self.behind.set(vmm);
        }
    }
}

/// Whether a process has not ended.
fn is_running(process: &OwnedFd) -> bool {
    let mut process = [PollFd::new(process, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    !matches!(rustix::event::poll(&mut process, Some(&now)), Ok(ready) if ready > 0)
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
    Pid::from_raw(procfs::process::Process::myself().ok()?.stat().ok()?.pgrp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_group_is_the_kernels() {
        // In a container it may be of outside: then rustix has no answer either, and panics.
        if let Some(group) = own_group() {
            assert_eq!(group, rustix::process::getpgrp());
        }
    }
}
