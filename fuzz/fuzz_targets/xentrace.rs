//! Whatever bytes, read as a trace of Xen's.
#![no_main]

#[path = "../../crates/zerosweep-lab/tests/lab/corpus/traces.rs"]
mod traces;

libfuzzer_sys::fuzz_target!(|input: &[u8]| traces::check(input));
