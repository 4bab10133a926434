//! `linux`, `linux-scrub` and `churn`: guests in the manner of Linux.
//!
//! What is the kernel's behaviour: its image lies at 16 MiB; `mem_map` (64 bytes for each page, a
//! sixty-fourth of memory) is allocated from the top of memory and written to wholly at boot;
//! everything else is handed to the page allocator (`buddy`), whose order decides
//! where programs and files lie and which pages `virtio_balloon` or Xen's balloon takes: one page
//! of 4 KiB at a time, the small free pieces first, and what it takes it does not write to. With
//! `init_on_free=1` (`linux-scrub`) each page is zeroed when memblock frees it at boot, that is all
//! of memory in ascending order before any driver starts, and again whenever it is freed.
//!
//! What is assumed here: the image is a sixteenth of the target and 32 MiB at most; `user_percent`
//! of the target is written to before the balloon driver starts, and a quarter of that is freed
//! again (the initial file system). `churn` then fills files of 16 KiB to 1 MiB until
//! `fill_percent` of the target is in use, and deletes three quarters of them in random order; a
//! deleted file's pages keep what was in them, unless pages are zeroed when they are freed. Guest
//! memory is in use by pages, never by huge pages.

use super::buddy::Buddy;
use super::plan::{Plan, Shape, Split};
use super::random::Random;

/// A guest in the manner of Linux.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Linux {
    /// What is written to before the balloon driver starts: percent of the target.
    pub user_percent: u64,
    /// Whether pages are zeroed when they are freed.
    pub init_on_free: bool,
    /// What is in use when the guest is fullest, in percent of the target; none: no files.
    pub fill_percent: Option<u64>,
}

impl Linux {
    /// Nothing but a boot.
    pub const PLAIN: Self = Self { user_percent: 25, init_on_free: false, fill_percent: None };
    /// With `init_on_free=1`.
    pub const SCRUB: Self = Self { init_on_free: true, ..Self::PLAIN };
    /// With files that come and go.
    pub const CHURN: Self = Self { user_percent: 10, init_on_free: false, fill_percent: Some(75) };

    pub(super) fn plan(&self, shape: &Shape) -> Plan {
        let mut boot = Boot::new(*self, shape);
        boot.start_kernel();
        boot.run_programs();
        if let Some(percent) = self.fill_percent {
            boot.churn(percent);
        }
        boot.inflate()
    }
}

/// Pages of the largest kernel image.
const KERNEL_PAGES: u64 = 8192;
/// Where it lies.
const KERNEL_START: u64 = 4096;
/// Pages of the smallest and the largest file.
const FILE_PAGES: (u64, u64) = (4, 256);

struct Boot {
    guest: Linux,
    shape: Shape,
    plan: Plan,
    buddy: Buddy,
    random: Random,
    in_use: u64,
}

impl Boot {
    fn new(guest: Linux, shape: &Shape) -> Self {
        Self {
            guest,
            shape: *shape,
            plan: Plan::new(*shape, Split::InTurn),
            buddy: Buddy::new(shape.max_pages),
            random: Random::new(shape.seed),
            in_use: 0,
        }
    }

    /// Kernel image and `mem_map` are written; the page allocator gets the rest.
    fn start_kernel(&mut self) {
        let max = self.shape.max_pages;
        let image = KERNEL_START.min(max / 4);
        let image_end = image + (self.shape.target_pages / 16).clamp(1, KERNEL_PAGES);
        let mem_map = max - max / 64;
        for page in (image..image_end).chain(mem_map..max) {
            self.in_use += 1;
            self.plan.dirty(page);
        }
        for free in [0..image, image_end..mem_map] {
            if self.guest.init_on_free {
                self.plan.zero(free.clone());
            }
            self.buddy.release(free);
        }
    }

    fn run_programs(&mut self) {
        let wanted = self.shape.target_pages * self.guest.user_percent / 100;
        let mut pages = self.fill(wanted);
        self.delete(pages.split_off(pages.len() - pages.len() / 4));
    }

