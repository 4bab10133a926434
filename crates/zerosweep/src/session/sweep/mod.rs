//! Sweeps: zero checks over many ranges (rules [R7], [R8]).
//!
//! [`down`] is Xen's: from the highest faulting gfn downwards. [`bounded`] is ours: superpages
//! first, in steps of a byte budget, round and round.
//!
//! [R7]: crate::rules#r7
//! [R8]: crate::rules#r8

mod bounded;
mod down;

pub(super) use bounded::Step;
