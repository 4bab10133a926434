use proptest::prelude::*;
use proptest::test_runner::contextualize_config;
use zerosweep_scan::{first_nonzero, first_nonzero_live};

use crate::{MANY, kernels, naive};

/// Words of the widest vector that any kernel may have: 64 bytes.
const ALIGNMENTS: usize = 8;

/// One word is dirty, in any of its bits; each alignment that a word can have in a vector.
#[test]
fn every_length_alignment_and_position_of_a_word() {
    let mut memory = vec![0_u64; ALIGNMENTS + MANY];
    for from in 0..ALIGNMENTS {
        for len in 0..=MANY {
            for at in 0..len {
                memory[from + at] = 1 << ((at + len) % 64);
                let words = &memory[from..from + len];
                assert_eq!(naive(words), Some(at));
                for kernel in kernels() {
                    let found = kernel.first_nonzero(words);
                    assert_eq!(found, Some(at), "{kernel}: {len} words from {from}");
                }
                memory[from + at] = 0;
            }
            for kernel in kernels() {
                assert_eq!(kernel.first_nonzero(&memory[from..from + len]), None, "{kernel}");
            }
        }
    }
}

/// Two pages and a bit: the loop over blocks runs many times.
#[test]
fn every_position_of_a_word_in_longer_ranges() {
    let most = if cfg!(miri) { 70 } else { 1040 };
    let mut memory = vec![0_u64; ALIGNMENTS + most];
    for len in MANY..=most {
        let from = len % ALIGNMENTS;
        for at in 0..len {
            memory[from + at] = u64::MAX;
            for kernel in kernels() {
                let found = kernel.first_nonzero(&memory[from..from + len]);
                assert_eq!(found, Some(at), "{kernel}: {len} words from {from}");
            }
            memory[from + at] = 0;
        }
    }
}

/// What is dirty behind the first word must not matter, nor what is dirty around the range.
#[test]
fn the_first_of_two_is_found_and_neighbours_are_not() {
    let mut memory = vec![0_u64; MANY + 2];
    memory[0] = 1;
    memory[MANY + 1] = 1;
    for at in 0..MANY {
        memory[1 + at] = 3;
        for second in at + 1..MANY {
            memory[1 + second] = 1;
            for kernel in kernels() {
                assert_eq!(kernel.first_nonzero(&memory[1..=MANY]), Some(at), "{kernel}");
            }
            memory[1 + second] = 0;
        }
        memory[1 + at] = 0;
        assert_eq!(first_nonzero(&memory[1..=MANY]), None);
    }
}

#[test]
#[expect(unsafe_code, reason = "the call is unsafe")]
fn live_memory_is_read_the_same_way() {
    let mut words = [0_u64; 33];
    words[32] = 9;
    // SAFETY: both ranges are within the array; nothing is read of an empty one.
    unsafe {
        assert_eq!(first_nonzero_live(words.as_ptr(), 33), Some(32));
        assert_eq!(first_nonzero_live(words.as_ptr(), 32), None);
        assert_eq!(first_nonzero_live(core::ptr::without_provenance(8), 0), None);
    }
}

proptest! {
    #![proptest_config(contextualize_config(if cfg!(miri) {
        // Miri keeps the tests from the file system.
        ProptestConfig { cases: 8, failure_persistence: None, ..ProptestConfig::default() }
    } else {
        ProptestConfig::with_cases(512)
    }))]

    #[test]
    fn any_words_are_scanned_as_the_naive_scan_does(
        len in 0..3000_usize,
        dirty in prop::collection::vec((any::<prop::sample::Index>(), any::<u64>()), 0..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut memory = vec![0; len + 1];
        for (at, word) in dirty {
            memory[at.index(len + 1)] = word;
        }
        let words = &memory[cut.index(len + 1)..];
        for kernel in kernels() {
            prop_assert_eq!(kernel.first_nonzero(words), naive(words), "{}", kernel);
        }
    }
}
