//! The lift of the cap ([INV-10]): the kernel handles the range alone from then on, with every byte
//! in it. The guest goes on.
//!
//! [INV-10]: zerosweep::rules#inv-10

use std::time::{Duration, Instant};

use zerosweep::{Entry, Order, SUPERPAGE_PAGES, Superpage};

use super::ReaderWatchdog;
use crate::domain::SharedDomain;

/// How long a lift waits for operations, and as long for pages that do not move.
const WAIT_TIME: Duration = Duration::from_millis(if cfg!(test) { 50 } else { 5000 });
/// Between two looks at whether operations still run.
const PAUSE: Duration = Duration::from_micros(100);

/// Lifts the cap, once. A later call does nothing. Not to be called from within an operation.
pub(crate) fn lift(domain: &SharedDomain, reason: &str) {
    if !domain.lift_state.begin(reason) {
        return;
    }
    let machine = &domain.machine;
    let mut watchdog = ReaderWatchdog::new();
    wait_for_operations(domain, &mut watchdog);
    // Operations that are left end soon now, as nothing moves for them any more.
    machine.close();
    wait_for_operations(domain, &mut watchdog);
    let lost = put_in_place(domain);
    if lost > 0 {
        let reason = format!("{reason}; {lost} pages could not be put back and read as zero");
        domain.lift_state.set_reason(reason);
    }
    // Until here every waiting thread is still held. All of them go on now.
    let _ = machine.uffd.unregister(machine.guest.all());
    let cached: Vec<_> = domain.lock().cache().iter().collect();
    cached.into_iter().for_each(|(mfn, order)| machine.drop_memory(mfn, order));
    // Nothing comes for them any more.
    domain.signals.stop();
}

/// Waits until no operation runs, for a bounded time.
fn wait_for_operations(domain: &SharedDomain, watchdog: &mut ReaderWatchdog) {
    let deadline = Instant::now() + WAIT_TIME;
    while domain.lift_state.is_any_running() && Instant::now() < deadline {
        watchdog.poll(domain);
        std::thread::sleep(PAUSE);
    }
}

/// Moves every page to the guest that has a frame and is at its slot: what a failed check left
/// unmapped, what a move left half-way, what an operation that still runs holds. Returns how many
/// pages are lost.
fn put_in_place(domain: &SharedDomain) -> u64 {
    let until = Instant::now() + WAIT_TIME;
    let machine = &domain.machine;
    let superpages = machine.guest.bytes().div_ceil(Order::SUPERPAGE.bytes());
    let mut lost = 0;
    for superpage in (0..superpages).map(Superpage::new) {
        let whole = domain.lock().p2m().whole(superpage);
        if let Some(entry) = whole {
            if let Entry::Ram { mfn, .. } = entry {
                let (gfn, order) = (superpage.first(), Order::SUPERPAGE);
                lost += machine.put_in_place(gfn, mfn, order, until);
            }
            continue;
        }
        for gfn in (0..SUPERPAGE_PAGES).map(|index| superpage.first().offset(index)) {
            if let Some(mfn) = domain.frame_of(gfn) {
                lost += machine.put_in_place(gfn, mfn, Order::PAGE, until);
            }
        }
    }
    lost
}
