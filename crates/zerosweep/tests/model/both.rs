//! The engine and a naive model of it that knows pages and nothing of superpages, side by side.

use std::collections::BTreeMap;
use std::ops::Range;

use zerosweep::{
    BuildError, Config, Consolidation, Domain, Entry, Fault, FaultError, Gfn, Host, InvalidTouch,
    Mfn, Order, Progress, Quantities, RamState, Reconciliation, Session, TargetError,
};
use zerosweep_sim::{Failure, Kept, SoftwareGuest, SoftwareMachine, TouchError};

use crate::steps::{Case, Step};

/// What a page is to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Page {
    Out,
    /// Promised or populated: the value of its one word that is ever written.
    In(u64),
    Special,
}

/// Where a page's word is: at the start for some, deep in the page for others, so that quick checks
/// see some and miss others.
fn offset(page: usize) -> usize {
    if page.is_multiple_of(3) { 0 } else { 2048 }
}

/// What may not change from one step to the next.
struct Before {
    total: u64,
    borrowed: u64,
    failed: u64,
}

/// Who watches, at each call of the machine, that a lift just then would lose nothing.
struct Watched<'a> {
    guest: &'a mut SoftwareGuest,
    /// Pages that are not zero and that this step may not change, and what is in them.
    known: &'a BTreeMap<usize, u64>,
}

impl Host for Watched<'_> {
    type Machine = SoftwareMachine;

    fn domain(&mut self) -> &mut Domain {
        &mut self.guest.domain
    }

    fn machine<R>(&mut self, work: impl FnOnce(&mut SoftwareMachine) -> R) -> R {
        self.guest.machine.keep(self.kept());
        let result = work(&mut self.guest.machine);
        self.guest.machine.keep(Vec::new());
        result
    }
}

impl Watched<'_> {
    fn kept(&self) -> Vec<Kept> {
        let kept = self.known.iter().map(|(&page, &value)| {
            let gfn = Gfn::new(page as u64);
            let mfn = self.guest.domain.p2m().frame(gfn);
            let mfn = mfn.unwrap_or_else(|| panic!("INV-10: a lift now would lose {gfn}"));
            Kept { gfn, mfn, word: offset(page) / 8, value }
        });
        kept.collect()
    }
}

pub(crate) struct Both {
    pub(crate) guest: SoftwareGuest,
    /// What is in pages that the step under way may not change, if that is watched.
    known: BTreeMap<usize, u64>,
    watches: bool,
    model: Vec<Page>,
    /// Pages that are pinned, and their frames.
    pinned: BTreeMap<usize, Mfn>,
    frames: u64,
    consolidation: Consolidation,
    swept: u64,
    /// What fails is that superpages are mapped in one piece.
    in_pieces: bool,
}

impl Both {
    pub(crate) fn new(config: Config) -> Self {
        let frames = (2 * config.max_pages + 1024).next_multiple_of(512);
        let machine = SoftwareMachine::new(frames).with_poison();
        Self {
            guest: SoftwareGuest::on(machine, config).unwrap(),
            known: BTreeMap::new(),
            watches: false,
            model: vec![Page::In(0); config.max_pages as usize],
            pinned: BTreeMap::new(),
            frames,
            consolidation: Consolidation::default(),
            swept: 0,
            in_pieces: false,
        }
    }

    /// From now on each call of the machine is one at which the cap might be lifted.
    pub(crate) fn watch(mut self) -> Self {
        self.watches = true;
        self
    }

