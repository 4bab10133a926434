//! A watch that ends lets every thread go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use zerosweep_linux::sys::uffd::Watch;
use zerosweep_linux::{PAGE_BYTES, Region, SUPERPAGE_BYTES, SUPERPAGE_PAGES, Uffd};

const ROUNDS: u64 = 2000;
const LIMIT: Duration = Duration::from_secs(10);

/// Linux 6.18 wakes the threads that wait, and stops the watch after that. A thread may fault in
/// between.
#[test]
#[ignore = "needs userfaultfd in kernel mode"]
fn no_thread_waits_after_an_unregister() {
    let (uffd, region) = (Uffd::open().unwrap(), Region::new(SUPERPAGE_BYTES).unwrap());
    region.all().forbid_huge_pages().unwrap();
    let shared = Arc::new((region, AtomicU64::new(0), AtomicU64::new(0)));
    let other = Arc::clone(&shared);
    // Not joined when it hangs.
    std::thread::spawn(move || {
        let (region, round, done) = &*other;
        for number in 1..=ROUNDS {
            while round.load(Ordering::Acquire) < number {
                std::thread::yield_now();
            }
            let page = number % SUPERPAGE_PAGES;
            region.all().store_word(page * PAGE_BYTES, number).unwrap();
            done.store(number, Ordering::Release);
        }
    });
    let (region, round, done) = &*shared;
    for number in 1..=ROUNDS {
        region.all().discard().unwrap();
        uffd.register(region.all(), Watch::Missing).unwrap();
        round.store(number, Ordering::Release);
        (0..number % 64).for_each(|_| std::hint::spin_loop());
        uffd.unregister(region.all()).unwrap();
        let end = Instant::now() + LIMIT;
        while done.load(Ordering::Acquire) < number {
            assert!(Instant::now() < end, "round {number}: a thread still waits");
            std::thread::yield_now();
        }
    }
}
