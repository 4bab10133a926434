//! System calls by number.
//!
//! This code runs inside a preloaded library that itself stands in for `mmap`, `munmap`, `madvise`
//! and friends, and on a fault thread that must not allocate. So nothing here calls a function of
//! the C library but `syscall` and `getauxval`, which do neither. `rustix` has the same calls, but a
//! feature that any crate of the program may switch on (`use-libc`) makes them go through the C
//! library.
#![expect(unsafe_code, reason = "system calls take raw addresses")]

use core::ffi::{CStr, c_int, c_long, c_void};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::error::{Errno, SysError};

/// The result of a bare system call.
pub type SysResult<T> = Result<T, SysError>;

/// Splits the C library's return value into value and error number.
fn check(call: &'static str, answer: c_long) -> SysResult<usize> {
    if answer != -1 {
        return Ok(answer as usize);
    }
    // SAFETY: the C library's errno location is valid in every thread.
    let number = unsafe { *libc::__errno_location() };
    Err(SysError { call, errno: Errno::new(number) })
}

/// Calls `mmap(2)`. `length` and `offset` are in bytes. Returns the address.
///
/// # Errors
/// Those of the manual page.
///
/// # Safety
/// With `MAP_FIXED` the caller must own what is mapped there.
pub unsafe fn mmap(
    address: usize,
    length: usize,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: i64,
) -> SysResult<usize> {
    // SAFETY: the caller owns what a fixed mapping replaces; other mappings are new addresses.
    let answer = unsafe {
        libc::syscall(libc::SYS_mmap, address, length, protection, flags, c_long::from(fd), offset)
    };
    check("mmap", answer)
}

/// Maps `length` bytes of private anonymous memory, readable and writable, without reserved swap.
///
/// # Errors
/// `ENOMEM` when addresses, mappings or `RLIMIT_AS` run out.
pub fn map_anonymous(length: usize) -> SysResult<usize> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: not a fixed mapping, so it replaces nothing.
    unsafe { mmap(0, length, protection, flags, -1, 0) }
}

/// Calls `munmap(2)`. `length` is in bytes.
///
/// # Errors
/// `EINVAL` for a misaligned range, `ENOMEM` when splitting a mapping exceeds the limit.
///
/// # Safety
/// The caller owns the range and nothing refers to it any more.
pub unsafe fn munmap(address: usize, length: usize) -> SysResult<()> {
    // SAFETY: the caller owns the range.
    let answer = unsafe { libc::syscall(libc::SYS_munmap, address, length) };
    check("munmap", answer).map(|_| ())
}

/// Calls `madvise(2)`. `length` is in bytes; `call` names the advice in the error text.
///
/// # Errors
/// Those of the manual page for this advice.
///
/// # Safety
/// The caller owns the range; advice that drops contents (`MADV_DONTNEED`, `MADV_FREE`) must not
/// reach memory that Rust references point to.
pub unsafe fn madvise(
    call: &'static str,
    address: usize,
    length: usize,
    advice: c_int,
) -> SysResult<()> {
    // SAFETY: the caller owns the range and accepts what the advice does to it.
    let answer = unsafe { libc::syscall(libc::SYS_madvise, address, length, advice) };
    check(call, answer).map(|_| ())
}

/// Words of a set of NUMA nodes: 1024 nodes, as many as a kernel can have.
pub const NODE_WORDS: usize = 16;
const NODE_BITS: usize = NODE_WORDS * 64;

/// Calls `mbind(2)` without flags: existing pages stay where they are. `length` is in bytes.
///
/// # Errors
/// `ENOSYS` on a kernel without NUMA, `EINVAL` for nodes that are not there.
pub fn mbind(address: usize, length: usize, mode: u32, nodes: &[u64; NODE_WORDS]) -> SysResult<()> {
    // The kernel uses one bit less than the given number, and no set where the mode needs none.
    let (nodes, bits) = match nodes.iter().all(|word| *word == 0) {
        true => (core::ptr::null(), 0),
        false => (nodes.as_ptr(), NODE_BITS + 1),
    };
    // SAFETY: a policy changes no content; the set is readable and this long.
    let answer = unsafe { libc::syscall(libc::SYS_mbind, address, length, mode, nodes, bits, 0) };
    check("mbind", answer).map(|_| ())
}

