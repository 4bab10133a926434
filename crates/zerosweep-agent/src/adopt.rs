//! What happens to a VMM that is told to manage memory.
//!
//! ```text
//! Inert ◄── no configuration, or a child of a fork
//! Waiting ──(MADV_DONTFORK on a range of max-mem bytes)──► Adopting ──► Managing
//!                                                              └──────► Failed: the VMM's own
//! ```
//!
//! Guest RAM is recognised by what QEMU says of it, not by how it is mapped: TCG reserves a
//! gigabyte of its own, and the VGA's memory is marked in the same way, but has another size.

use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use zerosweep::{Gfn, Order, PAGE_BYTES};
use zerosweep_linux::references;
use zerosweep_linux::{GuestMemory, Lifted, MainLoop, OnExhaustion, Options, Parking};
use zerosweep_wire::{AgentConfig, CONFIG_VARIABLE, PROTOCOL, ReturnMode};

use crate::interpose;

const INERT: u8 = 0;
const WAITING: u8 = 1;
const ADOPTING: u8 = 2;
const SETTLED: u8 = 3;

static STATE: AtomicU8 = AtomicU8::new(INERT);
/// The process that adopted: a child that forgot to exec must not clean up after its parent.
static OWNER: AtomicU32 = AtomicU32::new(0);
static CONFIG: OnceLock<AgentConfig> = OnceLock::new();
static GUEST: OnceLock<Result<Arc<GuestMemory>, String>> = OnceLock::new();

/// Who calls for the guest's balloon, in the reason of a lift.
const BALLOON: &str = "a call of the guest's balloon";

/// Cache slots that keep their host memory with `--return eager`.
const EAGER_STOCK: u64 = 16;

/// An advice of `madvise(2)` that is of interest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Advice {
    DontFork,
    DontNeed,
    WillNeed,
    Mergeable,
    /// Pages would be put behind everything.
    Populate,
    /// Only hints, which would take pages away from under us.
    Cold,
    Other,
}

impl Advice {
    pub(crate) fn new(raw: i32) -> Self {
        match raw {
            libc::MADV_DONTFORK => Self::DontFork,
            libc::MADV_DONTNEED | libc::MADV_FREE => Self::DontNeed,
            libc::MADV_WILLNEED => Self::WillNeed,
            libc::MADV_MERGEABLE => Self::Mergeable,
            libc::MADV_POPULATE_WRITE => Self::Populate,
            libc::MADV_COLD | libc::MADV_PAGEOUT => Self::Cold,
            _ => Self::Other,
        }
    }
}

/// What to do with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// The system call.
    Pass,
    /// The system call; if it succeeds, the range is guest RAM.
    PassThenAdopt,
    /// Nothing more: it is done.
    Done,
    /// It fails with this error number.
    Refuse(i32),
}

/// Whether this process has nothing to do with us. The first question of every call.
pub(crate) fn is_inert() -> bool {
    STATE.load(Ordering::Acquire) == INERT
}

/// What was configured.
pub(crate) fn config() -> Option<&'static AgentConfig> {
    CONFIG.get()
}

/// The guest's memory, or why it is not managed; `None` while the VMM has not got that far.
pub(crate) fn guest() -> Option<&'static Result<Arc<GuestMemory>, String>> {
    GUEST.get()
}

/// Reads the configuration. A process without one stays inert.
pub(crate) fn at_load() {
    let _ = catch_unwind(|| {
        let Some(text) = std::env::var_os(CONFIG_VARIABLE) else { return };
        let config = text.to_str().and_then(|text| serde_json::from_str::<AgentConfig>(text).ok());
        let Some(config) = config.filter(|config| config.protocol == PROTOCOL) else { return };
        // Nothing of ours may write to the VMM's terminal.
        std::panic::set_hook(Box::new(|_| {}));
        if CONFIG.set(config).is_ok() {
            STATE.store(WAITING, Ordering::Release);
        }
    });
}

extern "C" fn in_child() {
    STATE.store(INERT, Ordering::Release);
}

extern "C" fn at_exit() {
    if OWNER.load(Ordering::Acquire) != std::process::id() {
        return;
    }
    let _ = catch_unwind(crate::events::end);
    let _ = catch_unwind(|| {
        for path in config().into_iter().flat_map(|config| &config.unlink_at_exit) {
            let _ = std::fs::remove_file(path);
        }
    });
}

