//! Pages put at the wrong place by hand: no byte is lost, and none comes from a zero page.

use std::time::{Duration, Instant};

use zerosweep::{Gfn, MapError, Order, Policy, Unmapped};

use super::{MIB, PAGES, as_guest, frame, memory, pin, take_away, verify};
use crate::sys::pagemap::Categories;
use crate::{Lifted, PAGE_BYTES, operation};

#[test]
#[ignore = "needs userfaultfd, io_uring"]
fn a_move_that_cannot_be_taken_back_lifts_the_cap_and_loses_nothing() {
    let memory = memory(Policy::Zerosweep);
    let machine = &memory.domain.machine;
    take_away(&memory, 0, 100);
    let slot = machine.slot(frame(&memory, 0), Order::SUPERPAGE).unwrap();
    let ring = pin::pin(slot.part(50 * PAGE_BYTES, PAGE_BYTES).unwrap());
    let began = Instant::now();
    let left_over = operation::track(&memory.domain, || {
        let range = machine.range(Gfn::new(0), Order::SUPERPAGE).unwrap();
        machine.move_back(slot, range, 100 * PAGE_BYTES);
        // Nothing moves any more: what an unmap drops first is the guest's.
        let gfn = Gfn::new(0);
        assert_eq!(machine.unmap_run(gfn, frame(&memory, 0), Order::SUPERPAGE), Unmapped::Busy);
        assert_eq!(machine.map_superpage(gfn, frame(&memory, 0)), Err(MapError));
        machine.pagemap().resident_pages(machine.guest.all())
    });
    println!("gave up and lifted after {:?}", began.elapsed());
    assert_eq!(left_over, Ok(Ok(PAGES - 50)), "up to the pinned page all went back");
    let lifted = memory.snapshot().lifted.unwrap();
    assert_eq!(lifted, "a move of pages could neither be finished nor taken back");
    verify(&memory, None);
    assert_eq!(memory.inflate(Gfn::new(0), Order::SUPERPAGE), Err(Lifted));
    drop(ring);
    verify(&memory, None);
}

#[test]
#[ignore = "needs userfaultfd, io_uring"]
fn a_move_back_waits_until_a_page_is_unpinned() {
    let memory = memory(Policy::Zerosweep);
    let machine = &memory.domain.machine;
    take_away(&memory, 0, 100);
    let slot = machine.slot(frame(&memory, 0), Order::SUPERPAGE).unwrap();
    let ring = pin::pin(slot.part(50 * PAGE_BYTES, PAGE_BYTES).unwrap());
    let device = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(1));
        drop(ring);
    });
    let range = machine.range(Gfn::new(0), Order::SUPERPAGE).unwrap();
    let began = Instant::now();
    machine.move_back(slot, range, 100 * PAGE_BYTES);
    println!("taken back after {:?}", began.elapsed());
    device.join().unwrap();
    assert!(!machine.is_closed() && began.elapsed() >= Duration::from_secs(1));
    verify(&memory, None);
    memory.audit().unwrap();
    memory.stop();
}

