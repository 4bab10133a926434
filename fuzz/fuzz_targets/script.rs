//! Whatever bytes, done as a script.
#![no_main]

#[path = "../../crates/zerosweep-lab/tests/lab/corpus/scripts.rs"]
mod scripts;

libfuzzer_sys::fuzz_target!(|input: &[u8]| scripts::check(input));
