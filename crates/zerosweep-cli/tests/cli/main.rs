//! The programs `zerosweep` and `zerosweep-qemu` from outside, a module for each of their commands.
//! All are one test program, because to link one takes longer than most tests do.
#![expect(clippy::unwrap_used, reason = "test code; clippy does not see that in helpers")]

#[path = "../support/browser.rs"]
mod browser;
#[path = "../support/http.rs"]
mod http;
#[path = "../support/mod.rs"]
mod support;

mod asynchronous_faults;
mod command_line;
mod demo;
mod emulator;
mod events;
mod experiment;
mod guests;
mod libvirt;
mod many_machines;
mod other_users;
mod report;
mod run;
mod script;
mod serve;
mod serve_page;
mod trace;
mod usage;
mod xen_figures;
