//! The library that is preloaded into an unmodified VMM and manages its guest memory.
//!
//! ```text
//! VMM: madvise(range, MADV_DONTFORK) ──► interpose ──► adopt ──► GuestMemory (zerosweep-linux)
//!      madvise(page, MADV_DONTNEED)  ──► interpose ──► advice ─► decrease: the balloon inflates
//!      madvise(range, MADV_DONTNEED) ──► interpose ──► advice ─► discard: a free page report
//!      recvmsg(monitor)              ──► interpose ──► qmp_tap: the balloon's next size
//!                        tools ◄──────► control (Unix socket) ─► status, target, audit
//! ```
//!
//! Each module uses only those below it:
//!
//! | module | what |
//! | --- | --- |
//! | `interpose` | the C functions that take the place of the C library's |
//! | `adopt` | recognises and takes over guest RAM; cleans up at exit |
//! | `control` | the control socket |
//! | `report` | figures as messages |
//! | `advice` | what the VMM's calls on memory do to guest RAM |
//! | `files` | files that the VMM opens |
//! | `qmp_tap` | reads what another tool asks the guest's balloon for; the target follows |
//! | `events` | a trace of what happens, if one is wanted |
//! | `clients` | the connections to the control socket |
//! | `state` | the phase, the configuration, the guest's memory |
//! | `sys` | unsafe helpers |
//!
//! A process that finds no [configuration](zerosweep_wire::CONFIG_VARIABLE) in its environment is
//! left alone: one atomic flag says so at each call. No panic crosses the C border; a failure of
//! ours lifts the cap and is reported, and the guest goes on ([INV-10]).
//!
//! Its own memory comes from its own allocator: the VMM's may be locked by a thread that waits for
//! a fault.
//!
//! Absent on purpose: `fallocate` (private anonymous memory has no file), `process_madvise` (VMMs
//! do not give their own memory back by it), symbol look-ups of any kind.
//!
//! [INV-10]: zerosweep::rules#inv-10

mod adopt;
mod advice;
mod clients;
mod control;
mod events;
mod files;
mod interpose;
mod qmp_tap;
mod report;
mod state;
mod sys;

#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;
