//! The C interface of the [`zerosweep`] engine: what `include/zerosweep.h` declares.
//!
//! A C program gives a table of functions that move its frames, and calls one function for each
//! operation, from as many threads as it likes. There is nothing here to call from Rust: use
//! [`zerosweep`] itself.
//!
//! | module | what | unsafe |
//! | --- | --- | --- |
//! | `abi` | constants and structures | – |
//! | `status` | what a call came to | – |
//! | `domain` | a domain that threads share: lock, waiting, breaking down | – |
//! | `machine` | the program's functions as a [`Machine`](zerosweep::Machine) | the calls |
//! | `ffi` | pointers in and out, panics stopped | reads and writes |
//! | `functions` | the functions themselves | their names, the domain's end, the scan |
//!
//! Invariant: no panic gets out to C. A panic inside an operation breaks the domain: the
//! waiting threads return, every later call is refused, and the memory of the guest is left as it
//! is. An invalid answer of a function of the program's is such a panic.
//!
//! Invariant: the domain's lock is not held while a function of the machine runs (rule [R14]).
//! Events are reported under it, so that they come in order.
//!
//! Absent on purpose: a domain without a lock. It would save some 20 ns a call, and a program that
//! uses it from two threads after all would corrupt it silently.
//!
//! [R14]: zerosweep::rules#r14
#![deny(unsafe_op_in_unsafe_fn)]
#![expect(non_camel_case_types, reason = "types have the names that they have in the header")]
#![expect(unreachable_pub, reason = "cbindgen takes what is public")]

mod abi;
mod domain;
mod ffi;
mod functions;
mod machine;
mod status;