/// Returns mode and nodes of the policy of the mapping at an address, or of the calling thread.
///
/// # Errors
/// `ENOSYS` on a kernel without NUMA, `EFAULT` where nothing is mapped.
pub fn memory_policy(address: Option<usize>) -> SysResult<(u32, [u64; NODE_WORDS])> {
    /// `MPOL_F_ADDR`.
    const OF_ADDRESS: usize = 2;
    let (mut mode, mut nodes) = (0_u32, [0; NODE_WORDS]);
    let flags = if address.is_some() { OF_ADDRESS } else { 0 };
    let address = address.unwrap_or(0);
    let (mode_at, nodes_at) = (&raw mut mode, nodes.as_mut_ptr());
    // SAFETY: both are ours for writing, the set is this long.
    let answer = unsafe {
        libc::syscall(libc::SYS_get_mempolicy, mode_at, nodes_at, NODE_BITS + 1, address, flags)
    };
    check("get_mempolicy", answer).map(|_| (mode, nodes))
}

/// Calls `ioctl(2)` with a pointer to a structure. Returns the call's non-negative value.
///
/// # Errors
/// Those of the request.
///
/// # Safety
/// `argument` points to the structure that `request` wants, valid for what the kernel writes, and
/// the request's effect on this process' memory is one that the caller may have.
pub unsafe fn ioctl(
    call: &'static str,
    fd: BorrowedFd<'_>,
    request: u32,
    argument: *mut c_void,
) -> SysResult<usize> {
    // SAFETY: the caller vouches for the argument and the effect.
    let answer =
        unsafe { libc::syscall(libc::SYS_ioctl, fd.as_raw_fd(), c_long::from(request), argument) };
    check(call, answer)
}

/// Opens `path` with `flags` (`O_CLOEXEC` is added).
///
/// # Errors
/// Those of `openat(2)`.
pub fn open(path: &CStr, flags: c_int) -> SysResult<OwnedFd> {
    // SAFETY: the path is a C string; the answer is a new descriptor.
    let answer = unsafe {
        libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags | libc::O_CLOEXEC, 0)
    };
    let fd = check("openat", answer)?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as c_int) })
}

/// Opens a `userfaultfd(2)` with `flags`.
///
/// # Errors
/// `EPERM` without the right, `ENOSYS` when the kernel lacks it.
pub fn userfaultfd(flags: c_int) -> SysResult<OwnedFd> {
    // SAFETY: takes no pointers; the answer is a new descriptor.
    let answer = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    let fd = check("userfaultfd", answer)?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as c_int) })
}

/// Makes an `eventfd(2)` with value 0 that does not block.
///
/// # Errors
/// `EMFILE`, `ENFILE`, `ENOMEM`.
pub fn eventfd() -> SysResult<OwnedFd> {
    let flags = libc::EFD_CLOEXEC | libc::EFD_NONBLOCK;
    // SAFETY: takes no pointers; the answer is a new descriptor.
    let answer = unsafe { libc::syscall(libc::SYS_eventfd2, 0, flags) };
    let fd = check("eventfd2", answer)?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as c_int) })
}

/// Duplicates a descriptor to the lowest free number from `lowest` on, closed at `exec`.
///
/// # Errors
/// `EMFILE` and `EINVAL` when no number up to the limit is free.
pub fn duplicate_from(fd: BorrowedFd<'_>, lowest: c_int) -> SysResult<OwnedFd> {
    // SAFETY: takes no pointers; the answer is a new descriptor.
    let answer =
        unsafe { libc::syscall(libc::SYS_fcntl, fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, lowest) };
    let fd = check("fcntl(F_DUPFD_CLOEXEC)", answer)?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as c_int) })
}

