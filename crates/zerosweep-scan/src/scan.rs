//! The scan, written once over [`Vector`], and its entry for each kind of CPU.
//!
//! ```text
//! start                                                            start + words
//!  | words, until a     | blocks of 16 vectors,  | vectors,     | words,     |
//!  | vector is aligned  | one test for each      | one by one   | one by one |
//! ```
//!
//! The first cache line of the blocks is looked at alone before them: a page that is not zero often
//! has something there, and a block may be eight lines to wait for.
//!
//! A block that is not zero is read again, vector by vector. When a guest has cleared it meanwhile,
//! every word of it has been seen zero, and the scan goes on behind it.
#![expect(unsafe_code, reason = "reads by address; an entry must run on a CPU that has its vector")]

#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
use core::arch::aarch64::uint64x2_t;
#[cfg(target_arch = "x86_64")]
use core::arch::x86_64::__m256i;
use core::ops::Range;

use crate::vector::Vector;

/// Vectors that are tested together. With AVX2, 16 are a tenth faster than 8 on a page in the
/// cache, and equal on memory that is not.
const BLOCK: usize = 16;

/// Words of a cache line: whole vectors, and no more than a block.
const LINE: usize = 8;

/// The portable kernel.
///
/// # Safety
/// `start` is aligned to 8 bytes, and `words` words from it can be read. Others may write there.
pub(crate) unsafe fn portable(start: *const u64, words: usize) -> Option<usize> {
    // SAFETY: every CPU has words; the rest as the caller vouches.
    unsafe { scan::<u64>(start, words) }
}

/// The AVX2 kernel.
///
/// # Safety
/// As [`portable`], and the CPU has AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
pub(crate) unsafe fn avx2(start: *const u64, words: usize) -> Option<usize> {
    // SAFETY: the CPU has AVX2; the rest as the caller vouches.
    unsafe { scan::<__m256i>(start, words) }
}

/// The NEON kernel.
///
/// # Safety
/// As [`portable`], and the CPU has NEON.
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
#[target_feature(enable = "neon")]
pub(crate) unsafe fn neon(start: *const u64, words: usize) -> Option<usize> {
    // SAFETY: the CPU has NEON; the rest as the caller vouches.
    unsafe { scan::<uint64x2_t>(start, words) }
}

/// # Safety
/// As [`portable`], and the CPU has `V`.
#[inline(always)]
unsafe fn scan<V: Vector>(start: *const u64, words: usize) -> Option<usize> {
    const { assert!(LINE.is_multiple_of(V::WORDS) && LINE <= BLOCK * V::WORDS) };
    debug_assert!(start.is_aligned(), "{start:p} is not aligned to a word");
    let misaligned_bytes = start.addr() % align_of::<V>();
    let head =
        ((align_of::<V>() - misaligned_bytes) % align_of::<V>() / size_of::<u64>()).min(words);
    let blocks = head + (words - head) / (BLOCK * V::WORDS) * (BLOCK * V::WORDS);
    let tail = blocks + (words - blocks) / V::WORDS * V::WORDS;
    let line = blocks.min(head + LINE);

    // SAFETY: head <= line <= blocks <= tail <= words. From `head` on, vectors are aligned: each
    // part ends a whole number of vectors behind it, unless `head` is all there is.
    unsafe {
        one_by_one::<u64>(start, 0..head)
            .or_else(|| one_by_one::<V>(start, head..line))
            .or_else(|| in_blocks::<V>(start, head..blocks))
            .or_else(|| one_by_one::<V>(start, blocks..tail))
            .or_else(|| one_by_one::<u64>(start, tail..words))
    }
}

/// # Safety
/// The CPU has `V`. The words `range` from `start` can be read, their first is aligned to `V`, and
/// they are whole blocks.
#[inline(always)]
unsafe fn in_blocks<V: Vector>(start: *const u64, range: Range<usize>) -> Option<usize> {
    let mut at = range.start;
    while at < range.end {
        let next = at + BLOCK * V::WORDS;
        // SAFETY: the block is within the range, and a vector's multiple from its first word.
        unsafe {
            if !block::<V>(start.add(at)).is_zero()
                && let Some(found) = one_by_one::<V>(start, at..next)
            {
                return Some(found);
            }
        }
        at = next;
    }
    None
}

/// All vectors of a block in one. Two sums, so that they need not wait for each other.
///
/// # Safety
/// The CPU has `V`. The block at `at` can be read and is aligned to `V`.
#[inline(always)]
unsafe fn block<V: Vector>(at: *const u64) -> V {
    // SAFETY: vectors 0 to 15 of the block.
    unsafe {
        let (mut even, mut odd) = (V::load(at), V::load(at.add(V::WORDS)));
        let mut vector = 2;
        while vector < BLOCK {
            even = even.or(V::load(at.add(vector * V::WORDS)));
            odd = odd.or(V::load(at.add((vector + 1) * V::WORDS)));
            vector += 2;
        }
        even.or(odd)
    }
}

/// # Safety
/// The CPU has `V`. The words `range` from `start` can be read, their first is aligned to `V`, and
/// they are whole vectors.
#[inline(always)]
unsafe fn one_by_one<V: Vector>(start: *const u64, range: Range<usize>) -> Option<usize> {
    let mut at = range.start;
    while at < range.end {
        // SAFETY: the vector is within the range, and a vector's multiple from its first word.
        let word = unsafe { V::load(start.add(at)).first_word() };
        if word < V::WORDS {
            return Some(at + word);
        }
        at += V::WORDS;
    }
    None
}
