//! The engine's machine on Linux memory.
//!
//! A frame's number is the number of its slot in the pool, a mapping of our own. To map a frame is
//! to move the page from its slot to the guest's address (`UFFDIO_MOVE`), to unmap it is to move it
//! back; content is neither copied nor cleared, and a page that is at its slot is out of the
//! guest's reach, so that a check of it is the truth. The guest's range is registered for missing
//! pages and for writes to protected ones, the pool only for the latter: the kernel fills holes in
//! the pool itself, and a stray read of one cannot hang.
//!
//! A page that is used by the kernel or a device at the moment cannot move; that is an ordinary
//! result ([`Unmapped::Busy`]) after a bounded number of tries, and what had moved goes back. What
//! becomes of pages that cannot go back is in `place`.
//!
//! Known holes: pages that the kernel uses without pinning them move ([`crate::references`]).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use zerosweep::{
    Allocated, Content, FramePool, Gfn, Machine, MapError, Mapped, Mfn, Order, OutOfFrames,
    Unmapped,
};

use crate::addr::{PAGE_BYTES, SUPERPAGE_BYTES};
use crate::slots::{Backing, Slots};
use crate::sys::pagemap::{Categories, Pagemap};
use crate::sys::region::{Region, Span};
use crate::sys::uffd::{Holes, MoveOutcome, Uffd, Wake};

#[cfg(test)]
mod hold;
#[cfg(test)]
mod lifts;
pub(crate) mod place;
#[cfg(test)]
mod tests;

/// How often a move that the kernel asks to repeat is repeated without any progress.
const MOVE_TRIES: u32 = 200;
/// Pages to build singles in, one for each thread that does so at the same time.
const SCRATCH_PAGES: u64 = 64;

/// Whether parked superpages keep their memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parking {
    /// They do.
    Lazy,
    /// Those beyond this many give it back to the host at once.
    Eager(u64),
}

/// Counters of the machine; each only grows.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct MachineCounters {
    /// Moves that the kernel refused because a page was in use.
    pub busy: AtomicU64,
    /// Moves that had to be asked for again.
    pub repeats: AtomicU64,
    /// Moves of which the kernel forgot to count pages.
    pub forgotten: AtomicU64,
    /// Superslots that the host could only back with single pages.
    pub small_backing: AtomicU64,
    /// Superslots backed in the face of a fault, because none was ready.
    pub late_backing: AtomicU64,
}

/// Memory of a guest and the pool behind it.
pub struct LinuxMachine {
    pub(crate) guest: Region,
    pool: Region,
    scratch: Region,
    scratch_used: AtomicU64,
    pub(crate) uffd: Uffd,
    pagemap: Pagemap,
    frames: Mutex<FramePool>,
    slots: Slots,
    parking: Parking,
    ready: AtomicU64,
    counters: MachineCounters,
    gate: place::Gate,
    readers: place::Readers,
    #[cfg(test)]
    pub(crate) hold: hold::Hold,
}

/// Waits for what another thread is about to finish: at first it only lets others run, then it
/// sleeps, for the other may wait for memory of the host's.
#[derive(Default)]
struct Pause {
    turns: u32,
}

impl Pause {
    const TURNS: u32 = 32;
    const SLEEP: Duration = Duration::from_micros(100);

    fn wait(&mut self) {
        if self.turns < Self::TURNS {
            self.turns += 1;
            std::thread::yield_now();
        } else {
            std::thread::sleep(Self::SLEEP);
        }
    }
}

/// A move that did not come to its end.
enum Stopped {
    Busy,
    Failed,
}

/// Why nothing of a move could be done.
enum Failed {
    /// Something is where a hole must be, or the move cannot be: no try will help.
    ForGood,
    /// It may be had later.
    ForNow,
}

impl LinuxMachine {
    pub(crate) fn new(
        guest: Region,
        pool: Region,
        scratch: Region,
        uffd: Uffd,
        pagemap: Pagemap,
        frames: FramePool,
        parking: Parking,
    ) -> Self {
        let slots = Slots::new((pool.bytes() / SUPERPAGE_BYTES) as usize);
        Self {
            guest,
            pool,
            scratch,
            scratch_used: AtomicU64::new(0),
            uffd,
            pagemap,
            frames: Mutex::new(frames),
            slots,
            parking,
            ready: AtomicU64::new(0),
            counters: MachineCounters::default(),
            gate: place::Gate::default(),
            readers: place::Readers::new(),
            #[cfg(test)]
            hold: hold::Hold::default(),
        }
    }

