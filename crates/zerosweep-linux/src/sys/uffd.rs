//! userfaultfd: page faults come in as messages; pages move in and out.
//!
//! ```text
//!   guest thread touches a hole or a protected page ──► Fault ──► fault thread
//!   fault thread: UFFDIO_MOVE slot → guest range     ──► guest thread goes on
//! ```
//!
//! A [`Uffd`] belongs to the address space that opened it: open it after `fork`, in the VMM's own
//! process. Operations are safe because spans lie in regions, into which no reference points.
//!
//! Both ends of a move are private anonymous memory of one protection, each within one mapping; the
//! destination is registered with this userfaultfd. Nothing here allocates, but for [`Uffd::open`].
#![expect(unsafe_code, reason = "userfaultfd is a set of requests on raw structures")]

use core::mem::size_of;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::raw::{self, SysResult};
use super::region::Span;
use super::uffd_abi as abi;
use crate::addr::HostAddr;
use crate::error::{Errno, OpenError, SysError};
use crate::kernel_version::KernelVersion;

/// What a fault was about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// There is no page.
    Missing,
    /// A write to a write-protected page; the huge zero page counts.
    WriteProtect,
    /// Never asked for here; a page of shared memory without a mapping.
    Minor,
}

/// An access that a thread waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The address of the access, to the byte (`UFFD_FEATURE_EXACT_ADDRESS`).
    pub address: HostAddr,
    /// What is in the way.
    pub kind: FaultKind,
    /// Whether the access is a write.
    pub write: bool,
    /// The thread that waits (its number as from `gettid`).
    pub thread_id: u32,
}

impl Fault {
    /// Decodes a message; `None` for other events, which are never asked for.
    fn decode(message: &abi::UffdMsg) -> Option<Self> {
        if message.event != abi::EVENT_PAGEFAULT {
            return None;
        }
        let kind = if message.flags & abi::PAGEFAULT_FLAG_WP != 0 {
            FaultKind::WriteProtect
        } else if message.flags & abi::PAGEFAULT_FLAG_MINOR != 0 {
            FaultKind::Minor
        } else {
            FaultKind::Missing
        };
        Some(Self {
            address: HostAddr::new(message.address as usize),
            kind,
            write: message.flags & (abi::PAGEFAULT_FLAG_WRITE | abi::PAGEFAULT_FLAG_WP) != 0,
            thread_id: message.thread_id,
        })
    }
}

/// Room for the faults of one read. Make it before the fault thread starts.
#[derive(Clone)]
pub struct FaultBuffer {
    messages: [abi::UffdMsg; Self::CAPACITY],
    filled: usize,
}

impl FaultBuffer {
    /// Most faults that one read brings.
    pub const CAPACITY: usize = 64;

    /// An empty one (2 KiB, in place).
    #[must_use]
    pub const fn new() -> Self {
        let empty = abi::UffdMsg {
            event: 0,
            reserved: [0; 7],
            flags: 0,
            address: 0,
            thread_id: 0,
            padding: 0,
        };
        Self { messages: [empty; Self::CAPACITY], filled: 0 }
    }

    /// The faults of the last read, oldest first.
    pub fn faults(&self) -> impl Iterator<Item = Fault> + '_ {
        self.messages[..self.filled].iter().filter_map(Fault::decode)
    }
}

impl Default for FaultBuffer {
    fn default() -> Self {
        Self::new()
    }
}

impl core::fmt::Debug for FaultBuffer {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_list().entries(self.faults()).finish()
    }
}

/// Which accesses to registered memory become faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// Those to holes.
    Missing,
    /// Those to holes, and writes to write-protected pages.
    MissingAndProtected,
    /// Writes to write-protected pages only: holes are filled by the kernel as ever. Enough for
    /// pages to be moved in.
    Protected,
}

/// Whether threads that wait on the range are woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// They go on and try again.
    Yes,
    /// They wait until [`Uffd::wake`].
    No,
}

/// What a move does about holes in its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holes {
    /// It stops there: [`MoveOutcome::Hole`].
    Stop,
    /// It leaves a hole in the destination too.
    Skip,
}

