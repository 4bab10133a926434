//! A machine that touches no memory: what is left is the engine's own work.

use zerosweep::{
    Allocated, Content, FramePool, Gfn, Machine, MapError, Mapped, Mfn, Order, OutOfFrames,
    SUPERPAGE_PAGES, Unmapped,
};

/// Gives out frames, and answers checks as it was told.
pub(crate) struct NullMachine {
    frames: Frames,
    looks: Looks,
}

enum Frames {
    Pool(FramePool),
    /// Singles of superframes that are never complete, so that the cache never joins them.
    Singles(u64),
}

/// What a look at memory finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Looks {
    /// Zeros.
    Zero,
    /// The first word of each page is not zero while it is mapped; after it was given back it is.
    FirstWords,
}

impl NullMachine {
    pub(crate) fn new(pages: u64, looks: Looks) -> Self {
        let superframes = u32::try_from(pages.div_ceil(SUPERPAGE_PAGES)).unwrap();
        Self { frames: Frames::Pool(FramePool::new(superframes).unwrap()), looks }
    }

    pub(crate) fn of_singles() -> Self {
        Self { frames: Frames::Singles(0), looks: Looks::Zero }
    }

    fn word(&self) -> u64 {
        u64::from(self.looks == Looks::FirstWords)
    }
}

impl Machine for NullMachine {
    fn allocate(&mut self, order: Order) -> Result<Allocated, OutOfFrames> {
        let mfn = match &mut self.frames {
            Frames::Pool(pool) => pool.allocate(order)?,
            Frames::Singles(_) if order > Order::PAGE => return Err(OutOfFrames),
            Frames::Singles(next) => {
                *next += 1 + u64::from(*next % SUPERPAGE_PAGES == SUPERPAGE_PAGES - 2);
                Mfn::new(*next)
            }
        };
        Ok(Allocated { mfn, content: Content::Zero })
    }

    fn free(&mut self, mfn: Mfn, order: Order) {
        if let Frames::Pool(pool) = &mut self.frames {
            assert!(pool.free(mfn, order), "INV-1: {mfn:?} was given back twice");
        }
    }

    fn map(&mut self, _gfn: Gfn, _mfn: Mfn, _order: Order) -> Result<Mapped, MapError> {
        Ok(Mapped::Whole)
    }

    fn unmap(&mut self, _gfn: Gfn, _mfn: Mfn, _order: Order) -> Unmapped {
        Unmapped::Done
    }

    fn flush(&mut self) {}

    fn quick_check(&mut self, _gfn: Gfn, _mfn: Mfn, _order: Order) -> Option<u32> {
        (self.word() != 0).then_some(0)
    }

    fn peek(&mut self, _gfn: Gfn, _mfn: Mfn, _word: u32) -> u64 {
        self.word()
    }

    fn zero_check(&mut self, _mfn: Mfn, _pages: u64) -> Option<u32> {
        None
    }

    fn clear(&mut self, _mfn: Mfn, _order: Order) {}

    fn copy(&mut self, _from: Mfn, _to: Mfn) {}

    fn scrub(&mut self, _gfn: Gfn, _mfn: Mfn) -> Content {
        Content::Zero
    }
}
