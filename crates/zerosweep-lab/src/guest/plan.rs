//! What a guest is going to do: the same on every machine.

use zerosweep::Gfn;
use zerosweep_sim::splitmix64;

/// What a guest is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Pages that it is told of.
    pub max_pages: u64,
    /// Pages that it may hold: its balloon gives the rest back.
    pub target_pages: u64,
    /// Its virtual CPUs, at least one.
    pub vcpus: u32,
    /// What its random choices depend on.
    pub seed: u64,
}

/// One word is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Store {
    /// The page.
    pub gfn: Gfn,
    /// Which word of 8 bytes in it, below 512.
    pub word: u16,
    /// What is written, below 2^55.
    pub value: u64,
}

/// A part of what the guest writes.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Zero at the start of each of some pages.
    Zero { first: u64, pages: u64 },
    /// One word.
    Store(Store),
}

/// Which virtual CPU writes to which page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Split {
    /// Whole superpages in turn: work that wanders from CPU to CPU.
    #[default]
    InTurn,
    /// An equal range each: scrubbers that share memory out.
    Ranges,
}

/// All that a guest does: it boots (writes), then its balloon gives pages back.
#[derive(Debug)]
pub struct Plan {
    shape: Shape,
    split: Split,
    steps: Vec<Step>,
    stores: u64,
    balloon: Vec<u64>,
}

impl Plan {
    pub(super) fn new(shape: Shape, split: Split) -> Self {
        Self { shape, split, steps: Vec::new(), stores: 0, balloon: Vec::new() }
    }

    /// What it was made for.
    #[must_use]
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// How many words are written while it boots, by all virtual CPUs.
    #[must_use]
    pub fn stores(&self) -> u64 {
        self.stores
    }

    /// What the guest writes while it boots, in order.
    pub fn boot(&self) -> impl Iterator<Item = Store> + '_ {
        self.steps.iter().flat_map(|&step| {
            let (zeros, store) = match step {
                Step::Zero { first, pages } => (first..first + pages, None),
                Step::Store(store) => (0..0, Some(store)),
            };
            let zero = |page| Store { gfn: Gfn::new(page), word: 0, value: 0 };
            zeros.map(zero).chain(store)
        })
    }

    /// What one of its virtual CPUs writes. A page is always written by the same one.
    pub fn boot_of(&self, vcpu: u32) -> impl Iterator<Item = Store> + '_ {
        let vcpus = u64::from(self.shape.vcpus.max(1));
        let share = self.shape.max_pages.div_ceil(vcpus).max(1);
        let split = self.split;
        self.boot().filter(move |store| {
            let owner = match split {
                Split::InTurn => store.gfn.superpage().number() % vcpus,
                Split::Ranges => store.gfn.raw() / share,
            };
            owner == u64::from(vcpu)
        })
    }

    /// The pages that its balloon gives back, in order.
    #[must_use]
    pub fn balloon(&self) -> &[u64] {
        &self.balloon
    }

    pub(super) fn zero(&mut self, pages: std::ops::Range<u64>) {
        let count = pages.end.saturating_sub(pages.start);
        self.stores += count;
        match self.steps.last_mut() {
            Some(Step::Zero { first, pages: so_far }) if *first + *so_far == pages.start => {
                *so_far += count;
            }
            _ if count == 0 => {}
            _ => self.steps.push(Step::Zero { first: pages.start, pages: count }),
        }
    }

    pub(super) fn store(&mut self, page: u64, word: u16, value: u64) {
        self.stores += 1;
        self.steps.push(Step::Store(Store { gfn: Gfn::new(page), word, value }));
    }

    /// Puts something of its own into a page: mostly near its start, as data is.
    pub(super) fn dirty(&mut self, page: u64) {
        let drawn = splitmix64(self.shape.seed ^ page << 20);
        let word = if drawn.is_multiple_of(8) { drawn >> 8 & 511 } else { drawn >> 8 & 15 };
        self.store(page, word as u16, drawn >> 20 | 1);
    }

    /// Empties a page that [`Plan::dirty`] filled.
    pub(super) fn wipe(&mut self, page: u64) {
        let drawn = splitmix64(self.shape.seed ^ page << 20);
        let word = if drawn.is_multiple_of(8) { drawn >> 8 & 511 } else { drawn >> 8 & 15 };
        self.store(page, word as u16, 0);
    }

    /// Adds to what the balloon gives back. It stops at the target by itself.
    pub(super) fn give_back(&mut self, pages: impl IntoIterator<Item = u64>) {
        let surplus = self.shape.max_pages.saturating_sub(self.shape.target_pages) as usize;
        let room = surplus.saturating_sub(self.balloon.len());
        self.balloon.extend(pages.into_iter().take(room));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(split: Split, vcpus: u32) -> Plan {
        let shape = Shape { max_pages: 4096, target_pages: 1024, vcpus, seed: 1 };
        let mut plan = Plan::new(shape, split);
        plan.zero(0..2000);
        plan.zero(2000..4096);
        plan.dirty(77);
        plan.wipe(77);
        plan.give_back(0..4096);
        plan
    }

    #[test]
    fn a_plan_is_what_was_put_in() {
        let plan = plan(Split::InTurn, 1);
        assert_eq!(plan.steps.len(), 3);
        assert_eq!((plan.stores(), plan.boot().count()), (4098, 4098));
        let last: Vec<Store> = plan.boot().skip(4096).collect();
        assert!(last[0].value != 0 && last[0].word == last[1].word && last[1].value == 0);
        assert_eq!(plan.balloon().len(), 3072);
    }

    #[test]
    fn virtual_cpus_share_the_work_without_overlap() {
        for split in [Split::InTurn, Split::Ranges] {
            let plan = plan(split, 3);
            let shares: Vec<usize> = (0..3).map(|n| plan.boot_of(n).count()).collect();
            assert_eq!(shares.iter().sum::<usize>(), 4098, "{shares:?}");
            assert!(shares.iter().all(|&share| share > 1000), "{shares:?}");
        }
    }
}
