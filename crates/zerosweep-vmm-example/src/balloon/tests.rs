//! Queues of good and of malicious drivers, on memory with a hole and without a host.

use std::cell::RefCell;

use virtio_bindings::bindings::virtio_ring::{
    VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};
use virtio_queue::desc::{RawDescriptor, split};
use virtio_queue::mock::MockSplitQueue;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap};

use super::*;

const MIB: u64 = 1 << 20;
const LOW: u64 = 16 * MIB;
const HIGH: u64 = 4096 * MIB;
/// Where tests put page numbers.
const BUFFER: u64 = MIB;

const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;
const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

/// 16 MiB at 0 and 16 MiB at 4 GiB.
fn memory() -> GuestMemoryMmap {
    let range = |start| (GuestAddress(start), LOW as usize);
    GuestMemoryMmap::from_ranges(&[range(0), range(HIGH)]).unwrap()
}

/// Takes what is in memory, and notes it.
struct Noted<'a> {
    memory: &'a GuestMemoryMmap,
    calls: RefCell<Vec<(Role, u64, u64)>>,
}

impl<'a> Noted<'a> {
    fn new(memory: &'a GuestMemoryMmap) -> Self {
        Self { memory, calls: RefCell::default() }
    }

    fn note(&self, role: Role, start: GuestAddress, bytes: u64) -> bool {
        let is_memory = GuestMemoryBackend::check_range(self.memory, start, bytes as usize);
        if is_memory {
            self.calls.borrow_mut().push((role, start.0, bytes));
        }
        is_memory
    }
}

impl Pages for Noted<'_> {
    fn inflate(&self, page: GuestAddress) -> bool {
        self.note(Role::Inflate, page, PAGE_BYTES)
    }

    fn deflate(&self, page: GuestAddress) -> bool {
        self.note(Role::Deflate, page, PAGE_BYTES)
    }

    fn report(&self, start: GuestAddress, bytes: u64) -> bool {
        self.note(Role::Report, start, bytes)
    }
}

fn descriptor(address: u64, bytes: u32, flags: u16, next: u16) -> RawDescriptor {
    split::Descriptor::new(address, bytes, flags, next).into()
}

fn put_numbers(memory: &GuestMemoryMmap, at: u64, numbers: &[u32]) {
    for (number, at) in numbers.iter().zip((at..).step_by(4)) {
        memory.write_obj(number.to_le(), GuestAddress(at)).unwrap();
    }
}

/// What a driver's descriptors lead to: the calls, the counters, and what the used ring counts.
struct Served {
    calls: Vec<(Role, u64, u64)>,
    balloon: Balloon,
    used: u16,
    outcome: Result<bool, Error>,
}

impl Served {
    fn refused(&self) -> u64 {
        self.balloon.refused.load(Ordering::Relaxed)
    }
}

/// Serves one queue of 16 entries with these descriptors.
fn serve(role: Role, memory: &GuestMemoryMmap, descriptors: &[RawDescriptor]) -> Served {
    let ring = MockSplitQueue::new(memory, 16);
    ring.add_desc_chains(descriptors, 0).unwrap();
    let mut queue: Queue = ring.create_queue().unwrap();
    serve_queue(role, memory, &ring, &mut queue)
}

fn serve_queue(
    role: Role,
    memory: &GuestMemoryMmap,
    ring: &MockSplitQueue<'_, GuestMemoryMmap>,
    queue: &mut Queue,
) -> Served {
    let (balloon, pages) = (Balloon::default(), Noted::new(memory));
    let outcome = balloon.serve(role, queue, memory, &pages);
    let used = u16::from_le(ring.used().idx().load());
    Served { calls: pages.calls.into_inner(), balloon, used, outcome }
}

