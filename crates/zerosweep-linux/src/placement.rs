//! The NUMA nodes of the frames (`mbind(2)`).
//!
//! Guest, pool and scratch have the same policy, and always one of their own. A mapping without one
//! is open to automatic NUMA balancing, which unmaps its pages to learn who uses them, and migrates
//! them: a page under migration cannot be moved, and Linux before 7.2 may crash when a huge one is
//! (docs/hosts.md). A mapping with a policy of its own is left alone.
//!
//! A page that moves keeps its node. So the policy of the guest's mapping (`host-nodes=` and
//! `policy=` of QEMU's memory backends, libvirt's `<numatune>`) has to hold for the pool, from
//! which its frames come.

use crate::addr::HostAddr;
use crate::error::SysError;
use crate::sys::raw::{self, NODE_WORDS};
use crate::sys::region::Span;

/// `MPOL_DEFAULT` and `MPOL_LOCAL`.
const DEFAULT: u32 = 0;
const LOCAL: u32 = 4;
/// `MPOL_F_NUMA_BALANCING`: balance all the same.
const BALANCING: u32 = 1 << 13;

/// A memory policy of the kernel: a mode and a set of nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    mode: u32,
    nodes: [u64; NODE_WORDS],
}

impl Placement {
    /// On the node of the thread that asks for the frame.
    pub const LOCAL: Self = Self { mode: LOCAL, nodes: [0; NODE_WORDS] };

    /// The mode `mode` (`MPOL_…`) on the nodes whose bits are set in `nodes`. The default mode
    /// becomes the local one, which does the same and keeps automatic balancing away.
    #[must_use]
    pub fn new(mode: u32, nodes: [u64; NODE_WORDS]) -> Self {
        match mode & !BALANCING {
            DEFAULT => Self::LOCAL,
            mode => Self { mode, nodes },
        }
    }

    /// Returns the policy of the mapping at `address`, or without one that of the calling thread
    /// (`numactl`).
    pub(crate) fn at(address: HostAddr) -> Self {
        let of_mapping = raw::memory_policy(Some(address.get())).unwrap_or((DEFAULT, [0; _]));
        let (mode, nodes) = match of_mapping {
            (DEFAULT, _) => raw::memory_policy(None).unwrap_or((DEFAULT, [0; _])),
            own => own,
        };
        Self::new(mode, nodes)
    }

    /// Sets the policy of `span` for new frames; existing ones stay.
    ///
    /// # Errors
    /// `EINVAL` for a node that does not exist; none on a kernel without NUMA.
    pub(crate) fn apply(&self, span: Span<'_>) -> Result<(), SysError> {
        let outcome = raw::mbind(span.start().get(), span.bytes() as usize, self.mode, &self.nodes);
        match outcome {
            Err(error) if error.is(libc::ENOSYS) => Ok(()),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Region;

    #[test]
    fn the_default_is_the_local_node_by_name() {
        assert_eq!(Placement::new(0, [1; NODE_WORDS]), Placement::LOCAL);
        assert_eq!(Placement::new(BALANCING, [0; NODE_WORDS]), Placement::LOCAL);
        let bind = Placement::new(2 | BALANCING, [1; NODE_WORDS]);
        assert_eq!(bind, Placement { mode: 2, nodes: [1; NODE_WORDS] });
    }

    #[test]
    fn a_mapping_has_what_it_was_given() {
        let region = Region::new(2 << 20).unwrap();
        let mut nodes = [0; NODE_WORDS];
        nodes[0] = 1;
        let bind = Placement::new(2, nodes);
        if raw::memory_policy(None).is_err() {
            eprintln!("skipped: a kernel without NUMA");
            return;
        }
        assert_eq!(Placement::at(region.start()), Placement::LOCAL);
        bind.apply(region.all()).unwrap();
        assert_eq!(Placement::at(region.start()), bind);
        nodes[0] = 1 << 63;
        assert!(Placement::new(2, nodes).apply(region.all()).is_err());
        assert_eq!(Placement::at(region.start()), bind);
    }
}
