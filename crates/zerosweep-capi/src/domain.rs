//! A domain that threads share.
//!
//! The engine tells a thread that comes to a range *in transit* to wait, and a machine's work is
//! done with the lock dropped; so here is the lock, and what it means to wait:
//!
//! ```text
//!  operation ── InTransit ──► wait for `released` ──► again
//!  fault ────── Exhausted ──► wait for `changed`  ──► again
//! ```
//!
//! Claims are given back under the lock. The thread that drops the lock wakes those that wait for
//! a range. The thread that ends an operation that may have brought frames wakes those that wait
//! for a frame. A waiting thread looks again under the lock before it waits, so no wake-up is
//! missed.
//!
//! Locks, in order: the consolidation's, the domain's. The machine's is taken without the domain's.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use zerosweep::{
    Consolidation, Domain, Event, Fault, FaultError, Gfn, Host, OutOfTableMemory, Progress,
    SUPERPAGE_PAGES, Session, Superpage,
};

use crate::machine::{Calls, Functions, Inside, Subscriber};
use crate::status::{Refusal, zs_status};

/// A guest's memory under the engine.
pub struct zs_domain {
    state: Mutex<State>,
    /// The lock was dropped: a range may be in transit no longer.
    released: Condvar,
    /// An operation ended that may have brought frames.
    changed: Condvar,
    functions: Functions,
    /// Held while the machine works, if it can do one thing at a time only.
    serial: Option<Mutex<()>>,
    subscriber: Option<Subscriber>,
    consolidation: Mutex<Consolidation>,
    broken: AtomicBool,
    failure: OnceLock<String>,
}

/// What is under the lock.
struct State {
    domain: Domain,
    /// Threads that wait for a range.
    waiting: u32,
    /// Threads that wait for frames.
    stalled: u32,
    /// Operations so far that may have brought frames.
    changes: u64,
    /// Those of them that threads that wait for frames were woken for.
    told: u64,
}

impl State {
    fn is_in_transit(&self, gfn: Gfn, pages: u64) -> bool {
        let p2m = self.domain.p2m();
        let end = gfn.offset(pages).raw().div_ceil(SUPERPAGE_PAGES).min(p2m.superpages());
        (gfn.superpage().number()..end).any(|n| p2m.in_transit(Superpage::new(n)))
    }
}

