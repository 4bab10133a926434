//! How fast each kernel that this CPU can run is, on memory in and out of its caches.
//!
//! `cargo bench -p zerosweep-scan` takes two minutes and 1 GiB of memory.
#![expect(unsafe_code, reason = "maps memory, and scans and clears it by address")]
#![expect(clippy::unwrap_used, reason = "a bench fails by panic, like a test")]

use core::ffi::c_void;
use core::hint::black_box;
use core::ptr;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use zerosweep_scan::Kernel;

const PAGE_BYTES: usize = 4096;
const SUPERPAGE_BYTES: usize = 2 << 20;
/// Together far larger than what a core keeps of the last-level cache.
const SUPERPAGES: usize = 512;
/// One more, for the alignment.
const MAPPED_BYTES: usize = (SUPERPAGES + 1) * SUPERPAGE_BYTES;
/// Odd, so that it visits every run of a power of two of them.
const STRIDE: usize = 104_729;

/// Zeroed superpages, mapped as such where the host has them.
struct Arena {
    mapping: *mut c_void,
    first: *mut u64,
}

impl Arena {
    fn new() -> Self {
        let bytes = SUPERPAGES * SUPERPAGE_BYTES;
        let flags = MapFlags::PRIVATE;
        let rights = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, nothing is replaced. All that is advised and written is in it.
        unsafe {
            let mapping = mmap_anonymous(ptr::null_mut(), MAPPED_BYTES, rights, flags).unwrap();
            let start = mapping.byte_add(mapping.align_offset(SUPERPAGE_BYTES));
            // Without huge pages the figures are lower, and still figures.
            let _ = madvise(start, bytes, Advice::LinuxHugepage);
            start.write_bytes(1, bytes);
            start.write_bytes(0, bytes);
            Self { mapping, first: start.cast() }
        }
    }

    /// All runs of `bytes`, again and again, each far from the one before it.
    fn cold(&self, bytes: usize) -> impl Iterator<Item = *mut u64> {
        let runs = SUPERPAGES * SUPERPAGE_BYTES / bytes;
        let indexes = (0..runs).cycle().map(move |turn| turn * STRIDE % runs);
        indexes.map(move |index| self.first.wrapping_byte_add(index * bytes))
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: this mapping, to which no reference is left.
        unsafe { munmap(self.mapping, MAPPED_BYTES) }.unwrap();
    }
}

const SIZES: [(&str, usize); 2] = [("4k", PAGE_BYTES), ("2m", SUPERPAGE_BYTES)];

fn scans(criterion: &mut Criterion) {
    let arena = Arena::new();
    for (size, bytes) in SIZES {
        let mut group = criterion.benchmark_group(format!("hot_{size}"));
        group.throughput(Throughput::Bytes(bytes as u64));
        for kernel in Kernel::available() {
            group.bench_function(kernel.name(), |bencher| {
                // SAFETY: the start of the arena, which nobody writes.
                bencher.iter(|| unsafe { scan(kernel, arena.first, bytes) });
            });
        }
    }
    for (size, bytes) in SIZES {
        let mut group = criterion.benchmark_group(format!("cold_{size}"));
        group.throughput(Throughput::Bytes(bytes as u64));
        for kernel in Kernel::available() {
            let mut cold = arena.cold(bytes);
            group.bench_function(kernel.name(), |bencher| {
                // SAFETY: a run of the arena, which nobody writes.
                bencher.iter(|| unsafe { scan(kernel, cold.next().unwrap(), bytes) });
            });
        }
    }
}

/// The cheap no: the first word of every page is not zero.
fn dirty(criterion: &mut Criterion) {
    let arena = Arena::new();
    for page in arena.cold(PAGE_BYTES).take(SUPERPAGES * SUPERPAGE_BYTES / PAGE_BYTES) {
        // SAFETY: a page of the arena, to which there are no references.
        unsafe { page.write(1) };
    }
    let mut group = criterion.benchmark_group("cold_dirty_4k");
    for kernel in Kernel::available() {
        let mut cold = arena.cold(PAGE_BYTES);
        group.bench_function(kernel.name(), |bencher| {
            // SAFETY: a page of the arena, which nobody writes any more.
            bencher.iter(|| unsafe { scan(kernel, cold.next().unwrap(), PAGE_BYTES) });
        });
    }
}

/// Clearing a superpage, for scale.
fn clears(criterion: &mut Criterion) {
    let arena = Arena::new();
    let mut group = criterion.benchmark_group("clear_2m");
    group.throughput(Throughput::Bytes(SUPERPAGE_BYTES as u64));
    group.bench_function("hot", |bencher| {
        // SAFETY: the first superpage of the arena, to which there are no references.
        bencher.iter(|| unsafe { black_box(arena.first).write_bytes(0, SUPERPAGE_BYTES / 8) });
    });
    let mut cold = arena.cold(SUPERPAGE_BYTES);
    group.bench_function("cold", |bencher| {
        // SAFETY: a superpage of the arena, to which there are no references.
        bencher.iter(|| unsafe { cold.next().unwrap().write_bytes(0, SUPERPAGE_BYTES / 8) });
    });
}

/// # Safety
/// `bytes` from `start`, whole words, can be read.
unsafe fn scan(kernel: Kernel, start: *const u64, bytes: usize) -> Option<usize> {
    // SAFETY: as the caller vouches.
    unsafe { kernel.first_nonzero_live(black_box(start), bytes / size_of::<u64>()) }
}

criterion_group!(benches, scans, dirty, clears);
criterion_main!(benches);
