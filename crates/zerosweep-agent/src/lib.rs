//! The library that is preloaded into an unmodified VMM and manages its guest memory.
//!
//! ```text
//! VMM: madvise(range, MADV_DONTFORK) ──► interpose ──► adopt ──► GuestMemory (zerosweep-linux)
//!      madvise(page, MADV_DONTNEED)  ──► interpose ──────────► decrease: the balloon inflates
//!      madvise(range, MADV_DONTNEED) ──► interpose ──────────► discard: a free page report
//!      recvmsg(monitor)             ──► interpose ──► follow: the balloon's next size
//!                       tools ◄──────► control (Unix socket) ─► status, target, audit
//! ```
//!
//! | module | what |
//! | --- | --- |
//! | `interpose` | the C functions that take the place of the C library's |
//! | `adopt` | what happens to a VMM that is told to manage memory: recognise, take over, clean up |
//! | `control` | the control socket |
//! | `clients` | who is connected to it |
//! | `report` | figures as messages |
//! | `events` | a trace of what happens, if one is wanted |
//! | `follow` | the target follows what another tool asks the guest's balloon for |
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
mod clients;
mod control;
mod events;
mod follow;
mod interpose;
mod report;

#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;
