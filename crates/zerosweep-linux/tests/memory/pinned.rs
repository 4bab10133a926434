//! Pinned pages are busy: an io_uring's registered buffer pins them for as long as it lives.

use std::sync::Arc;
use std::sync::mpsc::channel;

use crate::bench::{Bench, LIMIT, read};
use crate::pin::pin;
use zerosweep_linux::probe::defects::{Presence, Release, SPINS};
use zerosweep_linux::{MoveOutcome, PAGE_BYTES, SUPERPAGE_PAGES};

#[test]
#[ignore = "needs userfaultfd, io_uring"]
fn a_pinned_superpage_is_busy_and_stays() {
    let bench = Bench::new();
    let (slot, range) = (bench.slot.superpage(0).unwrap(), bench.range.superpage(0).unwrap());
    slot.store_word(0, 6).unwrap();
    bench.watch(bench.range.all());
    let ring = pin(slot.part(5 * PAGE_BYTES, PAGE_BYTES).unwrap());
    assert_eq!(bench.move_pages(range, slot), MoveOutcome::Busy);
    assert_eq!((bench.whole(slot), slot.load_word(0).unwrap()), (1, 6));
    drop(ring);
    // The pin ends some time after the ring is closed.
    let mut outcome = MoveOutcome::Busy;
    for _ in 0..500 {
        outcome = bench.move_pages(range, slot);
        if outcome != MoveOutcome::Busy {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert_eq!((outcome, bench.whole(range), read(&bench, 0)), (MoveOutcome::Done, 1, 6));
}

/// Some kernels try such a move again and again until the pin ends: see `SPINS` among the defects.
#[test]
#[ignore = "needs userfaultfd, io_uring"]
fn a_small_move_from_a_pinned_superpage_is_busy_and_loses_its_huge_mapping() {
    let bench = Bench::new();
    let slot = bench.slot.superpage(0).unwrap();
    slot.store_word(PAGE_BYTES, 6).unwrap();
    bench.watch(bench.range.all());
    let ring = pin(slot.part(5 * PAGE_BYTES, PAGE_BYTES).unwrap());
    let (sender, outcome) = channel();
    let mover = Arc::clone(&bench);
    let thread = std::thread::spawn(move || {
        let page = mover.slot.superpage(0).unwrap().part(PAGE_BYTES, PAGE_BYTES).unwrap();
        sender.send(mover.move_pages(mover.range.page(0).unwrap(), page)).unwrap();
    });
    let at_once = outcome.recv_timeout(LIMIT);
    let spins = SPINS.presence(Release::running().unwrap());
    if at_once.is_err() {
        drop(ring);
        println!("the kernel tries the move again until the page is not pinned any more: {SPINS}");
        // Such a kernel may also forget what it has moved.
        let at_last = outcome.recv_timeout(LIMIT);
        assert!(matches!(at_last, Ok(MoveOutcome::Done | MoveOutcome::AlreadyThere)));
        thread.join().unwrap();
        assert_eq!(bench.range.all().load_word(0), Ok(6));
        assert_ne!(spins, Presence::Fixed);
        return;
    }
    thread.join().unwrap();
    assert_eq!(at_once, Ok(MoveOutcome::Busy));
    assert_ne!(spins, Presence::Present, "this kernel has the fix: {SPINS}");
    assert_eq!((bench.whole(slot), bench.resident(slot)), (0, SUPERPAGE_PAGES));
    assert_eq!(slot.load_word(PAGE_BYTES).unwrap(), 6);
}

#[test]
#[ignore = "needs userfaultfd, io_uring"]
fn a_pinned_page_among_small_ones_ends_the_move_in_part() {
    let bench = Bench::new();
    bench.watch(bench.range.all());
    let slot = bench.slot.superpage(0).unwrap();
    slot.discard().unwrap();
    slot.forbid_huge_pages().unwrap();
    slot.populate().unwrap();
    let _ring = pin(slot.part(5 * PAGE_BYTES, PAGE_BYTES).unwrap());
    let outcome = bench.move_pages(bench.range.superpage(0).unwrap(), slot);
    assert_eq!(outcome, MoveOutcome::Partial { bytes: 5 * PAGE_BYTES });
    let rest = slot.part(5 * PAGE_BYTES, PAGE_BYTES).unwrap();
    let to = bench.range.page(5 * PAGE_BYTES).unwrap();
    assert_eq!(bench.move_pages(to, rest), MoveOutcome::Busy);
    assert_eq!(bench.resident(bench.range.all()), 5);
}
