//! Random operations against a naive model that knows pages and nothing of superpages: the same
//! answers, the same bytes, and books that add up after every step.
//!
//! The seed is fixed by proptest's own file of failures; each failure prints its operations.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use proptest::prelude::*;
use zerosweep::{Config, FaultError, Gfn, InvalidTouch, Mfn, Order, Policy, Upkeep};
use zerosweep_sim::{SoftwareGuest, SoftwareMachine, TouchError};

/// Four superpages and a partial one.
const PAGES: u64 = 4 * 512 + 37;

/// What a page is to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Page {
    Out,
    /// Promised or populated: the value of its one word that is ever written.
    In(u64),
    Special,
}

#[derive(Clone, Debug)]
enum Step {
    Read(u64),
    Write(u64, u64),
    Scrub(u64, u64),
    Decrease(u64, u8),
    Promise(u64, u8),
    Physmap(u64, u8),
    Special(u64, u8),
    Discard(u64, u64),
    Target(u64),
    Sweep,
    Consolidate,
    Upkeep(bool),
    Retake(u64, u64),
    Busy(u64, bool),
}

fn step() -> impl Strategy<Value = Step> {
    let page = 0..PAGES;
    // Orders that are too large for the guest are tried too.
    let order = prop_oneof![6 => Just(0_u8), 3 => 0..=9_u8, 1 => 10..=18_u8];
    prop_oneof![
        4 => page.clone().prop_map(Step::Read),
        8 => (page.clone(), 1..3_u64).prop_map(|(page, value)| Step::Write(page, value)),
        4 => (page.clone(), 1..700_u64).prop_map(|(page, count)| Step::Scrub(page, count)),
        8 => (page.clone(), order.clone()).prop_map(|(page, order)| Step::Decrease(page, order)),
        2 => (page.clone(), order.clone()).prop_map(|(page, order)| Step::Promise(page, order)),
        2 => (page.clone(), order.clone()).prop_map(|(page, order)| Step::Physmap(page, order)),
        1 => (page.clone(), 0..4_u8).prop_map(|(page, order)| Step::Special(page, order)),
        2 => (page.clone(), 1..1200_u64).prop_map(|(page, count)| Step::Discard(page, count)),
        2 => (1..=PAGES).prop_map(Step::Target),
        2 => Just(Step::Sweep),
        1 => Just(Step::Consolidate),
        2 => any::<bool>().prop_map(Step::Upkeep),
        2 => (page.clone(), 1..700_u64).prop_map(|(page, count)| Step::Retake(page, count)),
        1 => (0..PAGES, any::<bool>()).prop_map(|(mfn, busy)| Step::Busy(mfn, busy)),
    ]
}

/// Where a page's word is: at the start for some, deep in the page for others, so that quick checks
/// see some and miss others.
fn offset(page: u64) -> usize {
    if page.is_multiple_of(3) { 0 } else { 2048 }
}

struct Both {
    guest: SoftwareGuest,
    model: Vec<Page>,
    invalid_touch: InvalidTouch,
}

impl Both {
    fn new(policy: Policy, invalid_touch: InvalidTouch, upkeep: Upkeep, target: u64) -> Self {
        let machine = SoftwareMachine::new(2 * PAGES + 1024).with_poison();
        let config = Config { invalid_touch, upkeep, ..Config::new(PAGES, target, policy) };
        let guest = SoftwareGuest::on(machine, config).unwrap();
        Self { guest, model: vec![Page::In(0); PAGES as usize], invalid_touch }
    }

    fn range(&self, page: u64, count: u64) -> Option<std::ops::Range<usize>> {
        let end = page.checked_add(count).filter(|&end| end <= PAGES)?;
        Some(page as usize..end as usize)
    }

