//! The C functions that take the place of the C library's in the VMM.
//!
//! Each reads one atomic flag first, and is only the system call when this process manages no
//! memory. Otherwise it asks [`advice`], [`files`] or [`qmp_tap`], none of which panics.
#![expect(unsafe_code, reason = "C functions with raw pointers, and system calls")]

use core::ffi::{c_char, c_int, c_long, c_uint, c_ulong, c_void};

use crate::advice::{self, Advice, Decision};
use crate::{adopt, files, qmp_tap, state, sys};

/// Runs when the library is loaded, before the VMM's `main`.
#[used]
// SAFETY: the loader calls each entry of this section once, with the arguments of `main`, which a
// C function without parameters may ignore.
#[unsafe(link_section = ".init_array")]
static AT_LOAD: extern "C" fn() = at_load;

extern "C" fn at_load() {
    adopt::at_load();
}

/// `madvise(2)`.
///
/// # Safety
/// As the system call: the caller owns the range.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn madvise(start: *mut c_void, bytes: usize, advice: c_int) -> c_int {
    let pass = || {
        // SAFETY: the caller's arguments, unchanged.
        unsafe { libc::syscall(libc::SYS_madvise, start, bytes, advice) as c_int }
    };
    if state::is_inert() {
        return pass();
    }
    match advice::on_madvise(start.addr(), bytes, Advice::new(advice)) {
        Decision::Pass => pass(),
        Decision::Done => 0,
        Decision::Refuse(number) => {
            sys::set_errno(number);
            -1
        }
        Decision::PassThenAdopt => {
            let result = pass();
            if result == 0 {
                adopt::adopt(start.addr(), bytes);
            }
            result
        }
    }
}

/// `mmap(2)`: only a mapping over guest RAM is of interest.
///
/// # Safety
/// As the system call.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn mmap(
    start: *mut c_void,
    bytes: usize,
    protection: c_int,
    flags: c_int,
    file: c_int,
    offset: libc::off_t,
) -> *mut c_void {
    if flags & libc::MAP_FIXED != 0 && !state::is_inert() {
        advice::on_unmap(start.addr(), bytes, "guest RAM was mapped over");
    }
    // SAFETY: the caller's arguments, unchanged.
    let address =
        unsafe { libc::syscall(libc::SYS_mmap, start, bytes, protection, flags, file, offset) };
    core::ptr::with_exposed_provenance_mut(address as usize)
}

/// `mmap64(2)`: the same on 64-bit machines.
///
/// # Safety
/// As the system call.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn mmap64(
    start: *mut c_void,
    bytes: usize,
    protection: c_int,
    flags: c_int,
    file: c_int,
    offset: libc::off_t,
) -> *mut c_void {
    // SAFETY: the caller's arguments, unchanged.
    unsafe { mmap(start, bytes, protection, flags, file, offset) }
}

/// `munmap(2)`.
///
/// # Safety
/// As the system call.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn munmap(start: *mut c_void, bytes: usize) -> c_int {
    if !state::is_inert() {
        advice::on_unmap(start.addr(), bytes, "guest RAM was unmapped");
    }
    // SAFETY: the caller's arguments, unchanged.
    unsafe { libc::syscall(libc::SYS_munmap, start, bytes) as c_int }
}

/// `mremap(2)`. The last argument is only there with some flags; what is in its register otherwise
/// is passed on and not looked at.
///
/// # Safety
/// As the system call.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn mremap(
    start: *mut c_void,
    bytes: usize,
    new_bytes: usize,
    flags: c_int,
    new_start: *mut c_void,
) -> *mut c_void {
    if !state::is_inert() {
        advice::on_unmap(start.addr(), bytes, "guest RAM was mapped elsewhere");
    }
    // SAFETY: the caller's arguments, unchanged.
    let address =
        unsafe { libc::syscall(libc::SYS_mremap, start, bytes, new_bytes, flags, new_start) };
    core::ptr::with_exposed_provenance_mut(address as usize)
}

/// `recvmsg(2)`: what another tool asks the guest's balloon for is read ([`qmp_tap`]).
///
/// # Safety
/// As the system call.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn recvmsg(
    socket: c_int,
    message: *mut libc::msghdr,
    flags: c_int,
) -> libc::ssize_t {
    // SAFETY: the caller's arguments, unchanged.
    let received = unsafe { libc::syscall(libc::SYS_recvmsg, socket, message, flags) };
    // SAFETY: the kernel has just filled the caller's message.
    if received >= 0 && !state::is_inert() && unsafe { sys::carries_files(message) } {
        // Of the VMM's disks, perhaps, where another tool opens them.
        files::check_all();
    }
    if received >= 0 && flags & libc::MSG_PEEK == 0 && !state::is_inert() && qmp_tap::is_wanted() {
        // SAFETY: the kernel has just filled `received` bytes of the caller's buffers, which are
        // the caller's until this function returns.
        qmp_tap::received(socket, || unsafe { sys::gather(message, received as usize) });
    }
    received as libc::ssize_t
}

