//! Claims (rule [R14]): a superpage that an operation works on is *in transit*. Nobody else changes
//! its entries, and a fault on it is told to wait.
//!
//! A claim is a scope: it is given back when `work` has returned, whatever it returned.
//!
//! [R14]: crate::rules#r14

use super::Session;
use crate::frame::{Gfn, Order, Superpage};
use crate::machine::Host;

/// The most superpages that a [`Batch`] claims.
pub(super) const BATCH: usize = 16;

impl<H: Host> Session<H> {
    /// Runs `work` while a superpage is claimed. `None`, and nothing is run, if another operation
    /// has claimed it.
    pub(super) fn claimed<R>(
        &mut self,
        superpage: Superpage,
        work: impl FnOnce(&mut Self) -> R,
    ) -> Option<R> {
        if !self.domain().p2m.claim(superpage) {
            return None;
        }
        let outcome = work(self);
        self.domain().p2m.release(superpage);
        Some(outcome)
    }

    /// Runs `work` while every superpage that a range touches is claimed. `None`, and nothing is
    /// run, if another operation has claimed one of them.
    pub(super) fn claimed_run<R>(
        &mut self,
        gfn: Gfn,
        order: Order,
        work: impl FnOnce(&mut Self) -> R,
    ) -> Option<R> {
        let p2m = &mut self.host.domain().p2m;
        for superpage in superpages(gfn, order) {
            if !p2m.claim(superpage) {
                let claimed = superpages(gfn, order).take_while(|&s| s != superpage);
                claimed.for_each(|s| p2m.release(s));
                return None;
            }
        }
        let outcome = work(self);
        let p2m = &mut self.host.domain().p2m;
        superpages(gfn, order).for_each(|superpage| p2m.release(superpage));
        Some(outcome)
    }

    /// Runs `work`, which claims superpages one after the other with [`Session::add_to_batch`].
    pub(super) fn claimed_batch<R>(&mut self, work: impl FnOnce(&mut Self, &mut Batch) -> R) -> R {
        let mut batch = Batch { superpages: [None; BATCH], len: 0 };
        let outcome = work(self, &mut batch);
        let p2m = &mut self.host.domain().p2m;
        batch.iter().for_each(|superpage| p2m.release(superpage));
        outcome
    }

    /// Claims one more superpage for a batch. Returns false if another operation has it.
    pub(super) fn add_to_batch(&mut self, batch: &mut Batch, superpage: Superpage) -> bool {
        if batch.iter().any(|claimed| claimed == superpage) {
            return true;
        }
        if batch.len == BATCH || !self.domain().p2m.claim(superpage) {
            return false;
        }
        batch.superpages[batch.len] = Some(superpage);
        batch.len += 1;
        true
    }
}

/// Superpages that were claimed one after the other.
pub(super) struct Batch {
    superpages: [Option<Superpage>; BATCH],
    len: usize,
}

impl Batch {
    fn iter(&self) -> impl Iterator<Item = Superpage> + '_ {
        self.superpages[..self.len].iter().flatten().copied()
    }
}

/// The superpages that a range touches.
pub(super) fn superpages(gfn: Gfn, order: Order) -> impl Iterator<Item = Superpage> + Clone {
    let first = gfn.superpage().number();
    let last = gfn.offset(order.pages() - 1).superpage().number();
    (first..=last).map(Superpage::new)
}
