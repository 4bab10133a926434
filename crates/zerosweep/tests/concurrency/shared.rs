//! A domain and a machine that threads of a schedule share. The domain is under a lock as
//! [`zerosweep::Host`] says; a call of the machine happens at one moment, and before it the
//! scheduler may let others go on.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex as Cell, MutexGuard as CellGuard};

use shuttle::sync::{Mutex, MutexGuard};
use shuttle::thread;
use zerosweep::{
    Allocated, Config, Consolidation, Content, Domain, Fault, FaultError, Gfn, Host, InvalidTouch,
    Machine, MapError, Mapped, Mfn, Order, OutOfFrames, Policy, Progress, SUPERPAGE_PAGES, Session,
    Shown, Superframe, Superpage, Unmapped, Upkeep,
};
use zerosweep_sim::{Failure, Kept, SoftwareGuest, SoftwareMachine};

use crate::program::{Hindrance, Task};

/// Threads that are guests.
pub(crate) const GUESTS: usize = 3;
/// Whole superpages: one for each guest, and two that they share page by page.
pub(crate) const SUPERPAGES: u64 = GUESTS as u64 + 2;
/// And a partial one.
pub(crate) const PAGES: u64 = SUPERPAGES * 512 + 37;
/// Quick checks that may happen with nothing between them.
const QUICK_TOGETHER: u64 = 64;
/// The books are looked at so often, in times that the lock is dropped.
const AUDIT_EVERY: u64 = 16;

pub(crate) struct Shared {
    /// Who has the domain's lock; the domain itself is in a cell, so that a look at it between two
    /// events is none that the scheduler sees.
    lock: Mutex<()>,
    books: Cell<Books>,
    cpu: Cpus,
    frames: u64,
    /// Frames may be busy, and calls of the machine fail.
    pub(crate) is_hindered: bool,
}

/// The domain, and what it was seen to do.
struct Books {
    domain: Domain,
    /// The highest target so far.
    allowed: u64,
    /// Guests that may be borrowing a page at the moment: it is counted when that is done.
    borrowing: u64,
    unlocks: u64,
}

/// The machine behind a point where the scheduler chooses. The cell's lock is always free: no
/// thread of a schedule is interrupted anywhere else.
struct Cpus {
    point: Mutex<()>,
    cell: Cell<Cpu>,
}

impl Cpus {
    fn with<R>(&self, work: impl FnOnce(&mut Cpu) -> R) -> R {
        drop(self.point.lock().unwrap());
        work(&mut self.cell.lock().unwrap())
    }
}

/// The machine, and what the guests' processors remember of its table.
pub(crate) struct Cpu {
    pub(crate) machine: SoftwareMachine,
    /// For each guest: translations that may be stale until the next flush.
    pub(crate) remembered: [BTreeMap<Gfn, Mfn>; GUESTS],
    /// Words of pages that nobody is giving back, which a lift must not lose.
    pub(crate) kept: BTreeMap<Gfn, (usize, u64)>,
    /// Pages that are shown as zeros and not yet protected.
    pub(crate) open: Option<Range<u64>>,
}

impl Shared {
    pub(crate) fn new(target: u64, is_hindered: bool) -> Self {
        let machine = SoftwareMachine::new(2 * PAGES).with_poison();
        let frames = machine.pool().free_pages();
        let config = Config {
            invalid_touch: InvalidTouch::Increase,
            upkeep: Upkeep::Host,
            // Small, so that there are steps to be served between.
            fault_budget_bytes: 1 << 16,
            ..Config::new(PAGES, target, Policy::Zerosweep)
        };
        let SoftwareGuest { domain, machine, .. } = SoftwareGuest::on(machine, config).unwrap();
        let cpu =
            Cpu { machine, remembered: Default::default(), kept: BTreeMap::new(), open: None };
        let books = Books { domain, allowed: target, borrowing: 0, unlocks: 0 };
        let cpu = Cpus { point: Mutex::new(()), cell: Cell::new(cpu) };
        Self { lock: Mutex::new(()), books: Cell::new(books), cpu, frames, is_hindered }
    }