/// The outcome of a move of pages.
///
/// If it is not [`Self::Done`], only [`super::pagemap::Pagemap`] tells what is mapped where.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoveOutcome {
    /// All of it moved.
    Done,
    /// The first `bytes` bytes moved (0 is possible); the kernel wants to be asked again for the
    /// rest. A pinned page in a range of small ones shows up like this, so bound the repeats.
    Partial {
        /// How much moved, in bytes from the start.
        bytes: u64,
    },
    /// A page is pinned or shared; nothing moved. A huge page may have been split.
    Busy,
    /// The destination has a page already; nothing moved. Linux 6.18 also reports this for pages
    /// that it has just moved there itself, while another thread was splitting their huge page.
    AlreadyThere,
    /// The source has a hole, or no mapping; nothing moved.
    Hole,
    /// No memory for page tables; nothing moved.
    NoMemory,
    /// Source and destination differ in length; nothing was asked.
    Unequal,
    /// Anything else, `EINVAL` above all: the destination is not registered here, or the two
    /// mappings do not fit each other (protection, lock, kind of memory, more than one mapping).
    Failed(Errno),
}

impl MoveOutcome {
    /// Reads the kernel's answer: error number, and the `move` field.
    fn decode(errno: Errno, moved: i64) -> Self {
        match errno.get() {
            libc::EAGAIN => Self::Partial { bytes: u64::try_from(moved).unwrap_or(0) },
            libc::EBUSY => Self::Busy,
            libc::EEXIST => Self::AlreadyThere,
            libc::ENOENT => Self::Hole,
            libc::ENOMEM => Self::NoMemory,
            _ => Self::Failed(errno),
        }
    }
}

/// A userfaultfd that handles the kernel's own faults too, and moves pages.
///
/// ```no_run
/// use zerosweep_linux::sys::uffd::{Holes, Wake, Watch};
/// use zerosweep_linux::{MoveOutcome, Region, Uffd};
///
/// let uffd = Uffd::open()?;
/// let (slot, range) = (Region::new(2 << 20)?, Region::new(2 << 20)?);
/// slot.all().populate()?;
/// uffd.register(range.all(), Watch::MissingAndProtected)?;
/// let outcome = uffd.move_pages(range.all(), slot.all(), Holes::Stop, Wake::Yes);
/// assert_eq!(outcome, MoveOutcome::Done);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Uffd {
    fd: OwnedFd,
}

/// The features that are required, with their names.
const REQUIRED: [(u64, &str); 3] = [
    (abi::FEATURE_MOVE, "UFFD_FEATURE_MOVE"),
    (abi::FEATURE_PAGEFAULT_FLAG_WP, "UFFD_FEATURE_PAGEFAULT_FLAG_WP"),
    (abi::FEATURE_THREAD_ID, "UFFD_FEATURE_THREAD_ID"),
];

impl Uffd {
    /// Opens one: through /dev/userfaultfd, else by the system call. It does not block and is not
    /// inherited by programs that are started.
    ///
    /// # Errors
    /// [`OpenError`], with what to do.
    pub fn open() -> Result<Self, OpenError> {
        let query = open_any()?;
        let offered = handshake(&query, 0)?;
        drop(query);
        for (feature, name) in REQUIRED {
            if offered & feature == 0 {
                return Err(lacking(name));
            }
        }
        let fd = open_any()?;
        let wanted = REQUIRED.iter().fold(abi::FEATURE_EXACT_ADDRESS, |all, (bit, _)| all | bit);
        handshake(&fd, wanted & offered)?;
        Ok(Self { fd: out_of_the_way(fd) })
    }

    /// One that also says when its memory is dropped (`UFFD_FEATURE_EVENT_REMOVE`): until such an
    /// event is read, the kernel puts moves off.
    #[cfg(test)]
    pub(crate) fn open_with_remove_events() -> Self {
        let fd = open_any().unwrap();
        let remove_events = 1 << 3;
        let features = REQUIRED.iter().fold(remove_events, |all, (bit, _)| all | bit);
        handshake(&fd, features).unwrap();
        Self { fd }
    }

