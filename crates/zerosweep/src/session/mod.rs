//! Operations on a domain: one call, one operation.
//!
//! # The protocol
//! Every operation works on claimed superpages. A claim is a scope (`Session::claimed`): it is
//! taken and given back under the domain's lock, and between the two the range is *in transit*:
//! nobody else changes its entries, and a fault on it is told to wait ([`Fault::InTransit`]).
//! The machine is called with the lock dropped ([`Host::machine`]); so after such a call anything
//! may have changed, except the entries of claimed ranges. Quantities are therefore moved *before*
//! a frame is mapped and *after* it is unmapped, in one go under the lock: the equations hold
//! whenever nobody has it. An operation that needs a second range takes it only if it is free, and
//! otherwise does without, so that no two operations wait for each other.

mod build;
mod claim;
mod consolidate;
mod decrease;
mod evacuate;
mod fault;
mod mapping;
mod offline;
mod read;
mod reconcile;
mod refill;
mod retain;
mod sweep;
mod target;
mod teardown;
mod upkeep;
mod zero_check;

pub use build::BuildError;
pub use consolidate::Consolidation;
pub use decrease::{DecreaseError, DiscardError};
pub use fault::{Fault, FaultError};
pub use offline::Offline;
pub use reconcile::Reconciliation;
pub use target::{FillError, TargetError};

use crate::domain::{Domain, Life};
use crate::error::OutOfTableMemory;
use crate::event::Event;
use crate::frame::{Gfn, Order, Superpage};
use crate::machine::{Exclusive, Host, Machine};
use crate::p2m::{Entry, RamState, SpareTable};
use crate::run::Run;

/// Whether a long operation has come to its end.
#[must_use = "work may be left"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing is left to do.
    Done,
    /// Call again.
    More,
}

/// One thread's turn at a domain. Made by [`Domain::with`], or from any [`Host`].
pub struct Session<H> {
    pub(crate) host: H,
}

impl Domain {
    /// Joins this domain and a machine that no other thread uses.
    pub fn with<'a, M: Machine>(&'a mut self, machine: &'a mut M) -> Session<Exclusive<'a, M>> {
        Session::new(Exclusive::new(self, machine))
    }
}

impl<H: Host> Session<H> {
    /// Works on what `host` joins.
    pub fn new(host: H) -> Self {
        Self { host }
    }

    /// The host.
    pub fn host(&mut self) -> &mut H {
        &mut self.host
    }

    pub(crate) fn domain(&mut self) -> &mut Domain {
        self.host.domain()
    }

    /// Runs `work` on the machine while the superpage around `gfn` is claimed, if `gfn` has a
    /// frame there that is mapped. False, and nothing is run, if not or if it is in transit.
    pub fn with_claim(&mut self, gfn: Gfn, work: impl FnOnce(&mut H::Machine)) -> bool {
        let is_mapped = match self.domain().p2m.get(gfn).0 {
            Entry::Ram { state, .. } => state != RamState::Detached,
            _ => false,
        };
        is_mapped && self.claimed(gfn.superpage(), |session| session.host.machine(work)).is_some()
    }

    /// Sees to it that a range can be broken without an allocation under the domain's lock. Where
    /// memory is short, that is found out when it is broken.
    pub(crate) fn prepare_tables(&mut self) {
        while self.host.domain().p2m.wants_spare() {
            let Ok(spare) = self.host.machine(|_| SpareTable::new()) else { return };
            self.host.domain().p2m.add_spare(spare);
        }
    }

    pub(crate) fn is_alive(&mut self) -> bool {
        self.domain().life == Life::Alive
    }

    /// Breaks a claimed superpage's entry if it is whole. Pages of it that are retained lose their
    /// frames first.
    pub(crate) fn split(&mut self, superpage: Superpage) -> Result<(), OutOfTableMemory> {
        if !self.reclaim_retained(superpage) {
            return Err(OutOfTableMemory);
        }
        let domain = self.host.domain();
        let was_ram = matches!(domain.p2m.whole(superpage), Some(Entry::Ram { .. }));
        domain.p2m.split(superpage)?;
        if was_ram {
            domain.statistics.shatters += 1;
            self.host.event(Event::Shatter { gfn: superpage.first() });
        }
        Ok(())
    }

    /// Puts a clean run into the cache, for which room was reserved.
    pub(crate) fn put(&mut self, run: Run) {
        let joined = self.domain().put(run);
        self.finish_join(joined);
    }

    /// A superframe whose singles are all home goes back to the cache whole; the machine may make
    /// it whole too.
    pub(crate) fn finish_join(&mut self, joined: Option<Run>) {
        let Some(whole) = joined else { return };
        self.host.machine(|m| m.park(whole.mfn().superframe()));
        let domain = self.domain();
        domain.flight.in_hand -= whole.pages();
        let _ = domain.put(whole);
        domain.statistics.rejoined += 1;
    }

    /// Clears a run of any order.
    pub(crate) fn clear(&mut self, run: &Run) {
        self.host.machine(|m| {
            if run.order() == Order::SUPERPAGE {
                m.clear(run.mfn(), run.order());
            } else {
                run.frames().for_each(|mfn| m.clear(mfn, Order::PAGE));
            }
        });
        self.domain().statistics.bytes_cleared += run.order().bytes();
    }

    /// Gives a run of any order back to the host.
    pub(crate) fn free(&mut self, run: Run) {
        let order = run.order();
        let mfn = run.into_mfn();
        self.host.machine(|m| m.free(mfn, order));
        let statistics = &mut self.domain().statistics;
        if order == Order::SUPERPAGE {
            statistics.superpages_returned += 1;
        } else {
            statistics.pages_returned_4k += 1;
        }
        self.host.event(Event::Return { mfn, order });
    }
}
