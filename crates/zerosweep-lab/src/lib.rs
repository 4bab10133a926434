//! Experiments on populate-on-demand memory: guests, runs, measurements.
//!
//! | module | what |
//! | --- | --- |
//! | [`guest`] | guest models |
//! | [`run`] | runs of a model, on the software machine and on real memory |
//! | [`cost`] | what counted work would cost: modelled times |
//! | [`result`] | the JSON documents |
//! | [`image`] | kernel and initramfs of the real Linux guests that run under QEMU |

pub mod cost;
pub mod guest;
pub mod image;
pub mod result;
pub mod run;
