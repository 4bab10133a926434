//! System calls and memory by address: the only modules of this crate with unsafe code. They import
//! nothing above them but errors and addresses. Their interface is safe, except for adopting memory
//! that others mapped ([`region::Region::adopt`]) and the bare calls of [`raw`].

pub mod pagemap;
pub mod poll;
pub mod raw;
pub mod region;
pub(crate) mod running_kernel;
pub mod uffd;
mod uffd_abi;
#[cfg(feature = "vm-memory")]
mod volatile;
