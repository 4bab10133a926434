//! A case out of whatever bytes: a domain's six, then a step's one to six, until they end.

use zerosweep::{Config, Gate, InvalidTouch, Policy, Upkeep};
use zerosweep_sim::Failure;

use crate::steps::{Case, MOST_PAGES, Step};

/// More steps than this are not looked at: what fails should be short.
const MOST_STEPS: usize = 128;

/// What is left of the input. Beyond its end everything is 0.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    fn word(&mut self) -> u64 {
        u64::from(u16::from_le_bytes([self.byte(), self.byte()]))
    }

    fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    /// A page of the largest guest.
    fn page(&mut self) -> u64 {
        self.word() % MOST_PAGES
    }

    /// From `first` to below `end`.
    fn within(&mut self, first: u64, end: u64) -> u64 {
        first + self.word() % (end - first)
    }

    /// Mostly single pages; orders that are too large for the guest too.
    fn order(&mut self) -> u8 {
        let order = self.byte() % 32;
        if order <= 18 { order } else { 0 }
    }

    /// A few, or all there is.
    fn some_or_all(&mut self, most: u8) -> u64 {
        match self.byte() % (most + 1) {
            0 => u64::MAX,
            some => u64::from(some),
        }
    }

    fn config(&mut self) -> Config {
        let policy = match self.byte() % 8 {
            0 => Policy::None,
            1 => Policy::Rfc2011(Gate::Debt),
            2 => Policy::Rfc2011(Gate::Always),
            3 => Policy::Hypercall2011,
            4 => Policy::Xen2012,
            5 => Policy::Xen2016,
            _ => Policy::Zerosweep,
        };
        // With a partial last superpage, and without.
        let pages = [512 + 37, 2 * 512, 2 * 512 + 37, MOST_PAGES][usize::from(self.byte() % 4)];
        let target = self.within(64, MOST_PAGES).min(pages);
        let flags = self.byte();
        let budget = self.byte();
        Config {
            invalid_touch: match flags & 1 {
                0 => InvalidTouch::Refuse,
                _ => InvalidTouch::Increase,
            },
            upkeep: if flags & 2 == 0 { Upkeep::Host } else { Upkeep::Inline },
            fault_budget_bytes: match budget & 1 {
                0 => 64 << 10,
                _ => Config::DEFAULT_FAULT_BUDGET_BYTES,
            },
            ..Config::new(pages, target, policy)
        }
    }

    fn step(&mut self) -> Step {
        let kind = match self.byte() {
            // What came later leaves most of the corpus as it was.
            240..=247 => return Step::ReadByHost(self.page(), self.within(0, 3)),
            248..=255 => return Step::Reconcile(self.page(), self.within(1, 9)),
            byte => byte % 20,
        };
        match kind {
            0 => Step::Read(self.page()),
            1 => Step::Write(self.page(), self.within(1, 3)),
            2 => Step::Scrub(self.page(), self.within(1, 700)),
            3 => Step::Borrow(self.page()),
            4 => Step::Decrease(self.page(), self.order()),
            5 => Step::Promise(self.page(), self.order()),
            6 => Step::Physmap(self.page(), self.order()),
            7 => Step::Special(self.page(), self.byte() % 4),
            8 => Step::Discard(self.page(), self.within(1, 1200)),
            9 => Step::Retake(self.page(), self.within(1, 700)),
            10 => Step::Pin(self.page(), self.flag()),
            11 => Step::Busy(self.page(), self.flag()),
            12 => Step::Offline(self.page()),
            13 => Step::Settle(self.page()),
            14 => Step::Target(self.within(1, MOST_PAGES + 1)),
            15 => Step::TargetInSteps(self.within(1, MOST_PAGES + 1), self.byte().into()),
            16 => Step::Sweep(self.some_or_all(3)),
            17 => Step::Consolidate(self.some_or_all(5)),
            18 => Step::Upkeep(self.flag()),
            _ => Step::Fail(
                (self.byte() % 12).into(),
                (1 + self.byte() % 3).into(),
                if self.flag() { Failure::Refuse } else { Failure::Pieces },
            ),
        }
    }
}

/// The case that these bytes stand for: every input is one.
pub(crate) fn case(input: &[u8]) -> Case {
    let mut bytes = Bytes(input);
    let config = bytes.config();
    let mut steps = Vec::new();
    while !bytes.0.is_empty() && steps.len() < MOST_STEPS {
        steps.push(bytes.step());
    }
    Case { config, steps }
}