    fn session(&mut self) -> Session<Watched<'_>> {
        Session::new(Watched { guest: &mut self.guest, known: &self.known })
    }

    /// What the step may not change: all but the pages that it names.
    fn note_known(&mut self, step: &Step) {
        self.known.clear();
        if !self.watches {
            return;
        }
        let named = match *step {
            Step::Decrease(page, order)
            | Step::Promise(page, order)
            | Step::Physmap(page, order)
            | Step::Special(page, order) => page..page.saturating_add(1 << order),
            Step::Discard(page, count) | Step::Retake(page, count) => {
                page..page.saturating_add(count)
            }
            _ => 0..0,
        };
        let pages = self.model.iter().enumerate();
        self.known.extend(pages.filter_map(|(page, state)| match *state {
            Page::In(value) if value != 0 && !named.contains(&(page as u64)) => Some((page, value)),
            _ => None,
        }));
    }

    /// Does all steps of a case, one after the other, checking all there is after each, and takes
    /// the domain down. Returns how many steps that were.
    pub(crate) fn run(case: &Case) -> u64 {
        Self::new(case.config).run_steps(case)
    }

    /// As [`Both::run`], with this one.
    pub(crate) fn run_steps(self, case: &Case) -> u64 {
        let mut both = self;
        for step in &case.steps {
            both.step(step);
        }
        both.tear_down();
        case.steps.len() as u64
    }

    /// Does a step and checks everything after it. Says whether a planned failure came to pass.
    pub(crate) fn step(&mut self, step: &Step) -> bool {
        let machine = &self.guest.machine;
        let before = Before {
            total: self.guest.domain.quantities().total(),
            borrowed: self.guest.domain.statistics().borrowed,
            failed: machine.failed_calls(),
        };
        self.note_known(step);
        self.perform(step, &before);
        if self.failed(&before) && self.in_pieces {
            // In 512 pieces a superpage cannot keep pages that are out.
            self.follow(0..self.model.len());
        }
        self.check(&before);
        self.failed(&before)
    }

    fn pages(&self) -> u64 {
        self.model.len() as u64
    }

    fn increases(&self) -> bool {
        self.guest.domain.invalid_touch() == InvalidTouch::Increase
    }

    fn entry(&self, page: usize) -> Entry {
        self.guest.domain.p2m().get(Gfn::new(page as u64)).0
    }

    fn range(&self, page: u64, count: u64) -> Option<Range<usize>> {
        let end = page.checked_add(count).filter(|&end| end <= self.pages())?;
        Some(page as usize..end as usize)
    }

    /// Whether a planned failure has come to pass since then.
    fn failed(&self, before: &Before) -> bool {
        self.guest.machine.failed_calls() > before.failed
    }

    /// Whether the guest took the page again and said nothing, or may as well not have: the engine
    /// says that it is out.
    fn is_unseen(&self, page: usize) -> bool {
        self.increases()
            && matches!(self.model[page], Page::In(_))
            && self.entry(page) == Entry::Invalid
    }

    fn perform(&mut self, step: &Step, before: &Before) {
        let pages = self.pages();
        match *step {
            Step::Read(page) => self.touch(page % pages, None, before),
            Step::ReadByHost(page, write) => self.read_by_host(page % pages, write, before),
            Step::Write(page, value) => self.touch(page % pages, Some(value), before),
            Step::Scrub(page, count) => {
                for page in page % pages..(page % pages + count).min(pages) {
                    self.touch(page, Some(0), before);
                }
            }
            Step::Borrow(page) => self.borrow(page % pages, before),
            Step::Decrease(page, order) => self.decrease(page, order, before),
            Step::Promise(page, order) => self.build(page, order, false, before),
            Step::Physmap(page, order) => self.build(page, order, true, before),
            Step::Special(page, order) => self.special(page, order),
            Step::Discard(page, count) => self.discard(page, count),
            Step::Retake(page, count) => self.retake(page, count),
            Step::Pin(page, pin) => self.pin(page, pin),
            Step::Busy(mfn, busy) => {
                self.guest.machine.set_busy(Mfn::new(mfn % self.frames), busy);
            }
            Step::Offline(mfn) => {
                let mfn = Mfn::new(mfn % self.frames);
                let was = self.guest.machine.is_retired(mfn);
                let outcome = self.session().offline(mfn).unwrap();
                let is = self.guest.machine.is_retired(mfn);
                assert_eq!(is, was || outcome != zerosweep::Offline::NotCached);
            }
            Step::Settle(page) => {
                let gfn = Gfn::new(page % pages);
                let mapped = self.guest.machine.translate(gfn).is_some();
                let mut runs = false;
                let settled = self.session().with_claim(gfn, |_| runs = true);
                assert_eq!(settled, runs);
                assert!(mapped || !settled);
            }
            Step::Target(target) => {
                let outcome = self.session().set_target(target);
                self.check_target(target, outcome, before);
            }
            Step::TargetInSteps(target, steps) => {
                let outcome = self.session().begin_target(target);
                self.check_target(target, outcome, before);
                let filled = self.session().fill(steps);
                assert!(filled.is_ok() || self.failed(before), "{filled:?}");
            }
            Step::Sweep(count) => {
                let mut swept = self.swept;
                let done = self.session().sweep_full(&mut swept, count) == Progress::Done;
                self.swept = if done { 0 } else { swept };
            }
            Step::Consolidate(count) => {
                let mut work = std::mem::take(&mut self.consolidation);
                let mut session = self.session();
                loop {
                    match session.consolidate(&mut work, count).unwrap() {
                        Progress::Done => work = Consolidation::default(),
                        Progress::More if count == u64::MAX => continue,
                        Progress::More => {}
                    }
                    break;
                }
                self.consolidation = work;
            }
            Step::Reconcile(ballooned, steps) => self.reconcile(ballooned, steps),
            Step::Upkeep(idle) => while self.session().upkeep(1, idle) == Progress::More {},
            Step::Fail(after, count, how) => {
                self.in_pieces = how == Failure::Pieces;
                self.guest.machine.fail(after, count, how);
            }
        }
    }

    fn reconcile(&mut self, ballooned: u64, steps: u64) {
        let given_back = |both: &Self| {
            let quantities = both.guest.domain.quantities();
            quantities.max - quantities.guest()
        };
        let pages: Vec<_> = (0..self.pages()).map(Gfn::new).collect();
        let before: Vec<_> = pages.iter().map(|&gfn| self.guest.domain.p2m().get(gfn).0).collect();
        let was = given_back(self);
        let mut work = Reconciliation::new(ballooned);
        while self.session().reconcile(&mut work, steps) == Progress::More {}
        let (is, wanted) = (given_back(self), ballooned.min(self.pages()));
        assert!(was.min(wanted) <= is && is <= was.max(wanted), "{was}, {is}, wanted {wanted}");
        let promised = before.iter().filter(|&&entry| entry == Entry::Pod).count() as u64;
        if wanted > was {
            // Maintenance may take more zeros back meanwhile, which are promised then.
            let least = if self.increases() { promised.min(wanted - was) } else { 0 };
            let most = if self.increases() { wanted - was } else { 0 };
            let dropped = is - was;
            assert!((least..=most).contains(&dropped), "{dropped} of {promised} promised pages");
        }
        let p2m = self.guest.domain.p2m();
        for (gfn, before) in pages.into_iter().zip(before) {
            let (slot, after) = (&mut self.model[gfn.raw() as usize], p2m.get(gfn).0);
            match (*slot, before, after) {
                // Maintenance comes in between, which takes zeros back.
                (Page::In(0), Entry::Pod | Entry::Ram { .. }, Entry::Invalid) => *slot = Page::Out,
                (Page::Out, _, Entry::Pod | Entry::Ram { .. }) => *slot = Page::In(0),
                (_, Entry::Ram { .. }, _) => assert_ne!(after, Entry::Invalid, "{gfn}"),
                _ => {}
            }
        }
    }

    fn read_by_host(&mut self, page: u64, write: u64, before: &Before) {
        let (gfn, at) = (Gfn::new(page), page as usize);
        let quantities = self.guest.domain.quantities();
        if write != 0 {
            self.guest.machine.write_when_shown(gfn, offset(at) / 8, write);
        }
        let outcome = self.session().fault_reading(gfn);
        let has_written = !self.guest.machine.forget_early_writes() && write != 0;
        if has_written {
            match self.model[at] {
                Page::In(0) => {}
                Page::Out => assert!(self.increases()),
                other => panic!("{other:?} was shown as zeros"),
            }
            self.model[at] = Page::In(write);
        } else {
            assert_eq!(self.guest.domain.quantities(), quantities);
        }
        match outcome {
            Ok(None) => {}
            Ok(Some(fault)) => {
                let (gfn, order) = (gfn.superpage().first(), Order::SUPERPAGE);
                assert_eq!(fault, Fault::Present { gfn, order });
                assert!(has_written || write == 0);
            }
            // The cap is lifted then, and the page is the kernel's.
            Err(error) => {
                assert!(error == FaultError::Unkept && self.failed(before), "{error}");
            }
        }
    }

    fn touch(&mut self, page: u64, write: Option<u64>, before: &Before) {
        let (gfn, at) = (Gfn::new(page), page as usize);
        if self.in_pieces && self.failed(before) {
            self.follow(at..at + 1);
        }
        let mut host = Watched { guest: &mut self.guest, known: &self.known };
        let outcome = zerosweep_sim::touch(&mut host, gfn).map(|mfn| {
            if let Some(value) = write {
                self.guest.machine.set_word(mfn, offset(at) / 8, value);
                // What is written now is looked at from the next step on.
                self.known.remove(&at);
            }
            self.guest.machine.word(mfn, offset(at) / 8)
        });
        match (self.model[at], outcome) {
            // Without a frame nothing changes.
            (_, Err(TouchError::Exhausted)) => {}
            (_, Err(TouchError::Fault(FaultError::Map))) => assert!(self.failed(before)),
            (Page::In(known), Ok(value)) => {
                assert_eq!(write.unwrap_or(known), value, "page {page}");
                self.model[at] = Page::In(value);
            }
            (Page::Out, Ok(value)) => {
                assert!(self.increases());
                assert_eq!(value, write.unwrap_or(0), "a newly populated page, {page}");
                self.model[at] = Page::In(value);
            }
            (Page::Out, Err(TouchError::Fault(FaultError::Unmapped))) => {
                assert!(!self.increases());
            }
            (Page::Special, Err(TouchError::Fault(FaultError::Special))) => {}
            (page_state, outcome) => panic!("page {page} is {page_state:?}, got {outcome:?}"),
        }
    }

    fn borrow(&mut self, page: u64, before: &Before) {
        let gfn = Gfn::new(page);
        if self.guest.machine.translate(gfn).is_some() {
            // No fault: it is mapped.
            return;
        }
        let outcome = loop {
            let outcome = self.session().fault_borrowing(gfn);
            if outcome != Ok(Fault::Again) {
                break outcome;
            }
        };
        let slot = &mut self.model[page as usize];
        match (*slot, outcome) {
            (Page::In(_), Ok(Fault::Present { .. })) => {}
            (Page::Out, Ok(Fault::Present { .. })) => *slot = Page::In(0),
            // The host has more than any guest may hold.
            (_, Ok(Fault::Exhausted) | Err(FaultError::Map)) => assert!(self.failed(before)),
            (Page::Out, Err(FaultError::Unmapped)) => assert!(!self.increases()),
            (Page::Special, Err(FaultError::Special)) => {}
            (page_state, outcome) => panic!("page {page} is {page_state:?}, got {outcome:?}"),
        }
    }

    fn decrease(&mut self, page: u64, order: u8, before: &Before) {
        let order = Order::new(order).unwrap();
        for index in self.range(page, order.pages()).into_iter().flatten() {
            if self.is_unseen(index) {
                self.model[index] = Page::Out;
            }
        }
        let given = self.session().decrease(Gfn::new(page), order);
        let Some(range) = self.range(page, order.pages()) else {
            assert!(given.is_err());
            return;
        };
        let given = given.unwrap();
        let may_go = |index: &usize| {
            matches!(self.model[*index], Page::In(_)) && !self.pinned.contains_key(index)
        };
        let had = range.clone().filter(may_go).count();
        let mut out = 0;
        for index in range {
            if matches!(self.model[index], Page::In(_)) && self.entry(index) == Entry::Invalid {
                assert!(!self.pinned.contains_key(&index), "INV-7: {index}");
                self.model[index] = Page::Out;
                out += 1;
            }
        }
        // In pieces, pages that were out were the guest's for a moment.
        assert!(given == out || (given > out && self.in_pieces && self.failed(before)), "{given}");
        // A frame that is busy stays with the guest: then, and only then, fewer pages come back.
        let may_stay = self.guest.domain.statistics().busy > 0 || self.failed(before);
        assert!(given as usize == had || may_stay, "{given} of {had} pages came back");
    }

    fn build(&mut self, page: u64, order: u8, physmap: bool, before: &Before) {
        let order = Order::new(order).unwrap();
        let range = self.range(page, order.pages());
        let unseen: Vec<bool> =
            range.into_iter().flatten().map(|index| self.is_unseen(index)).collect();
        let mut session = self.session();
        let outcome = match physmap {
            true => session.populate_physmap(Gfn::new(page), order),
            false => session.populate_on_demand(Gfn::new(page), order),
        };
        let Some(range) = self.range(page, order.pages()) else {
            assert_eq!(outcome, Err(BuildError::OutOfRange));
            return;
        };
        match outcome {
            Ok(()) => {
                for (index, slot) in self.model[range].iter_mut().enumerate() {
                    match *slot {
                        Page::Out => *slot = Page::In(0),
                        // The guest took it again and said nothing. Now it says so.
                        Page::In(_) if physmap && unseen[index] => {}
                        // Only what has no frame may be there, and that reads as zero.
                        Page::In(value) => assert_eq!(value, 0),
                        Page::Special => panic!("special was built over"),
                    }
                }
            }
            Err(BuildError::Busy(gfn)) => {
                let index = gfn.raw() as usize;
                let out = self.model[index] == Page::Out;
                // Pages that are out have to give up their frames, which a device may hold.
                let busy = self.guest.domain.statistics().busy > 0 || self.failed(before);
                assert!(!out || busy, "{gfn:?} is in the way");
            }
            Err(BuildError::OverTarget) => assert!(physmap),
            Err(error) => assert!(self.failed(before), "{error:?}"),
        }
        if physmap && self.failed(before) {
            // What could not be taken back is there, and reads as zero.
            self.follow(page as usize..(page + order.pages()) as usize);
        }
    }

    /// Pages that were out and have a frame now are the guest's again.
    fn follow(&mut self, pages: Range<usize>) {
        for index in pages {
            if self.model[index] == Page::Out && self.entry(index) != Entry::Invalid {
                self.model[index] = Page::In(0);
            }
        }
    }

    fn special(&mut self, page: u64, order: u8) {
        let order = Order::new(order).unwrap();
        let outcome = self.session().set_special(Gfn::new(page), order);
        if let (Ok(()), Some(range)) = (outcome, self.range(page, order.pages())) {
            self.model[range].fill(Page::Special);
        }
    }

    fn discard(&mut self, page: u64, count: u64) {
        let outcome = self.session().discard(Gfn::new(page), count);
        let Some(range) = self.range(page, count) else {
            assert!(outcome.is_err());
            return;
        };
        outcome.unwrap();
        for index in range {
            // A frame that is busy or pinned keeps what is in it.
            let now = self.word(index).unwrap_or(0);
            if let Page::In(value) = &mut self.model[index]
                && now == 0
            {
                *value = 0;
            }
        }
    }

    fn retake(&mut self, page: u64, count: u64) {
        let taken = self.session().retake(Gfn::new(page), count);
        let mut fresh = 0;
        for index in page as usize..(page + count).min(self.pages()) as usize {
            if self.entry(index) != Entry::Invalid && self.model[index] == Page::Out {
                self.model[index] = Page::In(0);
                fresh += 1;
            }
        }
        assert!(fresh <= taken);
    }

    fn set_pinned(&mut self, gfn: Gfn, pin: bool) -> Result<(), BuildError> {
        if pin { self.session().pin(gfn) } else { self.session().unpin(gfn) }
    }

    fn pin(&mut self, page: u64, pin: bool) {
        let (gfn, index) = (Gfn::new(page), page as usize);
        if self.range(page, 1).is_none() {
            assert_eq!(self.set_pinned(gfn, pin), Err(BuildError::OutOfRange));
            return;
        }
        if self.set_pinned(gfn, pin).is_err() {
            return;
        }
        let Entry::Ram { mfn, .. } = self.entry(index) else { panic!("pinned, but not ram") };
        if pin {
            self.pinned.insert(index, mfn);
        } else {
            self.pinned.remove(&index);
        }
    }

    fn check_target(&self, target: u64, outcome: Result<(), TargetError>, before: &Before) {
        match outcome {
            Ok(()) => assert_eq!(self.guest.domain.quantities().target, target),
            Err(TargetError::OutOfRange { .. }) => assert!(target > self.pages()),
            Err(error) => assert!(self.failed(before), "{error:?}"),
        }
    }

    fn word(&self, page: usize) -> Option<u64> {
        let (mfn, _) = self.guest.machine.translate(Gfn::new(page as u64))?;
        Some(self.guest.machine.word(mfn, offset(page) / 8))
    }

    /// The invariants, the books, and that what the guest can see is what it wrote.
    fn check(&self, before: &Before) {
        let domain = &self.guest.domain;
        assert_eq!(domain.audit(), Ok(()), "INV-1, INV-2");
        let q = domain.quantities();
        let borrowed = domain.statistics().borrowed - before.borrowed;
        assert!(q.total() <= q.target.max(before.total) + borrowed, "INV-3: {q:?}");
        let mut inside = 0;
        for (page, state) in self.model.iter().enumerate() {
            let value = self.word(page);
            match state {
                Page::In(known) => {
                    // Nothing is mapped where a frame waits for the next touch.
                    if value.is_some() || !self.is_detached(page) {
                        assert_eq!(value.unwrap_or(0), *known, "INV-6: page {page}");
                    }
                    inside += u64::from(!self.is_unseen(page));
                }
                // A page that is out and retained is still mapped, and zero.
                Page::Out if value == Some(0) => {
                    assert!(domain.p2m().is_out(Gfn::new(page as u64)), "INV-11: page {page}");
                }
                Page::Out | Page::Special => assert_eq!(value, None, "page {page}"),
            }
        }
        assert_eq!(q.guest(), inside, "INV-2: B");
        for (&page, &mfn) in &self.pinned {
            assert_eq!(
                self.entry(page),
                Entry::Ram { mfn, state: RamState::Pinned },
                "INV-7: {page}"
            );
        }
        for (mfn, order) in domain.cache().iter() {
            for page in (0..order.pages()).map(|i| mfn.offset(i)) {
                assert!(!self.guest.machine.is_retired(page), "R17: {page:?}");
            }
        }
    }

    fn is_detached(&self, page: usize) -> bool {
        let detached = |entry| matches!(entry, Entry::Ram { state: RamState::Detached, .. });
        let whole = self.guest.domain.p2m().whole(Gfn::new(page as u64).superpage());
        detached(self.entry(page)) || whole.is_some_and(detached)
    }

    /// [R18]: every frame comes back, but those that are broken.
    ///
    /// [R18]: zerosweep::rules#r18
    pub(crate) fn tear_down(mut self) {
        self.known.clear();
        let frames = (0..self.frames).map(Mfn::new);
        frames.clone().for_each(|mfn| self.guest.machine.set_busy(mfn, false));
        let mut calls = 0;
        while self.session().teardown(1) == Progress::More {
            calls += 1;
            assert!(calls < 100_000, "it comes to no end");
        }
        self.guest.domain.audit().unwrap();
        let Quantities { populated, entries, cache, retained, .. } = self.guest.domain.quantities();
        assert_eq!((populated, entries, cache, retained), (0, 0, 0, 0));
        let retired = frames.filter(|&mfn| self.guest.machine.is_retired(mfn)).count() as u64;
        assert_eq!(self.guest.machine.pool().free_pages() + retired, self.frames);
    }
}
