//! What the tests of real memory share. A thread that serves faults never touches registered
//! memory, and every wait has an end, so that a defect fails and does not hang.

use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use zerosweep_linux::sys::poll::wait_one;
use zerosweep_linux::sys::raw;
use zerosweep_linux::sys::uffd::{Holes, Wake, Watch};
use zerosweep_linux::{
    Fault, FaultBuffer, MoveOutcome, Pagemap, Region, SUPERPAGE_BYTES, Span, Uffd,
};

/// Longest wait for another thread.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);

/// A userfaultfd, the page tables, a filled slot of two superpages and an empty range of two.
pub(crate) struct Bench {
    pub(crate) uffd: Uffd,
    pub(crate) pagemap: Pagemap,
    pub(crate) slot: Region,
    pub(crate) range: Region,
}

impl Bench {
    /// Nothing is registered yet.
    pub(crate) fn new() -> Arc<Self> {
        Self::with_superpages(2)
    }

    /// As [`Self::new`], with slot and range of `superpages` superpages each.
    pub(crate) fn with_superpages(superpages: u64) -> Arc<Self> {
        let slot = Region::new(superpages * SUPERPAGE_BYTES).unwrap();
        slot.all().populate().unwrap();
        let bench = Self {
            uffd: Uffd::open().unwrap(),
            pagemap: Pagemap::open().unwrap(),
            slot,
            range: Region::new(superpages * SUPERPAGE_BYTES).unwrap(),
        };
        assert_eq!(bench.pagemap.whole_superpages(bench.slot.all()).unwrap(), superpages);
        Arc::new(bench)
    }

    /// The range is the huge zero page, write-protected: memory that is populated on demand.
    pub(crate) fn zero_mapped() -> Arc<Self> {
        Self::new().map_zero()
    }

    /// Makes the range memory that is populated on demand.
    pub(crate) fn map_zero(self: Arc<Self>) -> Arc<Self> {
        let bench = self;
        bench.range.all().map_zero().unwrap();
        bench.watch(bench.range.all());
        bench.uffd.protect(bench.range.all()).unwrap();
        bench
    }

    pub(crate) fn watch(&self, span: Span<'_>) {
        self.uffd.register(span, Watch::MissingAndProtected).unwrap();
    }

    pub(crate) fn move_pages(&self, to: Span<'_>, from: Span<'_>) -> MoveOutcome {
        self.uffd.move_pages(to, from, Holes::Stop, Wake::Yes)
    }

    /// Superpages mapped whole.
    pub(crate) fn whole(&self, span: Span<'_>) -> u64 {
        self.pagemap.whole_superpages(span).unwrap()
    }

    /// 4 KiB pages with a frame.
    pub(crate) fn resident(&self, span: Span<'_>) -> u64 {
        self.pagemap.resident_pages(span).unwrap()
    }

    /// The next fault, which must be the only one.
    pub(crate) fn next_fault(&self) -> Fault {
        let faults = self.next_faults();
        assert_eq!(faults.len(), 1, "{faults:?}");
        faults[0]
    }

    /// The faults that wait, at least one.
    pub(crate) fn next_faults(&self) -> Vec<Fault> {
        let end = Instant::now() + LIMIT;
        let mut buffer = FaultBuffer::new();
        while Instant::now() < end {
            wait_one(std::os::fd::AsFd::as_fd(&self.uffd), Some(100)).unwrap();
            if self.uffd.read_faults(&mut buffer).unwrap() > 0 {
                return buffer.faults().collect();
            }
        }
        panic!("no fault came within {LIMIT:?}");
    }

    /// Whether no fault waits.
    pub(crate) fn is_quiet(&self) -> bool {
        self.uffd.read_faults(&mut FaultBuffer::new()).unwrap() == 0
    }
}

/// What another thread is doing; its number, and its result.
pub(crate) struct Job<T> {
    pub(crate) thread_id: u32,
    result: mpsc::Receiver<T>,
}

impl<T: Send + 'static> Job<T> {
    /// Lets another thread work on the bench: a guest's vCPU.
    pub(crate) fn start(
        bench: &Arc<Bench>,
        work: impl FnOnce(&Bench) -> T + Send + 'static,
    ) -> Self {
        let (bench, (number, started)) = (Arc::clone(bench), mpsc::channel());
        let (done, result) = mpsc::channel();
        std::thread::spawn(move || {
            number.send(raw::thread_id()).unwrap();
            // The receiver is gone when the test failed in the meantime.
            let _ = done.send(work(&bench));
        });
        Self { thread_id: started.recv_timeout(LIMIT).unwrap(), result }
    }

    /// Its result, when it ends in time.
    pub(crate) fn finish(self) -> T {
        self.result.recv_timeout(LIMIT).expect("the thread still waits for its page")
    }
}

/// Reads a word of the range, on another thread, which must not need help.
pub(crate) fn read(bench: &Arc<Bench>, offset: u64) -> u64 {
    Job::start(bench, move |bench| bench.range.all().load_word(offset).unwrap()).finish()
}

/// Starts to write a word of the range, on another thread.
pub(crate) fn write(bench: &Arc<Bench>, offset: u64, value: u64) -> Job<()> {
    Job::start(bench, move |bench| bench.range.all().store_word(offset, value).unwrap())
}
