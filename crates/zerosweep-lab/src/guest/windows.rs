//! `windows`: zeroes all of its memory in parallel, long before its balloon driver starts.
//!
//! What is Windows' behaviour: the memory manager keeps zeroed pages for processes, and threads of
//! the lowest priority zero the free ones as long as nothing else runs (the zero-page thread; one
//! a processor since Windows 8), so that all of memory is written to at boot. The balloon driver of
//! a hypervisor is one of the last drivers to start, and gets its pages from
//! `MmAllocatePagesForMdlEx` in no order that the host could use.
//!
//! What is assumed here: each scrubber has an equal range and goes through it in ascending order;
//! kernel and drivers are one low range of a sixteenth of the target; then `dirty_percent` of the
//! target is written to, in runs of 256 KiB at random places, by services that start before the
//! balloon driver; the balloon's order is a shuffle.

use super::plan::{Plan, Shape, Split};
use super::random::Random;

/// A guest in the manner of Windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// What is in use when the balloon driver starts, besides the kernel: percent of the target.
    pub dirty_percent: u64,
}

impl Default for Windows {
    fn default() -> Self {
        Self { dirty_percent: 20 }
    }
}

/// Pages in a run of memory in use.
const RUN: u64 = 64;

impl Windows {
    pub(super) fn plan(&self, shape: &Shape) -> Plan {
        let mut plan = Plan::new(*shape, Split::Ranges);
        let mut random = Random::new(shape.seed);
        let mut used = vec![false; shape.max_pages as usize];
        let mut claim = |plan: &mut Plan, page: u64| {
            if let Some(used) = used.get_mut(page as usize) {
                *used = true;
                plan.dirty(page);
            }
        };
        let kernel = shape.target_pages / 16;
        (0..kernel).for_each(|page| claim(&mut plan, page));
        plan.zero(kernel..shape.max_pages);
        let runs = shape.target_pages * self.dirty_percent / 100 / RUN;
        let places = shape.max_pages.saturating_sub(kernel) / RUN;
        for _ in 0..runs {
            let first = kernel + random.below(places) * RUN;
            (first..first + RUN).for_each(|page| claim(&mut plan, page));
        }
        let unused = |page: &u64| !used[*page as usize];
        let mut free: Vec<u64> = (0..shape.max_pages).filter(unused).collect();
        random.shuffle(&mut free);
        plan.give_back(free);
        plan
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_touched_and_only_what_is_not_in_use_is_given_back() {
        let shape = Shape { max_pages: 65536, target_pages: 16384, vcpus: 2, seed: 3 };
        let plan = Windows::default().plan(&shape);
        let mut live = vec![false; 65536];
        let mut touched = vec![false; 65536];
        for store in plan.boot() {
            touched[store.gfn.raw() as usize] = true;
            live[store.gfn.raw() as usize] = store.value != 0;
        }
        assert!(touched.iter().all(|&touched| touched));
        assert_eq!(plan.balloon().len(), 49152);
        assert!(plan.balloon().iter().all(|&page| !live[page as usize]));
        assert!(plan.balloon().windows(2).any(|pair| pair[0] > pair[1]));
        assert_eq!(plan.boot_of(0).map(|store| store.gfn.raw()).max(), Some(32767));
    }
}
