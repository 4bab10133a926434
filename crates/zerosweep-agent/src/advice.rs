//! What the VMM's calls on memory do to guest RAM: `madvise`, and what takes its addresses away.
//!
//! | advice | on guest RAM |
//! | --- | --- |
//! | `DONTNEED`, `FREE` of one page | the balloon inflates: the page is given back |
//! | `DONTNEED`, `FREE` of a range | a free page report: the content is given up |
//! | `WILLNEED` | the balloon deflates |
//! | `MERGEABLE`, `COLD`, `PAGEOUT` | nothing |
//! | `POPULATE_WRITE` | refused |
//!
//! Nothing here panics.

use std::panic::{AssertUnwindSafe, catch_unwind};

use zerosweep::{Gfn, Order, PAGE_BYTES};
use zerosweep_linux::{GuestMemory, Lifted};

use crate::state::{self, Phase, overlap};

/// Who calls for the guest's balloon, in the reason of a lift.
const BALLOON: &str = "a call of the guest's balloon";

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

/// Decides about a `madvise` call.
pub(crate) fn on_madvise(start: usize, bytes: usize, advice: Advice) -> Decision {
    match state::phase() {
        Phase::Waiting => {
            let wanted = state::config().is_some_and(|config| config.max_mem_bytes == bytes as u64);
            if wanted && advice == Advice::DontFork {
                Decision::PassThenAdopt
            } else {
                Decision::Pass
            }
        }
        Phase::Settled => on_guest(start, bytes, advice),
        Phase::Inert | Phase::Adopting => Decision::Pass,
    }
}

fn on_guest(start: usize, bytes: usize, advice: Advice) -> Decision {
    let Some(Ok(memory)) = state::guest() else { return Decision::Pass };
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

/// Gives pages back. This is the balloon's hot path: QEMU makes one call a page.
///
/// The length of the range tells a balloon from a free page report, for the call itself does not
/// say. QEMU's balloon device discards every page that the guest's driver hands over in a call of
/// its own. Such a page leaves the guest until the balloon deflates. A report covers a free block
/// of the guest's allocator, which Linux reports in blocks of 2 MiB or more. The guest keeps those
/// pages and may touch them at any time, so only their content is given up.
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

/// The VMM takes addresses away. If guest RAM is among them, it is the VMM's own from now on.
pub(crate) fn on_unmap(start: usize, bytes: usize, reason: &str) {
    if state::phase() != Phase::Settled {
        return;
    }
    if let Some(Ok(memory)) = state::guest()
        && overlap(memory, start, bytes).is_some()
    {
        let _ = catch_unwind(AssertUnwindSafe(|| memory.lift(reason)));
    }
}

/// Guest RAM has been given a memory policy. Where the pool cannot have it, guest RAM does as if it
/// had none: the guest runs, on other nodes.
pub(crate) fn on_mbind() {
    if let Some(Ok(memory)) = state::guest() {
        let _ = memory.guarded("a change of the memory policy", || memory.follow_placement());
    }
}
