//! Populate-on-demand memory on Linux: userfaultfd with `UFFDIO_MOVE` and huge pages under the
//! zerosweep engine. [`GuestMemory`] is the whole of it; the other modules are what it is made of.
//!
//! | module | what |
//! | --- | --- |
//! | [`sys::raw`] | system calls without the C library's `mmap`, `madvise` and friends |
//! | [`sys::uffd`] | userfaultfd: faults in, moves, write-protection |
//! | [`sys::pagemap`] | which ranges are whole superpages, asked of the page tables |
//! | [`sys::region`] | [`Region`]: memory without Rust references into it; [`Span`]: a part of one |
//! | [`sys::poll`] | waiting for faults and for a wake-up call |
//! | [`memory`] | [`GuestMemory`]: a guest's memory under the engine, and what can be done with it |
//! | `machine`, `slots` | the engine's machine: frames are slots of a pool, pages move |
//! | `service`, `ahead` | the thread that answers faults, the one that gets huge pages ready |
//! | `upkeep` | the thread that clears and breaks what can wait |
//! | [`vma`] | whether memory that someone else mapped can be managed |
//! | [`probe`] | what this machine allows, and the command that mends each gap |
//!
//! Invariant: everything in `sys` that a fault thread calls makes raw system calls only and
//! allocates nothing; `vma` and `probe` allocate and are for start-up.
//!
//! What [`sys::raw`], [`probe`] and [`vma`] offer serves zerosweep's own program, and may change in
//! any version; the rest follows semantic versioning.
//!
//! Known holes: a page that the kernel uses by an ordinary reference, without pinning it, moves all
//! the same. [`references`] says who does that, and finds some of them.
#![cfg(target_os = "linux")]
#![deny(unsafe_op_in_unsafe_fn)]

#[cfg(test)]
extern crate self as zerosweep_linux;

pub mod addr;
mod ahead;
pub mod error;
#[cfg(feature = "vm-memory")]
mod guest_ram;
mod kernel_version;
mod machine;
pub mod memory;
mod outcome;
mod placement;
pub mod probe;
pub mod references;
mod service;
mod slots;
pub mod sys;
mod threads;
mod upkeep;
pub mod vma;

pub use addr::{HostAddr, PAGE_BYTES, SUPERPAGE_BYTES, SUPERPAGE_PAGES};
pub use error::{Errno, OpenError, RegionError, SpanError, SysError, Unsuitable};
#[cfg(feature = "vm-memory")]
pub use guest_ram::{GuestRam, GuestRamCollection};
pub use kernel_version::KernelVersion;
pub use machine::{LinuxMachine, MachineCounters, MachineRef, Parking};
pub use memory::{AdoptError, GuestMemory, MainLoop, OnExhaustion, Options, Snapshot};
pub use outcome::{ConsolidateError, FaultLatency, Lifted, Progress, SetTargetError};
pub use placement::Placement;
pub use sys::pagemap::Pagemap;
pub use sys::raw::thread_id;
pub use sys::region::{Region, Span};
pub use sys::uffd::{Fault, FaultBuffer, FaultKind, MoveOutcome, Uffd};
