//! Passes the signals that this process receives on to the VMM.
//!
//! The terminal sends Ctrl-C to the whole process group, so the VMM may get it twice; QEMU does not
//! mind. However many signals come, this process stays until the VMM has ended. After SIGTERM it
//! makes sure that the VMM ends (`ending`). SIGTSTP and SIGCONT keep their meaning.

use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use procfs::process::Process;
use rustix::process::Signal;
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;
use zerosweep_client::error::Failure;

use super::Event;
use super::process::Vmm;
use super::supervise::Process as _;

const PASSED_ON: [i32; 4] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM];

/// Signals are caught from here on; those that come before [`forward`](Self::forward) are kept.
pub(super) struct Received(Signals);

impl Received {
    /// Starts to catch signals. One that is ignored (`nohup`, a shell's background) stays ignored.
    pub(super) fn new() -> Result<Self, Failure> {
        let ignored = ignored_signals();
        let caught = PASSED_ON.into_iter().filter(|&signal| ignored >> (signal - 1) & 1 == 0);
        Signals::new(caught.chain([SIGCHLD]))
            .map(Self)
            .map_err(|error| Failure::work(format!("cannot catch signals: {error}")))
    }

    /// Passes signals on to the running VMM, in a thread of its own. Wakes the main thread when the
    /// VMM changes, or gets a signal.
    pub(super) fn forward(mut self, running: Arc<Running>) -> Result<(), Failure> {
        let pass_on = move || {
            for number in self.0.forever() {
                if number == SIGCHLD {
                    running.tell(Event::VmmChanged);
                } else if let Some(signal) = Signal::from_named_raw(number) {
                    running.signal(signal);
                }
            }
        };
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(pass_on)
            .map(drop)
            .map_err(|error| Failure::work(format!("cannot start a thread: {error}")))
    }
}

/// The VMM that runs now, and the main thread's ear.
#[derive(Debug)]
pub(super) struct Running(Mutex<State>);

#[derive(Debug)]
struct State {
    vmm: Arc<Vmm>,
    events: Sender<Event>,
    told: bool,
}

impl Running {
    pub(super) fn new(vmm: Arc<Vmm>, events: Sender<Event>) -> Self {
        Self(Mutex::new(State { vmm, events, told: false }))
    }

    /// Starts another VMM in the place of one that has ended, unless that one got a signal: then a
    /// person wants no other.
    pub(super) fn replace(
        &self,
        start: impl FnOnce() -> Result<Arc<Vmm>, Failure>,
        events: Sender<Event>,
    ) -> Result<Option<Arc<Vmm>>, Failure> {
        let mut state = self.lock();
        if state.told {
            return Ok(None);
        }
        let vmm = start()?;
        (state.vmm, state.events) = (Arc::clone(&vmm), events);
        Ok(Some(vmm))
    }

    fn signal(&self, signal: Signal) {
        let mut state = self.lock();
        state.told = true;
        state.vmm.signal(signal);
        let _ = state.events.send(Event::Signal(signal));
    }

    fn tell(&self, event: Event) {
        let _ = self.lock().events.send(event);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One bit a signal, as the kernel says; none where it does not.
fn ignored_signals() -> u64 {
    let status = Process::myself().and_then(|process| process.status());
    status.map_or(0, |status| status.sigign)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_the_kernel() {
        // The standard library ignores SIGPIPE.
        assert_eq!(ignored_signals() >> (Signal::PIPE.as_raw() - 1) & 1, 1);
    }
}
