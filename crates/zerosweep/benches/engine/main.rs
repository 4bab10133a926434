//! How fast the engine is: `cargo bench -p zerosweep --bench engine`.
//!
//! - [`pure`]: the engine's own work, on a machine that touches no memory;
//! - [`memory`]: with the scans and clears, on the software machine;
//! - [`threads`]: faults while a sweep runs.
//!
//! Every figure is for one operation. docs/benchmarks.md says what each case is.
#![expect(clippy::unwrap_used, reason = "a bench fails by panic, like a test")]

mod build;
mod measure;
mod memory;
mod null;
mod pure;
mod threads;

use criterion::{Criterion, criterion_group, criterion_main};

use crate::measure::{PerOperation, case, criterion};

/// Guests, by name, in pages.
const SIZES: [(&str, u64); 2] = [("1g", 1 << 18), ("8g", 1 << 21)];

fn pure_engine(criterion: &mut Criterion<PerOperation>) {
    for (size, pages) in SIZES {
        let mut group = criterion.benchmark_group(format!("engine_{size}"));
        for pure in &pure::CASES {
            case(&mut group, pure.name, || (pure.prepare)(pages), pure::Prepared::counted_work);
        }
    }
}

criterion_group! {
    name = benches;
    config = criterion();
    targets = pure_engine, memory::cases, threads::cases
}
criterion_main!(benches);
