//! The engine on a machine of your own: what to implement, and how to drive it.
//!
//! ```text
//! cargo run --release -p zerosweep --example machine
//! ```
//!
//! The machine is a table and a heap of words. A hypervisor's would be its page tables and its
//! frames: `map` and `unmap` write entries, `flush` is a TLB shootdown, and the guest runs on other
//! CPUs. The order of things is the same.

use std::error::Error;
use std::ops::Range;

use zerosweep::{
    Allocated, Config, Content, Domain, Fault, FramePool, Gfn, Machine, MapError, Mapped, Mfn,
    Order, OutOfFrames, Policy, QUICK_CHECK_WORDS, SUPERPAGE_PAGES, Unmapped,
};

/// Words of 8 bytes in a page.
const WORDS: usize = 512;

/// Frames, and which of them the guest sees where.
struct Toy {
    host: FramePool,
    memory: Vec<u64>,
    table: Vec<Option<Mfn>>,
}

impl Toy {
    /// A host with `frames` frames, for a guest of `pages` pages.
    fn new(frames: u64, pages: u64) -> Result<Self, Box<dyn Error>> {
        Ok(Self {
            host: FramePool::new(u32::try_from(frames / SUPERPAGE_PAGES)?)?,
            memory: vec![0; frames as usize * WORDS],
            table: vec![None; pages as usize],
        })
    }

    fn words(mfn: Mfn, pages: u64) -> Range<usize> {
        let first = mfn.raw() as usize * WORDS;
        first..first + pages as usize * WORDS
    }

    fn first_nonzero(&self, words: Range<usize>) -> Option<u32> {
        self.memory[words].iter().position(|&word| word != 0).map(|at| at as u32)
    }

    fn entries(&mut self, gfn: Gfn, order: Order) -> &mut [Option<Mfn>] {
        &mut self.table[gfn.raw() as usize..][..order.pages() as usize]
    }
}

impl Machine for Toy {
    fn allocate(&mut self, order: Order) -> Result<Allocated, OutOfFrames> {
        // The engine clears what may hold something.
        Ok(Allocated { mfn: self.host.allocate(order)?, content: Content::Unknown })
    }

    fn free(&mut self, mfn: Mfn, order: Order) {
        assert!(self.host.free(mfn, order), "a frame came back twice");
    }

    fn map(&mut self, gfn: Gfn, mfn: Mfn, order: Order) -> Result<Mapped, MapError> {
        for (entry, page) in self.entries(gfn, order).iter_mut().zip(0..) {
            *entry = Some(Mfn::new(mfn.raw() + page));
        }
        Ok(Mapped::Whole)
    }

    fn unmap(&mut self, gfn: Gfn, _mfn: Mfn, order: Order) -> Unmapped {
        // A frame that a device reads or writes would be `Busy`, and stay mapped.
        self.entries(gfn, order).fill(None);
        Unmapped::Done
    }

    fn flush(&mut self) {
        // The only CPU is here, and not in the guest.
    }

    fn quick_check(&mut self, _gfn: Gfn, mfn: Mfn, order: Order) -> Option<u32> {
        (0..order.pages()).find_map(|page| {
            let first = Self::words(Mfn::new(mfn.raw() + page), 1).start;
            let found = self.first_nonzero(first..first + QUICK_CHECK_WORDS as usize)?;
            Some(page as u32 * WORDS as u32 + found)
        })
    }

    fn peek(&mut self, _gfn: Gfn, mfn: Mfn, word: u32) -> u64 {
        self.memory[Self::words(mfn, 1).start + word as usize]
    }

    fn zero_check(&mut self, mfn: Mfn, pages: u64) -> Option<u32> {
        self.first_nonzero(Self::words(mfn, pages))
    }

    fn clear(&mut self, mfn: Mfn, order: Order) {
        self.memory[Self::words(mfn, order.pages())].fill(0);
    }

    fn copy(&mut self, from: Mfn, to: Mfn) {
        self.memory.copy_within(Self::words(from, 1), Self::words(to, 1).start);
    }

    fn scrub(&mut self, _gfn: Gfn, mfn: Mfn) -> Content {
        let words = Self::words(mfn, 1);
        if self.first_nonzero(words.clone()).is_none() {
            return Content::Zero;
        }
        self.memory[words].fill(0);
        Content::Unknown
    }
}

/// A guest's access: through the table, and where it leads nowhere, through the engine.
fn touch(domain: &mut Domain, toy: &mut Toy, page: u64) -> Result<usize, Box<dyn Error>> {
    loop {
        if let Some(mfn) = toy.table[page as usize] {
            return Ok(Toy::words(mfn, 1).start);
        }
        match domain.with(toy).fault(Gfn::new(page))? {
            Fault::Present { .. } | Fault::Again => {}
            // With threads: wait for the one that is at work there.
            Fault::InTransit => unreachable!("there is one thread"),
            Fault::Exhausted => return Err("no frame can be found: nothing is zero".into()),
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let (max_pages, target) = (64 * 256, 16 * 256);
    let mut toy = Toy::new(target, max_pages)?;
    let mut domain = Domain::new(Config::new(max_pages, target, Policy::Zerosweep))?;
    for first in (0..max_pages).step_by(SUPERPAGE_PAGES as usize) {
        domain.with(&mut toy).populate_on_demand(Gfn::new(first), Order::SUPERPAGE)?;
    }
    domain.with(&mut toy).set_target(target)?;

    // The guest writes to 8 MiB, and clears the rest: four times what it may hold.
    for page in 0..max_pages {
        let word = touch(&mut domain, &mut toy, page)?;
        toy.memory[word] = if page < 8 * 256 { page + 1 } else { 0 };
    }
    // Its balloon takes the upper 48 MiB, a page at a time.
    for page in 16 * 256..max_pages {
        domain.with(&mut toy).decrease(Gfn::new(page), Order::PAGE)?;
    }
    for page in 0..8 * 256 {
        let word = touch(&mut domain, &mut toy, page)?;
        assert_eq!(toy.memory[word], page + 1, "page {page}");
    }
    domain.audit()?;
    println!("{:#?}\n{:#?}", domain.quantities(), domain.statistics());
    Ok(())
}
