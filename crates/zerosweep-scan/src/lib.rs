//! Zero-scan kernels: is this memory all zero, and if not, where is the first word that is not?
//!
//! Memory is looked at in words of 8 bytes. [`first_nonzero`] is for memory that nobody writes;
//! [`first_nonzero_live`] reads what a guest may be writing to, one word at a time, and its answer
//! is a hint.
//!
//! Known holes: one portable kernel, which compilers turn into SSE2 or NEON; no wider ones yet.

/// Words that are looked at together: two cache lines.
const BLOCK: usize = 16;

/// The index of the first word that is not zero.
///
/// ```
/// assert_eq!(zerosweep_scan::first_nonzero(&[0; 512]), None);
/// assert_eq!(zerosweep_scan::first_nonzero(&[0, 0, 7]), Some(2));
/// ```
#[must_use]
pub fn first_nonzero(words: &[u64]) -> Option<usize> {
    let (blocks, rest) = words.as_chunks::<BLOCK>();
    let dirty = |block: &[u64; BLOCK]| block.iter().fold(0, |all, word| all | word) != 0;
    let (start, tail) = match blocks.iter().position(dirty) {
        Some(n) => (n * BLOCK, blocks[n].as_slice()),
        None => (blocks.len() * BLOCK, rest),
    };
    tail.iter().position(|&word| word != 0).map(|index| start + index)
}

/// The index of the first of `words` words at `start` that is not zero, read one by one.
///
/// # Safety
/// `start` is aligned to 8 bytes, and `words` words from it can be read. Others may write them
/// meanwhile.
#[must_use]
#[expect(unsafe_code, reason = "guest memory is reached through a raw pointer")]
pub unsafe fn first_nonzero_live(start: *const u64, words: usize) -> Option<usize> {
    // SAFETY: within the range that the caller vouches for; volatile, so that a concurrent write
    // can change the value that is seen but nothing else.
    (0..words).find(|&index| unsafe { start.add(index).read_volatile() } != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn naive(words: &[u64]) -> Option<usize> {
        words.iter().position(|&word| word != 0)
    }

    #[test]
    fn every_length_and_position_is_as_the_naive_scan_says() {
        for len in 0..80 {
            let mut words = vec![0_u64; len];
            assert_eq!(first_nonzero(&words), None);
            for at in 0..len {
                words[at] = 1 << (at % 64);
                assert_eq!(first_nonzero(&words), naive(&words), "{len} words, {at} dirty");
                // Something behind the first must not matter.
                if at + 1 < len {
                    words[len - 1] = 1;
                    assert_eq!(first_nonzero(&words), Some(at));
                    words[len - 1] = 0;
                }
                words[at] = 0;
            }
        }
    }

    #[test]
    #[expect(unsafe_code, reason = "the call is unsafe")]
    fn live_memory_is_read_the_same_way() {
        let mut words = [0_u64; 33];
        words[32] = 9;
        // SAFETY: both ranges are within the array.
        unsafe {
            assert_eq!(first_nonzero_live(words.as_ptr(), 33), Some(32));
            assert_eq!(first_nonzero_live(words.as_ptr(), 32), None);
        }
    }
}
