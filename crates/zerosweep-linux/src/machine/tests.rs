//! Pages put at the wrong place by hand: whatever it is that cannot go on, no byte is lost.

use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use zerosweep::{FramePool, Gfn, MapError, Mfn, Order, Policy, Unmapped};

use super::place::frame_of;
use super::{LinuxMachine, MOVE_TRIES, Stopped};
use crate::sys::uffd::{Holes, MoveOutcome, Wake, Watch};
use crate::{
    FaultBuffer, GuestMemory, Lifted, MainLoop, OnExhaustion, Options, PAGE_BYTES, Pagemap,
    Parking, Region, Span, Uffd,
};

#[path = "../../tests/one_guest/mod.rs"]
pub(super) mod one_guest;
#[path = "../../tests/memory/pin.rs"]
mod pin;

use one_guest::as_guest;

const MIB: u64 = 1 << 20;
const PAGES: u64 = 2048;

fn memory(policy: Policy) -> Arc<GuestMemory> {
    let options = Options {
        target_bytes: 16 * MIB,
        policy,
        on_exhaustion: OnExhaustion::Borrow,
        parking: Parking::Lazy,
        fault_threads: Options::DEFAULT_FAULT_THREADS,
        main_loop: MainLoop::None,
    };
    let memory = GuestMemory::new(Region::new(16 * MIB).unwrap(), &options).unwrap();
    as_guest(&memory, |memory| {
        (0..PAGES).for_each(|page| {
            memory.guest().store_word(page * PAGE_BYTES + 8, page + 1).unwrap();
        });
    });
    memory
}

/// Every page but `out` holds what the guest wrote.
fn verify(memory: &Arc<GuestMemory>, out: Option<u64>) {
    as_guest(memory, move |memory| {
        for page in (0..PAGES).filter(|&page| Some(page) != out) {
            let word = memory.guest().load_word(page * PAGE_BYTES + 8);
            assert_eq!(word, Ok(page + 1), "page {page}");
        }
    });
}

fn frame(memory: &GuestMemory, page: u64) -> Mfn {
    frame_of(memory, Gfn::new(page)).unwrap()
}

/// Moves pages of the guest to their slots, behind the engine's back.
fn take_away(memory: &GuestMemory, page: u64, pages: u64) {
    let machine = &memory.machine;
    for page in page..page + pages {
        let slot = machine.slot(frame(memory, page), Order::PAGE).unwrap();
        let at = machine.range(Gfn::new(page), Order::PAGE).unwrap();
        assert_eq!(machine.uffd.move_pages(slot, at, Holes::Stop, Wake::No), MoveOutcome::Done);
    }
}

