//! The VMM reads pages that have no frame ([R22]).
//!
//! [R22]: zerosweep::rules#r22

use std::sync::Arc;

use zerosweep::{Fault, FaultError, Gfn, Order, Policy, Shown};

use super::{MIB, as_guest};
use crate::{GuestMemory, MainLoop, Options, PAGE_BYTES, Region};

/// A guest of 16 MiB that may hold 12, and whose pages 0 to 511 hold their number.
fn guest(policy: Policy) -> Arc<GuestMemory> {
    let main_loop = MainLoop::None;
    let options = Options { policy, main_loop, ..Options::new(12 * MIB) };
    let memory = GuestMemory::new(Region::new(16 * MIB).unwrap(), &options).unwrap();
    write(&memory, 0..512, 1);
    memory
}

fn write(memory: &Arc<GuestMemory>, pages: std::ops::Range<u64>, factor: u64) {
    as_guest(memory, move |memory| {
        for page in pages {
            memory.guest().store_word(page * PAGE_BYTES + 16, page * factor).unwrap();
        }
    });
}

fn word(memory: &GuestMemory, page: u64) -> u64 {
    memory.guest().load_word(page * PAGE_BYTES + 16).unwrap()
}

/// Has a thread of the VMM read the superpage of `page`, and holds it up when zeros are shown that
/// are not yet protected.
fn read_while(memory: &Arc<GuestMemory>, page: u64, meanwhile: impl FnOnce()) {
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            memory.domain.machine.hold_shown.after(0);
            memory.domain.session().fault_reading(Gfn::new(page))
        });
        assert!(memory.domain.machine.hold_shown.is_reached(|| reader.is_finished()));
        meanwhile();
        memory.domain.machine.hold_shown.release();
        let (gfn, order) = (Gfn::new(page).superpage().first(), Order::SUPERPAGE);
        assert_eq!(reader.join().unwrap(), Ok(Some(Fault::Present { gfn, order })));
    });
}

#[test]
#[ignore = "needs userfaultfd in kernel mode"]
fn what_the_guest_writes_before_it_is_protected_is_kept() {
    for given_back in [false, true] {
        let memory = guest(Policy::Zerosweep);
        if given_back {
            assert_eq!(memory.inflate(Gfn::new(2048), Order::SUPERPAGE), Ok(512));
        }
        read_while(&memory, 2050, || write(&memory, 2060..2063, 5));
        let snapshot = memory.snapshot();
        assert_eq!(snapshot.quantities.populated, 515, "{given_back}");
        assert_eq!(snapshot.statistics.pages_shown, 509);
        assert!(memory.machine().resident_pages().unwrap() <= snapshot.quantities.total());
        for page in 2060..2063 {
            assert_eq!(word(&memory, page), page * 5);
            assert!(memory.domain.frame_of(Gfn::new(page)).is_some());
        }
        // The pages are ordinary ones now: written again, given back, and taken again.
        write(&memory, 2060..2063, 7);
        assert_eq!(memory.inflate(Gfn::new(2060), Order::PAGE), Ok(1));
        assert_eq!(word(&memory, 2060), 0);
        write(&memory, 2048..2100, 9);
        (2048..2100).for_each(|page| assert_eq!(word(&memory, page), page * 9));
        (0..512).for_each(|page| assert_eq!(word(&memory, page), page));
        assert_eq!(memory.snapshot().lifted, None);
        memory.audit().unwrap();
        memory.stop();
    }
}

#[test]
#[ignore = "needs userfaultfd in kernel mode"]
fn it_is_kept_beyond_the_target_where_nothing_is_left() {
    let memory = guest(Policy::Zerosweep);
    write(&memory, 0..3072, 1);
    assert_eq!(memory.snapshot().quantities.total(), 3072);
    read_while(&memory, 3500, || write(&memory, 3510..3511, 5));
    assert_eq!(word(&memory, 3510), 3510 * 5);
    (0..3072).for_each(|page| assert_eq!(word(&memory, page), page));
    let snapshot = memory.snapshot();
    assert_eq!((snapshot.quantities.populated, snapshot.statistics.borrowed), (3073, 1));
    memory.audit().unwrap();
    memory.stop();
}

/// Until something that was written has a frame, nothing drops it, and a lift keeps it.
#[test]
#[ignore = "needs userfaultfd in kernel mode"]
fn what_has_no_frame_is_not_dropped() {
    let memory = guest(Policy::Zerosweep);
    let machine = &memory.domain.machine;
    let first = Gfn::new(2048);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            machine.hold_shown.after(0);
            machine.show_zeros(first, 512)
        });
        assert!(machine.hold_shown.is_reached(|| reader.is_finished()));
        write(&memory, 2060..2061, 5);
        machine.hold_shown.release();
        assert_eq!(reader.join().unwrap(), Shown::Written);
    });
    assert!(machine.is_written(Gfn::new(2060)) && !machine.is_written(Gfn::new(2061)));
    assert_eq!(machine.show_zeros(first, 512), Shown::Unsupported);
    assert_eq!(memory.domain.session().fault(first), Err(FaultError::Map));
    assert_eq!(word(&memory, 2060), 2060 * 5);
    memory.lift("no frame could be found");
    assert_eq!(word(&memory, 2060), 2060 * 5);
    write(&memory, 2048..2100, 9);
    (2048..2100).for_each(|page| assert_eq!(word(&memory, page), page * 9));
}

#[test]
#[ignore = "needs userfaultfd in kernel mode"]
fn singles_are_kept_in_a_range_that_is_broken() {
    let memory = guest(Policy::None);
    for page in (0..512).filter(|page| page % 100 != 0) {
        assert_eq!(memory.inflate(Gfn::new(page), Order::PAGE), Ok(1));
    }
    read_while(&memory, 50, || write(&memory, 60..63, 5));
    (60..63).for_each(|page| assert_eq!(word(&memory, page), page * 5));
    (0..6).for_each(|n| assert_eq!(word(&memory, n * 100), n * 100));
    assert_eq!(word(&memory, 499), 0);
    memory.audit().unwrap();
    memory.stop();
}