    /// Watches `span`. Accesses by any thread, also from KVM and device I/O, become faults.
    ///
    /// # Errors
    /// `EBUSY` when another userfaultfd watches it, `EINVAL` for memory of another kind,
    /// `EOPNOTSUPP` when pages cannot be moved into it.
    pub fn register(&self, span: Span<'_>, watch: Watch) -> SysResult<()> {
        let mode = match watch {
            Watch::Missing => abi::REGISTER_MODE_MISSING,
            Watch::MissingAndProtected => abi::REGISTER_MODE_MISSING | abi::REGISTER_MODE_WP,
            Watch::Protected => abi::REGISTER_MODE_WP,
        };
        let mut argument = abi::UffdioRegister { range: range(span), mode, ioctls: 0 };
        self.request("ioctl(UFFDIO_REGISTER)", abi::UFFDIO_REGISTER, &mut argument)?;
        if argument.ioctls & abi::IOCTL_BIT_MOVE == 0 {
            self.unregister(span)?;
            let errno = Errno::new(libc::EOPNOTSUPP);
            return Err(SysError { call: "ioctl(UFFDIO_REGISTER)", errno });
        }
        Ok(())
    }

    /// Stops watching `span`, takes write-protection off, and wakes the threads that wait there.
    ///
    /// # Errors
    /// `EINVAL` when memory of another kind is in it.
    pub fn unregister(&self, span: Span<'_>) -> SysResult<()> {
        self.request("ioctl(UFFDIO_UNREGISTER)", abi::UFFDIO_UNREGISTER, &mut range(span))?;
        // Linux 6.18 wakes first and stops the watch then: a thread that faults in between, under
        // the lock of its mapping alone, would wait for ever.
        self.wake(span)
    }

    /// Makes the next write to each page of `span` that is there now a fault. Holes stay holes.
    ///
    /// # Errors
    /// `ENOENT` when it is not registered for it, `EAGAIN` while mappings change: ask again.
    pub fn protect(&self, span: Span<'_>) -> SysResult<()> {
        self.set_protection(span, abi::WRITEPROTECT_MODE_WP)
    }

    /// Allows writes to `span` again, and wakes threads that wait for it.
    ///
    /// # Errors
    /// As [`Self::protect`].
    pub fn unprotect(&self, span: Span<'_>) -> SysResult<()> {
        self.set_protection(span, 0)
    }

    fn set_protection(&self, span: Span<'_>, mode: u64) -> SysResult<()> {
        let mut argument = abi::UffdioWriteprotect { range: range(span), mode };
        self.request("ioctl(UFFDIO_WRITEPROTECT)", abi::UFFDIO_WRITEPROTECT, &mut argument)
    }

    /// Lets threads that wait on `span` try again. Idempotent; `span` need not be registered.
    ///
    /// # Errors
    /// None.
    pub fn wake(&self, span: Span<'_>) -> SysResult<()> {
        self.request("ioctl(UFFDIO_WAKE)", abi::UFFDIO_WAKE, &mut range(span))
    }

    /// Maps the small zero page at every hole of `span`: reads go on, and writes then take frames
    /// from the host without a fault. Returns what a move returns.
    pub fn map_zero_pages(&self, span: Span<'_>, wake: Wake) -> MoveOutcome {
        let mode = match wake {
            Wake::Yes => 0,
            Wake::No => abi::ZEROPAGE_MODE_DONTWAKE,
        };
        let mut argument = abi::UffdioZeropage { range: range(span), mode, zeropage: 0 };
        match self.request("ioctl(UFFDIO_ZEROPAGE)", abi::UFFDIO_ZEROPAGE, &mut argument) {
            Ok(()) => MoveOutcome::Done,
            Err(error) => MoveOutcome::decode(error.errno, argument.zeropage),
        }
    }

