//! What can go wrong, one enum per family of operations, with what to do where a person can do
//! something. Nothing here allocates until it is printed.

use core::fmt;

use crate::addr::HostAddr;
use crate::geometry::UnsuitablePages;
use crate::kernel_version::KernelVersion;

/// An error number of the kernel, e.g. 16 for `EBUSY`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(i32);

impl Errno {
    /// The error number `number` (positive, as in `errno.h`).
    #[must_use]
    pub const fn new(number: i32) -> Self {
        Self(number)
    }

    /// The number, as in `errno.h`.
    #[must_use]
    pub const fn get(self) -> i32 {
        self.0
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "e{}", self.0)
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&std::io::Error::from_raw_os_error(self.0), f)
    }
}

/// A system call that failed. The state is what that call's manual page says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{call}: {errno}")]
pub struct SysError {
    /// The call and its operation, e.g. `madvise(MADV_DONTNEED)`.
    pub call: &'static str,
    /// Why.
    pub errno: Errno,
}

impl SysError {
    /// Whether the error number is `number` (a `libc::E…` constant).
    #[must_use]
    pub const fn is(&self, number: i32) -> bool {
        self.errno.get() == number
    }
}

impl From<SysError> for std::io::Error {
    fn from(error: SysError) -> Self {
        Self::from_raw_os_error(error.errno.get())
    }
}

/// A part of a region that does not exist or does not fit. Nothing was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpanError {
    /// The part reaches past the end.
    #[error("{bytes} bytes at offset {offset:#x} reach past the end of {within} bytes")]
    OutOfBounds {
        /// Where the part starts, in bytes.
        offset: u64,
        /// How long it is, in bytes.
        bytes: u64,
        /// How long the whole is, in bytes.
        within: u64,
    },
    /// The part does not start or end where the operation needs it to.
    #[error("{bytes} bytes at offset {offset:#x} are not aligned to {align} bytes")]
    Misaligned {
        /// Where the part starts, in bytes.
        offset: u64,
        /// How long it is, in bytes.
        bytes: u64,
        /// The alignment that is needed, in bytes.
        align: u64,
    },
    /// Two parts that must be of one length are not.
    #[error("{to_bytes} bytes cannot take {from_bytes} bytes: the lengths must be equal")]
    Unequal {
        /// Length of the destination, in bytes.
        to_bytes: u64,
        /// Length of the source, in bytes.
        from_bytes: u64,
    },
}

/// Why there is no region. Nothing stays mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegionError {
    /// The length or the address is not usable.
    #[error(transparent)]
    Span(#[from] SpanError),
    /// The kernel has pages of another size.
    #[error(transparent)]
    Pages(#[from] UnsuitablePages),
    /// No addresses or no memory for it.
    #[error(
        "cannot reserve {bytes} bytes of addresses (the pool needs twice as many as the guest has): \
         look at `ulimit -v` (RLIMIT_AS), at /proc/sys/vm/max_map_count, and whether \
         /proc/sys/vm/overcommit_memory is 2"
    )]
    OutOfMemory {
        /// What was asked for, in bytes.
        bytes: u64,
    },
    /// The kernel has no transparent huge pages.
    #[error(
        "this kernel has no transparent huge pages (CONFIG_TRANSPARENT_HUGEPAGE): zerosweep keeps \
         superpages whole and needs them; boot a kernel that has them, then \
         `echo madvise > /sys/kernel/mm/transparent_hugepage/enabled`"
    )]
    NoHugePages,
    /// Something else.
    #[error(transparent)]
    Sys(#[from] SysError),
}

/// Why userfaultfd cannot be used here. Nothing stays open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The kernel cannot move pages.
    #[error(
        "Linux {found} cannot move pages between mappings (UFFDIO_MOVE): zerosweep needs Linux 6.8 \
         or newer"
    )]
    KernelTooOld {
        /// The kernel that runs.
        found: KernelVersion,
    },
    /// The kernel was built without userfaultfd.
    #[error("this kernel was built without userfaultfd: boot one with CONFIG_USERFAULTFD=y")]
    NotBuilt,
    /// The kernel is new enough, but lacks something.
    #[error("this kernel's userfaultfd lacks {missing}, on this architecture or in this build")]
    MissingFeature {
        /// Names of the missing features, as in `linux/userfaultfd.h`.
        missing: &'static str,
    },
    /// No right to handle faults that the kernel itself takes (KVM, device I/O).
    #[error(
        "no right to handle page faults of the kernel itself (KVM and device I/O take them): run \
         as root, or start the program with CAP_SYS_PTRACE as an ambient capability (systemd: \
         AmbientCapabilities=CAP_SYS_PTRACE; a file capability would not do: it switches LD_PRELOAD \
         off), or open the device to its user (`setfacl -m u:USER:rw /dev/userfaultfd`; libvirt: add \
         \"/dev/userfaultfd\" to cgroup_device_acl in /etc/libvirt/qemu.conf), or allow everyone \
         (`sysctl -w vm.unprivileged_userfaultfd=1`)"
    )]
    Privilege,
    /// Something else.
    #[error(transparent)]
    Sys(#[from] SysError),
}

