//! How fast real memory is: `cargo bench -p zerosweep-linux --bench real`.
//!
//! The guest is a thread of this process; under KVM the exits come on top. It needs userfaultfd in
//! kernel mode, and says so and ends where that is not allowed.
#![expect(clippy::unwrap_used, reason = "a bench fails by panic, like a test")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, SamplingMode, criterion_group, criterion_main};
use zerosweep::{Gfn, Order, Policy};
use zerosweep_linux::{
    GuestMemory, MainLoop, OnExhaustion, Options, Parking, Region, SUPERPAGE_BYTES, SUPERPAGE_PAGES,
};

/// Superpages of the guest: 256 MiB, all within the target.
const SUPERPAGES: u64 = 128;

fn memory() -> Option<Arc<GuestMemory>> {
    let region = Region::new(SUPERPAGES * SUPERPAGE_BYTES).unwrap();
    let options = Options {
        target_bytes: SUPERPAGES * SUPERPAGE_BYTES,
        policy: Policy::Zerosweep,
        on_exhaustion: OnExhaustion::Borrow,
        parking: Parking::Lazy,
        fault_threads: Options::DEFAULT_FAULT_THREADS,
        main_loop: MainLoop::None,
    };
    match GuestMemory::new(region, &options) {
        Ok(memory) => Some(memory),
        Err(why) => {
            eprintln!("nothing is measured: {why}");
            None
        }
    }
}

fn touch(memory: &GuestMemory, superpage: u64) {
    memory.guest().store_word(superpage * SUPERPAGE_BYTES, 1).unwrap();
}

fn populate(memory: &GuestMemory) {
    (0..SUPERPAGES).for_each(|superpage| touch(memory, superpage));
}

/// All superpages go back, and what is cleared in the background has been.
fn empty(memory: &GuestMemory) {
    memory.discard(Gfn::new(0), SUPERPAGES * SUPERPAGE_PAGES).unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    while memory.snapshot().superpages_in_cache < SUPERPAGES && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn cases(criterion: &mut Criterion) {
    let Some(memory) = memory() else { return };
    let mut group = criterion.benchmark_group("real");
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    // The first time the host finds the memory.
    populate(&memory);
    group.bench_function("touch_2m", |bencher| {
        bencher.iter_custom(|runs| {
            (0..runs)
                .map(|_| {
                    empty(&memory);
                    timed(SUPERPAGES, || populate(&memory))
                })
                .sum()
        });
    });
    group.bench_function("give_back_2m", |bencher| {
        bencher.iter_custom(|runs| {
            (0..runs)
                .map(|_| {
                    populate(&memory);
                    let spent = timed(SUPERPAGES, || {
                        for superpage in 0..SUPERPAGES {
                            let first = Gfn::new(superpage * SUPERPAGE_PAGES);
                            memory.discard(first, SUPERPAGE_PAGES).unwrap();
                        }
                    });
                    empty(&memory);
                    spent
                })
                .sum()
        });
    });
    group.bench_function("retain_4k", |bencher| {
        // Half of each superpage: none of them comes free whole.
        let pages = SUPERPAGE_PAGES / 2;
        populate(&memory);
        bencher.iter_custom(|runs| {
            (0..runs)
                .map(|_| {
                    let spent = timed(pages * SUPERPAGES, || {
                        for superpage in 0..SUPERPAGES {
                            for page in (0..pages).map(|i| superpage * SUPERPAGE_PAGES + i) {
                                memory.inflate(Gfn::new(page), Order::PAGE).unwrap();
                            }
                        }
                    });
                    memory.deflate(Gfn::new(0), SUPERPAGES * SUPERPAGE_PAGES).unwrap();
                    spent
                })
                .sum()
        });
    });
    group.finish();
    memory.audit().unwrap();
    memory.stop();
}

/// The time of one operation, in a run of a number of them.
fn timed(operations: u64, work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed() / operations as u32
}

fn criterion() -> Criterion {
    let seconds = Duration::from_secs_f64;
    Criterion::default().warm_up_time(seconds(0.2)).measurement_time(seconds(1.0))
}

criterion_group! {
    name = benches;
    config = criterion();
    targets = cases
}
criterion_main!(benches);
