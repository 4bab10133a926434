//! What ordinary tests do with a fuzz target's corpus: every file of it, and many small changes to
//! them, so that a build without a fuzzer walks the same paths.

use std::fs;
use std::panic::{self, RefUnwindSafe};
use std::path::Path;
use std::time::{Duration, Instant};

/// How many inputs are made out of a corpus, if there is time.
const CHANGED: u64 = 4000;
const TIME: Duration = Duration::from_secs(5);
const SEED: u64 = 20_110_309;

/// Numbers by chance, the same ones each time (SplitMix64).
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut number = self.0;
        number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((number ^ (number >> 31)) % end.max(1) as u64) as usize
    }

    /// A place in `input`, or its end.
    fn place(&mut self, input: &[u8]) -> usize {
        self.below(input.len() + 1)
    }

    /// Changes `input` somewhere; `other` is what may be put in.
    fn change(&mut self, input: &mut Vec<u8>, other: &[u8]) {
        let at = self.place(input);
        let end = (at + self.below(12)).min(input.len());
        match self.below(5) {
            0 => {
                for byte in &mut input[at..end] {
                    *byte = self.below(256) as u8;
                }
            }
            1 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= 1 << self.below(8);
                }
            }
            2 => drop(input.drain(at..end)),
            3 => {
                let again = input[at..end].to_vec();
                input.splice(at..at, again);
            }
            _ => {
                let from = self.place(other);
                let to = (from + self.below(64)).min(other.len());
                input.splice(at..end, other[from..to].iter().copied());
            }
        }
    }
}

/// Calls `check` with each file of a target's corpus, and with changes to them. Returns a sentence
/// with their number. An input at which `check` panics is reported as `shown` shows it.
pub(crate) fn each(
    target: &str,
    check: impl Fn(&[u8]) + RefUnwindSafe,
    shown: impl Fn(&[u8]) -> String,
) -> String {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let mut files: Vec<_> = fs::read_dir(&directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    let inputs: Vec<_> = files.iter().map(|file| fs::read(file).unwrap()).collect();
    assert!(!inputs.is_empty(), "{} is empty", directory.display());
    let look = |input: &[u8], name: String| {
        let fine = panic::catch_unwind(|| check(input)).is_ok();
        assert!(fine, "{name}:\n{}", shown(input));
    };
    for (file, input) in files.iter().zip(&inputs) {
        look(input, file.display().to_string());
    }
    let (mut chance, start) = (Chance(SEED), Instant::now());
    let mut changed = 0;
    while changed < CHANGED && start.elapsed() < TIME {
        let mut input = inputs[chance.below(inputs.len())].clone();
        let other = &inputs[chance.below(inputs.len())];
        for _ in 0..=chance.below(4) {
            chance.change(&mut input, other);
        }
        look(&input, format!("change {changed}"));
        changed += 1;
    }
    format!("{target}: {} files of the corpus and {changed} changes to them", inputs.len())
}
