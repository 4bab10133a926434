//! A guest's thread: it knows what each of its pages must read as.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use zerosweep::{DecreaseError, Fault, FaultError, Gfn, Mfn, Order};

use crate::program::Step;
use crate::shared::{GUESTS, PAGES, Shared};

/// Times that a guest waits for a frame before it borrows.
const PATIENCE: u32 = 3;

pub(crate) struct Guest {
    shared: Arc<Shared>,
    number: usize,
    /// The word of each page that was ever written; others read as 0.
    words: BTreeMap<Gfn, u64>,
    /// Pages that it gave back and may have kept, because something was in the way: their word is
    /// still there, or 0.
    kept: BTreeSet<Gfn>,
    writes: u64,
}

impl Guest {
    pub(crate) fn new(shared: Arc<Shared>, number: usize) -> Self {
        Self { shared, number, words: BTreeMap::new(), kept: BTreeSet::new(), writes: 0 }
    }

    /// Before the others run: writes to `count` pages, `step` apart.
    pub(crate) fn boot(&mut self, count: u64, step: u64) {
        (0..count).for_each(|page| self.act(Step::Write(page * step, false)));
    }

    pub(crate) fn act(&mut self, step: Step) {
        match step {
            Step::Write(page, zero) => {
                self.writes += 1;
                let pattern = (self.number as u64 + 1) << 32 | self.writes;
                self.write(self.own(page), if zero { 0 } else { pattern });
            }
            Step::Read(page) => self.read(self.own(page)),
            Step::Scrub(page, count) => self.scrub(page, count),
            Step::Decrease(page, order) => {
                self.decrease(self.own(page), Order::new(order).unwrap())
            }
            Step::Balloon(page, count) => {
                (page..page + count).for_each(|page| self.decrease(self.own(page), Order::PAGE));
            }
            Step::Retake(page, count) => {
                for gfn in (page..page + count).map(|page| self.own(page)) {
                    self.shared.session().retake(gfn, 1);
                }
            }
            Step::Discard(page, count) => self.discard(self.own(page), count),
        }
    }

    /// Every page reads as it must.
    pub(crate) fn verify(mut self) {
        let words: Vec<_> = self.words.keys().copied().collect();
        words.into_iter().for_each(|gfn| self.read(gfn));
    }

    /// The guest's page number `page`: first those of its own superpage, then every third of the
    /// shared ones. Beyond the last it begins again.
    fn own(&self, page: u64) -> Gfn {
        let (number, guests) = (self.number as u64, GUESTS as u64);
        let shared = (PAGES - guests * 512) / guests;
        let page = page % (512 + shared);
        Gfn::new(match page.checked_sub(512) {
            None => number * 512 + page,
            Some(page) => guests * 512 + page * guests + number,
        })
    }

    fn owns_superpage(&self, gfn: Gfn) -> bool {
        gfn.superpage().number() == self.number as u64
    }

    /// Where the page's word is: where quick checks see it, or deep in the page.
    fn word(gfn: Gfn) -> usize {
        if gfn.raw().is_multiple_of(3) { 1 } else { 300 }
    }

    fn write(&mut self, gfn: Gfn, value: u64) {
        self.access(gfn, Some(value));
        self.words.insert(gfn, value);
        self.kept.remove(&gfn);
    }

    fn read(&mut self, gfn: Gfn) {
        let expected = self.words.get(&gfn).copied().unwrap_or(0);
        let word = self.access(gfn, None);
        if self.kept.remove(&gfn) && word == 0 {
            self.words.insert(gfn, 0);
            return;
        }
        assert_eq!(word, expected, "guest {}, page {gfn}", self.number);
    }