    pub(crate) fn session(&self) -> Session<Threaded<'_>> {
        Session::new(Threaded { shared: self, guard: None, machine: Locked(self) })
    }

    /// Something that a guest's processor does.
    pub(crate) fn cpu<R>(&self, work: impl FnOnce(&mut Cpu) -> R) -> R {
        self.cpu.with(work)
    }

    /// Something that is no event: nobody comes in between.
    pub(crate) fn at_once<R>(&self, work: impl FnOnce(&mut Cpu) -> R) -> R {
        work(&mut self.cpu.cell.lock().unwrap())
    }

    pub(crate) fn keep(&self, task: Task) {
        let mut session = self.session();
        match task {
            Task::Sweep => {
                let mut next = 0;
                while session.sweep_full(&mut next, 2) == Progress::More {}
            }
            Task::Upkeep(idle) => {
                let _ = session.upkeep(4, idle);
            }
            Task::Consolidate => {
                let mut work = Consolidation::default();
                while session.consolidate(&mut work, 2).unwrap() == Progress::More {}
            }
            Task::Target(target) => {
                let books = session.host().books();
                books.allowed = books.allowed.max(target);
                let outcome = session.set_target(target);
                assert!(outcome.is_ok() || self.failed() > 0, "{outcome:?}");
            }
        }
    }

    pub(crate) fn hinder(&self, hindrance: Hindrance) {
        self.cpu(|cpu| match hindrance {
            Hindrance::Busy(mfn, busy) => cpu.machine.set_busy(Mfn::new(mfn), busy),
            Hindrance::Fail(after, count) => cpu.machine.fail(after, count, Failure::Refuse),
            Hindrance::Pieces(after) => cpu.machine.fail(after, 1, Failure::Pieces),
        });
    }

    /// Calls of the machine that failed so far.
    pub(crate) fn failed(&self) -> u64 {
        self.cpu(|cpu| cpu.machine.failed_calls())
    }

    /// Nothing is in anybody's way any more.
    fn clear_the_way(&self) {
        self.cpu(|cpu| {
            cpu.machine.fail_no_more();
            (0..self.frames).for_each(|mfn| cpu.machine.set_busy(Mfn::new(mfn), false));
        });
    }

    /// As a fault, with a page from the host if there is no other.
    pub(crate) fn fault_borrowing(&self, gfn: Gfn) -> Result<Fault, FaultError> {
        let mut session = self.session();
        session.host().books().borrowing += 1;
        let fault = session.fault_borrowing(gfn);
        session.host().books().borrowing -= 1;
        fault
    }

    /// A thread of the host reads a page. What it finds is zero, or has a frame.
    pub(crate) fn read_by_host(&self, page: u64) {
        loop {
            let mut session = self.session();
            session.host().books().borrowing += SUPERPAGE_PAGES;
            let fault = session.fault_reading(Gfn::new(page)).unwrap();
            session.host().books().borrowing -= SUPERPAGE_PAGES;
            drop(session);
            match fault {
                Some(Fault::InTransit) => self.rest(),
                None | Some(Fault::Present { .. }) => return,
                Some(fault) => panic!("{fault:?}"),
            }
        }
    }

    /// What a thread does that is told to come again.
    pub(crate) fn rest(&self) {
        thread::yield_now();
    }

    /// With all threads at rest nothing is left under way, and the books are right.
    pub(crate) fn settle(&self) {
        self.clear_the_way();
        let mut session = self.session();
        while session.upkeep(64, true) == Progress::More {}
        let domain = session.host().domain();
        domain.audit().unwrap();
        let claimed = (0..domain.p2m().superpages()).map(Superpage::new);
        let claimed: Vec<_> = claimed.filter(|&s| domain.p2m().in_transit(s)).collect();
        assert!(claimed.is_empty(), "{claimed:?} are still in transit");
    }

    /// Every frame goes back to the host.
    pub(crate) fn end(&self) {
        // The guests are gone.
        self.at_once(|cpu| cpu.kept.clear());
        let failed = self.failed();
        crate::seen::add(self.session().host().domain().statistics(), failed);
        while self.session().teardown(1) == Progress::More {}
        assert_eq!(self.cpu(|cpu| cpu.machine.pool().free_pages()), self.frames);
    }
}

impl Books {
    /// The equations hold whenever nobody has the lock, and the total is within the target.
    fn check(&mut self) {
        let q = self.domain.quantities();
        let limit = self.allowed + self.domain.statistics().borrowed + self.borrowing;
        assert!(q.total() <= limit, "INV-3: {q:?}, {:?}", self.domain.statistics());
        self.unlocks += 1;
        if self.unlocks.is_multiple_of(AUDIT_EVERY) {
            self.domain.audit().unwrap();
        }
    }
}

/// One thread's way to domain and machine.
pub(crate) struct Threaded<'a> {
    shared: &'a Shared,
    guard: Option<Guard<'a>>,
    machine: Locked<'a>,
}

/// The domain's lock. The cell goes first.
struct Guard<'a> {
    books: CellGuard<'a, Books>,
    _lock: MutexGuard<'a, ()>,
}

impl Threaded<'_> {
    fn books(&mut self) -> &mut Books {
        let shared = self.shared;
        let guard = self.guard.get_or_insert_with(|| {
            let lock = shared.lock.lock().unwrap();
            Guard { books: shared.books.lock().unwrap(), _lock: lock }
        });
        &mut guard.books
    }

    fn unlock(&mut self) {
        if let Some(mut guard) = self.guard.take()
            && !std::thread::panicking()
        {
            guard.books.check();
        }
    }
}