#[test]
fn pages_of_both_regions_are_given_back_and_taken_again() {
    let memory = memory();
    let numbers = [0x800, 0x801, (HIGH / PAGE_BYTES) as u32, (HIGH / PAGE_BYTES + 0xfff) as u32];
    put_numbers(&memory, BUFFER, &numbers);
    for role in [Role::Inflate, Role::Deflate] {
        let served = serve(role, &memory, &[descriptor(BUFFER, 16, 0, 0)]);
        assert!(served.outcome.unwrap());
        let expected = numbers.map(|number| (role, u64::from(number) * PAGE_BYTES, PAGE_BYTES));
        assert_eq!(served.calls, expected);
        let counts = [&served.balloon.inflated, &served.balloon.deflated];
        let counts = counts.map(|count| count.load(Ordering::Relaxed));
        assert_eq!(counts, if role == Role::Inflate { [4, 0] } else { [0, 4] });
        assert_eq!((served.used, served.balloon.refused.load(Ordering::Relaxed)), (1, 0));
    }
}

#[test]
fn an_empty_queue_is_served_at_once() {
    let served = serve(Role::Inflate, &memory(), &[]);
    assert!(!served.outcome.unwrap());
    assert_eq!((served.calls, served.used), (Vec::new(), 0));
}

#[test]
fn numbers_that_are_no_memory_are_refused_one_by_one() {
    let memory = memory();
    // The end of low memory, the hole, the end of high memory, the last number there is.
    let bad = [LOW / PAGE_BYTES, 0x8_0000, (HIGH + LOW) / PAGE_BYTES, u64::from(u32::MAX)];
    put_numbers(&memory, BUFFER, &bad.map(|number| number as u32));
    put_numbers(&memory, BUFFER + 16, &[0x900]);
    let served = serve(Role::Inflate, &memory, &[descriptor(BUFFER, 20, 0, 0)]);
    assert_eq!(served.calls, [(Role::Inflate, 0x90_0000, PAGE_BYTES)]);
    assert_eq!((served.refused(), served.used), (4, 1));
}

#[test]
fn a_chain_has_several_buffers() {
    let memory = memory();
    put_numbers(&memory, BUFFER, &(0x800..0x800 + 600).collect::<Vec<_>>());
    let chain = [descriptor(BUFFER, 8, NEXT, 1), descriptor(BUFFER + 8, 598 * 4, 0, 0)];
    let served = serve(Role::Inflate, &memory, &chain);
    let pages = (0x800..0x800 + 600).map(|number| (Role::Inflate, number << 12, PAGE_BYTES));
    assert!(served.calls.into_iter().eq(pages));
    assert_eq!(served.used, 1);
}

#[test]
fn buffers_outside_of_memory_are_refused() {
    let memory = memory();
    for (start, bytes) in [
        (LOW, 8),
        (LOW - 4, 8),
        (LOW - 2, 4),
        (u64::MAX - 3, 4),
        (u64::MAX - 7, 64 << 10),
        (0x8000_0000, 1024),
    ] {
        let served = serve(Role::Inflate, &memory, &[descriptor(start, bytes, 0, 0)]);
        assert!(served.outcome.is_ok(), "{start:#x}");
        assert_eq!((served.refused(), served.used), (1, 1), "{start:#x}");
        assert_eq!(served.calls, [], "{start:#x}");
    }
}

#[test]
fn a_chain_that_is_too_long_is_cut() {
    let memory = memory();
    // Page 0 again and again, as the buffer is all zeros.
    let served = serve(Role::Inflate, &memory, &[descriptor(BUFFER, 4 << 20, 0, 0)]);
    assert_eq!(served.calls.len(), CHAIN_BYTES as usize / 4);
    assert_eq!((served.refused(), served.used), (1, 1));

    // In several buffers, of 40 KiB each, and of 4 GiB all together.
    let part = |n: u16, flags| descriptor(BUFFER, 40 << 10, flags, n + 1);
    let chain = [part(0, NEXT), part(1, NEXT), part(2, 0)];
    let served = serve(Role::Inflate, &memory, &chain);
    assert_eq!(served.calls.len(), CHAIN_BYTES as usize / 4);
    assert_eq!((served.refused(), served.used), (2, 1));
    let huge = [descriptor(BUFFER, u32::MAX, NEXT, 1), descriptor(BUFFER, u32::MAX, 0, 0)];
    let served = serve(Role::Inflate, &memory, &huge);
    assert!(served.outcome.is_ok() && served.used == 1);
    assert_eq!(served.calls.len(), CHAIN_BYTES as usize / 4);
}