    /// One access of the guest's processor: by a translation that it remembers, or the machine's.
    fn access(&mut self, gfn: Gfn, value: Option<u64>) -> u64 {
        let mut waited = 0;
        loop {
            if let Some(word) = self.reach(gfn, value) {
                return word;
            }
            let fault = if waited < PATIENCE {
                self.shared.session().fault(gfn)
            } else {
                self.shared.fault_borrowing(gfn)
            };
            match fault {
                Ok(Fault::Present { .. }) => {}
                Ok(Fault::InTransit) => {
                    crate::seen::wait();
                    self.shared.rest();
                }
                Ok(Fault::Again) => self.shared.rest(),
                Ok(Fault::Exhausted) => {
                    let refused = self.shared.failed() > 0;
                    assert!(waited <= PATIENCE || refused, "the host has frames to borrow");
                    waited += 1;
                    self.shared.rest();
                }
                Err(FaultError::Map) => {
                    assert!(self.shared.failed() > 0, "it could be mapped");
                    self.shared.rest();
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn reach(&self, gfn: Gfn, value: Option<u64>) -> Option<u64> {
        self.shared.cpu(|cpu| {
            let remembered = cpu.remembered[self.number].get(&gfn).copied();
            let mfn: Option<Mfn> = remembered.or_else(|| Some(cpu.machine.translate(gfn)?.0));
            let Some(mfn) = mfn else {
                let is_open = cpu.open.as_ref().is_some_and(|open| open.contains(&gfn.raw()));
                let value = value.filter(|_| is_open)?;
                cpu.machine.write_when_shown(gfn, Self::word(gfn), value);
                crate::seen::early_write();
                return Some(value);
            };
            cpu.remembered[self.number].insert(gfn, mfn);
            if let Some(value) = value {
                cpu.machine.set_word(mfn, Self::word(gfn), value);
                match value {
                    0 => cpu.kept.remove(&gfn),
                    _ => cpu.kept.insert(gfn, (Self::word(gfn), value)),
                };
            }
            Some(cpu.machine.word(mfn, Self::word(gfn)))
        })
    }

    /// Zeros for what was ever written.
    fn scrub(&mut self, page: u64, count: u64) {
        for page in page..page + count {
            let gfn = self.own(page);
            if self.words.contains_key(&gfn) {
                self.write(gfn, 0);
            }
        }
    }

    /// Runs that reach beyond what the guest owns are cut down to the page.
    fn decrease(&mut self, gfn: Gfn, order: Order) {
        let whole = order > Order::PAGE && self.owns_superpage(gfn);
        let order = if whole { order } else { Order::PAGE };
        let first = gfn.align_down(order);
        self.give_up(first, order.pages());
        let given = self.wait(|shared| shared.session().decrease(first, order));
        self.gave_up(first, order.pages(), given == order.pages());
    }

    fn discard(&mut self, gfn: Gfn, count: u64) {
        let (first, count) = match count {
            512 if self.owns_superpage(gfn) => (gfn.superpage().first(), 512),
            count if self.owns_superpage(gfn) => {
                (gfn, count.min(512 - gfn.index_in_superpage() as u64))
            }
            _ => (gfn, 1),
        };
        self.give_up(first, count);
        // Within one superpage.
        self.wait(|shared| shared.session().discard(first, count).map_err(|error| error.reason));
        self.gave_up(first, count, false);
    }

    fn wait(&self, operation: impl Fn(&Shared) -> Result<u64, DecreaseError>) -> u64 {
        loop {
            match operation(&self.shared) {
                Ok(pages) => return pages,
                Err(DecreaseError::InTransit) => self.shared.rest(),
                Err(error) => panic!("{error}"),
            };
        }
    }

    /// What is in these pages need not be kept from now on.
    fn give_up(&self, first: Gfn, count: u64) {
        self.shared
            .at_once(|cpu| cpu.kept.retain(|&gfn, _| gfn < first || gfn >= first.offset(count)));
    }

    fn gave_up(&mut self, first: Gfn, count: u64, all: bool) {
        if all || !self.shared.is_hindered {
            self.forget(first, count);
        } else {
            let pages = (0..count).map(|i| first.offset(i));
            self.kept.extend(pages.filter(|gfn| self.words.contains_key(gfn)));
        }
    }

    /// Pages that were given back read as 0, if they are touched again; and their processor does
    /// not remember them: giving memory back drops its translations.
    fn forget(&mut self, first: Gfn, count: u64) {
        for gfn in (0..count).map(|i| first.offset(i)) {
            self.words.entry(gfn).and_modify(|word| *word = 0);
        }
        self.shared.cpu(|cpu| {
            cpu.remembered[self.number].retain(|&gfn, _| gfn < first || gfn >= first.offset(count));
        });
    }
}
