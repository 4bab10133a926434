//! Why a command line cannot be managed.

use std::fmt;

use zerosweep_linux::KernelVersion;

use zerosweep_linux::references::FileSystem;

/// Why guest memory cannot be managed with this command line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// RAM backed by a file, a memfd or shared with another process.
    #[error(
        "{0}: guest RAM must be private anonymous memory; pages of files, memfds, huge page \
             files and shared memory cannot be moved. Leave the option out"
    )]
    NotAnonymous(String),
    /// RAM filled before the guest starts.
    #[error(
        "{0} fills guest RAM before the guest runs, and populate on demand must avoid that. Leave \
             the option out"
    )]
    Preallocated(String),
    /// RAM locked in memory.
    #[error("{0} locks guest RAM; locked pages cannot be moved. Leave the option out")]
    Locked(String),
    /// A migration's source that sends guest RAM without copying it.
    #[error(
        "{0}: a migration with zero-copy-send sends guest pages by reference, which a move of the \
             page does not see; the destination would get damaged pages. Leave the option out"
    )]
    ZeroCopy(String),
    /// DMA from a device that pins all of guest RAM.
    #[error(
        "{0} pins all of guest RAM; pinned pages cannot be moved. Use an emulated or virtio \
             device"
    )]
    Pins(String),
    /// A device in the kernel that keeps references to guest pages.
    #[error(
        "{0}: the kernel keeps references to guest pages for the length of an I/O, which a move \
             of the page does not see; the guest's data would be damaged. Use virtio-scsi-pci with \
             the disk (-device scsi-hd or scsi-block)"
    )]
    References(String),
    /// A network device whose packets the kernel sends from guest pages.
    #[error(
        "{0}: the module vhost_net is loaded with experimental_zcopytx=1: it sends packets from guest \
             pages by reference, which a move of the page does not see; damaged packets would go out. \
             Load it without (modprobe -r vhost_net; modprobe vhost_net experimental_zcopytx=0), or use \
             vhost=off"
    )]
    Vhost(String),
    /// A disk image with direct I/O on a file system that keeps references.
    #[error(
        "{option}: direct I/O on {file}, which lies on {file_system}: the kernel keeps references to \
             guest pages for the length of an I/O there, which a move of the page does not see; the \
             disk and the guest's data would be damaged. Use cache=writeback (cache.direct=off) and \
             aio=threads or io_uring, or put the file on a local file system"
    )]
    DirectIo {
        /// Where it stands on the command line.
        option: String,
        /// The image or one that it is based on.
        file: String,
        /// Where that lies.
        file_system: FileSystem,
    },
    /// A guest that may run guests of its own, on a kernel that keeps references to its pages.
    #[error(
        "-cpu {cpu} lets the guest run guests of its own ({feature}), and this kernel ({kernel}) keeps \
             references to such a guest's pages that a move of the page does not see (Linux before \
             6.13); the guest's data could be damaged. Take it from the guest: -cpu {cpu},-{feature}; \
             or use Linux 6.13 or newer"
    )]
    Nested {
        /// As on the command line.
        cpu: String,
        /// `vmx` or `svm`.
        feature: &'static str,
        /// This one.
        kernel: KernelVersion,
    },
    /// Another process maps guest RAM.
    #[error(
        "{0} shares guest RAM with another process; pages that two processes map cannot be \
             moved. Use a device of QEMU itself"
    )]
    VhostUser(String),
    /// The host cannot see the guest's pages.
    #[error(
        "{0}: the memory of a confidential guest is encrypted and cannot be checked for \
             zeros or moved"
    )]
    Confidential(String),
    /// Hotplug, NUMA with several backends, DIMMs.
    #[error("{0}: guest RAM must be one block")]
    SeveralBlocks(String),
    /// Another block that could be taken for guest RAM.
    #[error(
        "{0} is as large as the guest's RAM, and guest RAM is found by its size. Give it another \
             size, or the guest"
    )]
    SameSize(String),
    /// The VMM leaves the terminal and its parent.
    #[error(
        "-daemonize: zerosweep waits for the VMM and passes its exit status on; use a service \
             manager, or `zerosweep run … &`"
    )]
    Daemonize,
    /// Options in a file that cannot be told.
    #[error(
        "{origin}: the file {why}. Its options may be a reason against the guest; write them on the \
             command line"
    )]
    Unread {
        /// The option that names the file, or the file.
        origin: String,
        /// What is wrong with it.
        why: String,
    },
    /// Something that QEMU would not understand either.
    #[error("{option} {value:?}: not a memory size")]
    BadSize {
        /// `-m` or the object.
        option: &'static str,
        /// What stands there.
        value: String,
    },
    /// `-machine memory-backend=` names nothing.
    #[error("-machine memory-backend={0}: no -object memory-backend-ram with that id")]
    NoBackend(String),
    /// `-m` and the backend differ.
    #[error("-m gives {ram} bytes, and the memory backend {backend}; they must be equal")]
    BackendSize {
        /// Bytes, by `-m`.
        ram: u64,
        /// Bytes, by the object.
        backend: u64,
    },
}

/// Everything that is in the way; at least one reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusals(pub(in crate::vmm) Vec<Refusal>);

impl fmt::Display for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [only] => write!(f, "{only}"),
            several => {
                write!(f, "{} reasons", several.len())?;
                several.iter().try_for_each(|refusal| write!(f, "\n  - {refusal}"))
            }
        }
    }
}

impl std::error::Error for Refusals {}