/// Decides about a `madvise` call. Never panics.
pub(crate) fn advised(start: usize, bytes: usize, advice: Advice) -> Decision {
    match STATE.load(Ordering::Acquire) {
        WAITING => {
            let wanted = config().is_some_and(|config| config.max_mem_bytes == bytes as u64);
            if wanted && advice == Advice::DontFork {
                Decision::PassThenAdopt
            } else {
                Decision::Pass
            }
        }
        SETTLED => on_guest(start, bytes, advice),
        _ => Decision::Pass,
    }
}

fn on_guest(start: usize, bytes: usize, advice: Advice) -> Decision {
    let Some(Ok(memory)) = guest() else { return Decision::Pass };
    let Some((offset, within)) = overlap(memory, start, bytes) else { return Decision::Pass };
    match advice {
        Advice::Mergeable | Advice::Cold => Decision::Done,
        Advice::WillNeed => {
            let pages = (bytes as u64).div_ceil(PAGE_BYTES);
            let _ =
                memory.guarded(BALLOON, || memory.deflate(Gfn::new(offset / PAGE_BYTES), pages));
            Decision::Done
        }
        // Not EINVAL: QEMU takes that for a kernel that lacks it, and touches every page itself.
        Advice::Populate => Decision::Refuse(libc::EPERM),
        Advice::DontFork | Advice::Other => Decision::Pass,
        // Outside it, or not in whole pages: not a balloon's doing, and the kernel's to judge.
        Advice::DontNeed if !within || offset % PAGE_BYTES != 0 => {
            memory.lift("memory around guest RAM was discarded");
            Decision::Pass
        }
        Advice::DontNeed => give_back(memory, offset, bytes as u64),
    }
}

/// Where a range lies in guest RAM: the offset of its start in bytes, and whether all of it is in.
fn overlap(memory: &GuestMemory, start: usize, bytes: usize) -> Option<(u64, bool)> {
    let guest = memory.range();
    let (first, last) = (guest.start.as_u64(), guest.end.as_u64());
    let (start, bytes) = (start as u64, bytes as u64);
    let end = start.saturating_add(bytes);
    let overlaps = start < last && end > first && bytes > 0;
    overlaps.then(|| (start.saturating_sub(first), start >= first && end <= last))
}

/// Whether guest RAM is managed, and not lifted.
pub(crate) fn is_managed() -> bool {
    matches!(guest(), Some(Ok(memory)) if !memory.is_lifted())
}

/// Whether a range is a part of managed guest RAM.
pub(crate) fn is_guest_ram(start: usize, bytes: usize) -> bool {
    matches!(guest(), Some(Ok(memory)) if overlap(memory, start, bytes).is_some())
}

/// The VMM has opened a file, or been handed one. If guest pages may be in use by it without a sign,
/// the cap is lifted before the VMM gets to it. Never panics.
pub(crate) fn opened(fd: i32) {
    lift_for(|| references::holder(fd));
}

/// Looks at all files that the VMM has open, as [`opened`] does at one.
pub(crate) fn look_at_files() {
    lift_for(references::find);
}

fn lift_for(find: impl FnOnce() -> Option<references::Holder>) {
    let Some(Ok(memory)) = guest() else { return };
    if !memory.is_lifted()
        && let Some(Some(holder)) = memory.guarded("a look at the VMM's files", find)
    {
        memory.lift(&holder.to_string());
    }
}

/// Guest RAM has been given a memory policy. Where the pool cannot have it, guest RAM does as if it
/// had none: the guest runs, on other nodes.
pub(crate) fn placed() {
    if let Some(Ok(memory)) = guest() {
        let _ = memory.guarded("a change of the memory policy", || memory.follow_placement());
    }
}

fn give_back(memory: &GuestMemory, offset: u64, bytes: u64) -> Decision {
    let gfn = Gfn::new(offset / PAGE_BYTES);
    let pages = bytes.div_ceil(PAGE_BYTES);
    let given_back = memory.guarded(BALLOON, || {
        if pages == 1 { memory.inflate(gfn, Order::PAGE) } else { memory.discard(gfn, pages) }
    });
    match given_back {
        Some(Ok(_)) => Decision::Done,
        // The cap is lifted: the kernel drops the range.
        Some(Err(Lifted)) | None => Decision::Pass,
    }
}

