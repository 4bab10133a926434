//! An arena of frames, and a table of what is mapped where.

use std::collections::{BTreeMap, BTreeSet};

use zerosweep::{
    Allocated, Content, FramePool, Gfn, Machine, MapError, Mapped, Mfn, Order, OutOfFrames,
    PAGE_BYTES, QUICK_CHECK_WORDS, SUPERPAGE_PAGES, Shown, Superframe, Unmapped,
};

/// Words of 8 bytes in a page.
const PAGE_WORDS: usize = (PAGE_BYTES / 8) as usize;
/// What a frame is filled with when it comes from the host, on request.
const POISON: u64 = 0xdead_beef_5eed_cafe;

/// What the machine was asked to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MachineCounters {
    /// Flushes: how often the machine waited for all CPUs.
    pub flushes: u64,
    /// Full zero checks.
    pub zero_checks: u64,
    /// Quick checks.
    pub quick_checks: u64,
    /// Runs cleared.
    pub clears: u64,
    /// Bytes cleared.
    pub bytes_cleared: u64,
    /// Pages copied.
    pub copies: u64,
    /// Runs mapped.
    pub maps: u64,
    /// Runs unmapped.
    pub unmaps: u64,
    /// Zero superpages that went to the cache.
    pub parks: u64,
}

/// How a call that is planned to fail does so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// As the call fails otherwise: there is no frame, the run is not mapped, or it is busy.
    Refuse,
    /// A superpage is mapped in 512 pieces. Other calls do not fail.
    Pieces,
}

/// A page whose content must not be lost: where the content must be if the machine stops now and
/// puts every page where its entry says ([INV-10]).
///
/// [INV-10]: zerosweep::rules#inv-10
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The page.
    pub gfn: Gfn,
    /// The frame that its entry names.
    pub mfn: Mfn,
    /// The index of the word that is known.
    pub word: usize,
    /// The value of that word.
    pub value: u64,
}

/// Which calls fail.
#[derive(Clone, Copy, Debug, Default)]
struct Failures {
    /// Calls so far that can fail.
    calls: u64,
    /// Those of them that failed because it was planned.
    failed: u64,
    /// The first one that does, the first one after it that does not, and how.
    planned: Option<(u64, u64, Failure)>,
}

/// A superpage of the machine's own table.
#[derive(Clone, Default)]
enum Slot {
    #[default]
    Empty,
    Whole(u64),
    Pages(Box<[Option<u64>; SUPERPAGE_PAGES as usize]>),
}

/// The software machine. Memory that was never written to takes no memory of the process.
pub struct SoftwareMachine {
    arena: Vec<u64>,
    pool: FramePool,
    table: Vec<Slot>,
    busy: BTreeSet<u64>,
    /// Runs that were unmapped since the last flush: first frame, and behind the last.
    unflushed: Vec<(u64, u64)>,
    poison: bool,
    failures: Failures,
    /// Frames that are broken: nobody may use them any more.
    retired: BTreeSet<u64>,
    /// What the guest will write to pages in the moment after they are shown as zeros: word, value.
    early_writes: BTreeMap<u64, (usize, u64)>,
    /// What it wrote so, and no frame has yet.
    written: BTreeMap<u64, (usize, u64)>,
    /// What is looked at before each call.
    kept: Vec<Kept>,
    counters: MachineCounters,
}

impl SoftwareMachine {
    /// A machine whose host has `pages` frames, rounded up to whole superframes.
    ///
    /// # Panics
    /// When `pages` are more than frame numbers can tell apart, or the arena cannot be allocated.
    #[must_use]
    pub fn new(pages: u64) -> Self {
        let superframes = pages.div_ceil(SUPERPAGE_PAGES);
        let count = u32::try_from(superframes).expect("fewer than 2^32 superframes");
        Self {
            arena: vec![0; count as usize * SUPERPAGE_PAGES as usize * PAGE_WORDS],
            pool: FramePool::new(count).expect("memory for the pool's tables"),
            table: Vec::new(),
            busy: BTreeSet::new(),
            unflushed: Vec::new(),
            poison: false,
            failures: Failures::default(),
            retired: BTreeSet::new(),
            early_writes: BTreeMap::new(),
            written: BTreeMap::new(),
            kept: Vec::new(),
            counters: MachineCounters::default(),
        }
    }

    /// Fills each frame that the host gives out with rubbish, to show that it is cleared.
    #[must_use]
    pub fn with_poison(mut self) -> Self {
        self.poison = true;
        self
    }

    /// Plans that the guest writes `value` to `word` of page `gfn` in the moment after that page is
    /// shown as zeros and before it is protected.
    pub fn write_when_shown(&mut self, gfn: Gfn, word: usize, value: u64) {
        self.early_writes.insert(gfn.raw(), (word, value));
    }

