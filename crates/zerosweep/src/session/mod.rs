//! Operations on a domain: one call, one operation.
//!
//! # The protocol
//! Every operation works on claimed superpages. A claim ([`P2m::claim`](crate::P2m::claim)) is
//! taken and given back under the domain's lock, and between the two the range is *in transit*:
//! nobody else changes its entries, and a fault on it is told to wait ([`Fault::InTransit`]).
//! The machine is called with the lock dropped ([`Host::machine`]); so after such a call anything
//! may have changed, except the entries of claimed ranges. Quantities are therefore moved *before*
//! a frame is mapped and *after* it is unmapped, in one go under the lock: the equations hold
//! whenever nobody has it. An operation that needs a second range takes it only if it is free, and
//! otherwise does without, so that no two operations wait for each other.

mod build;
mod consolidate;
mod decrease;
mod evacuate;
mod fault;
mod offline;
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
pub use target::{FillError, TargetError};

use crate::domain::{Domain, Life};
use crate::error::OutOfTableMemory;
use crate::event::Event;
use crate::frame::{Gfn, Mfn, Order, Superpage};
use crate::machine::{Exclusive, Host, Machine, Unmapped};
use crate::p2m::{Entry, RamState, SpareTable};

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
        let superpage = gfn.superpage();
        let domain = self.host.domain();
        let mapped = match domain.p2m.get(gfn).0 {
            Entry::Ram { state, .. } => state != RamState::Detached,
            _ => false,
        };
        if !mapped || !domain.p2m.claim(superpage) {
            return false;
        }
        self.host.machine(work);
        self.release(superpage);
        true
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

    pub(crate) fn claim(&mut self, superpage: Superpage) -> bool {
        self.domain().p2m.claim(superpage)
    }

    pub(crate) fn release(&mut self, superpage: Superpage) {
        self.domain().p2m.release(superpage);
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

    /// Unmaps one run and flushes it.
    pub(crate) fn unmap_flushed(&mut self, gfn: Gfn, mfn: Mfn, order: Order) -> Unmapped {
        let unmapped = self.host.machine(|m| {
            let unmapped = m.unmap(gfn, mfn, order);
            if unmapped == Unmapped::Done {
                m.flush();
            }
            unmapped
        });
        let statistics = &mut self.domain().statistics;
        match unmapped {
            Unmapped::Done => statistics.unmap_flushes += 1,
            Unmapped::Busy => statistics.busy += 1,
        }
        unmapped
    }

    /// Clears a run of any order that is in this operation's hands.
    pub(crate) fn clear(&mut self, mfn: Mfn, order: Order) {
        self.host.machine(|m| {
            if order == Order::SUPERPAGE {
                m.clear(mfn, order);
            } else {
                (0..order.pages()).for_each(|i| m.clear(mfn.offset(i), Order::PAGE));
            }
        });
        self.domain().statistics.bytes_cleared += order.bytes();
    }

    /// Puts a clean run into the cache, for which room was reserved.
    pub(crate) fn put(&mut self, mfn: Mfn, order: Order) {
        let joined = self.domain().put(mfn, order);
        self.finish_join(joined);
    }

    /// A superframe whose singles are all home goes back to the cache whole; the machine may make
    /// it whole too.
    pub(crate) fn finish_join(&mut self, joined: Option<Mfn>) {
        let Some(mfn) = joined else { return };
        self.host.machine(|m| m.park(mfn));
        let domain = self.domain();
        domain.flight.in_hand -= Order::SUPERPAGE.pages();
        let _ = domain.put(mfn, Order::SUPERPAGE);
        domain.statistics.rejoined += 1;
    }

    /// Gives a run of any order back to the host.
    pub(crate) fn free(&mut self, mfn: Mfn, order: Order) {
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
