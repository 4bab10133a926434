//! The facts on which populate on demand rests: ranges mapped to the huge zero page and
//! write-protected (docs/hosts.md#faults).

use std::time::{Duration, Instant};

use crate::bench::{Bench, Job, read, write};
use crate::superpages::drops_tables;
use zerosweep_linux::sys::uffd::Wake;
use zerosweep_linux::{FaultKind, MoveOutcome, PAGE_BYTES, SUPERPAGE_BYTES, SUPERPAGE_PAGES};

#[test]
#[ignore = "needs userfaultfd in kernel mode: root, CAP_SYS_PTRACE or /dev/userfaultfd"]
fn reading_gives_zero_without_a_fault_or_a_frame() {
    let bench = Bench::zero_mapped();
    for page in 0..2 * SUPERPAGE_PAGES {
        if page % 37 == 0 {
            assert_eq!(read(&bench, page * PAGE_BYTES), 0);
        }
    }
    assert!(bench.is_quiet());
    let all = bench.range.all();
    assert_eq!((bench.resident(all), bench.whole(all)), (0, 0));
    assert_eq!(bench.pagemap.zero_superpages(all).unwrap(), 2);
}

#[test]
#[ignore = "needs userfaultfd in kernel mode: root, CAP_SYS_PTRACE or /dev/userfaultfd"]
fn writing_is_a_fault_that_a_moved_superpage_answers() {
    let bench = Bench::zero_mapped();
    let offset = SUPERPAGE_BYTES + 5 * PAGE_BYTES + 8;
    let writer = write(&bench, offset, 99);
    let fault = bench.next_fault();
    assert_eq!((fault.kind, fault.write), (FaultKind::WriteProtect, true));
    assert_eq!(bench.range.offset_of(fault.address.superpage()), Some(SUPERPAGE_BYTES));
    assert_eq!(fault.thread_id, writer.thread_id);
    let (to, from) =
        (bench.range.superpage(SUPERPAGE_BYTES).unwrap(), bench.slot.superpage(0).unwrap());
    // The zero page is in the way until it is discarded.
    assert_eq!(bench.move_pages(to, from), MoveOutcome::AlreadyThere);
    to.discard().unwrap();
    assert_eq!(bench.move_pages(to, from), MoveOutcome::Done);
    writer.finish();
    assert_eq!((bench.whole(to), read(&bench, offset)), (1, 99));
    assert_eq!(bench.pagemap.zero_superpages(bench.range.all()).unwrap(), 1);
    assert!(bench.is_quiet());
}

#[test]
#[ignore = "needs userfaultfd in kernel mode: root, CAP_SYS_PTRACE or /dev/userfaultfd"]
fn a_superpage_arrives_writable() {
    let bench = Bench::zero_mapped();
    let to = bench.range.superpage(0).unwrap();
    to.discard().unwrap();
    assert_eq!(bench.move_pages(to, bench.slot.superpage(0).unwrap()), MoveOutcome::Done);
    write(&bench, 0, 1).finish();
    assert!(bench.is_quiet());
}

#[test]
#[ignore = "needs userfaultfd in kernel mode: root, CAP_SYS_PTRACE or /dev/userfaultfd"]
fn a_single_in_a_zero_mapped_range_leaves_its_neighbours_protected() {
    let bench = Bench::zero_mapped();
    let (single, neighbour) = (10 * PAGE_BYTES, 11 * PAGE_BYTES);
    let slot = |page| bench.slot.page(page * PAGE_BYTES).unwrap();
    let to = bench.range.page(single).unwrap();
    slot(0).store_word(0, 4).unwrap();
    to.discard().unwrap();
    assert_eq!(bench.move_pages(to, slot(0)), MoveOutcome::Done);
    assert_eq!((read(&bench, single), bench.resident(bench.range.all())), (4, 1));
    write(&bench, single, 5).finish();
    // The neighbours read zero still, and writing there is a fault still.
    for page in [0, 9, 11, 511] {
        assert_eq!(read(&bench, page * PAGE_BYTES), 0);
    }
    assert!(bench.is_quiet());
    let writer = write(&bench, neighbour, 6);
    let fault = bench.next_fault();
    assert_eq!(fault.kind, FaultKind::WriteProtect);
    assert_eq!(bench.range.offset_of(fault.address.page()), Some(neighbour));
    let to = bench.range.page(neighbour).unwrap();
    to.discard().unwrap();
    assert_eq!(bench.move_pages(to, slot(1)), MoveOutcome::Done);
    writer.finish();
    assert_eq!((read(&bench, single), read(&bench, neighbour)), (5, 6));
    assert_eq!(bench.resident(bench.range.all()), 2);
    // The superpage beside it is as it was.
    assert_eq!(bench.pagemap.zero_superpages(bench.range.all()).unwrap(), 1);
}