/// Does work of a thread of ours in the VMM. A panic in it ends the work, and lifts the cap: what
/// the thread had in its hands is nobody's any more.
pub(crate) fn guarded(who: &str, work: impl FnOnce()) {
    match guest() {
        Some(Ok(memory)) => drop(memory.guarded(who, work)),
        _ => drop(catch_unwind(AssertUnwindSafe(work))),
    }
}

/// The VMM takes addresses away. If guest RAM is among them, it is the VMM's own from now on.
pub(crate) fn gone(start: usize, bytes: usize, reason: &str) {
    if STATE.load(Ordering::Acquire) != SETTLED {
        return;
    }
    if let Some(Ok(memory)) = guest()
        && overlap(memory, start, bytes).is_some()
    {
        let _ = catch_unwind(AssertUnwindSafe(|| memory.lift(reason)));
    }
}

/// Takes guest RAM over. Whatever comes of it, the VMM goes on, and the control socket tells.
pub(crate) fn adopt(start: usize, bytes: usize) {
    let won = STATE.compare_exchange(WAITING, ADOPTING, Ordering::AcqRel, Ordering::Acquire);
    if won.is_err() {
        return;
    }
    let outcome = catch_unwind(|| take_over(start, bytes));
    let outcome = outcome.unwrap_or_else(|_| Err("the agent panicked".to_owned()));
    let _ = GUEST.set(outcome);
    STATE.store(SETTLED, Ordering::Release);
    let _ = catch_unwind(|| {
        OWNER.store(std::process::id(), Ordering::Release);
        interpose::at_fork_and_exit(in_child, at_exit);
        leave_children_alone();
        crate::control::start();
    });
}

fn take_over(start: usize, bytes: usize) -> Result<Arc<GuestMemory>, String> {
    let config = config().ok_or("the agent has no configuration")?;
    let options = Options {
        target_bytes: config.target_bytes,
        policy: config.policy.parse().map_err(|error| format!("{error}"))?,
        on_exhaustion: match config.on_exhaustion {
            zerosweep_wire::OnExhaustion::Stall => OnExhaustion::Stall,
            zerosweep_wire::OnExhaustion::Borrow => OnExhaustion::Borrow,
            zerosweep_wire::OnExhaustion::Kill => OnExhaustion::Kill,
        },
        parking: match config.return_mode {
            ReturnMode::Lazy => Parking::Lazy,
            ReturnMode::Eager => Parking::Eager(EAGER_STOCK),
        },
        fault_threads: Options::DEFAULT_FAULT_THREADS,
        main_loop: MainLoop::MainThread,
    };
    if let Some(holder) = references::find() {
        return Err(holder.to_string());
    }
    let region = interpose::region(start, bytes).map_err(|error| error.to_string())?;
    let journal = crate::events::begin(config);
    GuestMemory::recorded(region, &options, journal).map_err(|error| error.to_string())
}

/// Takes us out of the environment that children get.
fn leave_children_alone() {
    if let Ok(name) = CString::new(CONFIG_VARIABLE) {
        interpose::set_variable(&name, None);
    }
    let Some(preloads) = std::env::var_os("LD_PRELOAD") else { return };
    let others = without_us(&preloads);
    let others = CString::new(others).ok().filter(|others| !others.is_empty());
    interpose::set_variable(c"LD_PRELOAD", others.as_deref());
}

/// The list of preloaded libraries, by colons, without this one.
fn without_us(preloads: &OsStr) -> Vec<u8> {
    let is_us = |path: &[u8]| {
        let path: PathBuf = Path::new(OsStr::from_bytes(path)).into();
        path.file_name().is_some_and(|name| name == "libzerosweep_agent.so")
    };
    let split = |byte: &u8| *byte == b':' || *byte == b' ';
    let others = preloads.as_bytes().split(split).filter(|path| !path.is_empty() && !is_us(path));
    others.collect::<Vec<_>>().join(&b':')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_preload_is_taken_out() {
        let list = OsStr::new("/a/libzerosweep_agent.so:/b/libother.so /c/third.so");
        assert_eq!(without_us(list), b"/b/libother.so:/c/third.so");
        assert_eq!(without_us(OsStr::new("/x/libzerosweep_agent.so")), b"");
    }

    #[test]
    fn a_process_without_configuration_is_inert() {
        at_load();
        assert!(is_inert());
        assert_eq!(advised(4096, 4096, Advice::DontNeed), Decision::Pass);
        gone(4096, 4096, "nothing");
    }
}