/// `open(2)`: a file through which guest pages would be in use without a sign lifts the cap
/// (`zerosweep_linux::references`). The last argument is only there with some flags; what is in its
/// register otherwise is passed on and not looked at.
///
/// # Safety
/// As the system call.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    // SAFETY: the caller's arguments, unchanged.
    unsafe { openat(libc::AT_FDCWD, path, flags, mode) }
}

/// `open64(2)`: the same on 64-bit machines.
///
/// # Safety
/// As the system call.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    // SAFETY: the caller's arguments, unchanged.
    unsafe { openat(libc::AT_FDCWD, path, flags, mode) }
}

/// `openat64(2)`: the same on 64-bit machines.
///
/// # Safety
/// As the system call.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn openat64(
    directory: c_int,
    path: *const c_char,
    flags: c_int,
    mode: c_uint,
) -> c_int {
    // SAFETY: the caller's arguments, unchanged.
    unsafe { openat(directory, path, flags, mode) }
}

/// `openat(2)`: as [`open`].
///
/// # Safety
/// As the system call.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn openat(
    directory: c_int,
    path: *const c_char,
    flags: c_int,
    mode: c_uint,
) -> c_int {
    // SAFETY: the caller's arguments, unchanged.
    let fd = unsafe { libc::syscall(libc::SYS_openat, directory, path, flags, mode) } as c_int;
    if fd >= 0 && !state::is_inert() {
        files::on_open(fd);
    }
    fd
}

/// What `open` with `_FORTIFY_SOURCE` becomes where the flags are not known: three arguments less
/// the last.
macro_rules! fortified {
    ($($name:ident($($directory:ident)?);)*) => { $(
        #[doc = concat!("`", stringify!($name), "`: `open(2)` without a mode.")]
        ///
        /// # Safety
        /// As the system call.
        #[unsafe(no_mangle)]
        pub(crate) unsafe extern "C" fn $name(
            $($directory: c_int,)?
            path: *const c_char,
            flags: c_int,
        ) -> c_int {
            let directory = [$($directory,)? libc::AT_FDCWD][0];
            // SAFETY: the caller's arguments; nothing is created, so no mode is looked at.
            unsafe { openat(directory, path, flags, 0) }
        }
    )* };
}
fortified! {
    __open_2();
    __open64_2();
    __openat_2(directory);
    __openat64_2(directory);
}

/// `mbind(2)`: what is asked of guest RAM is asked of the pool too, from which its frames come.
/// Nothing is migrated: a page under migration cannot be moved, and guest RAM has none yet.
///
/// # Safety
/// As the system call.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn mbind(
    start: *mut c_void,
    bytes: c_ulong,
    mode: c_int,
    nodes: *const c_ulong,
    bits: c_ulong,
    flags: c_uint,
) -> c_long {
    let is_guest = !state::is_inert() && state::is_guest_ram(start.addr(), bytes as usize);
    let flags = if is_guest { flags & !(MPOL_MF_MOVE | MPOL_MF_MOVE_ALL) } else { flags };
    // SAFETY: the caller's arguments; fewer flags migrate fewer pages.
    let answer = unsafe { libc::syscall(libc::SYS_mbind, start, bytes, mode, nodes, bits, flags) };
    if answer == 0 && is_guest {
        advice::on_mbind();
    }
    answer
}

/// Flags of `mbind(2)`: migrate pages that are elsewhere.
const MPOL_MF_MOVE: c_uint = 1 << 1;
const MPOL_MF_MOVE_ALL: c_uint = 1 << 2;

/// `sendmsg(2)`: refused with `MSG_ZEROCOPY` while memory is managed. The kernel sends the pages
/// themselves then, later, and does not say so when they are moved, copied or cleared meanwhile.
/// QEMU asks for it when a migration has `zero-copy-send`, and ends that migration; the guest goes
/// on.
///
/// # Safety
/// As the system call.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn sendmsg(
    socket: c_int,
    message: *const libc::msghdr,
    flags: c_int,
) -> libc::ssize_t {
    if flags & libc::MSG_ZEROCOPY != 0 && !state::is_inert() && state::is_managed() {
        sys::set_errno(libc::ENOBUFS);
        return -1;
    }
    // SAFETY: the caller's arguments, unchanged.
    unsafe { libc::syscall(libc::SYS_sendmsg, socket, message, flags) as libc::ssize_t }
}

/// `mlockall(2)`: refused while memory is managed, for it would populate all of it.
///
/// # Safety
/// As the system call.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn mlockall(flags: c_int) -> c_int {
    if !state::is_inert() {
        sys::set_errno(libc::EPERM);
        return -1;
    }
    // SAFETY: the caller's argument, unchanged.
    unsafe { libc::syscall(libc::SYS_mlockall, flags) as c_int }
}

/// `munlockall(2)`: refused while memory is managed. QEMU calls it for nothing but to find out
/// whether this host can be the destination of a postcopy migration, which puts pages into guest RAM
/// with a userfaultfd of its own. It gives that migration up before the source has given anything
/// up.
///
/// # Safety
/// As the system call.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn munlockall() -> c_int {
    if !state::is_inert() {
        sys::set_errno(libc::EPERM);
        return -1;
    }
    // SAFETY: a system call without arguments.
    unsafe { libc::syscall(libc::SYS_munlockall) as c_int }
}