    /// Forgets writes that were planned, or that got no frame. Returns whether there were any.
    pub fn forget_early_writes(&mut self) -> bool {
        let any = !(self.early_writes.is_empty() && self.written.is_empty());
        self.early_writes.clear();
        self.written.clear();
        any
    }

    /// Returns what the machine was asked to do so far.
    #[must_use]
    pub fn counters(&self) -> MachineCounters {
        self.counters
    }

    /// Returns the host's frames.
    #[must_use]
    pub fn pool(&self) -> &FramePool {
        &self.pool
    }

    /// Makes a frame busy, as if a device had pinned it, or ends that.
    pub fn set_busy(&mut self, mfn: Mfn, busy: bool) {
        if busy {
            self.busy.insert(mfn.raw());
        } else {
            self.busy.remove(&mfn.raw());
        }
    }

    /// Makes calls fail. Calls that can fail (allocate, map, unmap) are counted from 0 from now on;
    /// those from `first` to before `first + count` fail.
    pub fn fail(&mut self, first: u64, count: u64, how: Failure) {
        let first = self.failures.calls.saturating_add(first);
        self.failures.planned = Some((first, first.saturating_add(count), how));
    }

    /// Ends [`fail`](Self::fail): no more calls are made to fail.
    pub fn fail_no_more(&mut self) {
        self.failures.planned = None;
    }

    /// Returns the number of calls so far that can fail.
    #[must_use]
    pub fn fallible_calls(&self) -> u64 {
        self.failures.calls
    }

    /// Returns the number of calls so far that [`SoftwareMachine::fail`] made fail.
    #[must_use]
    pub fn failed_calls(&self) -> u64 {
        self.failures.failed
    }

    /// Whether a frame is broken.
    #[must_use]
    pub fn is_retired(&self, mfn: Mfn) -> bool {
        self.retired.contains(&mfn.raw())
    }

    /// Sets the pages whose content must not be lost. Each of them must be mapped, or in the frame
    /// that is named. This is checked before each call that maps, unmaps, copies, clears or frees,
    /// and when this function is called again.
    ///
    /// # Panics
    /// When one of the pages from the last call is lost.
    pub fn keep(&mut self, kept: Vec<Kept>) {
        self.assert_kept();
        self.kept = kept;
    }

    /// Checks that each of `kept` is in its place.
    ///
    /// # Panics
    /// When one is not.
    pub fn assert_all_kept(&self, kept: impl IntoIterator<Item = Kept>) {
        for page in kept {
            let frame = self.translate(page.gfn).map_or(page.mfn, |(mfn, _)| mfn);
            let word = self.word(frame, page.word);
            assert_eq!(word, page.value, "INV-10: a lift now would lose {page:?}");
        }
    }

    fn assert_kept(&self) {
        self.assert_all_kept(self.kept.iter().copied());
    }

    /// Counts a call that can fail, and says whether it does. `whole`: it maps a superpage.
    fn failure(&mut self, whole: bool) -> Option<Failure> {
        let call = self.failures.calls;
        self.failures.calls += 1;
        let (first, end, how) = self.failures.planned?;
        let fails = (first..end).contains(&call) && (whole || how == Failure::Refuse);
        self.failures.failed += u64::from(fails);
        fails.then_some(how)
    }

    fn refuses(&mut self) -> bool {
        self.failure(false).is_some()
    }

    /// Returns the frame that the guest reaches at `gfn`, and the order of its mapping.
    #[must_use]
    pub fn translate(&self, gfn: Gfn) -> Option<(Mfn, Order)> {
        match self.table.get(gfn.superpage().index())? {
            Slot::Empty => None,
            Slot::Whole(mfn) => {
                Some((Mfn::new(mfn + gfn.index_in_superpage() as u64), Order::SUPERPAGE))
            }
            Slot::Pages(pages) => {
                pages[gfn.index_in_superpage()].map(|mfn| (Mfn::new(mfn), Order::PAGE))
            }
        }
    }

    /// Returns one word of a frame.
    #[must_use]
    pub fn word(&self, mfn: Mfn, index: usize) -> u64 {
        self.arena[word_index(mfn) + index]
    }

    /// Writes one word of a frame.
    pub fn set_word(&mut self, mfn: Mfn, index: usize, value: u64) {
        self.arena[word_index(mfn) + index] = value;
    }

    fn words(&self, mfn: Mfn, pages: u64) -> &[u64] {
        let first = word_index(mfn);
        &self.arena[first..first + pages as usize * PAGE_WORDS]
    }

