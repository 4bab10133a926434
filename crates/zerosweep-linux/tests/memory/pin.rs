//! Pins memory as a device's buffer does: an io_uring's registered buffer, for as long as it lives.
#![expect(unsafe_code, reason = "io_uring by system call")]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::Span;

/// `struct io_uring_params`, as bytes.
const PARAMETERS_BYTES: usize = 120;
const IORING_REGISTER_BUFFERS: u32 = 0;

/// Pins `span` until dropped.
pub(crate) fn pin(span: Span<'_>) -> OwnedFd {
    let mut parameters = [0_u64; PARAMETERS_BYTES / 8];
    // SAFETY: the parameters are ours for writing and as long as the structure.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) };
    assert!(ring >= 0, "io_uring_setup: {}", std::io::Error::last_os_error());
    // SAFETY: the kernel just made this descriptor for us.
    let ring = unsafe { OwnedFd::from_raw_fd(ring as i32) };
    let base = span.as_ptr().cast_mut().cast();
    let buffer = libc::iovec { iov_base: base, iov_len: span.bytes() as usize };
    // SAFETY: one buffer of mapped memory; no I/O is ever started on it.
    let registered = unsafe {
        let (fd, operation) = (ring.as_raw_fd(), IORING_REGISTER_BUFFERS);
        libc::syscall(libc::SYS_io_uring_register, fd, operation, &raw const buffer, 1)
    };
    assert_eq!(registered, 0, "{}", std::io::Error::last_os_error());
    ring
}
