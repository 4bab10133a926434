//! A host that has no huge pages to give: the guest runs on small ones, `small_backing` says so,
//! and a move of a range that stops at a pinned page goes back to where it began.
//!
//! The setting is the whole process', so there is one test here.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]
#![expect(unsafe_code, reason = "switches huge pages off for this process")]

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use zerosweep::Policy;
use zerosweep_linux::{
    GuestMemory, MainLoop, OnExhaustion, Options, PAGE_BYTES, Parking, Progress, Region, Span,
};

mod one_guest;
#[path = "memory/pin.rs"]
mod pin;
use one_guest::{LIMIT, as_guest};

const MIB: u64 = 1 << 20;
/// Pages of the superpage that are not zero: few enough to be copied.
const LIVE: u64 = 8;

fn verify(memory: &Arc<GuestMemory>) {
    as_guest(memory, |memory| {
        for page in 0..512 {
            let expected = if page < LIVE { page + 1 } else { 0 };
            assert_eq!(memory.guest().load_word(page * PAGE_BYTES), Ok(expected), "page {page}");
        }
    });
}

#[test]
#[ignore = "needs userfaultfd, io_uring"]
fn a_guest_runs_on_small_pages_and_a_move_that_stops_goes_back() {
    let options = Options {
        target_bytes: 32 * MIB,
        policy: Policy::Zerosweep,
        on_exhaustion: OnExhaustion::Borrow,
        // Nothing is made ready before huge pages are switched off.
        parking: Parking::Eager(0),
        fault_threads: Options::DEFAULT_FAULT_THREADS,
        main_loop: MainLoop::None,
    };
    let memory = GuestMemory::new(Region::new(64 * MIB).unwrap(), &options).unwrap();
    // SAFETY: takes no pointers.
    let off = unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
    assert_eq!(off, 0, "{}", std::io::Error::last_os_error());
    as_guest(&memory, |memory| {
        for page in 0..512 {
            let value = if page < LIVE { page + 1 } else { 0 };
            memory.guest().store_word(page * PAGE_BYTES, value).unwrap();
        }
    });
    let counters = memory.machine().counters();
    assert!(counters.small_backing.load(Ordering::Relaxed) > 0);
    assert_eq!(
        (memory.machine().whole_superpages(), memory.snapshot().superpages_in_guest),
        (Ok(0), 0)
    );
    verify(&memory);
    // The first finds the range in order; the others may find singles.
    for pinned in [256, 0, 511] {
        let page = memory.guest().part(pinned * PAGE_BYTES, PAGE_BYTES).unwrap();
        let ring = pin::pin(page);
        let before = counters.busy.load(Ordering::Relaxed);
        assert_eq!(memory.sweep(0, LIMIT), Ok(Progress::Done));
        assert!(counters.busy.load(Ordering::Relaxed) > before, "page {pinned}");
        verify(&memory);
        memory.audit().unwrap();
        drop(ring);
    }
    // A pin ends some time after its ring is closed; then the same sweep succeeds.
    let end = Instant::now() + LIMIT;
    while memory.snapshot().statistics.evacuations == 0 {
        assert!(Instant::now() < end, "the range stays busy");
        assert_eq!(memory.sweep(0, LIMIT), Ok(Progress::Done));
        std::thread::sleep(Duration::from_millis(10));
    }
    verify(&memory);
    memory.audit().unwrap();
    memory.stop();
}