    fn words_mut(&mut self, mfn: Mfn, pages: u64) -> &mut [u64] {
        let first = word_index(mfn);
        &mut self.arena[first..first + pages as usize * PAGE_WORDS]
    }

    /// Whether everything is flushed: no CPU reaches a frame that was unmapped.
    #[must_use]
    pub fn is_flushed(&self) -> bool {
        self.unflushed.is_empty()
    }

    /// No frame is checked, copied or cleared while a CPU may still write to it: [INV-4], [INV-5],
    /// [INV-6].
    ///
    /// [INV-4]: zerosweep::rules#inv-4
    /// [INV-5]: zerosweep::rules#inv-5
    /// [INV-6]: zerosweep::rules#inv-6
    fn assert_still(&self, mfn: Mfn, pages: u64) {
        let (first, end) = (mfn.raw(), mfn.raw() + pages);
        let reached = self.unflushed.iter().find(|run| run.0 < end && run.1 > first);
        assert_eq!(reached, None, "INV-4, INV-5, INV-6: a CPU may still write to {mfn:?}");
    }

    /// [R17]: a frame that is broken is not used again.
    ///
    /// [R17]: zerosweep::rules#r17
    fn assert_sound(&self, mfn: Mfn, order: Order) {
        let run = mfn.raw()..mfn.raw() + order.pages();
        assert_eq!(self.retired.range(run).next(), None, "a broken frame in {mfn:?}, {order:?}");
    }

    fn slot(&mut self, gfn: Gfn) -> &mut Slot {
        let index = gfn.superpage().index();
        if self.table.len() <= index {
            self.table.resize(index + 1, Slot::Empty);
        }
        &mut self.table[index]
    }
}

fn word_index(mfn: Mfn) -> usize {
    mfn.raw() as usize * PAGE_WORDS
}

/// The pages of a slot, broken up if it is whole.
fn pages_of(slot: &mut Slot) -> &mut [Option<u64>; SUPERPAGE_PAGES as usize] {
    let pages = match core::mem::take(slot) {
        Slot::Empty => Box::new([None; SUPERPAGE_PAGES as usize]),
        Slot::Whole(mfn) => Box::new(std::array::from_fn(|i| Some(mfn + i as u64))),
        Slot::Pages(pages) => pages,
    };
    *slot = Slot::Pages(pages);
    match slot {
        Slot::Pages(pages) => pages,
        Slot::Empty | Slot::Whole(_) => unreachable!("it was just made so"),
    }
}

impl Machine for SoftwareMachine {
    fn allocate(&mut self, order: Order) -> Result<Allocated, OutOfFrames> {
        if self.refuses() {
            return Err(OutOfFrames);
        }
        let mfn = self.pool.allocate(order)?;
        if self.poison {
            self.words_mut(mfn, order.pages()).fill(POISON);
        }
        Ok(Allocated { mfn, content: Content::Unknown })
    }

    fn allocate_in(&mut self, superframe: Superframe) -> Result<Allocated, OutOfFrames> {
        if self.refuses() {
            return Err(OutOfFrames);
        }
        let mfn = self.pool.allocate_in(superframe)?;
        if self.poison {
            self.words_mut(mfn, 1).fill(POISON);
        }
        Ok(Allocated { mfn, content: Content::Unknown })
    }

    fn free(&mut self, mfn: Mfn, order: Order) {
        self.assert_kept();
        self.assert_sound(mfn, order);
        self.assert_still(mfn, order.pages());
        assert!(self.pool.free(mfn, order), "INV-1: {mfn:?} was given back twice");
    }

    fn map(&mut self, gfn: Gfn, mfn: Mfn, order: Order) -> Result<Mapped, MapError> {
        self.assert_kept();
        self.assert_sound(mfn, order);
        let failure = self.failure(order == Order::SUPERPAGE);
        if failure == Some(Failure::Refuse) {
            return Err(MapError);
        }
        self.counters.maps += 1;
        let slot = self.slot(gfn);
        if order == Order::SUPERPAGE {
            let empty = match slot {
                Slot::Empty => true,
                Slot::Whole(_) => false,
                Slot::Pages(pages) => pages.iter().all(Option::is_none),
            };
            assert!(empty, "INV-1: something is mapped at {gfn:?} already");
            *slot = Slot::Whole(mfn.raw());
            let lost = gfn.raw()..gfn.raw() + SUPERPAGE_PAGES;
            assert_eq!(self.written.range(lost).next(), None, "INV-6: lost at {gfn:?}");
            let slot = self.slot(gfn);
            if failure == Some(Failure::Pieces) {
                pages_of(slot);
                return Ok(Mapped::Pieces);
            }
        } else {
            let page = &mut pages_of(slot)[gfn.index_in_superpage()];
            assert!(page.is_none(), "INV-1: something is mapped at {gfn:?} already");
            *page = Some(mfn.raw());
            if let Some((word, value)) = self.written.remove(&gfn.raw()) {
                self.set_word(mfn, word, value);
            }
        }
        Ok(Mapped::Whole)
    }