    /// Moves the pages of `from`, contents and frames, to `to`, a registered span of equal length
    /// with holes everywhere. A huge page moves whole when both are superpages and `to` has no page
    /// table, not even an empty one: [`Span::discard`] it before.
    ///
    /// Pages arrive without write-protection.
    pub fn move_pages(
        &self,
        to: Span<'_>,
        from: Span<'_>,
        holes: Holes,
        wake: Wake,
    ) -> MoveOutcome {
        if to.bytes() != from.bytes() {
            return MoveOutcome::Unequal;
        }
        let skip = match holes {
            Holes::Stop => 0,
            Holes::Skip => abi::MOVE_MODE_ALLOW_SRC_HOLES,
        };
        let quiet = match wake {
            Wake::Yes => 0,
            Wake::No => abi::MOVE_MODE_DONTWAKE,
        };
        let mut argument = abi::UffdioMove {
            dst: to.start().as_u64(),
            src: from.start().as_u64(),
            len: to.bytes(),
            mode: skip | quiet,
            moved: 0,
        };
        match self.request("ioctl(UFFDIO_MOVE)", abi::UFFDIO_MOVE, &mut argument) {
            Ok(()) => MoveOutcome::Done,
            Err(error) => MoveOutcome::decode(error.errno, argument.moved),
        }
    }

    /// Takes the faults that wait, at most [`FaultBuffer::CAPACITY`], without blocking. Returns how
    /// many. [`super::poll`] waits for some.
    ///
    /// # Errors
    /// `EINVAL` never, `ENOMEM` rarely: ask again.
    pub fn read_faults(&self, buffer: &mut FaultBuffer) -> SysResult<usize> {
        self.read_some_faults(buffer, FaultBuffer::CAPACITY)
    }

    /// Takes faults as [`Self::read_faults`] does, at most `most` of them: other threads get the
    /// rest.
    ///
    /// # Errors
    /// `EINVAL` never, `ENOMEM` rarely: ask again.
    pub fn read_some_faults(&self, buffer: &mut FaultBuffer, most: usize) -> SysResult<usize> {
        buffer.filled = 0;
        let room = size_of::<abi::UffdMsg>() * most.clamp(1, FaultBuffer::CAPACITY);
        let first = buffer.messages.as_mut_ptr().cast::<u8>();
        // SAFETY: the array is ours, this long, and any bytes are valid messages.
        let bytes = unsafe { core::slice::from_raw_parts_mut(first, room) };
        match raw::read(self.fd.as_fd(), bytes) {
            Ok(read) => buffer.filled = read / size_of::<abi::UffdMsg>(),
            Err(error) if error.is(libc::EAGAIN) || error.is(libc::EINTR) => {}
            Err(error) => return Err(error),
        }
        Ok(buffer.filled)
    }

