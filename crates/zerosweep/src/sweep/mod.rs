//! Sweeps: zero checks over many ranges (rules [R7], [R8]).
//!
//! [`down`] is Xen's: from the highest faulting gfn downwards. [`bounded`] is ours: superpages
//! first, in steps of a byte budget, round and round.
//!
//! [R7]: crate::rules#r7
//! [R8]: crate::rules#r8

mod bounded;
mod down;

pub(crate) use bounded::Step;

use crate::frame::Gfn;

/// Where the sweeps stopped.
#[derive(Default)]
pub(crate) struct Cursors {
    /// The highest gfn that a fault was served for.
    pub(crate) highest_fault: u64,
    /// Xen's 4K sweep goes on here; 0: from the highest fault.
    pub(crate) single: u64,
    /// Xen's 2M sweep goes on here; 0: from below the highest fault.
    pub(crate) superpage: u64,
    /// Ours.
    pub(crate) bounded: bounded::Cursor,
    /// Pages that were looked at while they were mapped, so far.
    pub(crate) looks: u64,
    /// Our search for a superpage.
    pub(crate) seek: bounded::Seek,
}

impl Cursors {
    pub(crate) fn note_fault(&mut self, gfn: Gfn) {
        self.highest_fault = self.highest_fault.max(gfn.raw());
    }
}
