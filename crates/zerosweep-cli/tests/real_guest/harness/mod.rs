//! What every test on a real guest needs.
//!
//! | module | what |
//! | --- | --- |
//! | `guest` | starts a guest, managed or plain; whatever happens, it ends with its test |
//! | `control` | the agent's socket and QEMU's, every call with a time limit |
//!
//! `zerosweep_lab::real_guest` has what a guest says and how much memory it holds.

mod control;
mod guest;

use std::time::{Duration, Instant};

pub(crate) use control::Agent;
pub(crate) use guest::{Guest, Place, Spec, processes_of, qemu_command, stderr, stdout, wants_kvm};
use zerosweep_lab::real_guest::Line;
use zerosweep_linux::KernelVersion;
use zerosweep_wire::Superpages;

/// What the guest is told that it has: `-m 2048`.
pub(crate) const GUEST_BYTES: u64 = 2 << 30;
pub(crate) const MEBIBYTE: u64 = 1 << 20;
pub(crate) const PAGE_BYTES: u64 = 4096;
/// The balloon may miss its target by this number of pages.
pub(crate) const FEW_PAGES: u64 = 16;
/// The most that a guest may hold, in targets: the cgroup's account is not exact.
pub(crate) const TOLERANCE: f64 = 1.02;

/// The longest time for a step of a guest's life. On an idle machine a step takes some seconds.
/// While three other guests used every core, a boot took 46.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);
/// The longest time that a process takes to end.
pub(crate) const ENDING: Duration = Duration::from_secs(30);

/// Waits until `done` gives something, or fails the test.
#[track_caller]
pub(crate) fn wait_until<T>(what: &str, limit: Duration, mut done: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(result) = done() {
            return result;
        }
        assert!(Instant::now() < deadline, "waited {limit:?} in vain until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Whether the kernel counts as many superpages as the engine. One that keeps empty page tables has
/// a few of the engine's superpages in pieces.
pub(crate) fn kernel_agrees(superpages: &Superpages) -> bool {
    let (engine, kernel) = (superpages.in_guest, superpages.in_guest_by_kernel);
    let keeps_tables = KernelVersion::running() < Some(KernelVersion::WITH_TABLE_RECLAIM);
    let few = if keeps_tables { engine / 20 } else { 0 };
    kernel.is_some_and(|kernel| kernel <= engine && engine <= kernel + few)
}

/// The value of `KEY=NUMBER` in a marker.
#[track_caller]
pub(crate) fn value(line: &Line, key: &str) -> f64 {
    line.value(key).unwrap_or_else(|| panic!("no {key}=NUMBER in {:?}", line.text))
}

/// Bytes in MiB, for people.
pub(crate) fn mib(bytes: u64) -> f64 {
    bytes as f64 / MEBIBYTE as f64
}

/// The middle of some figures.
pub(crate) fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    let half = figures.len() / 2;
    match figures.len() % 2 {
        0 => f64::midpoint(figures[half - 1], figures[half]),
        _ => figures[half],
    }
}
