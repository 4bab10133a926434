//! The facts on which whole superpages rest (docs/hosts.md#moves).

use std::os::fd::AsFd;
use std::time::Instant;

use crate::bench::{Bench, read, write};
use crate::collapse::collapse;
use zerosweep_linux::probe::experiment::{EmptyTable, RoundTrip, round_trip};
use zerosweep_linux::sys::uffd::{Holes, Wake, Watch};
use zerosweep_linux::{
    Errno, FaultKind, KernelVersion, MoveOutcome, PAGE_BYTES, SUPERPAGE_BYTES, SUPERPAGE_PAGES,
    Uffd,
};

/// Whether `MADV_DONTNEED` of an empty range drops its page table (PT_RECLAIM).
pub(crate) fn drops_tables() -> bool {
    KernelVersion::running().unwrap() >= KernelVersion::WITH_TABLE_RECLAIM
}

const WHOLE: RoundTrip = RoundTrip { whole_there: true, whole_back: true, contents_kept: true };

#[test]
#[ignore = "needs userfaultfd in kernel mode: root, CAP_SYS_PTRACE or /dev/userfaultfd"]
fn a_superpage_moves_whole_there_and_back() {
    assert_eq!(round_trip(EmptyTable::None).unwrap(), WHOLE);
}

#[test]
#[ignore = "needs userfaultfd in kernel mode: root, CAP_SYS_PTRACE or /dev/userfaultfd"]
fn an_empty_page_table_breaks_it_unless_discarded() {
    let left = round_trip(EmptyTable::Left).unwrap();
    assert!(!left.whole_there && left.contents_kept, "{left:?}");
    let discarded = round_trip(EmptyTable::Discarded).unwrap();
    match drops_tables() {
        true => assert_eq!(discarded, WHOLE),
        false => assert!(!discarded.whole_there && discarded.contents_kept, "{discarded:?}"),
    }
}

#[test]
#[ignore = "needs userfaultfd in kernel mode: root, CAP_SYS_PTRACE or /dev/userfaultfd"]
fn several_superpages_move_in_one_call() {
    let bench = Bench::new();
    bench.watch(bench.range.all());
    assert_eq!(bench.move_pages(bench.range.all(), bench.slot.all()), MoveOutcome::Done);
    assert_eq!((bench.whole(bench.range.all()), bench.resident(bench.slot.all())), (2, 0));
}

#[test]
#[ignore = "needs userfaultfd in kernel mode: root, CAP_SYS_PTRACE or /dev/userfaultfd"]
fn a_small_move_out_of_a_superpage_splits_it_and_keeps_the_rest() {
    let bench = Bench::new();
    let slot = bench.slot.superpage(0).unwrap();
    for page in 0..SUPERPAGE_PAGES {
        slot.store_word(page * PAGE_BYTES + 8, page + 1).unwrap();
    }
    let range = bench.range.superpage(0).unwrap();
    bench.watch(bench.range.all());
    let (there, page) = (PAGE_BYTES * 3, slot.part(PAGE_BYTES * 7, PAGE_BYTES).unwrap());
    let to = range.part(there, PAGE_BYTES).unwrap();
    assert_eq!(bench.move_pages(to, page), MoveOutcome::Done);
    assert_eq!((bench.whole(slot), bench.resident(slot)), (0, SUPERPAGE_PAGES - 1));
    assert_eq!(bench.resident(range), 1);
    assert_eq!(read(&bench, there + 8), 8);
    for page in (0..SUPERPAGE_PAGES).filter(|&page| page != 7) {
        assert_eq!(slot.load_word(page * PAGE_BYTES + 8).unwrap(), page + 1);
    }
}

#[test]
#[ignore = "needs userfaultfd in kernel mode: root, CAP_SYS_PTRACE or /dev/userfaultfd"]
fn moves_say_what_is_in_the_way() {
    let bench = Bench::new();
    let (slot, other) = (bench.slot.superpage(0).unwrap(), bench.slot.superpage(2 << 20).unwrap());
    let range = bench.range.superpage(0).unwrap();
    let unregistered = MoveOutcome::Failed(Errno::new(libc::EINVAL));
    assert_eq!(bench.move_pages(range, slot), unregistered);
    bench.watch(bench.range.all());
    assert_eq!(bench.move_pages(range, slot), MoveOutcome::Done);
    assert_eq!(bench.move_pages(range, other), MoveOutcome::AlreadyThere);
    let elsewhere = bench.range.superpage(SUPERPAGE_BYTES).unwrap();
    assert_eq!(bench.move_pages(elsewhere, slot), MoveOutcome::Hole);
    let skip = bench.uffd.move_pages(elsewhere, slot, Holes::Skip, Wake::Yes);
    assert_eq!(skip, MoveOutcome::Done);
    let page = other.part(0, PAGE_BYTES).unwrap();
    assert_eq!(bench.move_pages(elsewhere, page), MoveOutcome::Unequal);
    assert_eq!((bench.whole(range), bench.whole(other)), (1, 1));
}