/// Returns the flags that a descriptor's file is open with (`O_…`).
///
/// # Errors
/// `EBADF`.
pub fn file_flags(fd: c_int) -> SysResult<c_int> {
    // SAFETY: takes no pointers; a descriptor that is not open is an error.
    let answer = unsafe { libc::syscall(libc::SYS_fcntl, fd, libc::F_GETFL) };
    check("fcntl(F_GETFL)", answer).map(|flags| flags as c_int)
}

/// Returns the number of the file system of a descriptor's file (`linux/magic.h`).
///
/// # Errors
/// `EBADF`, `EIO`.
pub fn file_system(fd: c_int) -> SysResult<u64> {
    // SAFETY: all zeros is a valid value of this structure of numbers.
    let mut what: libc::statfs64 = unsafe { core::mem::zeroed() };
    // SAFETY: the structure is ours for writing; a descriptor that is not open is an error.
    let answer = unsafe { libc::syscall(libc::SYS_fstatfs, fd, &raw mut what) };
    check("fstatfs", answer).map(|_| what.f_type as u64)
}

/// Reads at most `buffer.len()` bytes. Returns how many.
///
/// # Errors
/// `EAGAIN` when there is nothing and the descriptor does not block; those of `read(2)`.
pub fn read(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> SysResult<usize> {
    // SAFETY: the buffer is ours for writing, and this long.
    let answer =
        unsafe { libc::syscall(libc::SYS_read, fd.as_raw_fd(), buffer.as_mut_ptr(), buffer.len()) };
    check("read", answer)
}

/// Reads at most `buffer.len()` bytes from the beginning of a file, without regard to its position.
/// Returns how many.
///
/// # Errors
/// Those of `pread(2)`.
pub fn read_at_start(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> SysResult<usize> {
    let (pointer, length) = (buffer.as_mut_ptr(), buffer.len());
    // SAFETY: the buffer is ours for writing, and this long.
    let answer = unsafe { libc::syscall(libc::SYS_pread64, fd.as_raw_fd(), pointer, length, 0) };
    check("pread64", answer)
}

/// Writes `buffer`. Returns how many bytes were taken.
///
/// # Errors
/// Those of `write(2)`.
pub fn write(fd: BorrowedFd<'_>, buffer: &[u8]) -> SysResult<usize> {
    // SAFETY: the buffer is readable and this long.
    let answer =
        unsafe { libc::syscall(libc::SYS_write, fd.as_raw_fd(), buffer.as_ptr(), buffer.len()) };
    check("write", answer)
}

/// Waits until one of `fds` is ready; at most `timeout_ms` milliseconds, or for ever with `None`.
/// Returns how many are ready; 0 after the time. A signal counts as 0 too.
///
/// # Errors
/// `ENOMEM`, `EINVAL`.
pub fn poll(fds: &mut [libc::pollfd], timeout_ms: Option<u32>) -> SysResult<usize> {
    let limit = timeout_ms.map(|milliseconds| libc::timespec {
        tv_sec: i64::from(milliseconds / 1000),
        tv_nsec: i64::from(milliseconds % 1000) * 1_000_000,
    });
    let limit = limit.as_ref().map_or(core::ptr::null(), core::ptr::from_ref);
    // SAFETY: the array is ours for writing and this long; the time is valid or null; no signal
    // mask is given.
    let answer = unsafe {
        let mask: *const c_void = core::ptr::null();
        libc::syscall(libc::SYS_ppoll, fds.as_mut_ptr(), fds.len(), limit, mask, 0)
    };
    match check("ppoll", answer) {
        Err(error) if error.is(libc::EINTR) => Ok(0),
        other => other,
    }
}

/// Makes an `epoll(7)` instance.
///
/// # Errors
/// `EMFILE`, `ENFILE`, `ENOMEM`.
pub fn epoll() -> SysResult<OwnedFd> {
    // SAFETY: takes no pointers; the answer is a new descriptor.
    let answer = unsafe { libc::syscall(libc::SYS_epoll_create1, libc::EPOLL_CLOEXEC) };
    let fd = check("epoll_create1", answer)?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as c_int) })
}

