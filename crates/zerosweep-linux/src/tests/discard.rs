//! A discard that meets another operation, or the end of the memory.

use std::sync::mpsc::channel;

use zerosweep::{Gfn, Policy};

use super::{PAGES, as_guest, memory, verify, wait_until};
use crate::{GuestMemory, Lifted, PAGE_BYTES};

/// Discards the first three superpages while another operation has claimed the second of them. Runs
/// `meanwhile` when the first is discarded.
fn discard_around_a_claim(memory: &GuestMemory, meanwhile: impl FnOnce()) -> Result<u64, Lifted> {
    std::thread::scope(|scope| {
        let (claimed, is_claimed) = channel();
        let (release, released) = channel::<()>();
        scope.spawn(move || {
            let settled = memory.domain.session().with_claim(Gfn::new(600), |_| {
                claimed.send(()).unwrap();
                let _ = released.recv();
            });
            assert!(settled);
        });
        is_claimed.recv().unwrap();
        let discard = scope.spawn(|| memory.discard(Gfn::new(0), 3 * 512));
        wait_until("the first superpage is discarded", || {
            memory.quantities().populated <= PAGES - 512
        });
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
