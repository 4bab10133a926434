//! A frame is broken: it leaves the cache and is replaced (rule [R17]).
//!
//! [R17]: crate::rules#r17

use super::Session;
use crate::frame::{Mfn, Order};
use crate::machine::{Host, Machine};
use crate::p2m::OutOfTableMemory;

/// What came of a broken frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offline {
    /// It was in the cache and is gone; the host gave another for it, unless none was needed.
    Replaced,
    /// It was in the cache and is gone; the host had no other: [`Session::fill`] asks again.
    Missing,
    /// It is not in the cache: the guest has it, or the host, or an operation at this moment.
    NotCached,
}

impl<H: Host> Session<H> {
    /// Takes a broken frame out of the cache for good; of a superpage the other 511 stay. (Xen:
    /// `p2m_pod_offline_or_broken_hit`, `p2m_pod_offline_or_broken_replace`.)
    ///
    /// # Errors
    /// When there is no memory to keep the others; nothing is changed then.
    pub fn offline(&mut self, mfn: Mfn) -> Result<Offline, OutOfTableMemory> {
        if !self.is_alive() || !self.domain().cache.take_out(mfn)? {
            return Ok(Offline::NotCached);
        }
        self.host.machine(|m| {
            // A CPU may still have it, if it came back a moment ago.
            m.flush();
            m.retire(mfn);
        });
        if self.domain().wants_fill() == 0 {
            return Ok(Offline::Replaced);
        }
        let replaced = self.fill_run(Order::PAGE).unwrap_or(false);
        Ok(if replaced { Offline::Replaced } else { Offline::Missing })
    }
}