    /// Files come until memory is full, then three quarters of them go.
    fn churn(&mut self, fill_percent: u64) {
        let full = self.shape.target_pages * fill_percent / 100;
        let mut files = Vec::new();
        while self.in_use < full {
            let (least, most) = FILE_PAGES;
            let pages = least + self.random.below(most - least + 1);
            let file = self.fill(pages);
            if file.is_empty() {
                break;
            }
            files.push(file);
        }
        self.random.shuffle(&mut files);
        let kept = files.len() / 4;
        files.drain(kept..).for_each(|file| self.delete(file));
    }

    fn fill(&mut self, pages: u64) -> Vec<u64> {
        let pages: Vec<u64> = (0..pages).map_while(|_| self.buddy.allocate()).collect();
        self.in_use += pages.len() as u64;
        pages.iter().for_each(|&page| self.plan.dirty(page));
        pages
    }

    fn delete(&mut self, pages: Vec<u64>) {
        self.in_use -= pages.len() as u64;
        for page in pages {
            if self.guest.init_on_free {
                self.plan.wipe(page);
            }
            self.buddy.free(page);
        }
    }

    fn inflate(mut self) -> Plan {
        let mut buddy = self.buddy;
        self.plan.give_back(std::iter::from_fn(|| buddy.allocate()));
        self.plan
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { max_pages: 1 << 18, target_pages: 1 << 16, vcpus: 1, seed: 5 };

    /// What was written last to each page: `None` if nothing was.
    fn contents(plan: &Plan) -> Vec<Option<u64>> {
        let mut contents = vec![None; SHAPE.max_pages as usize];
        plan.boot().for_each(|store| contents[store.gfn.raw() as usize] = Some(store.value));
        contents
    }

    #[test]
    fn a_plain_guest_touches_little_and_a_scrubbing_one_everything() {
        let plain = contents(&Linux::PLAIN.plan(&SHAPE));
        let touched = plain.iter().flatten().count() as u64;
        assert!(touched < SHAPE.target_pages / 2, "{touched}");
        let scrub = contents(&Linux::SCRUB.plan(&SHAPE));
        assert!(scrub.iter().all(Option::is_some));
        let live = |contents: &[Option<u64>]| contents.iter().flatten().filter(|&&v| v > 0).count();
        // What was freed keeps its content in one and is zeroed in the other.
        assert_eq!(live(&plain), live(&scrub) + 4096);
    }

    #[test]
    fn the_balloon_takes_no_page_that_is_in_use() {
        for guest in [Linux::PLAIN, Linux::SCRUB, Linux::CHURN] {
            let plan = guest.plan(&SHAPE);
            assert_eq!(plan.balloon().len(), 3 << 16, "{guest:?}");
            let mut sorted = plan.balloon().to_vec();
            sorted.sort_unstable();
            sorted.dedup();
            assert_eq!(sorted.len(), plan.balloon().len(), "a page was given back twice");
            let mem_map = SHAPE.max_pages - SHAPE.max_pages / 64;
            assert!(sorted.iter().all(|page| !(4096..8192).contains(page) && *page < mem_map));
        }
    }

    #[test]
    fn churn_leaves_its_garbage_and_gives_it_back_first() {
        let plan = Linux::CHURN.plan(&SHAPE);
        let contents = contents(&plan);
        let first = &plan.balloon()[..4096];
        let garbage = first.iter().filter(|page| contents[**page as usize].is_some()).count();
        assert!(garbage > 3000, "{garbage}");
    }

    #[test]
    fn the_smallest_guests_do_not_break_it() {
        for max_pages in [1, 2, 3, 64, 513] {
            for target_pages in [1, max_pages] {
                let shape = Shape { max_pages, target_pages, vcpus: 1, seed: 0 };
                let plan = Linux::CHURN.plan(&shape);
                assert!(plan.boot().all(|store| store.gfn.raw() < max_pages));
            }
        }
    }
}
