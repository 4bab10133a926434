//! Populate-on-demand memory on Linux: userfaultfd with `UFFDIO_MOVE` and huge pages under the
//! zerosweep engine. [`GuestMemory`] is the whole of it; the other modules are its parts.
//!
//! Each layer uses the ones above it in this table:
//!
//! | module | what |
//! | --- | --- |
//! | [`geometry`], [`addr`], [`error`], `kernel_version`, `outcome` | types that everything uses |
//! | [`sys::raw`] | system calls without the C library's `mmap`, `madvise` and friends |
//! | [`sys::region`] | [`Region`]: memory without Rust references into it; [`Span`]: a part of one |
//! | [`sys::uffd`], [`sys::poll`] | userfaultfd: faults in, moves, write-protection; waiting for faults |
//! | [`sys::pagemap`] | which ranges are whole superpages, asked of the page tables |
//! | [`vma`], [`references`], [`probe`], `placement` | what the VMM's memory, its files and this host allow |
//! | `machine` | the engine's machine: frames are slots of a pool, pages move |
//! | `domain` | the domain behind its lock, the lift's state, the signals to the threads |
//! | `recovery` | misplaced pages, the lift of the cap |
//! | `operation` | operations that a lift waits for, and whose panics lift the cap |
//! | `threads` | fault threads, prefault, upkeep |
//! | `memory` | [`GuestMemory`]: adoption, operations, figures |
//! | `guest_ram` | `GuestRam`: the same for the crate `vm-memory`, with that feature |
//!
//! Invariant: everything that a fault thread calls makes raw system calls only and allocates
//! nothing; `vma`, `references` and `probe` allocate and are for start-up.
//!
//! What [`sys::raw`], [`probe`] and [`vma`] offer serves zerosweep's own program, and may change in
//! any version; the rest follows semantic versioning.
//!
//! Known holes: a page that the kernel uses by an ordinary reference, without pinning it, moves all
//! the same. [`references`] lists the causes, and finds some of them.
#![cfg(target_os = "linux")]
#![deny(unsafe_op_in_unsafe_fn)]

pub mod addr;
mod domain;
pub mod error;
pub mod geometry;
#[cfg(feature = "vm-memory")]
mod guest_ram;
mod kernel_version;
mod machine;
mod memory;
mod operation;
mod outcome;
mod placement;
pub mod probe;
mod recovery;
pub mod references;
pub mod sys;
#[cfg(test)]
mod tests;
mod threads;
pub mod vma;

pub use addr::{HostAddr, PAGE_BYTES, SUPERPAGE_BYTES, SUPERPAGE_PAGES};
pub use error::{Errno, OpenError, RegionError, SpanError, SysError, Unsuitable};
pub use geometry::{HostPages, UnsuitablePages};
#[cfg(feature = "vm-memory")]
pub use guest_ram::{GuestRam, GuestRamCollection};
pub use kernel_version::KernelVersion;
pub use machine::{LinuxMachine, MachineCounters, Parking};
pub use memory::GuestMemory;
pub use memory::adopt::{AdoptError, Options};
pub use memory::snapshot::Snapshot;
pub use outcome::{ConsolidateError, FaultLatency, Lifted, Progress, SetTargetError};
pub use placement::Placement;
pub use sys::pagemap::Pagemap;
pub use sys::raw::thread_id;
pub use sys::region::{Region, Span};
pub use sys::uffd::{Fault, FaultBuffer, FaultKind, MoveOutcome, Uffd};
pub use threads::faults::exhaustion::{MainLoop, OnExhaustion};
