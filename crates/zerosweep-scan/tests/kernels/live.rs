#![expect(unsafe_code, reason = "scans what another thread writes, by address")]

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;

use crate::kernels;

const WORDS: usize = 2048;
/// The writer's words: a stretch in the middle, over ends of blocks.
const WRITTEN: core::ops::Range<usize> = 500..700;
const SCANS: usize = if cfg!(miri) { 2 } else { 20_000 };

/// Ends the writer when the scans end, even by panic.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// A writer plays the guest: it sets words and clears them. What is found is one of its words, or
/// the last one, which is always set.
#[test]
#[cfg_attr(miri, ignore = "a volatile read is a data race to Miri; guests are outside its world")]
fn a_scan_of_memory_that_changes_is_plausible() {
    let memory: Vec<AtomicU64> = (0..WORDS).map(|_| AtomicU64::new(0)).collect();
    memory[WORDS - 1].store(1, Relaxed);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Relaxed) {
                for word in &memory[WRITTEN] {
                    word.store(u64::MAX, Relaxed);
                    word.store(0, Relaxed);
                }
            }
        });
        let _stop = Stop(&stop);
        for kernel in kernels() {
            for _ in 0..SCANS {
                // SAFETY: all of the vector; a word is as large as its atomic.
                let found = unsafe { kernel.first_nonzero_live(memory.as_ptr().cast(), WORDS) };
                let plausible = found.is_some_and(|at| WRITTEN.contains(&at) || at == WORDS - 1);
                assert!(plausible, "{kernel}: {found:?}");
            }
        }
    });
}
