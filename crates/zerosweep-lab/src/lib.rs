//! Experiments on populate-on-demand memory: guests, runs, measurements.
//!
//! | module | what |
//! | --- | --- |
//! | [`guest`] | guest models |
//! | [`host`] | what the kernel says of this host and its processes |
//! | [`run`] | runs of a model, on the software machine and on real memory |
//! | [`ledger`] | what a guest knows to be in its memory, and the limit that follows |
//! | [`timeline`] | how a run went |
//! | [`matrix`] | many runs: guests × policies × seeds, shards, several at a time |
//! | [`cost`] | what counted work would cost: modelled times |
//! | [`calibrate`] | measures what the cost model is made of |
//! | [`result`] | the JSON documents |
//! | [`report`] | the HTML report |
//! | [`files`] | files that a user names for writing |
//! | [`image`] | kernel and initramfs of the real Linux guests that run under QEMU |
//! | [`real_guest`] | those guests: what they say, and how much memory they hold |

pub mod calibrate;
pub mod cost;
pub mod files;
pub mod guest;
pub mod host;
pub mod image;
pub mod ledger;
pub mod matrix;
pub mod real_guest;
pub mod report;
pub mod result;
pub mod run;
pub mod script;
pub mod timeline;
mod unpack;
pub mod xentrace;