    fn touch(&mut self, page: u64, write: Option<u64>) {
        let gfn = Gfn::new(page);
        let outcome = match write {
            Some(value) => self.guest.write(gfn, offset(page), value).map(|()| value),
            None => self.guest.read(gfn, offset(page)),
        };
        let slot = &mut self.model[page as usize];
        match (*slot, outcome) {
            // With no frame to be had nothing changes.
            (_, Err(TouchError::Exhausted)) => {}
            (Page::In(known), Ok(value)) => {
                assert_eq!(write.unwrap_or(known), value, "page {page}");
                *slot = Page::In(value);
            }
            (Page::Out, Ok(value)) => {
                assert_eq!(self.invalid_touch, InvalidTouch::Increase);
                assert_eq!(value, write.unwrap_or(0), "a page that came anew, {page}");
                *slot = Page::In(value);
            }
            (Page::Out, Err(TouchError::Fault(FaultError::Unmapped))) => {
                assert_eq!(self.invalid_touch, InvalidTouch::Refuse);
            }
            (Page::Special, Err(TouchError::Fault(FaultError::Special))) => {}
            (page_state, outcome) => panic!("page {page} is {page_state:?}, got {outcome:?}"),
        }
    }

    /// Whether the guest took the page again without a word, or may as well not have: the engine
    /// says that it is out.
    fn is_unseen(&self, page: usize) -> bool {
        self.invalid_touch == InvalidTouch::Increase
            && matches!(self.model[page], Page::In(_))
            && self.guest.domain.p2m().get(Gfn::new(page as u64)).0 == zerosweep::Entry::Invalid
    }

    fn decrease(&mut self, page: u64, order: u8) {
        let order = Order::new(order).unwrap();
        for index in self.range(page, order.pages()).into_iter().flatten() {
            if self.is_unseen(index) {
                self.model[index] = Page::Out;
            }
        }
        let given = self.guest.session().decrease(Gfn::new(page), order);
        let Some(range) = self.range(page, order.pages()) else {
            assert!(given.is_err());
            return;
        };
        let given = given.unwrap();
        let had = self.model[range.clone()].iter().filter(|p| matches!(p, Page::In(_))).count();
        // A frame that is busy stays with the guest: then, and only then, fewer pages come back.
        let p2m = self.guest.domain.p2m();
        let mut out = 0;
        for index in range {
            if matches!(self.model[index], Page::In(_))
                && p2m.get(Gfn::new(index as u64)).0 == zerosweep::Entry::Invalid
            {
                self.model[index] = Page::Out;
                out += 1;
            }
        }
        assert_eq!(given, out);
        let any_busy = self.guest.domain.statistics().busy > 0;
        assert!(given as usize == had || any_busy, "{given} of {had} pages came back");
    }

    fn build(&mut self, page: u64, order: u8, physmap: bool) {
        let order = Order::new(order).unwrap();
        let range = self.range(page, order.pages());
        let unseen: Vec<bool> =
            range.into_iter().flatten().map(|index| self.is_unseen(index)).collect();
        let mut session = self.guest.session();
        let outcome = match physmap {
            true => session.populate_physmap(Gfn::new(page), order),
            false => session.populate_on_demand(Gfn::new(page), order),
        };
        let Some(range) = self.range(page, order.pages()) else {
            assert!(outcome.is_err());
            return;
        };
        if outcome.is_ok() {
            for (index, slot) in self.model[range].iter_mut().enumerate() {
                match *slot {
                    Page::Out => *slot = Page::In(0),
                    // Taken again without a word, and now with one.
                    Page::In(_) if physmap && unseen[index] => {}
                    // Only what has no frame may be there, and that reads as zero.
                    Page::In(value) => assert_eq!(value, 0),
                    Page::Special => panic!("special was built over"),
                }
            }
        }
    }

    fn special(&mut self, page: u64, order: u8) {
        let order = Order::new(order).unwrap();
        let outcome = self.guest.session().set_special(Gfn::new(page), order);
        if let (Ok(()), Some(range)) = (outcome, self.range(page, order.pages())) {
            self.model[range].fill(Page::Special);
        }
    }

    fn discard(&mut self, page: u64, count: u64) {
        let outcome = self.guest.session().discard(Gfn::new(page), count);
        let Some(range) = self.range(page, count) else {
            assert!(outcome.is_err());
            return;
        };
        outcome.unwrap();
        for index in range {
            // A frame that is busy keeps what is in it.
            let now = self.word(index as u64).unwrap_or(0);
            if let Page::In(value) = &mut self.model[index]
                && now == 0
            {
                *value = 0;
            }
        }
    }

