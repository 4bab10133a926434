//! The threads that serve a guest's memory, and what becomes of a panic in one ([INV-10]).
//!
//! A thread that panics may leave a range claimed, and whoever touches that range would wait for
//! ever. So no thread of ours works outside of a guard: a panic lifts the cap, which answers every
//! fault, and the guest goes on.
//!
//! [INV-10]: zerosweep::rules#inv-10

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::memory::GuestMemory;
use crate::sys::raw;

/// Starts a thread for `memory` that has signals blocked and is guarded from its first step.
pub(crate) fn spawn(
    memory: &Arc<GuestMemory>,
    name: &'static str,
    work: impl FnOnce(&GuestMemory) + Send + 'static,
) -> std::io::Result<()> {
    let memory = Arc::clone(memory);
    let guarded = move || {
        memory.guarded(name, || {
            raw::block_signals();
            work(&memory);
        });
    };
    std::thread::Builder::new().name(name.into()).spawn(guarded).map(|_| ())
}

/// Does `work`; the message if it panics.
pub(crate) fn catch<R>(work: impl FnOnce() -> R) -> Result<R, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| message(&*payload))
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}
