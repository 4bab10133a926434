//! A frame is broken: it leaves the cache and is replaced (rule [R17]).
//!
//! [R17]: crate::rules#r17

use super::Session;
use crate::error::OutOfTableMemory;
use crate::frame::{Mfn, Order};
use crate::machine::{Host, Machine};

/// What was done about a broken frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offline {
    /// The frame has left the cache. The host gave another one, unless none was needed.
    Replaced,
    /// The frame has left the cache. The host had no other one: [`Session::fill`] asks again.
    Missing,
    /// The frame is not in the cache: the guest has it, the host, or an operation.
    NotCached,
}

impl<H: Host> Session<H> {
    /// Takes a broken frame out of the cache for good. The other 511 of a superframe stay. (Xen:
    /// `p2m_pod_offline_or_broken_hit`, `p2m_pod_offline_or_broken_replace`.)
    ///
    /// # Errors
    /// When there is no memory to keep the others. Nothing was changed.
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
