//! Frames that cannot be mapped for a while.

use std::sync::Arc;
use std::time::Duration;

use super::{MIB, as_guest, frame, pin, wait_until};
use crate::{GuestMemory, MainLoop, Options, PAGE_BYTES, Region};

/// A guest that has touched nothing, with a target of `superpages`, all of them prefaulted.
fn prefaulted(superpages: u64) -> Arc<GuestMemory> {
    let target = superpages * 2 * MIB;
    let options = Options { main_loop: MainLoop::None, ..Options::new(target) };
    let memory = GuestMemory::new(Region::new(16 * MIB).unwrap(), &options).unwrap();
    wait_until("all superslots are prefaulted", || memory.machine().prefaulted() >= superpages);
    memory
}

/// A host that is short of memory, or a page in use, for longer than some tries take.
#[test]
#[ignore = "needs userfaultfd, io_uring"]
fn a_frame_that_cannot_be_mapped_for_a_while_is_waited_for() {
    let memory = prefaulted(2);
    let machine = &memory.domain.machine;
    let cached: Vec<_> = memory.domain.lock().cache().iter().collect();
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
    wait_until("the guest goes on", || guest.is_finished());
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
    let memory = prefaulted(4);
    let machine = &memory.domain.machine;
    let (first, order) = memory.domain.lock().cache().iter().next().unwrap();
    let slot = machine.slot(first, order).unwrap();
    let ring = pin::pin(slot.part(0, PAGE_BYTES).unwrap());
    as_guest(&memory, |memory| memory.guest().store_word(0, 7).unwrap());
    assert_ne!(frame(&memory, 0), first);
    assert_eq!(memory.snapshot().lifted, None);
    drop(ring);
    memory.audit().unwrap();
    memory.stop();
}