#[test]
#[ignore = "needs userfaultfd in kernel mode: root, CAP_SYS_PTRACE or /dev/userfaultfd"]
fn a_touch_of_a_hole_is_a_missing_fault() {
    let bench = Bench::new();
    bench.watch(bench.range.all());
    let offset = SUPERPAGE_BYTES + 4096 + 16;
    let writer = write(&bench, offset, 77);
    let fault = bench.next_fault();
    assert_eq!(bench.range.offset_of(fault.address.page()), Some(offset - 16));
    assert_eq!(fault.address.get() % 4096, 16, "exact since Linux 5.18");
    assert_eq!((fault.kind, fault.write), (FaultKind::Missing, true));
    assert_eq!(fault.thread_id, writer.thread_id);
    let to = bench.range.superpage(SUPERPAGE_BYTES).unwrap();
    assert_eq!(bench.move_pages(to, bench.slot.superpage(0).unwrap()), MoveOutcome::Done);
    writer.finish();
    assert_eq!((bench.whole(to), read(&bench, offset)), (1, 77));
}

#[test]
#[ignore = "needs userfaultfd in kernel mode: root, CAP_SYS_PTRACE or /dev/userfaultfd"]
fn a_writer_waits_while_its_page_is_away_and_nothing_is_lost() {
    let bench = Bench::new();
    let (slot, range) = (bench.slot.superpage(0).unwrap(), bench.range.superpage(0).unwrap());
    bench.watch(bench.range.all());
    assert_eq!(bench.move_pages(range, slot), MoveOutcome::Done);
    bench.uffd.register(slot, Watch::Missing).unwrap();
    slot.discard().unwrap();
    assert_eq!(bench.move_pages(slot, range), MoveOutcome::Done);
    let writer = write(&bench, 64, 1);
    assert_eq!(bench.next_fault().kind, FaultKind::Missing);
    assert_eq!(slot.load_word(64).unwrap(), 0);
    range.discard().unwrap();
    assert_eq!(bench.move_pages(range, slot), MoveOutcome::Done);
    writer.finish();
    assert_eq!((read(&bench, 64), bench.whole(range)), (1, 1));
}

#[test]
#[ignore = "needs userfaultfd in kernel mode: root, CAP_SYS_PTRACE or /dev/userfaultfd"]
fn only_one_userfaultfd_watches_and_closing_it_ends_that() {
    let bench = Bench::new();
    bench.watch(bench.range.all());
    let second = Uffd::open().unwrap();
    let error = second.register(bench.range.all(), Watch::Missing).unwrap_err();
    assert!(error.is(libc::EBUSY), "{error}");
    bench.uffd.unregister(bench.range.all()).unwrap();
    second.register(bench.range.all(), Watch::Missing).unwrap();
    drop(second);
    assert_eq!(bench.range.all().load_word(0), Ok(0));
    assert!(bench.uffd.as_fd().try_clone_to_owned().is_ok());
}

/// Prints the cost of a move; run with `--nocapture`.
#[test]
#[ignore = "needs userfaultfd in kernel mode: root, CAP_SYS_PTRACE or /dev/userfaultfd"]
fn a_move_takes_microseconds() {
    const ROUNDS: u32 = 2000;
    let bench = Bench::new();
    let (slot, range) = (bench.slot.superpage(0).unwrap(), bench.range.superpage(0).unwrap());
    bench.watch(bench.range.all());
    bench.watch(bench.slot.all());
    let start = Instant::now();
    for _ in 0..ROUNDS {
        assert_eq!(bench.move_pages(range, slot), MoveOutcome::Done);
        assert_eq!(bench.move_pages(slot, range), MoveOutcome::Done);
    }
    let whole = start.elapsed() / (2 * ROUNDS);
    let start = Instant::now();
    for _ in 0..ROUNDS {
        range.discard().unwrap();
        assert!(!bench.pagemap.is_whole(range).unwrap());
    }
    let discard_and_scan = start.elapsed() / ROUNDS;
    println!("2 MiB move {whole:?}; discard of an empty range and scan {discard_and_scan:?}");
    assert_eq!(bench.whole(slot), 1);
    assert!(whole.as_micros() < 200, "a move of 2 MiB takes {whole:?}: does it copy?");
}

#[test]
#[ignore = "needs userfaultfd in kernel mode: root, CAP_SYS_PTRACE or /dev/userfaultfd"]
fn collapse_needs_every_page_to_have_a_frame() {
    let bench = Bench::new();
    let (slot, range) = (bench.slot.superpage(0).unwrap(), bench.range.superpage(0).unwrap());
    bench.watch(bench.range.all());
    let move_page = |page| {
        let offset = page * PAGE_BYTES;
        let (to, from) = (range.part(offset, PAGE_BYTES), slot.part(offset, PAGE_BYTES));
        bench.move_pages(to.unwrap(), from.unwrap())
    };
    for page in 0..SUPERPAGE_PAGES {
        slot.store_word(page * PAGE_BYTES, page + 1).unwrap();
    }
    for page in 1..SUPERPAGE_PAGES {
        assert_eq!(move_page(page), MoveOutcome::Done);
    }
    assert!(collapse(range).is_err());
    assert_eq!(move_page(0), MoveOutcome::Done);
    assert_eq!((bench.whole(range), bench.resident(range)), (0, SUPERPAGE_PAGES));
    collapse(range).unwrap();
    assert_eq!(bench.whole(range), 1);
    for page in (0..SUPERPAGE_PAGES).step_by(73) {
        assert_eq!(read(&bench, page * PAGE_BYTES), page + 1);
    }
}