/// What to do when no frame can be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Beyond {
    Stop,
    Borrow,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A domain of which a thread panicked is broken, which is asked for on its own.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl zs_domain {
    pub(crate) fn new(
        domain: Domain,
        functions: Functions,
        subscriber: Option<Subscriber>,
        is_serial: bool,
    ) -> Self {
        Self {
            state: Mutex::new(State { domain, waiting: 0, stalled: 0, changes: 0, told: 0 }),
            released: Condvar::new(),
            changed: Condvar::new(),
            functions,
            serial: is_serial.then(|| Mutex::new(())),
            subscriber,
            consolidation: Mutex::new(Consolidation::default()),
            broken: AtomicBool::new(false),
            failure: OnceLock::new(),
        }
    }

    /// One operation that may bring frames.
    pub(crate) fn session(&self) -> Session<HostGuard<'_>> {
        Session::new(HostGuard {
            shared: self,
            guard: None,
            calls: self.functions.calls(),
            brings_frames: true,
        })
    }

    /// Looks at the domain.
    pub(crate) fn look<R>(&self, look: impl FnOnce(&Domain) -> R) -> R {
        look(&locked(&self.state).domain)
    }

    /// Changes what is no operation of the engine's.
    pub(crate) fn change<R>(&self, change: impl FnOnce(&mut Domain) -> R) -> R {
        let mut state = locked(&self.state);
        state.changes += 1;
        let result = change(&mut state.domain);
        self.unlock(state);
        result
    }

    /// Drops the lock, and wakes those that may go on now.
    fn unlock(&self, mut state: MutexGuard<'_, State>) {
        let wakes_waiting = state.waiting > 0;
        let wakes_stalled = state.stalled > 0 && state.changes != state.told;
        state.told = state.changes;
        drop(state);
        if wakes_waiting {
            self.released.notify_all();
        }
        if wakes_stalled {
            self.changed.notify_all();
        }
    }

    /// Repeats an operation while its range is in transit.
    pub(crate) fn retry_in_transit<R, E: Into<Refusal>>(
        &self,
        gfn: Gfn,
        pages: u64,
        mut operation: impl FnMut(&mut Session<HostGuard<'_>>) -> Result<R, E>,
    ) -> Result<R, zs_status> {
        loop {
            // The session, and with it the lock, is gone before the wait.
            let result = operation(&mut self.session());
            match result.map_err(Into::into) {
                Ok(result) => return Ok(result),
                Err(Refusal::Status(status)) => return Err(status),
                Err(Refusal::InTransit) => self.wait_while_in_transit(gfn, pages)?,
            }
        }
    }

    fn wait_while_in_transit(&self, gfn: Gfn, pages: u64) -> Result<(), zs_status> {
        let mut state = locked(&self.state);
        state.waiting += 1;
        let mut state = self
            .released
            .wait_while(state, |state| state.is_in_transit(gfn, pages) && !self.is_broken())
            .unwrap_or_else(PoisonError::into_inner);
        state.waiting -= 1;
        if self.is_broken() { Err(zs_status::Broken) } else { Ok(()) }
    }

    /// Serves a touch. Waits for another operation on the range, but not for frames.
    pub(crate) fn fault(&self, gfn: Gfn, beyond: Beyond) -> Result<Fault, zs_status> {
        loop {
            match self.fault_once(gfn, beyond)? {
                Fault::InTransit => self.wait_while_in_transit(gfn, 1)?,
                fault => return Ok(fault),
            }
        }
    }

    fn fault_once(&self, gfn: Gfn, beyond: Beyond) -> Result<Fault, FaultError> {
        let mut session = self.session();
        let fault = match beyond {
            Beyond::Stop => session.fault(gfn),
            Beyond::Borrow => session.fault_borrowing(gfn),
        };
        // Those that wait for frames would wake each other for ever.
        session.host().brings_frames = matches!(fault, Ok(Fault::Present { .. }));
        fault
    }

    /// As [`zs_domain::fault`], but waits for frames until then; for ever, if there is no end.
    pub(crate) fn fault_until(&self, gfn: Gfn, end: Option<Instant>) -> Result<Fault, zs_status> {
        loop {
            let seen = locked(&self.state).changes;
            let fault = self.fault(gfn, Beyond::Stop)?;
            if fault != Fault::Exhausted || !self.wait_for_change(seen, end)? {
                return Ok(fault);
            }
        }
    }

    /// Waits until there were more changes than were `seen`; false if there were none in time.
    fn wait_for_change(&self, seen: u64, end: Option<Instant>) -> Result<bool, zs_status> {
        let mut state = locked(&self.state);
        state.stalled += 1;
        while state.changes == seen && !self.is_broken() {
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            state = match left {
                Some(Duration::ZERO) => break,
                Some(left) => {
                    let waited = self.changed.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
        state.stalled -= 1;
        if self.is_broken() { Err(zs_status::Broken) } else { Ok(state.changes != seen) }
    }

    /// Goes on with a consolidation, or begins a new one. Returns the number of pages that it has
    /// moved so far.
    pub(crate) fn consolidate(
        &self,
        restart: bool,
        superpages: u64,
    ) -> Result<(Progress, u64), OutOfTableMemory> {
        let mut work = locked(&self.consolidation);
        if restart {
            *work = Consolidation::default();
        }
        let progress = self.session().consolidate(&mut work, superpages)?;
        Ok((progress, work.moved()))
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// A panic has left the domain in no known state: nobody goes on with it.
    pub(crate) fn break_down(&self, why: &str) {
        let _ = self.failure.set(why.to_owned());
        let state = locked(&self.state);
        // Under the lock, so that nobody looks before and waits after.
        self.broken.store(true, Ordering::Release);
        drop(state);
        self.released.notify_all();
        self.changed.notify_all();
    }

    /// Why the domain is broken; nothing if it is not.
    pub(crate) fn failure(&self) -> Option<String> {
        self.is_broken().then(|| self.failure.get().cloned().unwrap_or_default())
    }
}

/// One thread's way to domain and machine: the lock is taken when the domain is asked for, and
/// dropped before the machine works.
pub(crate) struct HostGuard<'a> {
    shared: &'a zs_domain,
    guard: Option<MutexGuard<'a, State>>,
    calls: Calls<'a>,
    brings_frames: bool,
}

impl<'a> HostGuard<'a> {
    fn state(&mut self) -> &mut MutexGuard<'a, State> {
        self.guard.get_or_insert_with(|| locked(&self.shared.state))
    }

    fn unlock(&mut self) {
        if let Some(state) = self.guard.take() {
            self.shared.unlock(state);
        }
    }
}

impl<'a> Host for HostGuard<'a> {
    type Machine = Calls<'a>;

    fn domain(&mut self) -> &mut Domain {
        &mut self.state().domain
    }

    fn machine<R>(&mut self, work: impl FnOnce(&mut Calls<'a>) -> R) -> R {
        self.unlock();
        let _serial = self.shared.serial.as_ref().map(locked);
        let _inside = Inside::enter();
        work(&mut self.calls)
    }

    fn event(&mut self, event: Event) {
        let Some(subscriber) = &self.shared.subscriber else { return };
        // The lock puts events in order.
        self.state();
        let _inside = Inside::enter();
        subscriber.tell(event);
    }
}

impl Drop for HostGuard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Before anybody else has the lock: what is under it may be half done.
            self.state();
            self.shared.broken.store(true, Ordering::Release);
        }
        if self.brings_frames {
            self.state().changes += 1;
        }
        self.unlock();
    }
}