    fn perform(&mut self, step: &Step) {
        match *step {
            Step::Read(page) => self.touch(page, None),
            Step::Write(page, value) => self.touch(page, Some(value)),
            Step::Scrub(page, count) => {
                (page..(page + count).min(PAGES)).for_each(|page| self.touch(page, Some(0)));
            }
            Step::Decrease(page, order) => self.decrease(page, order),
            Step::Promise(page, order) => self.build(page, order, false),
            Step::Physmap(page, order) => self.build(page, order, true),
            Step::Special(page, order) => self.special(page, order),
            Step::Discard(page, count) => self.discard(page, count),
            Step::Target(pages) => self.guest.session().set_target(pages).unwrap(),
            Step::Sweep => {
                let mut next = 0;
                let _ = self.guest.session().sweep_full(&mut next, u64::MAX);
            }
            Step::Consolidate => {
                let mut work = zerosweep::Consolidation::default();
                let mut session = self.guest.session();
                while session.consolidate(&mut work, 2).unwrap() == zerosweep::Progress::More {}
            }
            Step::Upkeep(idle) => {
                while self.guest.session().upkeep(1, idle) == zerosweep::Progress::More {}
            }
            Step::Retake(page, count) => {
                let taken = self.guest.session().retake(Gfn::new(page), count);
                let mut fresh = 0;
                for index in page as usize..(page + count).min(PAGES) as usize {
                    let is_in = self.guest.domain.p2m().get(Gfn::new(index as u64)).0
                        != zerosweep::Entry::Invalid;
                    if is_in && self.model[index] == Page::Out {
                        self.model[index] = Page::In(0);
                        fresh += 1;
                    }
                }
                assert!(fresh <= taken);
            }
            Step::Busy(mfn, busy) => self.guest.machine.set_busy(Mfn::new(mfn), busy),
        }
    }

    /// INV-2, INV-3, R19, and that what the guest can see is what it wrote.
    fn check(&self, before: u64) {
        self.guest.domain.audit().unwrap();
        let q = self.guest.domain.quantities();
        assert!(q.total() <= q.target.max(before), "INV-3: {q:?}, {before} before");
        let pages = 0..self.model.len();
        let inside = pages
            .filter(|&index| matches!(self.model[index], Page::In(_)) && !self.is_unseen(index));
        assert_eq!(q.guest(), inside.count() as u64, "B");
    }

    fn word(&self, page: u64) -> Option<u64> {
        let (mfn, _) = self.guest.machine.translate(Gfn::new(page))?;
        Some(self.guest.machine.word(mfn, offset(page) / 8))
    }

    /// Every page, looked at from outside.
    fn check_bytes(&self) {
        for (page, state) in self.model.iter().enumerate() {
            let value = self.word(page as u64);
            match state {
                Page::In(known) => assert_eq!(value.unwrap_or(0), *known, "page {page}"),
                // Its frame may still be there (R12), and is zero (INV-11).
                Page::Out if value == Some(0) => {
                    assert!(self.guest.domain.p2m().is_out(Gfn::new(page as u64)), "page {page}");
                }
                Page::Out | Page::Special => assert_eq!(value, None, "page {page}"),
            }
        }
    }
}

/// 400 cases, or as many as `PROPTEST_CASES` says.
fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => default,
        None => ProptestConfig { cases: 400, ..default },
    }
}

fn policies() -> impl Strategy<Value = Policy> {
    prop::sample::select(Policy::ALL.to_vec())
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn the_engine_and_the_naive_model_agree(
        policy in policies(),
        increase in any::<bool>(),
        inline in any::<bool>(),
        target in 64..=PAGES,
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let touch = if increase { InvalidTouch::Increase } else { InvalidTouch::Refuse };
        let upkeep = if inline { Upkeep::Inline } else { Upkeep::Host };
        let mut both = Both::new(policy, touch, upkeep, target);
        for step in &steps {
            let before = both.guest.domain.quantities().total();
            both.perform(step);
            both.check(before);
        }
        both.check_bytes();
        // R18: every frame comes back.
        for mfn in 0..2 * PAGES + 1024 {
            both.guest.machine.set_busy(Mfn::new(mfn), false);
        }
        while both.guest.session().teardown(1) == zerosweep::Progress::More {}
        let pool = both.guest.machine.pool();
        prop_assert_eq!(pool.free_pages(), pool.free_superpages() * 512);
        prop_assert_eq!(pool.free_pages(), (2 * PAGES + 1024).div_ceil(512) * 512);
    }
}