/// Makes `epoll` watch `fd` for `events`, and report `data` when they come.
///
/// # Errors
/// Those of `epoll_ctl(2)`.
pub fn epoll_add(
    epoll: BorrowedFd<'_>,
    fd: BorrowedFd<'_>,
    events: u32,
    data: u64,
) -> SysResult<()> {
    let event = libc::epoll_event { events, u64: data };
    let event = core::ptr::from_ref(&event);
    let (epoll, fd) = (epoll.as_raw_fd(), fd.as_raw_fd());
    // SAFETY: the event is valid for this call.
    let answer =
        unsafe { libc::syscall(libc::SYS_epoll_ctl, epoll, libc::EPOLL_CTL_ADD, fd, event) };
    check("epoll_ctl", answer).map(|_| ())
}

/// Waits for events; at most `timeout_ms` milliseconds, or for ever with `None`. Returns how many
/// there are; 0 after the time. A signal counts as 0 too.
///
/// # Errors
/// `EINVAL`.
pub fn epoll_wait(
    epoll: BorrowedFd<'_>,
    events: &mut [libc::epoll_event],
    timeout_ms: Option<u32>,
) -> SysResult<usize> {
    let timeout = timeout_ms.map_or(-1, |ms| i32::try_from(ms).unwrap_or(i32::MAX));
    // SAFETY: the array is ours for writing and this long; no signal mask is given.
    let answer = unsafe {
        let (first, count) = (events.as_mut_ptr(), events.len());
        let mask: *const c_void = core::ptr::null();
        libc::syscall(libc::SYS_epoll_pwait, epoll.as_raw_fd(), first, count, timeout, mask, 0)
    };
    match check("epoll_pwait", answer) {
        Err(error) if error.is(libc::EINTR) => Ok(0),
        other => other,
    }
}

/// Returns the number of this thread, as in a fault message.
#[must_use]
pub fn thread_id() -> u32 {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::syscall(libc::SYS_gettid) as u32 }
}

/// Returns whether `thread_id` is a thread of this process, and true if the kernel does not tell.
#[must_use]
pub fn is_thread_of_ours(thread_id: u32) -> bool {
    let process = std::process::id();
    // SAFETY: signal 0 only asks whether the thread is there.
    let answer = unsafe { libc::syscall(libc::SYS_tgkill, process, thread_id, 0) };
    !check("tgkill", answer).is_err_and(|error| error.is(libc::ESRCH))
}

/// Calls a `prctl(2)` that takes no arguments and returns a number (`PR_GET_…`).
///
/// # Errors
/// `EINVAL` when the kernel does not know it.
pub fn prctl_get(option: c_int) -> SysResult<usize> {
    // SAFETY: options of this kind take no pointers.
    let answer = unsafe { libc::syscall(libc::SYS_prctl, option, 0, 0, 0, 0) };
    check("prctl", answer)
}

/// Returns the size of this kernel's pages, in bytes.
#[must_use]
pub fn page_bytes() -> u64 {
    // SAFETY: it reads what the kernel has told the process at its start, and changes nothing.
    unsafe { libc::getauxval(libc::AT_PAGESZ) }
}

/// Returns the soft limit `resource` of this process, in the limit's unit, or `None` without one.
///
/// # Errors
/// `EINVAL` for an unknown resource.
pub fn soft_limit(resource: c_long) -> SysResult<Option<u64>> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: no new limit is given and the old one is written to our structure.
    let answer = unsafe {
        let new: *const c_void = core::ptr::null();
        libc::syscall(libc::SYS_prlimit64, 0, resource, new, &raw mut limit)
    };
    check("prlimit64", answer)?;
    Ok((limit.rlim_cur != u64::MAX).then_some(limit.rlim_cur))
}

