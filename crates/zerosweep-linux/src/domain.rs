//! The domain behind its lock, with its machine, and what tells operations, lift and threads about
//! each other.
//!
//! Locks: a fault needs the domain's mutex only, and nothing slow happens under it:
//! [`LinuxHost::machine`](zerosweep::Host::machine) drops it around every system call, scan and
//! clear. The frame pool's and the histogram's are held for a few instructions. Order: domain, then
//! either of the others; the journal's, where events are noted, is the third of that kind.
//!
//! Layers above call down. What a lower one has to tell goes through [`Signals`] and [`LiftState`]:
//! flags and eventfds that an upper layer waits for.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use zerosweep::{Consolidation, Domain, Event, Gfn, Host, Mfn, Session};
use zerosweep_events::Journal;

use self::lift_state::LiftState;
use self::signals::Signals;
use crate::machine::LinuxMachine;
use crate::machine::engine::MachineRef;

pub(crate) mod lift_state;
pub(crate) mod signals;

/// A domain that threads share.
pub(crate) struct SharedDomain {
    pub(crate) machine: LinuxMachine,
    domain: Mutex<Domain>,
    pub(crate) signals: Signals,
    pub(crate) lift_state: LiftState,
    /// How far the consolidation has come. No fault needs it; it is taken before the domain's lock.
    pub(crate) consolidation: Mutex<Consolidation>,
    journal: Option<Arc<Journal>>,
    /// The thread of ours that is to panic.
    #[cfg(test)]
    pub(crate) panics_in: Mutex<Option<&'static str>>,
}

impl SharedDomain {
    pub(crate) fn new(
        domain: Domain,
        machine: LinuxMachine,
        signals: Signals,
        journal: Option<Arc<Journal>>,
    ) -> Self {
        Self {
            machine,
            domain: Mutex::new(domain),
            signals,
            lift_state: LiftState::default(),
            consolidation: Mutex::new(Consolidation::default()),
            journal,
            #[cfg(test)]
            panics_in: Mutex::new(None),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Domain> {
        self.domain.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins an operation of the engine. [`crate::operation`] runs most of them.
    pub(crate) fn session(&self) -> Session<LinuxHost<'_>> {
        Session::new(LinuxHost {
            domain: self,
            guard: None,
            machine: MachineRef::new(&self.machine),
        })
    }

    /// Returns the frame of a page, also of a page that is out and keeps its frame.
    pub(crate) fn frame_of(&self, gfn: Gfn) -> Option<Mfn> {
        self.lock().p2m().frame(gfn)
    }

    /// Returns whether the cap is lifted.
    pub(crate) fn is_lifted(&self) -> bool {
        self.lift_state.is_lifted()
    }

    /// Returns whether the threads have work: neither stopped nor lifted.
    pub(crate) fn is_served(&self) -> bool {
        #[cfg(test)]
        if std::thread::current().name() == *self.panics_in.lock().unwrap() {
            *self.panics_in.lock().unwrap() = None;
            panic!("a defect");
        }
        !self.signals.is_stopping() && !self.is_lifted()
    }
}

/// One operation's way to domain and machine. The lock is taken when the operation asks for the
/// domain, and dropped before the machine works.
pub(crate) struct LinuxHost<'a> {
    domain: &'a SharedDomain,
    guard: Option<MutexGuard<'a, Domain>>,
    machine: MachineRef<'a>,
}

impl LinuxHost<'_> {
    /// Returns whether the cap was lifted since the operation began.
    pub(crate) fn is_lifted(&self) -> bool {
        self.domain.is_lifted()
    }
}

impl<'a> Host for LinuxHost<'a> {
    type Machine = MachineRef<'a>;

    fn domain(&mut self) -> &mut Domain {
        self.guard.get_or_insert_with(|| self.domain.lock())
    }

    fn machine<R>(&mut self, work: impl FnOnce(&mut MachineRef<'a>) -> R) -> R {
        self.guard = None;
        work(&mut self.machine)
    }

    fn event(&mut self, event: Event) {
        if let Some(journal) = &self.domain.journal {
            journal.record(event, Host::domain(self));
        }
    }
}
