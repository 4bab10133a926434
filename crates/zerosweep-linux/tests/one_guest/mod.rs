//! What tests with a guest of one thread at a time share.

use std::sync::Arc;
use std::time::{Duration, Instant};

use zerosweep_linux::GuestMemory;

/// What takes longer hangs, on a busy machine too.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

/// A thread of the guest's: one that hangs fails the test.
pub(crate) fn as_guest(
    memory: &Arc<GuestMemory>,
    work: impl FnOnce(&GuestMemory) + Send + 'static,
) {
    let memory = Arc::clone(memory);
    let thread = std::thread::spawn(move || work(&memory));
    let end = Instant::now() + LIMIT;
    while !thread.is_finished() {
        assert!(Instant::now() < end, "the guest hangs");
        std::thread::sleep(Duration::from_millis(1));
    }
    thread.join().unwrap();
}
