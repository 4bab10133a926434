#![expect(unsafe_code, reason = "maps memory and scans it by address")]

use core::ffi::c_void;
use core::ptr;

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

use crate::{MANY, kernels};

const PAGE_BYTES: usize = 4096;

/// Readable pages between two that cannot be read.
struct Guarded {
    start: *mut c_void,
    bytes: usize,
}

impl Guarded {
    fn new(bytes: usize) -> Self {
        let all = bytes + 2 * PAGE_BYTES;
        // SAFETY: a new mapping, nothing is replaced; then the protection of part of it.
        unsafe {
            let none = ProtFlags::empty();
            let start = mmap_anonymous(ptr::null_mut(), all, none, MapFlags::PRIVATE).unwrap();
            let guarded = Self { start, bytes };
            let flags = MprotectFlags::READ | MprotectFlags::WRITE;
            mprotect(guarded.words().cast(), bytes, flags).unwrap();
            guarded
        }
    }

    fn words(&self) -> *mut u64 {
        self.start.wrapping_byte_add(PAGE_BYTES).cast()
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: this mapping, to which no reference is left.
        unsafe { munmap(self.start, self.bytes + 2 * PAGE_BYTES) }.unwrap();
    }
}

/// A read outside the range is a segmentation fault.
#[test]
#[cfg_attr(miri, ignore = "maps memory; Miri itself sees a read outside an allocation")]
fn nothing_outside_the_range_is_read() {
    let memory = Guarded::new(3 * PAGE_BYTES);
    let words = 3 * PAGE_BYTES / 8;
    for kernel in kernels() {
        for len in (0..=MANY).chain(512 - 9..=1040) {
            let behind = words - len;
            // SAFETY: both ranges are within the readable pages.
            unsafe {
                assert_eq!(kernel.first_nonzero_live(memory.words(), len), None);
                assert_eq!(kernel.first_nonzero_live(memory.words().add(behind), len), None);
                // The reading that narrows a dirty block stays inside too.
                if len > 0 {
                    let last = memory.words().add(words - 1);
                    last.write_volatile(1);
                    let found = kernel.first_nonzero_live(memory.words().add(behind), len);
                    assert_eq!(found, Some(len - 1));
                    last.write_volatile(0);
                }
            }
        }
    }
}

/// The same on the heap, for Miri.
#[test]
fn exact_allocations_are_scanned_to_their_ends() {
    for len in 0..=MANY {
        let words = vec![0; len].into_boxed_slice();
        for kernel in kernels() {
            assert_eq!(kernel.first_nonzero(&words), None, "{kernel}");
        }
    }
}