#[test]
fn a_part_of_a_number_is_refused() {
    let memory = memory();
    put_numbers(&memory, BUFFER, &[0x800, 0x801]);
    let served = serve(Role::Inflate, &memory, &[descriptor(BUFFER, 7, 0, 0)]);
    assert_eq!(served.calls, [(Role::Inflate, 0x80_0000, PAGE_BYTES)]);
    assert_eq!(served.refused(), 1);
    let served = serve(Role::Inflate, &memory, &[descriptor(BUFFER, 0, 0, 0)]);
    assert_eq!((served.calls.len(), served.refused(), served.used), (0, 0, 1));
}

#[test]
fn a_chain_that_is_a_circle_ends() {
    let memory = memory();
    put_numbers(&memory, BUFFER, &[0x800]);
    let circle = [descriptor(BUFFER, 4, NEXT, 1), descriptor(BUFFER, 4, NEXT, 0)];
    let served = serve(Role::Inflate, &memory, &circle);
    assert!(served.outcome.is_ok());
    // Not more often than the ring has entries.
    assert!((2..=16).contains(&served.calls.len()), "{}", served.calls.len());
}

#[test]
fn indirect_tables_are_read_and_do_not_nest() {
    let memory = memory();
    put_numbers(&memory, BUFFER, &[0x800, 0x801]);
    let table = 2 * MIB;
    memory.write_obj(descriptor(BUFFER, 4, NEXT, 1), GuestAddress(table)).unwrap();
    memory.write_obj(descriptor(BUFFER + 4, 4, 0, 0), GuestAddress(table + 16)).unwrap();
    let served = serve(Role::Inflate, &memory, &[descriptor(table, 32, INDIRECT, 0)]);
    assert_eq!(served.calls.len(), 2);

    // A table in a table, a table outside of memory, a table with a part of an entry.
    memory.write_obj(descriptor(table, 32, INDIRECT, 0), GuestAddress(table)).unwrap();
    for (start, bytes) in [(table, 32), (LOW, 32), (LOW - 16, 32), (table, 24), (u64::MAX - 7, 16)]
    {
        let served = serve(Role::Inflate, &memory, &[descriptor(start, bytes, INDIRECT, 0)]);
        assert!(served.outcome.is_ok(), "{start:#x}");
        assert_eq!(served.used, 1, "{start:#x}: the driver gets it back");
        assert!(served.calls.is_empty(), "{start:#x}: {:?}", served.calls);
    }
}

#[test]
fn free_pages_are_reported_in_both_regions() {
    let memory = memory();
    let chain = [
        descriptor(4 * MIB, 2 << 20, WRITE | NEXT, 1),
        descriptor(HIGH + 14 * MIB, 2 << 20, WRITE, 0),
    ];
    let served = serve(Role::Report, &memory, &chain);
    let report = |start| (Role::Report, start, 2 * MIB);
    assert_eq!(served.calls, [report(4 * MIB), report(HIGH + 14 * MIB)]);
    assert_eq!(served.balloon.reported.load(Ordering::Relaxed), 1024);
    assert_eq!((served.refused(), served.used), (0, 1));
}

#[test]
fn reports_that_are_no_pages_are_refused() {
    let memory = memory();
    for (start, bytes) in [
        (4 * MIB + 1, 4096),
        (4 * MIB, 4095),
        (4 * MIB, 0),
        (LOW - 4096, 8192),
        (LOW, 4096),
        (0x8000_0000, 4096),
        (u64::MAX - 4095, 4096),
        (!4095, !4095),
    ] {
        let served = serve(Role::Report, &memory, &[descriptor(start, bytes, WRITE, 0)]);
        assert!(served.outcome.is_ok(), "{start:#x}");
        assert_eq!((served.refused(), served.used), (1, 1), "{start:#x}");
        assert_eq!(served.calls, [], "{start:#x}");
    }
    // What the driver says it wants to be read is no report.
    let served = serve(Role::Report, &memory, &[descriptor(4 * MIB, 4096, 0, 0)]);
    assert_eq!((served.calls.len(), served.used), (0, 1));
}

