//! Pages that are not where the engine thinks they are.
//!
//! Three things lead there: a move that stopped half-way and cannot be taken back (a page of it was
//! pinned meanwhile), a hole that someone made behind our back, and an operation that is still at
//! work when the cap is lifted. The rules:
//!
//! - A machine that could not take back a move is *closed*: nothing moves and nothing is cleared or
//!   dropped any more, whatever is asked, and whoever called lifts the cap. An operation that still
//!   runs then finds its maps refused, and what it gives up keeps its content.
//! - Before a hole is taken for zeros, its page is looked for at its slot.
//! - Whoever reads the guest's memory says so in [`Readers`]: a thread that never reads it
//!   ([`Rescue`]) fills the hole that a reader waits at. Nobody else may be able to: the reader has
//!   the superpage in transit, and every fault thread may be reading.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use zerosweep::{Gfn, Mfn, Order};

use super::{Failed, LinuxMachine};
use crate::addr::PAGE_BYTES;
use crate::memory::GuestMemory;
use crate::sys::pagemap::Categories;
use crate::sys::region::Span;
use crate::sys::uffd::{MoveOutcome, Wake};

/// How long a move is tried to be taken back.
const BACK: Duration = Duration::from_secs(5);
/// Between two tries of it.
const PAUSE: Duration = Duration::from_millis(1);
/// A reader that is at the same page for so long waits at a hole.
const WAITS: Duration = Duration::from_secs(1);

/// Lets begin what moves or destroys content, until it is closed, and knows how much is under way.
/// Copies are made at any time: they destroy nothing, and whoever makes one counts on it.
#[derive(Default)]
pub(super) struct Gate {
    closed: AtomicBool,
    moving: AtomicU32,
}

/// A move under way.
pub(super) struct Moving<'a>(&'a Gate);

