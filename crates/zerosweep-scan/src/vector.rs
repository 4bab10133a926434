//! What the scan needs of a vector, and the vectors: a plain word, AVX2's 256 bits, and NEON's 128.
//!
//! A load is [`pointer::read_volatile`]: one load instruction of the vector's width, which the
//! compiler may neither drop nor repeat. So every decision is made on a value that stays what it
//! was when it was read, whatever is written meanwhile. A reference (`&[u64]`) would promise that
//! nothing is. Those who write are a guest, a device or another process, outside of what the
//! language speaks about; a thread of this program that writes there should do it by atomics or
//! volatile writes. A vector may mix an older and a newer write; each aligned word of 8 bytes in it
//! is whole on x86-64, and on aarch64: there a load of 128 bits, aligned to 8 bytes, into a vector
//! register is a pair of reads of 64 bits, each single-copy atomic (Arm ARM, "Requirements for
//! single-copy atomicity"). Nothing here needs more.
//!
//! [`pointer::read_volatile`]: https://doc.rust-lang.org/std/primitive.pointer.html#method.read_volatile
#![expect(unsafe_code, reason = "reads by address; vector instructions need a CPU that has them")]

#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
use core::arch::aarch64::{uint64x2_t, vget_lane_u64, vorrq_u64, vqmovn_u64, vreinterpret_u64_u32};
#[cfg(target_arch = "x86_64")]
use core::arch::x86_64::{
    __m256i, _mm256_castsi256_pd, _mm256_cmpeq_epi64, _mm256_movemask_pd, _mm256_or_si256,
    _mm256_setzero_si256, _mm256_testz_si256,
};

/// One or more words of 8 bytes that are looked at together.
///
/// Everything is `unsafe` for one reason: the CPU must have the vector's instructions. They become
/// single instructions where they are inlined into a function that enables them.
pub(crate) trait Vector: Copy {
    /// Words in a vector.
    const WORDS: usize = size_of::<Self>() / size_of::<u64>();

    /// Reads a vector, once.
    ///
    /// # Safety
    /// The CPU has this vector. `at` is aligned to it, and all of it can be read. Others may write
    /// there meanwhile.
    #[inline(always)]
    unsafe fn load(at: *const u64) -> Self {
        // SAFETY: aligned and readable, as the caller vouches; every bit pattern is a vector.
        unsafe { at.cast::<Self>().read_volatile() }
    }

    /// The bits that are set in either.
    ///
    /// # Safety
    /// The CPU has this vector.
    unsafe fn or(self, other: Self) -> Self;

    /// Whether no bit is set.
    ///
    /// # Safety
    /// The CPU has this vector.
    unsafe fn is_zero(self) -> bool;

    /// The first word with a bit set; `WORDS` or more if there is none.
    ///
    /// # Safety
    /// The CPU has this vector.
    unsafe fn first_word(self) -> usize;
}

impl Vector for u64 {
    #[inline(always)]
    unsafe fn or(self, other: Self) -> Self {
        self | other
    }

    #[inline(always)]
    unsafe fn is_zero(self) -> bool {
        self == 0
    }

    #[inline(always)]
    unsafe fn first_word(self) -> usize {
        usize::from(self == 0)
    }
}

#[cfg(target_arch = "x86_64")]
impl Vector for __m256i {
    #[inline(always)]
    unsafe fn or(self, other: Self) -> Self {
        // SAFETY: the CPU has AVX2, as the caller vouches.
        unsafe { _mm256_or_si256(self, other) }
    }

    #[inline(always)]
    unsafe fn is_zero(self) -> bool {
        // SAFETY: the CPU has AVX2, as the caller vouches.
        unsafe { _mm256_testz_si256(self, self) == 1 }
    }

    #[inline(always)]
    unsafe fn first_word(self) -> usize {
        // SAFETY: the CPU has AVX2, as the caller vouches.
        let zeros = unsafe {
            let words = _mm256_cmpeq_epi64(self, _mm256_setzero_si256());
            _mm256_movemask_pd(_mm256_castsi256_pd(words))
        };
        zeros.trailing_ones() as usize
    }
}

/// Each word as 32 bits, which are zero if and only if the word is: a saturating narrowing, and the
/// one move out of the vector unit that a test costs.
///
/// # Safety
/// The CPU has NEON.
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
#[inline(always)]
unsafe fn narrowed(words: uint64x2_t) -> u64 {
    // SAFETY: the CPU has NEON, as the caller vouches.
    unsafe { vget_lane_u64::<0>(vreinterpret_u64_u32(vqmovn_u64(words))) }
}

#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
impl Vector for uint64x2_t {
    #[inline(always)]
    unsafe fn or(self, other: Self) -> Self {
        // SAFETY: the CPU has NEON, as the caller vouches.
        unsafe { vorrq_u64(self, other) }
    }

    #[inline(always)]
    unsafe fn is_zero(self) -> bool {
        // SAFETY: the CPU has NEON, as the caller vouches.
        unsafe { narrowed(self) == 0 }
    }

    #[inline(always)]
    unsafe fn first_word(self) -> usize {
        // SAFETY: the CPU has NEON, as the caller vouches.
        let words = unsafe { narrowed(self) };
        (words.trailing_zeros() / u32::BITS) as usize
    }
}