#[test]
fn a_ring_that_makes_no_sense_is_an_error() {
    let memory = memory();
    // More chains than the ring has entries.
    let ring = MockSplitQueue::new(&memory, 16);
    ring.avail().idx().store(17);
    let mut queue: Queue = ring.create_queue().unwrap();
    let served = serve_queue(Role::Inflate, &memory, &ring, &mut queue);
    assert!(served.outcome.is_err());

    // A head that is no descriptor.
    ring.avail().idx().store(1);
    ring.avail().ring().ref_at(0).unwrap().store(16);
    let mut queue: Queue = ring.create_queue().unwrap();
    assert!(serve_queue(Role::Inflate, &memory, &ring, &mut queue).outcome.is_err());

    // Rings outside of memory.
    for address in [LOW, 0x8000_0000, u64::MAX - 4095] {
        let (low, high) = (Some(address as u32), Some((address >> 32) as u32));
        let mut queue: Queue = ring.create_queue().unwrap();
        queue.set_avail_ring_address(low, high);
        assert!(serve_queue(Role::Inflate, &memory, &ring, &mut queue).outcome.is_err());
        ring.avail().ring().ref_at(0).unwrap().store(0);
        let mut queue: Queue = ring.create_queue().unwrap();
        queue.set_used_ring_address(low, high);
        assert!(serve_queue(Role::Inflate, &memory, &ring, &mut queue).outcome.is_err());
    }

    // A queue that the driver has not set up.
    let mut queue = Queue::new(16).unwrap();
    assert!(serve_queue(Role::Inflate, &memory, &ring, &mut queue).outcome.is_err());
}

#[test]
fn a_kick_serves_one_ring_at_most() {
    let memory = memory();
    put_numbers(&memory, BUFFER, &[0x800]);
    let ring = MockSplitQueue::new(&memory, 4);
    let chains = [0; 4].map(|_| descriptor(BUFFER, 4, 0, 0));
    ring.add_desc_chains(&chains, 0).unwrap();
    let mut queue: Queue = ring.create_queue().unwrap();
    let served = serve_queue(Role::Inflate, &memory, &ring, &mut queue);
    assert_eq!((served.calls.len(), served.used), (4, 4));
    let served = serve_queue(Role::Inflate, &memory, &ring, &mut queue);
    assert!(!served.outcome.unwrap(), "nothing new");
}

#[test]
fn the_configuration_is_what_both_sides_wrote() {
    let balloon = Balloon::new(false);
    balloon.want(0x0102_0304);
    let mut bytes = [9; 10];
    balloon.read_config(0, &mut bytes);
    assert_eq!(bytes, [4, 3, 2, 1, 0, 0, 0, 0, 0, 0]);
    balloon.write_config(4, &7_u32.to_le_bytes());
    assert_eq!(balloon.actual(), 7);
    // No part of it, no other field, nothing behind it.
    balloon.write_config(4, &[1, 2]);
    balloon.write_config(0, &[9; 4]);
    balloon.write_config(usize::MAX, &[9; 4]);
    let mut bytes = [0; 4];
    balloon.read_config(6, &mut bytes);
    assert_eq!((balloon.actual(), balloon.wanted(), bytes), (7, 0x0102_0304, [0; 4]));
    balloon.read_config(usize::MAX, &mut bytes);
    assert_eq!(bytes, [0; 4]);
}

#[test]
fn deflate_on_oom_is_offered_when_it_is_asked_for() {
    assert_eq!(Balloon::new(false).features(), 1 << 5);
    assert_eq!(Balloon::new(true).features(), 1 << 5 | 1 << 2);
}
