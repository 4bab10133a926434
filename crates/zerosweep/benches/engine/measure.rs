//! Criterion's clock, but in fractions of a nanosecond: what is timed is a long run of operations,
//! and what is reported is one of them.

use std::time::Instant;

use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{BenchmarkGroup, Criterion};

/// Nanoseconds per operation.
pub(crate) struct PerOperation;

impl Measurement for PerOperation {
    type Intermediate = Instant;
    type Value = f64;

    fn start(&self) -> Instant {
        Instant::now()
    }

    fn end(&self, start: Instant) -> f64 {
        start.elapsed().as_nanos() as f64
    }

    fn add(&self, v1: &f64, v2: &f64) -> f64 {
        v1 + v2
    }

    fn zero(&self) -> f64 {
        0.0
    }

    fn to_f64(&self, value: &f64) -> f64 {
        *value
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}

pub(crate) type Group<'a> = BenchmarkGroup<'a, PerOperation>;

/// Runs of operations are long: few of them are enough.
pub(crate) fn criterion() -> Criterion<PerOperation> {
    let criterion = Criterion::default().with_measurement(PerOperation);
    let seconds = std::time::Duration::from_secs_f64;
    criterion.sample_size(10).warm_up_time(seconds(0.2)).measurement_time(seconds(1.0))
}

/// A case whose runs are each prepared from scratch; `run` returns how many operations it did.
pub(crate) fn case<T>(
    group: &mut Group<'_>,
    name: &str,
    mut prepare: impl FnMut() -> T,
    mut run: impl FnMut(&mut T) -> u64,
) {
    figure(group, name, || {
        let mut prepared = prepare();
        let start = Instant::now();
        let operations = run(&mut prepared);
        start.elapsed().as_nanos() as f64 / operations as f64
    });
}

/// A case that measures itself.
pub(crate) fn figure(group: &mut Group<'_>, name: &str, mut nanoseconds: impl FnMut() -> f64) {
    group.sampling_mode(criterion::SamplingMode::Flat);
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|runs| (0..runs).map(|_| nanoseconds()).sum());
    });
}
