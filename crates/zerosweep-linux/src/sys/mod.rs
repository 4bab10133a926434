//! Everything that talks to the kernel in unsafe words. The modules here are the only ones of this
//! crate with unsafe code; what they offer outside is safe, but for taking over memory that
//! someone else mapped ([`region::Region::adopt`]) and the bare calls of [`raw`].

pub mod pagemap;
pub mod poll;
pub mod raw;
pub mod region;
pub(crate) mod running_kernel;
pub mod uffd;
mod uffd_abi;
#[cfg(feature = "vm-memory")]
mod volatile;