    fn request<T>(&self, call: &'static str, request: u32, argument: &mut T) -> SysResult<()> {
        let argument = core::ptr::from_mut(argument).cast();
        // SAFETY: private to this module, always called with the structure of its request; what it
        // does to memory stays within spans, which lie in regions, without references into them.
        unsafe { raw::ioctl(call, self.fd.as_fd(), request, argument) }.map(|_| ())
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn range(span: Span<'_>) -> abi::UffdioRange {
    abi::UffdioRange { start: span.start().as_u64(), len: span.bytes() }
}

/// Moves the descriptor to a number above those that a VMM opens. A process that is killed releases
/// its files from the highest number down. KVM's release waits for KVM's workers, and these may
/// wait for a page. The release of the userfaultfd ends every wait: it has to come first, whichever
/// was opened first.
fn out_of_the_way(fd: OwnedFd) -> OwnedFd {
    /// Higher ones would only cost the kernel memory for its table.
    const HIGHEST: u64 = 16 << 10;
    /// For other files that want a high number.
    const ROOM: u64 = 32;
    let limit = raw::soft_limit(i64::from(libc::RLIMIT_NOFILE)).ok().flatten().unwrap_or(HIGHEST);
    let lowest = limit.min(HIGHEST).saturating_sub(ROOM);
    raw::duplicate_from(fd.as_fd(), lowest as i32).unwrap_or(fd)
}

/// Opens a userfaultfd by the device. Fails with the error of opening it, or of the request on it.
pub(crate) fn open_by_device() -> SysResult<OwnedFd> {
    use std::os::fd::FromRawFd;
    let device = raw::open(c"/dev/userfaultfd", libc::O_RDWR)?;
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    let argument = core::ptr::without_provenance_mut(flags as usize);
    let call = "ioctl(USERFAULTFD_IOC_NEW)";
    // SAFETY: this request takes flags in place of a pointer, and only makes a descriptor.
    let fd = unsafe { raw::ioctl(call, device.as_fd(), abi::IOC_NEW, argument) }?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Opens a userfaultfd by the system call, without `UFFD_USER_MODE_ONLY`.
pub(crate) fn open_by_system_call() -> SysResult<OwnedFd> {
    raw::userfaultfd(libc::O_CLOEXEC | libc::O_NONBLOCK)
}

/// Opens a userfaultfd with the right to handle the kernel's own faults: by the device, whose file
/// permissions decide, or by the system call, which takes root, `CAP_SYS_PTRACE` or
/// `vm.unprivileged_userfaultfd`.
fn open_any() -> Result<OwnedFd, OpenError> {
    if let Ok(fd) = open_by_device() {
        return Ok(fd);
    }
    match open_by_system_call() {
        Ok(fd) => Ok(fd),
        Err(error) if error.is(libc::ENOSYS) => Err(OpenError::NotBuilt),
        Err(error) if error.is(libc::EPERM) || error.is(libc::EACCES) => {
            Err(match KernelVersion::running() {
                Some(found) if found < KernelVersion::OLDEST => OpenError::KernelTooOld { found },
                _ => OpenError::Privilege,
            })
        }
        Err(error) => Err(error.into()),
    }
}

/// Agrees on `features`, once per descriptor. Returns what the kernel offers.
pub(crate) fn handshake(fd: &OwnedFd, features: u64) -> SysResult<u64> {
    let mut argument = abi::UffdioApi { api: abi::API, features, ioctls: 0 };
    let pointer = core::ptr::from_mut(&mut argument).cast();
    // SAFETY: the structure of this request, which touches no other memory.
    unsafe { raw::ioctl("ioctl(UFFDIO_API)", fd.as_fd(), abi::UFFDIO_API, pointer) }?;
    Ok(argument.features)
}

/// Returns the names of the features in [`REQUIRED`] that `offered` lacks.
pub(crate) fn missing_features(offered: u64) -> impl Iterator<Item = &'static str> {
    REQUIRED.iter().filter(move |(bit, _)| offered & bit == 0).map(|(_, name)| *name)
}

fn lacking(missing: &'static str) -> OpenError {
    match KernelVersion::running() {
        Some(found) if found < KernelVersion::OLDEST => OpenError::KernelTooOld { found },
        _ => OpenError::MissingFeature { missing },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(flags: u64) -> abi::UffdMsg {
        abi::UffdMsg {
            event: abi::EVENT_PAGEFAULT,
            reserved: [0; 7],
            flags,
            address: 0x7000_1234,
            thread_id: 42,
            padding: 0,
        }
    }

    #[test]
    fn decodes_faults() {
        let missing = Fault::decode(&message(0)).unwrap();
        assert_eq!((missing.kind, missing.write), (FaultKind::Missing, false));
        assert_eq!((missing.address, missing.thread_id), (HostAddr::new(0x7000_1234), 42));
        let written = Fault::decode(&message(abi::PAGEFAULT_FLAG_WRITE)).unwrap();
        assert_eq!((written.kind, written.write), (FaultKind::Missing, true));
        let protected = abi::PAGEFAULT_FLAG_WP | abi::PAGEFAULT_FLAG_WRITE;
        assert_eq!(Fault::decode(&message(protected)).unwrap().kind, FaultKind::WriteProtect);
        assert_eq!(Fault::decode(&abi::UffdMsg { event: 0x15, ..message(0) }), None);
        assert_eq!(FaultBuffer::new().faults().count(), 0);
    }

    #[test]
    fn decodes_moves() {
        let decode = |number, moved| MoveOutcome::decode(Errno::new(number), moved);
        assert_eq!(decode(libc::EAGAIN, 8192), MoveOutcome::Partial { bytes: 8192 });
        assert_eq!(decode(libc::EAGAIN, -11), MoveOutcome::Partial { bytes: 0 });
        assert_eq!(decode(libc::EBUSY, -16), MoveOutcome::Busy);
        assert_eq!(decode(libc::EEXIST, -17), MoveOutcome::AlreadyThere);
        assert_eq!(decode(libc::EINVAL, -22), MoveOutcome::Failed(Errno::new(libc::EINVAL)));
    }
}