#[test]
#[ignore = "needs userfaultfd in kernel mode: root, CAP_SYS_PTRACE or /dev/userfaultfd"]
fn a_discarded_superpage_comes_back_whole_and_protection_does_not() {
    let bench = Bench::zero_mapped();
    let to = bench.range.superpage(0).unwrap();
    let (single, from) = (bench.range.page(0).unwrap(), bench.slot.superpage(0).unwrap());
    single.discard().unwrap();
    let page = bench.slot.page(SUPERPAGE_BYTES).unwrap();
    assert_eq!(bench.move_pages(single, page), MoveOutcome::Done);
    // All of the range goes, its page table too where the kernel drops those.
    to.discard().unwrap();
    assert_eq!(bench.move_pages(to, from), MoveOutcome::Done);
    assert_eq!(bench.whole(to), u64::from(drops_tables()));
    // Without a page, the protection is gone: the next touch is a missing fault.
    to.discard().unwrap();
    let reader = Job::start(&bench, |bench| bench.range.all().load_word(0).unwrap());
    assert_eq!(bench.next_fault().kind, FaultKind::Missing);
    assert_eq!(bench.uffd.map_zero_pages(single, Wake::Yes), MoveOutcome::Done);
    assert_eq!(reader.finish(), 0);
}

#[test]
#[ignore = "needs userfaultfd in kernel mode: root, CAP_SYS_PTRACE or /dev/userfaultfd"]
fn closing_lets_writers_go_on_with_the_kernels_own_pages() {
    let bench = Bench::zero_mapped();
    let writer = write(&bench, SUPERPAGE_BYTES, 3);
    bench.next_fault();
    bench.uffd.unregister(bench.range.all()).unwrap();
    writer.finish();
    assert_eq!(bench.range.all().load_word(SUPERPAGE_BYTES), Ok(3));
}

/// Two writers, each at its own page of every superpage. Prints the time from a write to the
/// writer's next step; run with `--nocapture`.
#[test]
#[ignore = "needs userfaultfd in kernel mode: root, CAP_SYS_PTRACE or /dev/userfaultfd"]
fn racing_writers_get_every_superpage_whole() {
    const SUPERPAGES: u64 = 64;
    let bench = Bench::with_superpages(SUPERPAGES).map_zero();
    let scrub = |page: u64| {
        Job::start(&bench, move |bench| -> Vec<Duration> {
            let touch = |superpage| {
                let offset = superpage * SUPERPAGE_BYTES + page * PAGE_BYTES;
                let start = Instant::now();
                bench.range.all().store_word(offset, superpage + page).unwrap();
                start.elapsed()
            };
            (0..SUPERPAGES).map(touch).collect()
        })
    };
    let writers = [scrub(1), scrub(300)];
    let mut populated = [false; SUPERPAGES as usize];
    while populated.contains(&false) {
        for fault in bench.next_faults() {
            let offset = bench.range.offset_of(fault.address.superpage()).unwrap();
            let to = bench.range.superpage(offset).unwrap();
            // The other writer may have asked for the same one before it was there.
            if core::mem::replace(&mut populated[(offset / SUPERPAGE_BYTES) as usize], true) {
                bench.uffd.wake(to).unwrap();
                continue;
            }
            to.discard().unwrap();
            let from = bench.slot.superpage(offset).unwrap();
            assert_eq!(bench.move_pages(to, from), MoveOutcome::Done);
        }
    }
    let mut times: Vec<_> = writers.into_iter().flat_map(Job::finish).collect();
    times.sort_unstable();
    let median_of_faults = times[times.len() * 3 / 4];
    println!(
        "a write with a fault: median about {median_of_faults:?}, most {:?}",
        times[times.len() - 1]
    );
    assert_eq!(bench.whole(bench.range.all()), SUPERPAGES);
    for superpage in 0..SUPERPAGES {
        for page in [1, 300] {
            let offset = superpage * SUPERPAGE_BYTES + page * PAGE_BYTES;
            assert_eq!(bench.range.all().load_word(offset), Ok(superpage + page));
        }
    }
}
