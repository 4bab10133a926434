//! A panic of ours, wherever it is, lifts the cap.

use std::sync::Arc;

use zerosweep::{Gfn, Order, Policy, Session, Unmapped};

use super::{as_guest, frame, memory, verify, wait_until};
use crate::domain::LinuxHost;
use crate::{GuestMemory, Lifted, PAGE_BYTES, operation};

/// A panic of ours, wherever it is, lifts the cap: the guest keeps every byte, and nobody waits.
fn lifts_after(reason: &str, defect: impl FnOnce(&Arc<GuestMemory>)) {
    let memory = memory(Policy::Zerosweep);
    defect(&memory);
    wait_until("the cap is lifted", || memory.snapshot().lifted.is_some());
    assert_eq!(memory.snapshot().lifted.as_deref(), Some(reason));
    verify(&memory, None);
    let other = Arc::clone(&memory);
    let balloon = std::thread::spawn(move || other.inflate(Gfn::new(7), Order::PAGE));
    wait_until("the balloon goes on", || balloon.is_finished());
    assert_eq!(balloon.join().unwrap(), Err(Lifted));
}

#[test]
#[ignore = "needs userfaultfd in kernel mode"]
fn a_panic_in_an_operation_lifts_the_cap() {
    // With the superpage claimed.
    lifts_after("an operation of zerosweep's panicked: a defect", |memory| {
        let settle = |session: &mut Session<LinuxHost<'_>>| {
            session.with_claim(Gfn::new(5), |_| panic!("a defect"))
        };
        assert_eq!(operation::run(&memory.domain, settle), Err(Lifted));
    });
    // With the superpage out of the guest's reach.
    lifts_after("an operation of zerosweep's panicked: a defect of 7", |memory| {
        let unmap = || {
            let mfn = frame(memory, 512);
            let order = Order::SUPERPAGE;
            assert_eq!(memory.domain.machine.unmap_run(Gfn::new(512), mfn, order), Unmapped::Done);
            let _guard = memory.domain.lock();
            panic!("a defect of {}", 7);
        };
        assert_eq!(operation::track(&memory.domain, unmap), Err::<(), _>(Lifted));
    });
}

#[test]
#[ignore = "needs userfaultfd in kernel mode"]
fn a_panic_in_any_thread_of_ours_lifts_the_cap() {
    for thread in ["zs-faults", "zs-upkeep", "zs-prefault"] {
        lifts_after(&format!("{thread} panicked: a defect"), |memory| {
            *memory.domain.panics_in.lock().unwrap() = Some(thread);
            // Something to do for each of them. The one that panics may come before it.
            memory.domain.signals.notify_upkeep();
            memory.domain.signals.notify_prefault();
            as_guest(memory, |memory| {
                let _ = memory.inflate(Gfn::new(512), Order::SUPERPAGE);
                for page in 512..1024 {
                    memory.guest().store_word(page * PAGE_BYTES + 8, page + 1).unwrap();
                }
            });
        });
    }
}
