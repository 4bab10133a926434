//! Holes in the source of a move, and pages that cannot go back where they came from.

use crate::bench::Bench;
use crate::pin::pin;
use zerosweep_linux::sys::uffd::{Holes, Wake};
use zerosweep_linux::{MoveOutcome, PAGE_BYTES, SUPERPAGE_PAGES};

/// A bench whose first slot is small pages with a hole at page 5.
fn with_a_hole() -> std::sync::Arc<Bench> {
    let bench = Bench::new();
    bench.watch(bench.range.all());
    let slot = bench.slot.superpage(0).unwrap();
    slot.discard().unwrap();
    slot.forbid_huge_pages().unwrap();
    slot.populate().unwrap();
    slot.part(5 * PAGE_BYTES, PAGE_BYTES).unwrap().discard().unwrap();
    bench
}

#[test]
#[ignore = "needs userfaultfd in kernel mode: root, CAP_SYS_PTRACE or /dev/userfaultfd"]
fn a_move_stops_at_a_hole_unless_it_may_skip_it() {
    let bench = with_a_hole();
    let (slot, range) = (bench.slot.superpage(0).unwrap(), bench.range.superpage(0).unwrap());
    assert_eq!(bench.move_pages(range, slot), MoveOutcome::Partial { bytes: 5 * PAGE_BYTES });
    let left = slot.bytes() - 5 * PAGE_BYTES;
    let (to, from) = (range.part(5 * PAGE_BYTES, left), slot.part(5 * PAGE_BYTES, left));
    let (to, from) = (to.unwrap(), from.unwrap());
    assert_eq!(bench.move_pages(to, from), MoveOutcome::Hole);
    assert_eq!(bench.uffd.move_pages(to, from, Holes::Skip, Wake::Yes), MoveOutcome::Done);
    assert_eq!((bench.resident(range), bench.resident(slot)), (SUPERPAGE_PAGES - 1, 0));
    // Nothing but a hole is left of the source.
    let skip = bench.uffd.move_pages(
        bench.range.superpage(2 << 20).unwrap(),
        slot,
        Holes::Skip,
        Wake::Yes,
    );
    assert!(matches!(skip, MoveOutcome::Done | MoveOutcome::Hole), "{skip:?}");
}

/// What `move_back` gives up at: a page where a hole must be, and a pinned page.
#[test]
#[ignore = "needs userfaultfd, io_uring"]
fn a_move_back_stops_at_a_page_that_came_between_and_at_a_pinned_one() {
    let bench = with_a_hole();
    let (slot, range) = (bench.slot.superpage(0).unwrap(), bench.range.superpage(0).unwrap());
    let forth = bench.uffd.move_pages(range, slot, Holes::Skip, Wake::Yes);
    assert_eq!(forth, MoveOutcome::Done);
    bench.uffd.register(slot, zerosweep_linux::sys::uffd::Watch::Protected).unwrap();
    slot.part(3 * PAGE_BYTES, PAGE_BYTES).unwrap().store_word(0, 3).unwrap();
    let _ring = pin(range.part(9 * PAGE_BYTES, PAGE_BYTES).unwrap());
    let back = |at: u64| {
        let left = slot.bytes() - at * PAGE_BYTES;
        let (home, away) = (slot.part(at * PAGE_BYTES, left), range.part(at * PAGE_BYTES, left));
        bench.uffd.move_pages(home.unwrap(), away.unwrap(), Holes::Skip, Wake::Yes)
    };
    assert_eq!(back(0), MoveOutcome::Partial { bytes: 3 * PAGE_BYTES });
    assert_eq!(back(3), MoveOutcome::AlreadyThere);
    assert_eq!(back(4), MoveOutcome::Partial { bytes: 5 * PAGE_BYTES });
    assert_eq!(back(9), MoveOutcome::Busy);
    assert_eq!(back(10), MoveOutcome::Done);
}