#[test]
#[ignore = "needs userfaultfd in kernel mode: root, CAP_SYS_PTRACE or /dev/userfaultfd"]
fn a_lift_puts_back_what_an_operation_that_never_ends_holds() {
    // Under the historical policies a page that is given back breaks its superpage.
    let memory = memory(Policy::Xen2016);
    let machine = &memory.domain.machine;
    assert_eq!(memory.inflate(Gfn::new(1024 + 7), Order::PAGE), Ok(1));
    let running = memory.domain.lift_state.enter();
    let (whole, order) = (Gfn::new(0), Order::SUPERPAGE);
    let mfn = frame(&memory, 0);
    assert_eq!(machine.unmap_run(whole, mfn, order), Unmapped::Done);
    take_away(&memory, 512, 256);
    for page in [1024, 1024 + 511] {
        let unmapped = machine.unmap_run(Gfn::new(page), frame(&memory, page), Order::PAGE);
        assert_eq!(unmapped, Unmapped::Done);
    }
    let before = machine.whole_superpages().unwrap();
    let began = Instant::now();
    memory.lift("an operation hangs");
    println!("lifted after {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(15));
    assert_eq!(memory.snapshot().lifted.as_deref(), Some("an operation hangs"));
    assert_eq!(machine.whole_superpages(), Ok(before + 1), "the whole one came back whole");
    verify(&memory, Some(1024 + 7));
    // The operation wakes up at last, and does no harm.
    assert_eq!(machine.map_superpage(whole, mfn), Err(MapError));
    assert_eq!(machine.unmap_run(whole, mfn, order), Unmapped::Busy);
    drop(running);
    verify(&memory, Some(1024 + 7));
}

/// A fault at a hole whose page is at its slot brings the page, not zeros.
#[test]
#[ignore = "needs userfaultfd in kernel mode: root, CAP_SYS_PTRACE or /dev/userfaultfd"]
fn a_page_that_was_left_at_its_slot_is_found_there() {
    let memory = memory(Policy::Zerosweep);
    take_away(&memory, 3 * 512 + 5, 64);
    verify(&memory, None);
    assert_eq!(memory.snapshot().lifted, None);
    memory.audit().unwrap();
    memory.stop();
}

/// A process that reads the pool from outside (a debugger, a core dump) leaves zero pages in its
/// holes, huge ones where a whole superslot is empty. None of these is ever moved to the guest.
#[test]
#[ignore = "needs userfaultfd in kernel mode"]
fn a_zero_page_in_the_pool_stays_there() {
    let memory = memory(Policy::Zerosweep);
    let machine = &memory.domain.machine;
    // A superpage and a single that are dropped behind the engine's back.
    machine.range(Gfn::new(512), Order::SUPERPAGE).unwrap().discard().unwrap();
    machine.range(Gfn::new(3), Order::PAGE).unwrap().discard().unwrap();
    let pool = machine.pool_span();
    let read = (0..pool.bytes()).step_by(PAGE_BYTES as usize);
    assert_eq!(read.map(|at| pool.load_word(at).unwrap()).max(), Some(0), "nothing is at home");
    let huge_zero = Categories::HUGE.and(Categories::ZERO);
    let zero = |span, all| machine.pagemap().bytes_of(span, all, Categories::NONE).unwrap();
    println!("{} huge zero pages in the pool", zero(pool, huge_zero) >> 21);
    assert!(zero(pool, huge_zero) > 0, "the reader left none");
    memory.lift("something else failed");
    // What lies behind them was never touched, and is mapped to the zero page.
    let touched = machine.guest.span(0, PAGES * PAGE_BYTES).unwrap();
    assert_eq!(zero(touched, Categories::ZERO), 0, "a zero page was moved");
    as_guest(&memory, |memory| {
        for page in 0..PAGES {
            let dropped = page == 3 || (512..1024).contains(&page);
            let expected = if dropped { 0 } else { page + 1 };
            assert_eq!(memory.guest().load_word(page * PAGE_BYTES + 8), Ok(expected), "{page}");
        }
    });
}

/// The same while the guest goes on: what it gets is memory.
#[test]
#[ignore = "needs userfaultfd in kernel mode"]
fn a_guest_goes_on_among_zero_pages_in_the_pool() {
    let memory = memory(Policy::Zerosweep);
    let machine = &memory.domain.machine;
    for round in 0..3 {
        let pool = machine.pool_span();
        let read = (0..pool.bytes()).step_by(PAGE_BYTES as usize);
        assert!(read.map(|at| pool.load_word(at)).all(|word| word.is_ok()));
        as_guest(&memory, move |memory| {
            for page in (0..PAGES).filter(|page| page % 3 == round) {
                assert_eq!(memory.inflate(Gfn::new(page), Order::PAGE), Ok(1));
            }
            let _ = memory.set_target(8 * MIB);
            let _ = memory.set_target(16 * MIB);
            for page in (0..PAGES).filter(|page| page % 3 == round) {
                memory.guest().store_word(page * PAGE_BYTES + 8, page + 1).unwrap();
            }
        });
        verify(&memory, None);
        memory.audit().unwrap();
    }
    assert_eq!(memory.snapshot().lifted, None);
    memory.stop();
}