    /// Bytes of the scratch region that [`LinuxMachine::new`] needs.
    pub(crate) const SCRATCH_BYTES: u64 = SCRATCH_PAGES * PAGE_BYTES;

    pub(crate) fn pool_span(&self) -> Span<'_> {
        self.pool.all()
    }

    pub(crate) fn scratch_span(&self) -> Span<'_> {
        self.scratch.all()
    }

    pub(crate) fn pool_superslots(&self) -> usize {
        (self.pool.bytes() / SUPERPAGE_BYTES) as usize
    }

    pub(crate) fn pagemap(&self) -> &Pagemap {
        &self.pagemap
    }

    /// Counters.
    #[must_use]
    pub fn counters(&self) -> &MachineCounters {
        &self.counters
    }

    /// How many superslots are to be ready ahead of the guest.
    pub(crate) fn stock(&self) -> u64 {
        match self.parking {
            Parking::Lazy => 64,
            Parking::Eager(stock) => stock,
        }
    }

    /// Whole superslots that are at home: cleared and ready, or just being checked.
    #[must_use]
    pub fn ready(&self) -> u64 {
        self.ready.load(Ordering::Relaxed)
    }

    /// Superframes of the pool of which the domain holds at least a page.
    #[must_use]
    pub fn superframes_held(&self) -> u64 {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner).superpages_out()
    }

    /// Superpages of the guest that are whole, by the kernel's word.
    ///
    /// # Errors
    /// When the kernel gives none.
    pub fn whole_superpages(&self) -> Result<u64, crate::SysError> {
        self.pagemap.whole_superpages(self.guest.all())
    }

    /// Pages of guest and pool that have a frame, by the kernel's word.
    ///
    /// # Errors
    /// When the kernel gives none.
    pub fn resident_pages(&self) -> Result<u64, crate::SysError> {
        let guest = self.pagemap.resident_pages(self.guest.all())?;
        Ok(guest + self.pagemap.resident_pages(self.pool.all())?)
    }

    /// Reserves an empty superslot for [`LinuxMachine::back`]; false if it is not empty. Call it
    /// where nobody can give the frame away meanwhile: under the domain's lock.
    pub(crate) fn reserve_backing(&self, mfn: Mfn) -> bool {
        self.slots.advance(mfn.raw() / 512, Backing::Empty, Backing::Preparing)
    }

    /// Reserves a superslot that is whole and at home for [`LinuxMachine::back`], to get other
    /// memory behind it; false if it is not. Call it as [`LinuxMachine::reserve_backing`].
    pub(crate) fn retract(&self, mfn: Mfn) -> bool {
        let whole = self.slots.advance(mfn.raw() / 512, Backing::Whole, Backing::Preparing);
        if whole {
            self.ready.fetch_sub(1, Ordering::Relaxed);
        }
        whole
    }

    /// Gets memory for a reserved superslot, a huge page if the host has one. False if it has
    /// nothing at all.
    pub(crate) fn back(&self, mfn: Mfn) -> bool {
        // An empty page table would make the kernel use small pages.
        self.drop_memory(mfn, Order::SUPERPAGE);
        let backed = self.back_rest(mfn);
        if !backed {
            self.drop_memory(mfn, Order::SUPERPAGE);
        }
        backed
    }

    /// As [`LinuxMachine::back`], and leaves alone what is there.
    fn back_rest(&self, mfn: Mfn) -> bool {
        let superslot = mfn.raw() / 512;
        let Ok(span) = self.slot(mfn, Order::SUPERPAGE) else { return false };
        if span.populate().is_err() {
            self.slots.drop_all(superslot);
            return false;
        }
        if self.pagemap.is_whole(span).unwrap_or(false) {
            self.ready.fetch_add(1, Ordering::Relaxed);
            self.slots.fill(superslot, Backing::Whole);
        } else {
            self.counters.small_backing.fetch_add(1, Ordering::Relaxed);
            self.slots.fill(superslot, Backing::Pieces);
        }
        true
    }

    /// Gives the memory of a frame that will not be used again back to the kernel.
    pub(crate) fn drop_memory(&self, mfn: Mfn, order: Order) {
        if let Ok(slot) = self.slot(mfn, order) {
            let _ = slot.discard();
        }
    }

    fn slot(&self, mfn: Mfn, order: Order) -> Result<Span<'_>, crate::SpanError> {
        self.pool.span(mfn.raw() * PAGE_BYTES, order.bytes())
    }

    pub(crate) fn range(&self, gfn: Gfn, order: Order) -> Result<Span<'_>, crate::SpanError> {
        self.guest.span(gfn.raw() * PAGE_BYTES, order.bytes())
    }

    /// Makes sure that nobody gets a huge page for a superslot, and discards what is there first,
    /// while single pages of it are used.
    fn open(&self, superslot: u64) {
        let mut pause = Pause::default();
        while !self.slots.open(superslot) {
            pause.wait();
        }
    }

    fn settled_backing(&self, superslot: u64) -> Backing {
        let mut pause = Pause::default();
        loop {
            match self.slots.backing(superslot) {
                Backing::Preparing => pause.wait(),
                settled => return settled,
            }
        }
    }

    /// Moves all of `from` to `to`. Pages that are not there are skipped: they are zero.
    fn move_all(&self, to: Span<'_>, from: Span<'_>) -> Result<(), Stopped> {
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

    /// Asks once for what is left of a move of which the first `done` bytes were moved. Says how
    /// many more were; 0: ask again.
    fn move_some(&self, to: Span<'_>, from: Span<'_>, done: u64) -> Result<u64, Failed> {
        let left = from.bytes() - done;
        let (Ok(to), Ok(from)) = (to.part(done, left), from.part(done, left)) else {
            return Err(Failed::ForGood);
        };
        let moved = match self.move_pages(to, from) {
            // The kernel says the second of a source that is nothing but a hole.
            MoveOutcome::Done | MoveOutcome::Hole => return Ok(left),
            MoveOutcome::Partial { bytes } => bytes,
            MoveOutcome::Busy => 0,
            MoveOutcome::AlreadyThere => match self.moved_unsaid(to, from) {
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

    /// Asks for one move. No huge zero page is ever its source: Linux before 7.1 would move it as
    /// if it were memory (docs/hosts.md).
    fn move_pages(&self, to: Span<'_>, from: Span<'_>) -> MoveOutcome {
        let huge_zero = Categories::HUGE.and(Categories::ZERO);
        debug_assert!(
            self.pagemap.bytes_of(from, huge_zero, Categories::NONE).unwrap_or(0) == 0,
            "the huge zero page would be moved from {:?}",
            from.start()
        );
        self.uffd.move_pages(to, from, Holes::Skip, Wake::No)
    }

    /// How many bytes from the start have moved although the kernel says that the destination has a
    /// page already.
    ///
    /// Linux 6.18 forgets that it has moved pages when it had to look twice at the first of them,
    /// because another thread was splitting the huge page that it belongs to: `move_pages` in
    /// `mm/userfaultfd.c` keeps the error of the first look, does not go on to the next page, and
    /// finds the destination taken, by what it has just moved there.
    fn moved_unsaid(&self, to: Span<'_>, from: Span<'_>) -> u64 {
        let pages = (0..from.bytes()).step_by(PAGE_BYTES as usize);
        let moved = pages.take_while(|&at| {
            let parts = (to.part(at, PAGE_BYTES), from.part(at, PAGE_BYTES));
            let (Ok(to), Ok(from)) = parts else { return false };
            self.stands(to, true) && !self.stands(from, true)
        });
        moved.count() as u64 * PAGE_BYTES
    }

    fn map_superpage(&self, gfn: Gfn, mfn: Mfn) -> Result<Mapped, MapError> {
        let superslot = mfn.raw() / 512;
        if self.slots.advance(superslot, Backing::Empty, Backing::Preparing) {
            self.counters.late_backing.fetch_add(1, Ordering::Relaxed);
            if !self.back(mfn) {
                return Err(MapError);
            }
        }
        let backing = self.settled_backing(superslot);
        let order = Order::SUPERPAGE;
        let (Ok(range), Ok(slot)) = (self.range(gfn, order), self.slot(mfn, order)) else {
            return Err(MapError);
        };
        if backing != Backing::Whole {
            // A hole would be the guest's, and a look at it would wait for ever.
            for page in (0..512).map(|n| mfn.offset(n)) {
                if !self.slots.is_present(page.raw()) && !self.back_hole(page) {
                    return Err(MapError);
                }
            }
        }
        let _moving = self.moving().ok_or(MapError)?;
        // The range is PoD: zero pages, or nothing. What is left of it would be in the way.
        range.discard().map_err(|_| MapError)?;
        self.move_all(range, slot).map_err(|_| MapError)?;
        if backing != Backing::Whole {
            // Each page is a frame of the guest's from now on, whether it had memory before or not.
            self.slots.fill(superslot, Backing::Pieces);
            return Ok(Mapped::Pieces);
        }
        self.ready.fetch_sub(1, Ordering::Relaxed);
        Ok(Mapped::Whole)
    }

    fn map_page(&self, gfn: Gfn, mfn: Mfn) -> Result<Mapped, MapError> {
        let order = Order::PAGE;
        let superslot = mfn.raw() / 512;
        self.open(superslot);
        let (Ok(range), Ok(slot)) = (self.range(gfn, order), self.slot(mfn, order)) else {
            return Err(MapError);
        };
        let _moving = self.moving().ok_or(MapError)?;
        range.discard().map_err(|_| MapError)?;
        if self.slots.is_present(mfn.raw()) {
            self.break_up_at_home(superslot);
            return self.move_all(range, slot).map(|()| Mapped::Whole).map_err(|_| MapError);
        }
        let mapped =
            self.with_scratch(|page| page.populate().is_ok() && self.move_all(range, page).is_ok());
        if !mapped {
            return Err(MapError);
        }
        self.slots.set_present(mfn.raw(), true);
        Ok(Mapped::Whole)
    }

    /// Lends a page of the scratch region, and leaves it empty.
    fn with_scratch<R>(&self, work: impl FnOnce(Span<'_>) -> R) -> R {
        let mut pause = Pause::default();
        let index = loop {
            let used = self.scratch_used.load(Ordering::Acquire);
            let index = (!used).trailing_zeros();
            if index >= 64 {
                pause.wait();
                continue;
            }
            let taken = used | 1 << index;
            let exchange = self.scratch_used.compare_exchange(
                used,
                taken,
                Ordering::AcqRel,
                Ordering::Acquire,
            );
            if exchange.is_ok() {
                break index;
            }
        };
        let page = self.scratch.page(u64::from(index) * PAGE_BYTES);
        let page = page.unwrap_or_else(|_| self.scratch.all());
        let result = work(page);
        let _ = page.discard();
        self.scratch_used.fetch_and(!(1 << index), Ordering::AcqRel);
        result
    }

    fn unmap_run(&self, gfn: Gfn, mfn: Mfn, order: Order) -> Unmapped {
        let (Ok(range), Ok(slot)) = (self.range(gfn, order), self.slot(mfn, order)) else {
            return Unmapped::Busy;
        };
        let Some(_moving) = self.moving() else { return Unmapped::Busy };
        if order == Order::SUPERPAGE {
            // Drops the empty page table that single moves left: the huge page stays whole.
            let _ = slot.discard();
        } else {
            let _ = self.slots.break_up(mfn.raw() / 512);
        }
        let mut moved = self.move_all(slot, range);
        if order == Order::PAGE && matches!(moved, Err(Stopped::Failed)) && self.is_there(range) {
            // The kernel has filled the slot of a frame that is not there.
            let _ = slot.discard();
            moved = self.move_all(slot, range);
        }
        match moved {
            Ok(()) => {
                if order == Order::PAGE && !self.slots.is_present(mfn.raw()) {
                    self.slots.set_present(mfn.raw(), true);
                }
                if self.slots.backing(mfn.raw() / 512) == Backing::Whole {
                    self.ready.fetch_add(1, Ordering::Relaxed);
                }
                Unmapped::Done
            }
            Err(_) => {
                self.counters.busy.fetch_add(1, Ordering::Relaxed);
                if order == Order::SUPERPAGE && !self.pagemap.is_whole(range).unwrap_or(false) {
                    let _ = self.slots.break_up(mfn.raw() / 512);
                }
                Unmapped::Busy
            }
        }
    }

    fn is_there(&self, page: Span<'_>) -> bool {
        self.pagemap.resident_pages(page) == Ok(1)
    }

    fn free_run(&self, mfn: Mfn, order: Order) {
        let superslot = mfn.raw() / 512;
        let backing = self.settled_backing(superslot);
        // Once the machine is closed, what is at a slot may be the only copy: it stays.
        if let Some(_moving) = self.moving() {
            if order == Order::SUPERPAGE {
                self.drop_superslot(mfn);
            } else if self.slots.is_present(mfn.raw()) {
                self.free_page_memory(mfn, backing);
            }
        }
        let freed = {
            let mut frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
            let freed = frames.free(mfn, order);
            if frames.is_wholly_free(superslot) {
                // The last of its pages: nobody has any of it, and nothing stands behind it.
                self.slots.drop_all(superslot);
            }
            freed
        };
        debug_assert!(freed, "INV-1: {mfn:?} was given back twice");
    }

    fn free_page_memory(&self, mfn: Mfn, backing: Backing) {
        let Ok(slot) = self.slot(mfn, Order::PAGE) else { return };
        if backing == Backing::Whole {
            // Dropping a part of a huge page frees nothing: moving one page out splits it first.
            self.with_scratch(|page| {
                let _ = self.move_all(page, slot);
            });
        }
        let _ = slot.discard();
        self.break_up_at_home(mfn.raw() / 512);
        self.slots.set_present(mfn.raw(), false);
    }

    /// A superslot whose pages are at their slots is no longer one huge page.
    fn break_up_at_home(&self, superslot: u64) {
        if self.slots.break_up(superslot) {
            self.ready.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn drop_superslot(&self, mfn: Mfn) {
        if let Ok(slot) = self.slot(mfn, Order::SUPERPAGE) {
            let _ = slot.discard();
        }
        let superslot = mfn.raw() / 512;
        self.break_up_at_home(superslot);
        self.slots.drop_all(superslot);
    }

    fn park_superslot(&self, mfn: Mfn) {
        let Some(_moving) = self.moving() else { return };
        let whole = self.slots.backing(mfn.raw() / 512) == Backing::Whole;
        let keeps = match self.parking {
            Parking::Lazy => true,
            // It is one of those that are ready itself.
            Parking::Eager(stock) => self.ready() <= stock,
        };
        if !whole || !keeps {
            self.drop_superslot(mfn);
        }
    }

    fn clear_run(&self, mfn: Mfn, order: Order) {
        let Some(_moving) = self.moving() else { return };
        let superslot = mfn.raw() / 512;
        if order == Order::SUPERPAGE && self.settled_backing(superslot) != Backing::Whole {
            self.drop_superslot(mfn);
        } else if self.slots.is_present(mfn.raw())
            && let Ok(slot) = self.slot(mfn, order)
        {
            slot.clear();
        }
    }

    /// The first non-zero word of frames of one superframe that are at their slots.
    fn first_nonzero(&self, mfn: Mfn, pages: u64) -> Option<u32> {
        let slots = self.pool.span(mfn.raw() * PAGE_BYTES, pages * PAGE_BYTES).ok()?;
        slots.first_nonzero().map(|word| word as u32)
    }

    /// Copies a page that is at its slot to another slot, which gets memory if it has none.
    fn copy_page(&self, from: Mfn, to: Mfn) {
        let (Ok(source), Ok(target)) = (self.slot(from, Order::PAGE), self.slot(to, Order::PAGE))
        else {
            return;
        };
        self.back_page(to);
        // Lengths are equal: one page.
        let _ = target.copy_from(source);
        if !self.slots.is_present(to.raw()) {
            self.slots.set_present(to.raw(), true);
        }
    }

    /// Gets memory for a slot that is to be written to. The kernel would put a huge page behind all
    /// of its superslot, and nobody would know of the other pages.
    fn back_page(&self, mfn: Mfn) {
        let superslot = mfn.raw() / 512;
        let is_out = || {
            let frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
            frames.is_wholly_out(superslot)
        };
        if self.slots.backing(superslot) == Backing::Empty
            && is_out()
            && self.slots.advance(superslot, Backing::Empty, Backing::Preparing)
        {
            self.counters.late_backing.fetch_add(1, Ordering::Relaxed);
            // Another thread may be at work on a page of it.
            let _ = self.back_rest(mfn.align_down(Order::SUPERPAGE));
        }
        self.open(superslot);
        if !self.slots.is_present(mfn.raw()) {
            let _ = self.back_hole(mfn);
        }
    }

    /// Gets a page for a slot that has none; false if the host has none.
    fn back_hole(&self, mfn: Mfn) -> bool {
        let Ok(slot) = self.slot(mfn, Order::PAGE) else { return false };
        let fill = || {
            self.with_scratch(|page| page.populate().is_ok() && self.move_all(slot, page).is_ok())
        };
        // Whoever reads a hole of the pool from outside (a debugger) leaves the zero page in it.
        let backed = fill() || (slot.discard().is_ok() && fill());
        if backed {
            self.slots.set_present(mfn.raw(), true);
        }
        backed
    }

    /// Makes a mapped page of the guest zero, whose superpage the caller has claimed.
    fn scrub(&self, gfn: Gfn) -> Content {
        let Ok(page) = self.range(gfn, Order::PAGE) else { return Content::Unknown };
        if page.first_nonzero().is_none() {
            return Content::Zero;
        }
        page.clear();
        Content::Unknown
    }

    fn quick(&self, gfn: Gfn, order: Order) -> Option<u32> {
        let range = self.range(gfn, order).ok()?;
        (0..order.pages()).find_map(|page| {
            let head = range.load_head(page * PAGE_BYTES).ok()?;
            let word = head.iter().position(|&word| word != 0)?;
            Some((page * PAGE_BYTES / 8) as u32 + word as u32)
        })
    }
}

/// One thread's hand on the machine.
pub struct MachineRef<'a>(&'a LinuxMachine, Option<usize>);

impl<'a> MachineRef<'a> {
    pub(crate) const fn new(machine: &'a LinuxMachine) -> Self {
        Self(machine, None)
    }

    /// The machine, for one call of the engine's.
    fn called(&self) -> &'a LinuxMachine {
        #[cfg(test)]
        self.0.hold.pass();
        self.0
    }

    /// Reads the guest's memory at `gfn`, where the engine knows a frame.
    fn reading<R>(&mut self, gfn: Gfn, work: impl FnOnce(&LinuxMachine) -> R) -> R {
        let machine = self.0;
        let place = *self.1.get_or_insert_with(|| machine.readers.join());
        machine.readers.read(place, gfn, || work(machine))
    }
}

impl Drop for MachineRef<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.1 {
            self.0.readers.leave(place);
        }
    }
}

impl Machine for MachineRef<'_> {
    fn allocate(&mut self, order: Order) -> Result<Allocated, OutOfFrames> {
        let mut frames = self.0.frames.lock().unwrap_or_else(PoisonError::into_inner);
        let mfn = frames.allocate(order)?;
        // A slot that is with the host has no memory: what it will get is zero.
        Ok(Allocated { mfn, content: Content::Zero })
    }

    fn allocate_in(&mut self, superframe: Mfn) -> Result<Allocated, OutOfFrames> {
        let mut frames = self.0.frames.lock().unwrap_or_else(PoisonError::into_inner);
        let mfn = frames.allocate_in(superframe.raw() / 512)?;
        Ok(Allocated { mfn, content: Content::Zero })
    }

    fn free(&mut self, mfn: Mfn, order: Order) {
        self.called().free_run(mfn, order);
    }

    fn map(&mut self, gfn: Gfn, mfn: Mfn, order: Order) -> Result<Mapped, MapError> {
        if order == Order::SUPERPAGE {
            self.called().map_superpage(gfn, mfn)
        } else {
            self.called().map_page(gfn, mfn)
        }
    }

    fn unmap(&mut self, gfn: Gfn, mfn: Mfn, order: Order) -> Unmapped {
        self.called().unmap_run(gfn, mfn, order)
    }

    fn flush(&mut self) {
        // UFFDIO_MOVE flushes before it returns.
    }

    fn quick_check(&mut self, gfn: Gfn, _mfn: Mfn, order: Order) -> Option<u32> {
        (0..order.pages()).find_map(|page| {
            let at = gfn.offset(page);
            let word = self.reading(at, |machine| machine.quick(at, Order::PAGE))?;
            Some((page * PAGE_BYTES / 8) as u32 + word)
        })
    }

    fn peek(&mut self, gfn: Gfn, _mfn: Mfn, word: u32) -> u64 {
        self.reading(gfn.offset(u64::from(word) * 8 / PAGE_BYTES), |machine| {
            let range = machine.range(gfn, Order::SUPERPAGE);
            range.and_then(|range| range.load_word(u64::from(word) * 8)).unwrap_or(1)
        })
    }

    fn zero_check(&mut self, mfn: Mfn, pages: u64) -> Option<u32> {
        self.called().first_nonzero(mfn, pages)
    }

    fn copy(&mut self, from: Mfn, to: Mfn) {
        self.called().copy_page(from, to);
    }

    fn scrub(&mut self, gfn: Gfn, _mfn: Mfn) -> Content {
        self.called();
        self.reading(gfn, |machine| machine.scrub(gfn))
    }

    fn clear(&mut self, mfn: Mfn, order: Order) {
        self.called().clear_run(mfn, order);
    }

    fn park(&mut self, mfn: Mfn) {
        self.called().park_superslot(mfn);
    }
}
