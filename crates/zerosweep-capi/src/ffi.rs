//! The boundary to C: pointers in and out, and panics stopped.
//!
//! What is here is called by `functions` only, with what a C program gave it, and `functions` is
//! called by C programs only. No signature can hold these to the header; so the functions are not
//! marked unsafe, and each block says what the program vouches for.
#![expect(unsafe_code, reason = "pointers from the program")]

use core::any::Any;
use core::ffi::{CStr, c_char};
use core::mem::MaybeUninit;
use core::ptr::NonNull;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::abi::{zs_config, zs_entry, zs_machine, zs_quantities, zs_statistics};
use crate::domain::zs_domain;
use crate::machine::Inside;
use crate::status::zs_status;

/// Runs an operation on a domain. No panic gets out: it breaks the domain.
pub(crate) fn on(
    domain: Option<NonNull<zs_domain>>,
    work: impl FnOnce(&zs_domain) -> Result<zs_status, zs_status>,
) -> zs_status {
    let Some(domain) = domain else { return zs_status::Null };
    if Inside::is_here() {
        return zs_status::Reentrant;
    }
    // SAFETY: the program vouches that this is a domain that zs_domain_create made and that
    // zs_domain_destroy has not had, nor has before the call is over. Domains are shared: nobody
    // has a unique reference to one.
    let domain = unsafe { domain.as_ref() };
    if domain.is_broken() {
        return zs_status::Broken;
    }
    match catch_unwind(AssertUnwindSafe(|| work(domain))) {
        Ok(Ok(status) | Err(status)) => status,
        Err(panic) => {
            domain.break_down(said(&*panic));
            zs_status::Broken
        }
    }
}

/// As [`on`], for what needs no domain that works.
pub(crate) fn without_domain(work: impl FnOnce() -> Result<zs_status, zs_status>) -> zs_status {
    if Inside::is_here() {
        return zs_status::Reentrant;
    }
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(status) | Err(status)) => status,
        Err(_) => zs_status::Broken,
    }
}

/// Puts a domain where the program can have it. `Box::new` would end the process for want of
/// memory.
pub(crate) fn lend(domain: zs_domain) -> Result<*mut zs_domain, zs_status> {
    let mut one = Vec::new();
    one.try_reserve_exact(1).map_err(|_| zs_status::OutOfMemory)?;
    one.push(domain);
    Ok(Box::into_raw(one.into_boxed_slice()).cast())
}

/// Takes back and ends what [`lend`] gave out.
pub(crate) fn take_back(domain: NonNull<zs_domain>) {
    let one = NonNull::slice_from_raw_parts(domain, 1);
    // SAFETY: the program vouches that it has it from `zs_domain_create`, which got it from `lend`,
    // and that nobody uses it or will.
    drop(unsafe { Box::from_raw(one.as_ptr()) });
}

/// What a panic said.
fn said(panic: &(dyn Any + Send)) -> &str {
    let literal = panic.downcast_ref::<&str>().copied();
    literal.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic")
}

/// Why a broken domain is broken; nothing of one that is not.
pub(crate) fn failure(domain: NonNull<zs_domain>) -> Option<String> {
    // SAFETY: as in `on`.
    unsafe { domain.as_ref() }.failure()
}

/// Writes an answer to where the program wants it, if it does.
pub(crate) fn give<T>(place: Option<&mut MaybeUninit<T>>, value: T) {
    if let Some(place) = place {
        place.write(value);
    }
}

/// A structure that begins with its size, by which both sides know how much of it the other has.
///
/// # Safety
/// It is `repr(C)`, begins with a `usize` that is its size, and is valid when all else is zero.
pub(crate) unsafe trait Growing {
    /// Bytes that the first version had.
    const FIRST_BYTES: usize;
}

