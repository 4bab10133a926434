//! Managed memory behind the traits of `vm-memory`, with a hole in the guest's addresses.
#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::sync::Arc;

use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress,
};
use zerosweep::{Gfn, Order};
use zerosweep_linux::{
    GuestMemory, GuestRam, GuestRamCollection, Options, PAGE_BYTES, Region, SpanError,
};

const MIB: u64 = 1 << 20;
/// Where the upper part is for the guest.
const HIGH: GuestAddress = GuestAddress(4096 * MIB);

/// 32 MiB, of which 24 are at 0 and 8 at 4 GiB.
fn guest() -> (Arc<GuestMemory>, GuestRamCollection) {
    let memory = GuestMemory::new(Region::new(32 * MIB).unwrap(), &Options::new(8 * MIB)).unwrap();
    let part = |start, offset, bytes| GuestRam::new(Arc::clone(&memory), start, offset, bytes);
    let low = part(GuestAddress(0), 0, 24 * MIB).unwrap();
    let high = part(HIGH, 24 * MIB, 8 * MIB).unwrap();
    (Arc::clone(&memory), GuestRamCollection::from_regions(vec![low, high]).unwrap())
}

#[test]
#[ignore = "needs userfaultfd in kernel mode"]
fn what_is_written_is_read_and_takes_frames() {
    let (memory, ram) = guest();
    assert_eq!(ram.last_addr(), HIGH.unchecked_add(8 * MIB - 1));
    let mut zeros = vec![1; 3 * PAGE_BYTES as usize];
    ram.read_slice(&mut zeros, GuestAddress(5 * MIB - 100)).unwrap();
    assert!(zeros.iter().all(|&byte| byte == 0));
    assert_eq!(memory.quantities().populated, 0, "reading takes no frame");

    let text: Vec<u8> = (0..5000_u32).map(|at| at as u8 | 1).collect();
    for at in [GuestAddress(2 * MIB - 7), HIGH, HIGH.unchecked_add(8 * MIB - 5000)] {
        ram.write_slice(&text, at).unwrap();
        let mut back = vec![0; text.len()];
        ram.read_slice(&mut back, at).unwrap();
        assert_eq!(back, text);
    }
    ram.write_obj(0x1234_5678_u32, GuestAddress(8)).unwrap();
    assert_eq!(ram.read_obj::<u32>(GuestAddress(8)).unwrap(), 0x1234_5678);
    assert_eq!(memory.quantities().populated, 4 * 512, "0, 2 MiB, 4 GiB, and the end");
    // The memory itself has no hole.
    assert_eq!(memory.guest().load_word(24 * MIB).unwrap().to_le_bytes(), text[..8]);
    memory.audit().unwrap();
    memory.stop();
}

#[test]
#[ignore = "needs userfaultfd in kernel mode"]
fn a_hole_is_no_memory() {
    let (memory, ram) = guest();
    let hole = GuestAddress(24 * MIB);
    assert!(ram.find_region(hole).is_none());
    assert!(ram.write_obj(1_u8, hole).is_err());
    // Across its border: what lies before it is written.
    assert!(ram.write_slice(&[7; 16], GuestAddress(24 * MIB - 8)).is_err());
    let region = ram.find_region(HIGH).unwrap();
    assert_eq!(region.gfn(HIGH), Some(Gfn::new(24 * 256)));
    assert_eq!(region.gfn(HIGH.unchecked_add(PAGE_BYTES + 5)), Some(Gfn::new(24 * 256 + 1)));
    assert_eq!(region.gfn(GuestAddress(0)), None);
    assert!(region.get_slice(MemoryRegionAddress(8 * MIB - 8), 9).is_err());
    assert!(region.get_slice(MemoryRegionAddress(u64::MAX), 2).is_err());
    assert!(region.get_host_address(MemoryRegionAddress(8 * MIB)).is_err());
    let start = memory.range().start;
    let host = region.get_host_address(MemoryRegionAddress(8)).unwrap();
    assert_eq!(host as u64, start.as_u64() + 24 * MIB + 8);
    memory.stop();
}

#[test]
#[ignore = "needs userfaultfd in kernel mode"]
fn a_page_that_was_given_back_is_taken_again() {
    let (memory, ram) = guest();
    let page = HIGH.unchecked_add(2 * MIB + 3 * PAGE_BYTES);
    ram.write_obj(5_u64, page).unwrap();
    let gfn = ram.find_region(page).unwrap().gfn(page).unwrap();
    assert_eq!(memory.inflate(gfn, Order::PAGE), Ok(1));
    ram.write_obj(6_u64, page).unwrap();
    assert_eq!(ram.read_obj::<u64>(page).unwrap(), 6);
    memory.audit().unwrap();
    memory.stop();
}

#[test]
#[ignore = "needs userfaultfd in kernel mode"]
fn parts_that_do_not_fit_are_refused() {
    let (memory, _) = guest();
    let part = |start, offset, bytes| {
        GuestRam::new(Arc::clone(&memory), GuestAddress(start), offset, bytes).map(|_| ())
    };
    assert!(matches!(part(0, 0, 0), Err(SpanError::Misaligned { .. })));
    assert!(matches!(part(0, 1, PAGE_BYTES), Err(SpanError::Misaligned { .. })));
    assert!(matches!(part(1, 0, PAGE_BYTES), Err(SpanError::Misaligned { .. })));
    assert!(matches!(part(0, 31 * MIB, 2 * MIB), Err(SpanError::OutOfBounds { .. })));
    assert!(matches!(
        part(0_u64.wrapping_sub(MIB), 0, 2 * MIB),
        Err(SpanError::OutOfBounds { .. })
    ));
    memory.stop();
}
