//! Whatever steps, done by the engine and by the naive model of the simulator's tests.
#![no_main]

#[path = "../../crates/zerosweep/tests/model/both.rs"]
mod both;
#[path = "../../crates/zerosweep/tests/model/bytes.rs"]
mod bytes;
#[path = "../../crates/zerosweep/tests/model/steps.rs"]
mod steps;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let case = bytes::case(input);
    // Printed only by a run of one input: `cargo fuzz run engine FILE`.
    if std::env::var_os("ZEROSWEEP_SHOW").is_some() {
        eprintln!("{case:#?}");
    }
    both::Both::run(&case);
});
