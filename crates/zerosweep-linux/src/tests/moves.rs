//! Moves that the kernel puts off, or does not count.

use std::os::fd::AsFd;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use zerosweep::{FramePool, Gfn, Mfn, Order};

use super::MIB;
use crate::machine::moves::{MOVE_TRIES, Stopped};
use crate::sys::poll::wait_one;
use crate::sys::uffd::{Holes, MoveOutcome, Wake, Watch};
use crate::{FaultBuffer, LinuxMachine, PAGE_BYTES, Pagemap, Parking, Region, Span, Uffd};

/// A machine on its own, of two superpages; the first has been moved in.
fn machine_of_two_superpages(uffd: Uffd) -> LinuxMachine {
    let (guest, pool) = (Region::new(4 * MIB).unwrap(), Region::new(8 * MIB).unwrap());
    let scratch = Region::new(LinuxMachine::SCRATCH_BYTES).unwrap();
    uffd.register(guest.all(), Watch::MissingAndProtected).unwrap();
    uffd.register(pool.all(), Watch::Protected).unwrap();
    let (pagemap, frames) = (Pagemap::open().unwrap(), FramePool::new(4).unwrap());
    let machine = LinuxMachine::new(guest, pool, scratch, uffd, pagemap, frames, Parking::Lazy);
    let (range, slot) = first_superpage(&machine);
    slot.populate().unwrap();
    slot.store_word(0, 7).unwrap();
    assert!(machine.move_all(range, slot).is_ok());
    machine
}

fn first_superpage(machine: &LinuxMachine) -> (Span<'_>, Span<'_>) {
    let range = machine.range(Gfn::new(0), Order::SUPERPAGE).unwrap();
    (range, machine.slot(Mfn::new(0), Order::SUPERPAGE).unwrap())
}

/// Drops memory elsewhere, and runs `work`; the event is read after `delay`.
fn put_off<R>(machine: &LinuxMachine, delay: Duration, work: impl FnOnce() -> R) -> R {
    std::thread::scope(|scope| {
        scope.spawn(|| machine.guest.page(2 * MIB).unwrap().discard().unwrap());
        assert_eq!(wait_one(machine.uffd.as_fd(), Some(20_000)), Ok(true), "no event");
        scope.spawn(|| {
            std::thread::sleep(delay);
            machine.uffd.read_faults(&mut FaultBuffer::new()).unwrap();
        });
        work()
    })
}

#[test]
#[ignore = "needs userfaultfd in kernel mode: root, CAP_SYS_PTRACE or /dev/userfaultfd"]
fn a_move_that_the_kernel_puts_off_is_given_up_and_a_move_back_is_not() {
    // Its kernel puts moves off (EAGAIN) from the time when memory is dropped to the time when that
    // event is read.
    let machine = machine_of_two_superpages(Uffd::open_with_remove_events());
    let (range, slot) = first_superpage(&machine);
    let delay = Duration::from_millis(500);
    let forth = put_off(&machine, delay, || {
        let outcome = machine.uffd.move_pages(slot, range, Holes::Skip, Wake::No);
        assert_eq!(outcome, MoveOutcome::Partial { bytes: 0 });
        machine.move_all(slot, range)
    });
    assert!(matches!(forth, Err(Stopped::Busy)), "given up after {MOVE_TRIES} tries");
    assert_eq!(range.load_word(0), Ok(7));
    // Of a move to the slot all was done, when it had to be taken back.
    assert!(machine.move_all(slot, range).is_ok());
    let began = Instant::now();
    put_off(&machine, delay, || machine.move_back(slot, range, range.bytes()));
    println!("taken back after {:?}", began.elapsed());
    assert!(began.elapsed() >= delay && !machine.is_closed());
    assert_eq!(range.load_word(0), Ok(7));
    // Put off for longer than it is tried.
    assert!(machine.move_all(slot, range).is_ok());
    put_off(&machine, Duration::from_secs(7), || machine.move_back(slot, range, range.bytes()));
    assert!(machine.is_closed());
    // A page alone: to put back a superpage drops memory, an event that nobody would read.
    assert_eq!(machine.put_in_place(Gfn::new(0), Mfn::new(0), Order::PAGE, began), 0);
    assert_eq!(range.load_word(0), Ok(7));
}

/// Linux 6.18 moves a page, forgets it, and says that another is in its place, when a thread that
/// moves another page of the same huge page is just splitting it.
#[test]
#[ignore = "needs userfaultfd in kernel mode: root, CAP_SYS_PTRACE or /dev/userfaultfd"]
fn a_move_that_the_kernel_forgets_is_found() {
    let machine = machine_of_two_superpages(Uffd::open().unwrap());
    let (range, slot) = first_superpage(&machine);
    let word = |page| page * PAGE_BYTES + 8;
    const RUNS: [(u64, u64); 2] = [(7, 1), (200, 90)];
    for round in 0..300 {
        range.discard().unwrap();
        slot.discard().unwrap();
        slot.populate().unwrap();
        (0..512).for_each(|page| slot.store_word(word(page), round << 32 | page).unwrap());
        let begin = Barrier::new(RUNS.len());
        std::thread::scope(|scope| {
            for (first, pages) in RUNS {
                let (machine, begin) = (&machine, &begin);
                scope.spawn(move || {
                    let (offset, bytes) = (first * PAGE_BYTES, pages * PAGE_BYTES);
                    let (to, from) = (range.part(offset, bytes), slot.part(offset, bytes));
                    begin.wait();
                    assert!(machine.move_all(to.unwrap(), from.unwrap()).is_ok());
                });
            }
        });
        for page in 0..512 {
            let moved = RUNS.iter().any(|&(first, pages)| (first..first + pages).contains(&page));
            let is_at = if moved { range } else { slot };
            assert_eq!(is_at.load_word(word(page)), Ok(round << 32 | page));
        }
    }
    println!("moves that the kernel forgot: {:?} of 600", machine.counters().forgotten);
}