#[test]
#[ignore = "needs userfaultfd, io_uring"]
fn a_move_that_cannot_be_taken_back_lifts_the_cap_and_loses_nothing() {
    let memory = memory(Policy::Zerosweep);
    let machine = &memory.machine;
    take_away(&memory, 0, 100);
    let slot = machine.slot(frame(&memory, 0), Order::SUPERPAGE).unwrap();
    let ring = pin::pin(slot.part(50 * PAGE_BYTES, PAGE_BYTES).unwrap());
    let began = Instant::now();
    let left_over = memory.track(|| {
        let range = machine.range(Gfn::new(0), Order::SUPERPAGE).unwrap();
        machine.move_back(slot, range, 100 * PAGE_BYTES);
        // Nothing moves any more: what an unmap drops first is the guest's.
        let gfn = Gfn::new(0);
        assert_eq!(machine.unmap_run(gfn, frame(&memory, 0), Order::SUPERPAGE), Unmapped::Busy);
        assert_eq!(machine.map_superpage(gfn, frame(&memory, 0)), Err(MapError));
        machine.pagemap.resident_pages(machine.guest.all())
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
    let machine = &memory.machine;
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
    let machine = &memory.machine;
    assert_eq!(memory.inflate(Gfn::new(1024 + 7), Order::PAGE), Ok(1));
    memory.running.fetch_add(1, Ordering::SeqCst);
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
    memory.running.fetch_sub(1, Ordering::SeqCst);
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
        std::thread::sleep(Duration::from_millis(100));
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
    println!("moves that the kernel forgot: {:?} of 600", machine.counters.forgotten);
}

/// A panic of ours, wherever it is, lifts the cap: the guest keeps every byte, and nobody waits.
fn lifts_after(reason: &str, defect: impl FnOnce(&Arc<GuestMemory>)) {
    let memory = memory(Policy::Zerosweep);
    defect(&memory);
    let end = Instant::now() + one_guest::LIMIT;
    while memory.snapshot().lifted.is_none() {
        assert!(Instant::now() < end, "it is not lifted");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(memory.snapshot().lifted.as_deref(), Some(reason));
    verify(&memory, None);
    let other = Arc::clone(&memory);
    let balloon = std::thread::spawn(move || other.inflate(Gfn::new(7), Order::PAGE));
    while !balloon.is_finished() {
        assert!(Instant::now() < end, "the balloon hangs");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(balloon.join().unwrap(), Err(Lifted));
}

#[test]
#[ignore = "needs userfaultfd in kernel mode"]
fn a_panic_in_an_operation_lifts_the_cap() {
    // With the superpage claimed.
    lifts_after("an operation of zerosweep's panicked: a defect", |memory| {
        let settle = |session: &mut zerosweep::Session<crate::memory::LinuxHost<'_>>| {
            session.settle(Gfn::new(5), |_| panic!("a defect"))
        };
        assert_eq!(memory.operate(settle), Err(Lifted));
    });
    // With the superpage out of the guest's reach.
    lifts_after("an operation of zerosweep's panicked: a defect of 7", |memory| {
        let unmap = || {
            let mfn = frame(memory, 512);
            let order = Order::SUPERPAGE;
            assert_eq!(memory.machine.unmap_run(Gfn::new(512), mfn, order), Unmapped::Done);
            let _guard = memory.lock();
            panic!("a defect of {}", 7);
        };
        assert_eq!(memory.track(unmap), Err::<(), _>(Lifted));
    });
}

#[test]
#[ignore = "needs userfaultfd in kernel mode"]
fn a_panic_in_any_thread_of_ours_lifts_the_cap() {
    for thread in ["zs-faults", "zs-upkeep", "zs-ahead"] {
        lifts_after(&format!("{thread} panicked: a defect"), |memory| {
            *memory.panics_in.lock().unwrap() = Some(thread);
            // Something to do for each of them. The one that panics may come before it.
            memory.upkeep.call();
            memory.ahead.call();
            as_guest(memory, |memory| {
                let _ = memory.inflate(Gfn::new(512), Order::SUPERPAGE);
                for page in 512..1024 {
                    memory.guest().store_word(page * PAGE_BYTES + 8, page + 1).unwrap();
                }
            });
        });
    }
}

/// Whoever reads the pool from outside (a debugger, a core dump) leaves zero pages in its holes, huge
/// ones where a whole superslot is empty. None of these is ever moved to the guest.
#[test]
#[ignore = "needs userfaultfd in kernel mode"]
fn a_zero_page_in_the_pool_stays_there() {
    use crate::sys::pagemap::Categories;
    let memory = memory(Policy::Zerosweep);
    let machine = &memory.machine;
    // A superpage and a single that are dropped behind the engine's back.
    machine.range(Gfn::new(512), Order::SUPERPAGE).unwrap().discard().unwrap();
    machine.range(Gfn::new(3), Order::PAGE).unwrap().discard().unwrap();
    let pool = machine.pool_span();
    let read = (0..pool.bytes()).step_by(PAGE_BYTES as usize);
    assert_eq!(read.map(|at| pool.load_word(at).unwrap()).max(), Some(0), "nothing is at home");
    let huge_zero = Categories::HUGE.and(Categories::ZERO);
    let zero = |span, all| machine.pagemap.bytes_of(span, all, Categories::NONE).unwrap();
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
    let machine = &memory.machine;
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

/// A guest that has touched nothing, with so many superpages as its target, all of them ready.
fn ready(superpages: u64) -> Arc<GuestMemory> {
    let target = superpages * 2 * MIB;
    let options = Options { main_loop: MainLoop::None, ..Options::new(target) };
    let memory = GuestMemory::new(Region::new(16 * MIB).unwrap(), &options).unwrap();
    let end = Instant::now() + one_guest::LIMIT;
    while memory.machine.ready() < superpages {
        assert!(Instant::now() < end, "{superpages} superslots are to be ready");
        std::thread::sleep(Duration::from_millis(1));
    }
    memory
}

/// A host that is short of memory, or a page in use, for longer than some tries take.
#[test]
#[ignore = "needs userfaultfd, io_uring"]
fn a_frame_that_cannot_be_mapped_for_a_while_is_waited_for() {
    let memory = ready(2);
    let machine = &memory.machine;
    let cached: Vec<_> = memory.lock().cache().iter().collect();
    assert_eq!(cached.len(), 2);
    let pin = |&(mfn, order)| pin::pin(machine.slot(mfn, order).unwrap().part(0, 4096).unwrap());
    let both: Vec<_> = cached.iter().map(pin).collect();
    let other = Arc::clone(&memory);
    let guest = std::thread::spawn(move || {
        other.guest().store_word(0, 7).unwrap();
        other.guest().store_word(2 * MIB, 8).unwrap();
    });
    std::thread::sleep(Duration::from_secs(2));
    assert!(!guest.is_finished());
    assert_eq!(memory.snapshot().lifted, None);
    drop(both);
    let end = Instant::now() + one_guest::LIMIT;
    while !guest.is_finished() {
        assert!(Instant::now() < end, "{:?}", memory.snapshot());
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(memory.snapshot().lifted, None);
    let words = (memory.guest().load_word(0), memory.guest().load_word(2 * MIB));
    assert_eq!(words, (Ok(7), Ok(8)));
    memory.audit().unwrap();
    memory.stop();
}

/// As the one before, of one frame: the next try takes another.
#[test]
#[ignore = "needs userfaultfd, io_uring"]
fn a_frame_that_cannot_be_mapped_holds_nobody_up_while_there_are_others() {
    let memory = ready(4);
    let machine = &memory.machine;
    let (first, order) = memory.lock().cache().iter().next().unwrap();
    let slot = machine.slot(first, order).unwrap();
    let ring = pin::pin(slot.part(0, PAGE_BYTES).unwrap());
    as_guest(&memory, |memory| memory.guest().store_word(0, 7).unwrap());
    assert_ne!(frame(&memory, 0), first);
    assert_eq!(memory.snapshot().lifted, None);
    drop(ring);
    memory.audit().unwrap();
    memory.stop();
}

/// Discards the first three superpages while another operation has claimed the second of them. Runs
/// `meanwhile` when the first is discarded.
fn discard_around_a_claim(memory: &GuestMemory, meanwhile: impl FnOnce()) -> Result<u64, Lifted> {
    std::thread::scope(|scope| {
        let (claimed, is_claimed) = channel();
        let (release, released) = channel::<()>();
        scope.spawn(move || {
            let settled = memory.session().settle(Gfn::new(600), |_| {
                claimed.send(()).unwrap();
                let _ = released.recv();
            });
            assert!(settled);
        });
        is_claimed.recv().unwrap();
        let discard = scope.spawn(|| memory.discard(Gfn::new(0), 3 * 512));
        let end = Instant::now() + one_guest::LIMIT;
        while memory.quantities().populated > PAGES - 512 {
            assert!(Instant::now() < end, "the first superpage is not discarded");
            std::thread::sleep(Duration::from_millis(1));
        }
        meanwhile();
        drop(release);
        discard.join().unwrap()
    })
}

#[test]
#[ignore = "needs userfaultfd in kernel mode"]
fn a_discard_that_waits_counts_all_that_it_discarded() {
    let memory = memory(Policy::Zerosweep);
    assert_eq!(discard_around_a_claim(&memory, || {}), Ok(3 * 512));
    memory.audit().unwrap();
    memory.stop();
}

#[test]
#[ignore = "needs userfaultfd in kernel mode"]
fn a_discard_that_waits_while_the_cap_is_lifted_says_so() {
    let memory = memory(Policy::Zerosweep);
    let discarded = discard_around_a_claim(&memory, || memory.lift("something else failed"));
    assert_eq!(discarded, Err(Lifted));
    as_guest(&memory, |memory| {
        for page in 512..PAGES {
            assert_eq!(memory.guest().load_word(page * PAGE_BYTES + 8), Ok(page + 1), "{page}");
        }
    });
}

#[test]
#[ignore = "needs userfaultfd in kernel mode"]
fn a_discard_past_the_end_changes_nothing() {
    let memory = memory(Policy::Zerosweep);
    let pages = memory.guest().bytes() / PAGE_BYTES;
    assert_eq!(memory.discard(Gfn::new(0), pages + 1), Ok(0));
    assert_eq!(memory.discard(Gfn::new(1), u64::MAX), Ok(0));
    verify(&memory, None);
    memory.stop();
}
