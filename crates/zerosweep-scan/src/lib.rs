//! Zero-scan kernels: they find the first word of memory that is not zero.
//!
//! Memory is looked at in words of 8 bytes. [`first_nonzero`] is for memory that nobody writes;
//! [`first_nonzero_live`] reads what a guest may be writing to, and its answer is a hint.
//!
//! Both use [`Kernel::chosen`]: AVX2 on an x86-64 CPU that has it, NEON on aarch64, else the
//! portable kernel. The environment can name another one: `ZEROSWEEP_SCAN=portable`, `avx2`, `neon`.
//! Another value, or a kernel that the CPU cannot run, is ignored; [`Kernel::requested`] reports it.
//!
//! ```text
//! kernel   what is chosen, the safe calls
//!   scan     the algorithm, once, over a vector
//!     vector   the vectors: u64, __m256i, uint64x2_t
//! ```
//!
//! Left out after measuring ("Zero-scan kernels" in `docs/measurements.md`): AVX-512, which is
//! faster on single pages and slower on a superpage out of the cache, the check that matters most;
//! prefetches and non-temporal hints, which never helped.
//!
//! Known holes: no time has been measured on aarch64. NEON is taken for the faster kernel there
//! because it needs 58 % of the portable one's instructions for a superpage, and half of its loads.
//! There is no kernel for SVE.

mod kernel;
mod scan;
mod vector;

pub use kernel::{KERNEL_VARIABLE, Kernel, KernelError};

/// Returns the index of the first word that is not zero.
///
/// ```
/// assert_eq!(zerosweep_scan::first_nonzero(&[0; 512]), None);
/// assert_eq!(zerosweep_scan::first_nonzero(&[0, 0, 7]), Some(2));
/// ```
#[must_use]
pub fn first_nonzero(words: &[u64]) -> Option<usize> {
    Kernel::chosen().first_nonzero(words)
}

/// Returns the index of the first of `words` words at `start` that is not zero. Others may write
/// the words meanwhile.
///
/// With `Some`, that word was not zero when it was read, and each word before it was zero when it
/// was read. With `None`, every word was zero when it was read. The words are not read at the same
/// time, so a guest that moves its bytes can hide them. Nothing outside the range is read.
///
/// # Safety
/// `start` is aligned to 8 bytes, and `words` words from it can be read. Others may write them
/// meanwhile.
#[must_use]
#[expect(unsafe_code, reason = "guest memory is reached through a raw pointer")]
pub unsafe fn first_nonzero_live(start: *const u64, words: usize) -> Option<usize> {
    // SAFETY: as the caller vouches.
    unsafe { Kernel::chosen().first_nonzero_live(start, words) }
}
