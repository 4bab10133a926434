//! What needs unsafe code apart from the interposed functions: system calls, and structures of C.
#![expect(unsafe_code, reason = "calls of the C library, and structures that it fills")]

use core::ffi::{CStr, c_int};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use zerosweep_linux::{HostAddr, Region, RegionError};

/// Sets this thread's error number.
pub(crate) fn set_errno(number: c_int) {
    // SAFETY: the address of this thread's own variable.
    unsafe { *libc::__errno_location() = number };
}

/// Whether descriptors came with a message.
///
/// # Safety
/// The kernel has filled the message.
pub(crate) unsafe fn carries_files(message: *const libc::msghdr) -> bool {
    // SAFETY: a valid message; the headers in it lie in its control buffer, as the kernel wrote it.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while !header.is_null() {
            let kind = ((*header).cmsg_level, (*header).cmsg_type);
            if kind == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
                return true;
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
    false
}

/// The first `count` bytes of a message's buffers.
///
/// # Safety
/// The message is valid, its buffers hold `count` bytes, and no other thread writes to them
/// meanwhile.
pub(crate) unsafe fn gather(message: *const libc::msghdr, count: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(count);
    // SAFETY: a valid message; its array of buffers has this many.
    let buffers = unsafe {
        let message = &*message;
        if message.msg_iov.is_null() {
            &[]
        } else {
            core::slice::from_raw_parts(message.msg_iov, message.msg_iovlen)
        }
    };
    for buffer in buffers {
        let length = buffer.iov_len.min(count - bytes.len());
        if length > 0 {
            // SAFETY: the kernel has filled this part of the buffer.
            bytes.extend_from_slice(unsafe {
                core::slice::from_raw_parts(buffer.iov_base.cast::<u8>(), length)
            });
        }
    }
    bytes
}

/// The path that a Unix socket is bound to, or was accepted at; `None` for any other.
pub(crate) fn local_path(socket: c_int) -> Option<PathBuf> {
    // SAFETY: all zeros is a valid value of this structure of numbers.
    let mut address: libc::sockaddr_un = unsafe { core::mem::zeroed() };
    let mut length = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    // SAFETY: address and length are ours for writing, and the length says how much room there is.
    let answer =
        unsafe { libc::syscall(libc::SYS_getsockname, socket, &raw mut address, &raw mut length) };
    if answer != 0 || c_int::from(address.sun_family) != libc::AF_UNIX {
        return None;
    }
    let path = address.sun_path.map(|byte| byte.to_ne_bytes()[0]);
    let end = path.iter().position(|&byte| byte == 0).unwrap_or(path.len());
    (end > 0).then(|| PathBuf::from(OsStr::from_bytes(&path[..end])))
}

/// Has `child` called in each child that this process forks, and `exit` when it ends by `exit`.
pub(crate) fn at_fork_and_exit(child: extern "C" fn(), exit: extern "C" fn()) {
    // SAFETY: both functions live as long as the library, which is never unloaded.
    unsafe {
        libc::pthread_atfork(None, None, Some(child));
        libc::atexit(exit);
    }
}

/// Changes a variable of the environment that children of this process get; `None` takes it out.
pub(crate) fn set_variable(name: &CStr, value: Option<&CStr>) {
    // SAFETY: C strings; glibc copies both. Another thread that reads the environment at this very
    // moment sees the old or the new value.
    unsafe {
        match value {
            Some(value) => libc::setenv(name.as_ptr(), value.as_ptr(), 1),
            None => libc::unsetenv(name.as_ptr()),
        };
    }
}

/// The range as a region.
pub(crate) fn region(start: usize, bytes: usize) -> Result<Region, RegionError> {
    let start = HostAddr::new(start);
    // SAFETY: the VMM mapped it as guest RAM and has just said that its children shall not have it;
    // it was checked to be private anonymous memory; `advice::on_unmap` is called before it goes.
    unsafe { Region::adopt(start, bytes as u64) }
}