/// Says how large the first version of a structure was.
macro_rules! first_bytes {
    ($name:ident, $bytes:expr) => {
        const _: () = assert!(size_of::<$name>() >= $bytes);

        // SAFETY: repr(C), begins with `size`; all fields are numbers, pointers or optional
        // functions, which may be zero.
        unsafe impl Growing for $name {
            const FIRST_BYTES: usize = $bytes;
        }
    };
}

first_bytes!(zs_machine, 16 * 8);
first_bytes!(zs_config, 10 * 8);
first_bytes!(zs_quantities, 16 * 8);
first_bytes!(zs_statistics, 32 * 8);
first_bytes!(zs_entry, 4 * 8);

/// Reads a structure of the program's, which may be an older one (what it has not is zero) or a
/// newer one (what we have not must be zero).
pub(crate) fn take<T: Growing>(from: *const T) -> Result<T, zs_status> {
    let from = NonNull::new(from.cast_mut()).ok_or(zs_status::Null)?;
    let bytes = bytes_of(from)?;
    let known = bytes.min(size_of::<T>());
    let mut taken = MaybeUninit::<T>::zeroed();
    // SAFETY: the program vouches for as many bytes as its `size` says; `known` is not more, nor
    // more than `taken` has.
    unsafe {
        from.cast::<u8>().as_ptr().copy_to_nonoverlapping(taken.as_mut_ptr().cast::<u8>(), known);
    }
    let newer = (known..bytes).any(|at| {
        // SAFETY: `at` is below the program's `size`.
        unsafe { from.cast::<u8>().add(at).read() != 0 }
    });
    if newer {
        return Err(zs_status::Unsupported);
    }
    // SAFETY: zeros are valid for it, and so is what a C compiler puts there: numbers, pointers and
    // functions.
    Ok(unsafe { taken.assume_init() })
}

/// Fills a structure of the program's, as much of it as it has; what we have not is zero. Its
/// `size` stays.
pub(crate) fn fill<T: Growing>(to: Option<NonNull<T>>, value: &T) -> Result<(), zs_status> {
    let to = to.ok_or(zs_status::Null)?;
    let bytes = bytes_of(to)?;
    let (head, known) = (size_of::<usize>(), bytes.min(size_of::<T>()));
    let (from, to) = (core::ptr::from_ref(value).cast::<u8>(), to.cast::<u8>().as_ptr());
    // SAFETY: the program vouches for as many bytes as its `size` says, which are at least those of
    // `size`; of `value` no more are read than it has.
    unsafe {
        to.add(head).copy_from_nonoverlapping(from.add(head), known - head);
        to.add(known).write_bytes(0, bytes - known);
    }
    Ok(())
}

/// How many bytes a structure of the program's says that it has.
fn bytes_of<T: Growing>(structure: NonNull<T>) -> Result<usize, zs_status> {
    // SAFETY: the program vouches that the structure is there; it begins with its size.
    let bytes = unsafe { structure.cast::<usize>().read() };
    if bytes < T::FIRST_BYTES { Err(zs_status::Size) } else { Ok(bytes) }
}

/// A policy's name, or `None` for NULL.
pub(crate) fn name<'a>(name: *const c_char) -> Result<Option<&'a str>, zs_status> {
    if name.is_null() {
        return Ok(None);
    }
    // SAFETY: the program vouches that it is a string that stays for the call; it is not kept.
    let name = unsafe { CStr::from_ptr(name) };
    name.to_str().map(Some).map_err(|_| zs_status::Policy)
}

/// Writes as much of a text as there is room for, with a zero behind it.
pub(crate) fn write_c_str(text: *mut c_char, bytes: usize, message: &str) {
    if text.is_null() || bytes == 0 {
        return;
    }
    let mut length = message.len().min(bytes - 1);
    while !message.is_char_boundary(length) {
        length -= 1;
    }
    // SAFETY: the program vouches for `bytes` bytes; `length` is less.
    unsafe {
        message.as_ptr().copy_to_nonoverlapping(text.cast::<u8>(), length);
        text.add(length).write(0);
    }
}