impl Drop for Moving<'_> {
    fn drop(&mut self) {
        self.0.moving.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Most threads that read the guest's memory at the same time; others wait for them.
const READERS: usize = 64;
const FREE: u64 = 0;
const IDLE: u64 = 1;
/// A gfn is being read; shifted behind it.
const READING: u64 = 2;
/// As [`READING`], and its superpage is being mended: the reader may not go on.
const RESCUED: u64 = 3;
const STATE_BITS: u32 = 2;

/// Who reads the guest's memory, and where.
pub(super) struct Readers([AtomicU64; READERS]);

impl Readers {
    pub(super) const fn new() -> Self {
        Self([const { AtomicU64::new(FREE) }; READERS])
    }

    /// A place for one thread.
    pub(super) fn join(&self) -> usize {
        loop {
            let take = |place: &AtomicU64| {
                place.compare_exchange(FREE, IDLE, Ordering::AcqRel, Ordering::Relaxed).is_ok()
            };
            if let Some(index) = self.0.iter().position(take) {
                return index;
            }
            std::thread::yield_now();
        }
    }

    pub(super) fn leave(&self, index: usize) {
        self.0[index].store(FREE, Ordering::Release);
    }

    /// Reads at `gfn`, whose superpage the caller has claimed.
    pub(super) fn read<R>(&self, index: usize, gfn: Gfn, work: impl FnOnce() -> R) -> R {
        let place = &self.0[index];
        let reading = gfn.raw() << STATE_BITS | READING;
        place.store(reading, Ordering::Release);
        let result = work();
        while place.compare_exchange(reading, IDLE, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            std::thread::yield_now();
        }
        result
    }
}

/// Finds readers that wait at a hole. For a thread that never reads the guest's memory.
pub(crate) struct Rescue {
    seen: [u64; READERS],
    looked: Instant,
}

impl Rescue {
    pub(crate) fn new() -> Self {
        Self { seen: [FREE; READERS], looked: Instant::now() }
    }

    /// Looks, at most once a second. A reader that is only slow is none the worse for it.
    pub(crate) fn look(&mut self, memory: &GuestMemory) {
        if self.looked.elapsed() < WAITS {
            return;
        }
        self.looked = Instant::now();
        for (place, seen) in memory.machine.readers.0.iter().zip(&mut self.seen) {
            let now = place.load(Ordering::Acquire);
            let waits = now & RESCUED == READING && now == *seen;
            *seen = now;
            let rescued = now | RESCUED;
            let order = Ordering::AcqRel;
            if waits && place.compare_exchange(now, rescued, order, Ordering::Relaxed).is_ok() {
                mend(memory, Gfn::new(now >> STATE_BITS));
                // Unless it has left: it panicked.
                let _ = place.compare_exchange(rescued, now, order, Ordering::Relaxed);
            }
        }
    }
}

/// Fills the holes of a superpage that a waiting reader has claimed.
fn mend(memory: &GuestMemory, gfn: Gfn) {
    let first = gfn.align_down(Order::SUPERPAGE);
    let whole = memory.lock().p2m().whole(gfn.superpage()).is_some();
    // Of singles the reader may have unmapped others: they are in its hands.
    let (from, count) = if whole { (first, 512) } else { (gfn, 1) };
    for page in (0..count).map(|index| from.offset(index)) {
        let frame = frame_of(memory, page);
        if let Some(mfn) = frame {
            memory.machine.fill_hole(page, mfn);
        }
    }
    if let Ok(range) = memory.machine.range(first, Order::SUPERPAGE) {
        let _ = memory.machine.uffd.wake(range);
    }
}

/// The frame of a page, pages included that are out and keep theirs.
pub(crate) fn frame_of(memory: &GuestMemory, gfn: Gfn) -> Option<Mfn> {
    memory.lock().p2m().frame(gfn)
}

impl LinuxMachine {
    /// No move begins any more; waits for those that are under way, which are bounded.
    pub(crate) fn close(&self) {
        self.gate.closed.store(true, Ordering::SeqCst);
        while self.gate.moving.load(Ordering::SeqCst) > 0 {
            std::thread::sleep(PAUSE);
        }
    }

    /// Whether a move could not be taken back, or the cap is being lifted.
    pub(crate) fn is_closed(&self) -> bool {
        self.gate.closed.load(Ordering::SeqCst)
    }

    pub(super) fn moving(&self) -> Option<Moving<'_>> {
        self.gate.moving.fetch_add(1, Ordering::SeqCst);
        let moving = Moving(&self.gate);
        (!self.is_closed()).then_some(moving)
    }

    /// Takes back the first `done` bytes of a move that cannot go on. If a page cannot go back,
    /// the machine is closed: [`GuestMemory::lift`] puts it in place.
    pub(super) fn move_back(&self, to: Span<'_>, from: Span<'_>, done: u64) {
        let (Ok(home), Ok(away)) = (from.part(0, done), to.part(0, done)) else { return };
        let mut back = 0;
        let mut since = Instant::now();
        while back < done && since.elapsed() < BACK && !self.is_closed() {
            match self.move_some(home, away, back) {
                Ok(0) => std::thread::sleep(PAUSE),
                Ok(bytes) => {
                    back += bytes;
                    since = Instant::now();
                }
                Err(Failed::ForGood) => break,
                Err(Failed::ForNow) => std::thread::sleep(PAUSE),
            }
        }
        if back < done {
            self.gate.closed.store(true, Ordering::SeqCst);
        }
    }

    /// Whether something stands at a page: a frame, one in swap, the zero page if `zero`. True if
    /// the kernel does not say: what stands there must not be lost.
    pub(super) fn stands(&self, page: Span<'_>, zero: bool) -> bool {
        let none = if zero { Categories::NONE } else { Categories::ZERO };
        let bytes = |all, none| self.pagemap.bytes_of(page, all, none).unwrap_or(u64::MAX);
        bytes(Categories::PRESENT, none) > 0 || bytes(Categories::SWAPPED, Categories::NONE) > 0
    }

    /// The guest touched a hole at a page that has a frame, in a superpage that the caller has
    /// claimed: its page is at its slot, or it is zero. Changes nothing if it is there after all.
    pub(crate) fn fill_hole(&self, gfn: Gfn, mfn: Mfn) {
        let Some(_moving) = self.moving() else { return };
        let (Ok(page), Ok(slot)) = (self.range(gfn, Order::PAGE), self.slot(mfn, Order::PAGE))
        else {
            return;
        };
        if self.stands(page, true) {
            return;
        }
        let _ = self.slots.break_up(mfn.raw() / 512);
        if self.stands(slot, false) {
            // If it does not move now, the guest asks again.
            let _ = self.move_pages(page, slot);
        } else {
            let _ = self.uffd.map_zero_pages(page, Wake::No);
        }
    }

    /// Moves what is at the slots of a run to the guest's addresses, where nothing stands there.
    /// Pages that cannot move by `until` are copied. Returns how many pages are lost all the same:
    /// the host had no memory for a copy. For a machine that is closed.
    pub(crate) fn put_in_place(&self, gfn: Gfn, mfn: Mfn, order: Order, until: Instant) -> u64 {
        let (Ok(range), Ok(slot)) = (self.range(gfn, order), self.slot(mfn, order)) else {
            return 0;
        };
        // A hole is zero wherever it is. A zero page at a slot was left by an outside reader.
        if self.pagemap.is_whole(range).unwrap_or(false) || !self.stands(slot, false) {
            return 0;
        }
        if order == Order::SUPERPAGE {
            if !self.stands(range, true) {
                // Drops an empty page table: the huge page stays whole.
                let _ = range.discard();
            }
            if !self.pagemap.is_whole(slot).unwrap_or(false) {
                let pages = (0..order.pages()).map(|n| (gfn.offset(n), mfn.offset(n)));
                let single = |(gfn, mfn)| self.put_in_place(gfn, mfn, Order::PAGE, until);
                return pages.map(single).sum();
            }
        }
        let (mut at, mut lost) = (0, 0);
        while at < range.bytes() {
            let left = range.bytes() - at;
            let (Ok(to), Ok(from)) = (range.part(at, left), slot.part(at, left)) else { break };
            match self.move_pages(to, from) {
                MoveOutcome::Done | MoveOutcome::Hole => break,
                MoveOutcome::Partial { bytes } if bytes > 0 => at += bytes,
                // What the guest has stands.
                MoveOutcome::AlreadyThere => at += PAGE_BYTES,
                MoveOutcome::Partial { .. } | MoveOutcome::Busy if Instant::now() < until => {
                    std::thread::sleep(PAUSE);
                }
                _ => {
                    lost += u64::from(!self.copy_in_place(range, slot, at));
                    at += PAGE_BYTES;
                }
            }
        }
        lost
    }

    /// A page that cannot move: whoever uses it keeps it, the guest gets a copy.
    fn copy_in_place(&self, range: Span<'_>, slot: Span<'_>, at: u64) -> bool {
        let (Ok(to), Ok(from)) = (range.part(at, PAGE_BYTES), slot.part(at, PAGE_BYTES)) else {
            return false;
        };
        !self.stands(from, false)
            || self.with_scratch(|page| {
                let copied = page.populate().is_ok() && page.copy_from(from).is_ok();
                copied
                    && matches!(
                        self.move_pages(to, page),
                        MoveOutcome::Done | MoveOutcome::AlreadyThere
                    )
            })
    }
}