impl Drop for Threaded<'_> {
    fn drop(&mut self) {
        self.unlock();
    }
}

impl<'a> Host for Threaded<'a> {
    type Machine = Locked<'a>;

    fn domain(&mut self) -> &mut Domain {
        &mut self.books().domain
    }

    fn machine<R>(&mut self, work: impl FnOnce(&mut Locked<'a>) -> R) -> R {
        self.unlock();
        work(&mut self.machine)
    }
}

/// The machine, a call at a time.
pub(crate) struct Locked<'a>(&'a Shared);

impl Locked<'_> {
    fn with<R>(&self, work: impl FnOnce(&mut SoftwareMachine) -> R) -> R {
        self.0.cpu.with(|cpu| work(&mut cpu.machine))
    }

    /// As [`Locked::with`], for a call that moves or changes content: after it the cap might be
    /// lifted.
    fn change<R>(&self, work: impl FnOnce(&mut SoftwareMachine) -> R) -> R {
        self.0.cpu.with(|cpu| {
            let result = work(&mut cpu.machine);
            // Unless somebody is just changing the table: then that is not between two calls.
            if let Ok(books) = self.0.books.try_lock() {
                cpu.machine.assert_all_kept(cpu.kept(&books.domain));
            }
            result
        })
    }
}

impl Cpu {
    /// Where a lift would find what must be kept.
    fn kept<'a>(&'a self, domain: &'a Domain) -> impl Iterator<Item = Kept> + 'a {
        self.kept.iter().map(|(&gfn, &(word, value))| {
            // What is mapped is where it must be, whether the entry says so yet or not.
            let mapped = self.machine.translate(gfn).map(|(mfn, _)| mfn);
            let mfn = mapped.or_else(|| domain.p2m().frame(gfn));
            let mfn = mfn.unwrap_or_else(|| panic!("INV-10: a lift now would lose {gfn}"));
            Kept { gfn, mfn, word, value }
        })
    }
}

impl Machine for Locked<'_> {
    fn allocate(&mut self, order: Order) -> Result<Allocated, OutOfFrames> {
        self.with(|m| m.allocate(order))
    }

    fn allocate_in(&mut self, superframe: Superframe) -> Result<Allocated, OutOfFrames> {
        self.with(|m| m.allocate_in(superframe))
    }

    fn free(&mut self, mfn: Mfn, order: Order) {
        self.change(|m| m.free(mfn, order));
    }

    fn map(&mut self, gfn: Gfn, mfn: Mfn, order: Order) -> Result<Mapped, MapError> {
        self.change(|m| m.map(gfn, mfn, order))
    }

    fn unmap(&mut self, gfn: Gfn, mfn: Mfn, order: Order) -> Unmapped {
        self.change(|m| m.unmap(gfn, mfn, order))
    }

    fn flush(&mut self) {
        self.0.cpu.with(|cpu| {
            cpu.machine.flush();
            cpu.remembered.iter_mut().for_each(BTreeMap::clear);
        });
    }

    fn quick_check(&mut self, gfn: Gfn, mfn: Mfn, order: Order) -> Option<u32> {
        // There are hundreds of these in a row: most of them at one moment.
        if gfn.raw().is_multiple_of(QUICK_TOGETHER) {
            drop(self.0.cpu.point.lock().unwrap());
        }
        self.0.cpu.cell.lock().unwrap().machine.quick_check(gfn, mfn, order)
    }

    fn peek(&mut self, gfn: Gfn, mfn: Mfn, word: u32) -> u64 {
        self.with(|m| m.peek(gfn, mfn, word))
    }

    fn zero_check(&mut self, mfn: Mfn, pages: u64) -> Option<u32> {
        self.with(|m| m.zero_check(mfn, pages))
    }

    fn clear(&mut self, mfn: Mfn, order: Order) {
        self.change(|m| m.clear(mfn, order));
    }

    fn copy(&mut self, from: Mfn, to: Mfn) {
        self.change(|m| m.copy(from, to));
    }

    fn show_zeros(&mut self, gfn: Gfn, pages: u64) -> Shown {
        // As on Linux: the guests can write to the pages until these are protected.
        self.0.cpu.with(|cpu| cpu.open = Some(gfn.raw()..gfn.raw() + pages));
        self.0.cpu.with(|cpu| {
            cpu.open = None;
            cpu.machine.show_zeros(gfn, pages)
        })
    }

    fn is_written(&mut self, gfn: Gfn) -> bool {
        self.with(|m| m.is_written(gfn))
    }

    fn scrub(&mut self, gfn: Gfn, mfn: Mfn) -> Content {
        self.change(|m| m.scrub(gfn, mfn))
    }
}