    fn unmap(&mut self, gfn: Gfn, mfn: Mfn, order: Order) -> Unmapped {
        self.assert_kept();
        let run = mfn.raw()..mfn.raw() + order.pages();
        if self.refuses() || self.busy.range(run.clone()).next().is_some() {
            return Unmapped::Busy;
        }
        self.counters.unmaps += 1;
        self.unflushed.push((run.start, run.end));
        let slot = self.slot(gfn);
        if order == Order::SUPERPAGE {
            let all = match slot {
                Slot::Empty => false,
                Slot::Whole(first) => *first == mfn.raw(),
                Slot::Pages(pages) => pages.iter().copied().eq(run.map(Some)),
            };
            assert!(all, "INV-1: {mfn:?} is not what is mapped at {gfn:?}");
            *slot = Slot::Empty;
        } else {
            let page = pages_of(slot)[gfn.index_in_superpage()].take();
            assert_eq!(page, Some(mfn.raw()), "INV-1: another frame is mapped at {gfn:?}");
        }
        Unmapped::Done
    }

    fn flush(&mut self) {
        self.counters.flushes += 1;
        self.unflushed.clear();
    }

    fn quick_check(&mut self, _gfn: Gfn, mfn: Mfn, order: Order) -> Option<u32> {
        self.counters.quick_checks += 1;
        (0..order.pages()).find_map(|page| {
            let first = page as usize * PAGE_WORDS;
            let start = word_index(mfn) + first;
            let words = &self.arena[start..start + QUICK_CHECK_WORDS as usize];
            zerosweep_scan::first_nonzero(words).map(|word| (first + word) as u32)
        })
    }

    fn peek(&mut self, _gfn: Gfn, mfn: Mfn, word: u32) -> u64 {
        self.word(mfn, word as usize)
    }

    fn zero_check(&mut self, mfn: Mfn, pages: u64) -> Option<u32> {
        self.assert_kept();
        self.assert_still(mfn, pages);
        self.counters.zero_checks += 1;
        zerosweep_scan::first_nonzero(self.words(mfn, pages)).map(|word| word as u32)
    }

    fn show_zeros(&mut self, gfn: Gfn, pages: u64) -> Shown {
        self.assert_kept();
        let is_refused = self.refuses();
        let run = gfn.raw()..gfn.raw() + pages;
        for page in run.clone() {
            assert_eq!(self.translate(Gfn::new(page)), None, "INV-6: page {page} has a frame");
        }
        let early: Vec<_> = run.filter_map(|page| self.early_writes.remove_entry(&page)).collect();
        let shown = match (early.is_empty(), is_refused) {
            (false, _) => Shown::Written,
            (true, true) => Shown::Unsupported,
            (true, false) => Shown::Zeros,
        };
        self.written.extend(early);
        shown
    }

    fn is_written(&mut self, gfn: Gfn) -> bool {
        self.written.contains_key(&gfn.raw())
    }

    fn park(&mut self, superframe: Superframe) {
        self.assert_kept();
        self.assert_sound(superframe.first(), Order::SUPERPAGE);
        self.assert_still(superframe.first(), SUPERPAGE_PAGES);
        self.counters.parks += 1;
    }

    fn retire(&mut self, mfn: Mfn) {
        self.assert_sound(mfn, Order::PAGE);
        self.retired.insert(mfn.raw());
    }

    fn copy(&mut self, from: Mfn, to: Mfn) {
        self.assert_kept();
        self.assert_sound(to, Order::PAGE);
        self.assert_still(from, 1);
        self.counters.copies += 1;
        let from = word_index(from);
        self.arena.copy_within(from..from + PAGE_WORDS, word_index(to));
    }

    fn scrub(&mut self, gfn: Gfn, mfn: Mfn) -> Content {
        self.assert_kept();
        assert_eq!(self.translate(gfn).map(|(mfn, _)| mfn), Some(mfn), "another frame is there");
        if zerosweep_scan::first_nonzero(self.words(mfn, 1)).is_none() {
            return Content::Zero;
        }
        self.words_mut(mfn, 1).fill(0);
        Content::Unknown
    }

    fn clear(&mut self, mfn: Mfn, order: Order) {
        self.assert_kept();
        self.assert_still(mfn, order.pages());
        self.counters.clears += 1;
        self.counters.bytes_cleared += order.bytes();
        self.words_mut(mfn, order.pages()).fill(0);
    }
}