/// Returns the kernel's release, e.g. `6.18.44`, as bytes followed by zeros.
///
/// # Errors
/// None that a kernel gives.
pub fn release() -> SysResult<[u8; 65]> {
    // SAFETY: all zeros is a valid value of this structure of byte arrays.
    let mut names: libc::utsname = unsafe { core::mem::zeroed() };
    // SAFETY: the structure is ours for writing.
    let answer = unsafe { libc::syscall(libc::SYS_uname, &raw mut names) };
    check("uname", answer)?;
    Ok(names.release.map(|byte| byte.to_ne_bytes()[0]))
}

/// Ends this process as `kill -9` does: nothing is flushed, no handler runs.
pub fn kill_self() {
    // SAFETY: a system call without memory.
    unsafe {
        let pid = libc::syscall(libc::SYS_getpid);
        libc::syscall(libc::SYS_kill, pid, libc::SIGKILL);
    }
}

/// Closes descriptors from `first` on in each program that this process starts. Nothing is closed
/// here.
///
/// # Errors
/// None that a kernel gives since Linux 5.11.
pub fn close_on_exec_from(first: u32) -> SysResult<()> {
    // SAFETY: takes no pointers; with this flag it changes no open file.
    let answer =
        unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    check("close_range", answer).map(|_| ())
}

/// Signals that our threads do not block. The C library uses 32 to end a thread and 33 to change
/// the user of every thread, and waits until all have answered. The others are raised by a thread's
/// own instruction: blocked, they end the process at once; open, the VMM handles them.
const OPEN_SIGNALS: [c_int; 8] =
    [32, 33, libc::SIGBUS, libc::SIGSEGV, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGSYS];

/// Blocks signals in this thread, so that the VMM's handlers run in its own threads only. Keeps the
/// C library's own signals open, and those that an instruction raises.
pub fn block_signals() {
    let open = OPEN_SIGNALS.iter().fold(0_u64, |set, signal| set | 1 << (signal - 1));
    let blocked = [!open; 1];
    // SAFETY: reads 8 bytes, the size of the kernel's signal set.
    unsafe {
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, blocked.as_ptr(), 0, 8_usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_the_error_number() {
        let error = open(c"/nonexistent/zerosweep", libc::O_RDONLY).unwrap_err();
        assert!(error.is(libc::ENOENT));
        assert_eq!(error.to_string(), "openat: No such file or directory (os error 2)");
    }

    #[test]
    fn knows_the_kernel_and_the_thread() {
        assert!(release().unwrap()[0].is_ascii_digit());
        assert_ne!(thread_id(), 0);
        assert!(is_thread_of_ours(thread_id()));
        // Process 1, and a number above every one that a kernel gives.
        assert!(!is_thread_of_ours(1) && !is_thread_of_ours(1 << 23));
    }

    /// glibc asks every thread to change its user by signal 33, and waits for all of them: a
    /// blocked one would hang the VMM's `-runas`.
    #[test]
    fn the_c_librarys_and_an_instructions_signals_stay_open() {
        let blocked = std::thread::spawn(|| {
            block_signals();
            let status =
                std::fs::read_to_string(format!("/proc/self/task/{}/status", thread_id())).unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap();
            u64::from_str_radix(line.trim(), 16).unwrap()
        });
        let blocked = blocked.join().unwrap();
        let is_blocked = |signal: c_int| blocked >> (signal - 1) & 1 == 1;
        assert!([libc::SIGTERM, libc::SIGUSR1, libc::SIGALRM, 34, 64].map(is_blocked) == [true; 5]);
        assert!(OPEN_SIGNALS.map(is_blocked) == [false; 8], "{blocked:#x}");
    }
}