/// Why memory that someone else mapped cannot be managed. The texts speak to users of QEMU.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unsuitable {
    /// Part of the range is not mapped.
    #[error("guest RAM at {at} is not mapped: the range given is wrong, or was unmapped since")]
    NotMapped {
        /// The first address without a mapping.
        at: HostAddr,
    },
    /// Pages of hugetlbfs.
    #[error(
        "guest RAM at {at} is hugetlbfs memory{path}: the kernel cannot move its pages, and it \
         cannot be populated on demand; leave out -mem-path, hugetlb=on and hugepages, transparent \
         huge pages are used by themselves"
    )]
    Hugetlb {
        /// Where the mapping starts.
        at: HostAddr,
        /// Its file in parentheses, with a space before, or nothing.
        path: Parenthesised,
    },
    /// A file or memfd.
    #[error(
        "guest RAM at {at} is backed by a file or memfd{path}: zerosweep manages private anonymous \
         memory only; leave out -mem-path, memory-backend-file, memory-backend-memfd and share=on \
         (libvirt: leave <memoryBacking> without <source> and <access mode='shared'/>)"
    )]
    FileBacked {
        /// Where the mapping starts.
        at: HostAddr,
        /// Its file in parentheses, with a space before, or nothing.
        path: Parenthesised,
    },
    /// Shared memory.
    #[error(
        "guest RAM at {at} is shared with other processes{path}: zerosweep manages private \
         anonymous memory only; leave out share=on (vhost-user devices need it and cannot be used)"
    )]
    Shared {
        /// Where the mapping starts.
        at: HostAddr,
        /// Its file in parentheses, with a space before, or nothing.
        path: Parenthesised,
    },
    /// Not both readable and writable.
    #[error(
        "guest RAM at {at} is not both readable and writable (it is {permissions}): read-only \
         memory (readonly=on, rom=on) is never given back, leave it to the VMM"
    )]
    NotWritable {
        /// Where the mapping starts.
        at: HostAddr,
        /// The permissions as in /proc/self/maps, e.g. `r--p`.
        permissions: String,
    },
    /// Locked in memory.
    #[error(
        "guest RAM at {at} is locked in memory: locked memory is populated at once and cannot be \
         moved; leave out -overcommit mem-lock=on (libvirt: <locked/>)"
    )]
    Locked {
        /// Where the mapping starts.
        at: HostAddr,
    },
    /// Offered to kernel samepage merging.
    #[error(
        "guest RAM at {at} is offered to kernel samepage merging, whose pages cannot be moved: add \
         mem-merge=off to -machine, or set `systemctl disable --now ksmtuned` and \
         `echo 2 > /sys/kernel/mm/ksm/run`"
    )]
    Mergeable {
        /// Where the mapping starts.
        at: HostAddr,
    },
    /// Someone else's userfaultfd.
    #[error(
        "guest RAM at {at} is already watched by another userfaultfd: zerosweep cannot be combined \
         with a postcopy migration's destination or with background-snapshot"
    )]
    Watched {
        /// Where the mapping starts.
        at: HostAddr,
    },
    /// What the kernel says about the mappings cannot be read or understood.
    #[error("cannot learn about guest RAM from /proc/self/smaps: {why}")]
    Unreadable {
        /// What went wrong.
        why: String,
    },
}

/// A path that prints as ` (path)`, or as nothing when there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parenthesised(Option<String>);

impl Parenthesised {
    /// The path `path`; an empty one prints as nothing.
    #[must_use]
    pub fn new(path: &str) -> Self {
        Self((!path.is_empty()).then(|| path.to_owned()))
    }
}

impl fmt::Display for Parenthesised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(path) => write!(f, " ({path})"),
            None => Ok(()),
        }
    }
}
