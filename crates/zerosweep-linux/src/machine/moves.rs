//! Moves of pages between slots and the guest's addresses, there and back.
//!
//! A move ends, or everything that it moved goes back. A move that can do neither closes the
//! machine: from then on nothing moves and nothing is cleared or dropped, and the operation that
//! asked lifts the cap.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::LinuxMachine;
use super::gate::Moving;
use crate::addr::PAGE_BYTES;
use crate::sys::pagemap::Categories;
use crate::sys::region::Span;
use crate::sys::uffd::{Holes, MoveOutcome, Wake};

/// How often the same move is asked for again without any progress.
pub(crate) const MOVE_TRIES: u32 = 200;
/// How long a move is tried to be taken back, without any progress.
const MOVE_BACK_TIME: Duration = Duration::from_secs(5);
/// Between two tries of it.
const PAUSE: Duration = Duration::from_millis(1);

/// A move that did not come to its end. What had moved went back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stopped {
    /// A page was in use for all tries.
    Busy,
    /// The kernel refused the move.
    Failed,
}

/// A single request that moved nothing.
enum Failed {
    /// The destination has a page, or the move is not possible: no try will help.
    ForGood,
    /// A later try may succeed.
    ForNow,
}

/// Whether the zero page counts as memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ZeroPage {
    Counts,
    Ignored,
}

impl LinuxMachine {
    /// Lets no further move begin, and waits for those under way, which are bounded.
    pub(crate) fn close(&self) {
        self.gate.close();
        self.gate.wait_for_moves();
    }

    /// Returns whether a move could not be taken back, or the cap is being lifted.
    pub(crate) fn is_closed(&self) -> bool {
        self.gate.is_closed()
    }

    /// Begins to move or to destroy content, or returns `None` once the machine is closed.
    pub(super) fn enter(&self) -> Option<Moving<'_>> {
        self.gate.enter()
    }

    /// Moves all of `from` to `to`. Skips pages that are not there: they are zero. What has moved
    /// goes back if the rest cannot move.
    ///
    /// # Errors
    /// See [`Stopped`]. The machine is closed if something could not go back.
    pub(crate) fn move_all(&self, to: Span<'_>, from: Span<'_>) -> Result<(), Stopped> {
        let mut done = 0;
        let mut tries = 0;
        while done < from.bytes() {
            match self.move_some(to, from, done) {
                Ok(0) => tries += 1,
                Ok(bytes) => {
                    done += bytes;
                    tries = 0;
                }
                Err(Failed::ForGood | Failed::ForNow) => {
                    self.move_back(to, from, done);
                    return Err(Stopped::Failed);
                }
            }
            if tries >= MOVE_TRIES {
                self.move_back(to, from, done);
                return Err(Stopped::Busy);
            }
            if tries % 16 == 15 {
                std::thread::yield_now();
            }
        }
        Ok(())
    }

    /// Asks the kernel once for what is left of a move whose first `done` bytes have moved. Returns
    /// how many more have; 0 means: ask again.
    fn move_some(&self, to: Span<'_>, from: Span<'_>, done: u64) -> Result<u64, Failed> {
        let left = from.bytes() - done;
        let (Ok(to), Ok(from)) = (to.part(done, left), from.part(done, left)) else {
            return Err(Failed::ForGood);
        };
        let moved = match self.move_pages(to, from) {
            // `Hole` is the answer for a source without any page.
            MoveOutcome::Done | MoveOutcome::Hole => return Ok(left),
            MoveOutcome::Partial { bytes } => bytes,
            MoveOutcome::Busy => 0,
            MoveOutcome::AlreadyThere => match self.uncounted(to, from) {
                0 => return Err(Failed::ForGood),
                bytes => {
                    self.counters.forgotten.fetch_add(1, Ordering::Relaxed);
                    bytes
                }
            },
            MoveOutcome::Unequal => return Err(Failed::ForGood),
            MoveOutcome::NoMemory | MoveOutcome::Failed(_) => return Err(Failed::ForNow),
        };
        self.counters.repeats.fetch_add(1, Ordering::Relaxed);
        Ok(moved)
    }

    /// Asks the kernel for one move. The source is never the huge zero page: Linux before 7.1 would
    /// move it as if it were memory (docs/hosts.md).
    pub(super) fn move_pages(&self, to: Span<'_>, from: Span<'_>) -> MoveOutcome {
        let huge_zero = Categories::HUGE.and(Categories::ZERO);
        debug_assert!(
            self.pagemap.bytes_of(from, huge_zero, Categories::NONE).unwrap_or(0) == 0,
            "the huge zero page would be moved from {:?}",
            from.start()
        );
        self.uffd.move_pages(to, from, Holes::Skip, Wake::No)
    }

    /// Returns how many bytes from the start have moved, although the kernel reports that the
    /// destination has a page already.
    ///
    /// Linux 6.18 forgets that it has moved pages if it had to try the first of them twice, because
    /// another thread was splitting the huge page of that page. `move_pages` in `mm/userfaultfd.c`
    /// keeps the error of the first try and does not go on to the next page. It then finds the
    /// destination taken, by the page that it has just moved there.
    fn uncounted(&self, to: Span<'_>, from: Span<'_>) -> u64 {
        let pages = (0..from.bytes()).step_by(PAGE_BYTES as usize);
        let moved = pages.take_while(|&at| {
            let parts = (to.part(at, PAGE_BYTES), from.part(at, PAGE_BYTES));
            let (Ok(to), Ok(from)) = parts else { return false };
            self.has_memory(to, ZeroPage::Counts) && !self.has_memory(from, ZeroPage::Counts)
        });
        moved.count() as u64 * PAGE_BYTES
    }

    /// Takes back the first `done` bytes of a move that cannot go on. Closes the machine if a page
    /// cannot go back: the lift of the cap then puts it in place.
    pub(crate) fn move_back(&self, to: Span<'_>, from: Span<'_>, done: u64) {
        let (Ok(home), Ok(away)) = (from.part(0, done), to.part(0, done)) else { return };
        let mut back = 0;
        let mut since = Instant::now();
        while back < done && since.elapsed() < MOVE_BACK_TIME && !self.is_closed() {
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
            self.gate.close();
        }
    }

    /// Returns whether a page has memory: a frame, a page in swap, or the zero page if it `counts`.
    /// Returns true if the kernel does not tell: what is there must not be lost.
    pub(super) fn has_memory(&self, page: Span<'_>, counts: ZeroPage) -> bool {
        let none = match counts {
            ZeroPage::Counts => Categories::NONE,
            ZeroPage::Ignored => Categories::ZERO,
        };
        let bytes = |all, none| self.pagemap.bytes_of(page, all, none).unwrap_or(u64::MAX);
        bytes(Categories::PRESENT, none) > 0 || bytes(Categories::SWAPPED, Categories::NONE) > 0
    }
}
