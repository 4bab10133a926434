//! One case at a time, for callgrind: `cargo xtask bench` runs it and counts the instructions of
//! `counted_work`, which do not depend on what else the machine does.
//!
//! Without arguments it prints the names of the cases; with one of them it does that case's work
//! once, and prints how many operations that was.
#![expect(clippy::unwrap_used, reason = "a bench fails by panic, like a test")]

#[path = "../engine/build.rs"]
mod build;
#[path = "../engine/null.rs"]
mod null;
#[path = "../engine/pure.rs"]
mod pure;

/// 256 MiB: the counts are the same as for a larger guest.
const PAGES: u64 = 1 << 17;
const SCAN: &str = "scan_4k";
const SCANS: u64 = 1000;

fn main() {
    // cargo bench adds --bench.
    let Some(wanted) = std::env::args().skip(1).find(|argument| argument != "--bench") else {
        pure::CASES.iter().for_each(|case| println!("{}", case.name));
        println!("{SCAN}");
        return;
    };
    let operations = match pure::CASES.iter().find(|case| case.name == wanted) {
        Some(case) => (case.prepare)(PAGES).counted_work(),
        None if wanted == SCAN => counted_work_of_scans(&[0; 512]),
        None => panic!("no case is called {wanted}"),
    };
    println!("{operations}");
}

#[inline(never)]
fn counted_work_of_scans(page: &[u64; 512]) -> u64 {
    for _ in 0..SCANS {
        assert_eq!(zerosweep_scan::first_nonzero(core::hint::black_box(page)), None);
    }
    SCANS
}
