//! A guest of four threads under stress. Whatever the target does, whatever is swept, moved
//! together, given back and taken again: no byte may be lost, and nobody may hang.
//!
//! | variable | what |
//! | --- | --- |
//! | `ZEROSWEEP_STRESS_SECONDS` | how long it takes in all; 30 unless told |
//! | `ZEROSWEEP_SEED` | what it does; printed, and from the clock unless told |
//!
//! ```text
//!   4 guest threads   fill, verify, zero, free their pages; count in shared ones; read(2) into them
//!   balloon           gives back what they have freed, and takes it again
//!   operator          target up and down, full sweeps, consolidation, audits
//!   watchdog          a thread that gets nowhere for a minute ends the test
//! ```
//!
//! The same seed does the same things in each thread, in another order between them.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]
#![expect(unsafe_code, reason = "reads files into the guest's memory, and counts in it")]

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use zerosweep::{Gfn, Order, Policy};
use zerosweep_linux::{
    GuestMemory, MainLoop, OnExhaustion, Options, PAGE_BYTES, Parking, Progress, Region,
};

const MIB: u64 = 1 << 20;
const SUPERPAGES: u64 = 128;
const PAGES: u64 = SUPERPAGES * 512;
const WORDS: u64 = PAGE_BYTES / 8;
const THREADS: u64 = 4;
/// Pages of the file that is read from.
const FILE_PAGES: u64 = 64;
const TARGETS_MIB: std::ops::Range<u64> = 16..220;
/// Nobody may get nowhere for so long.
const HANGS: Duration = Duration::from_secs(60);

/// xorshift: the same seed does the same.
struct Random(u64);

impl Random {
    fn new(seed: u64, stream: u64) -> Self {
        Self(mix(seed ^ mix(stream)) | 1)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }
}

fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) ^ (number >> 31)
}

/// What the owner of a page knows to be in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    /// Nothing that counts.
    Any,
    Zero,
    Pattern(u64),
    /// Read from this page of the file.
    File(u64),
}

impl Content {
    fn word(self, page: u64, index: u64) -> u64 {
        match self {
            Self::Any | Self::Zero => 0,
            Self::Pattern(generation) => mix(page << 32 ^ generation).wrapping_add(index * 0x101),
            Self::File(page) => mix(0xf11e << 32 | page << 10 | index),
        }
    }
}

/// Who has a page, as owner and balloon agree.
mod hand {
    /// Its owner uses it.
    pub(super) const OWNER: u8 = 0;
    /// Its owner has freed it: the balloon may take it.
    pub(super) const FREE: u8 = 1;
    /// The balloon is at work on it.
    pub(super) const BALLOON: u8 = 2;
    /// Given back for sure: it reads as zero.
    pub(super) const OUT: u8 = 3;
    /// Perhaps given back: anything may be in it.
    pub(super) const PERHAPS: u8 = 4;
}

/// Pages that all threads count in: the last of each superpage that has several owners.
fn is_shared(page: u64) -> bool {
    page % 512 == 511 && !has_one_owner(page / 512)
}

fn has_one_owner(superpage: u64) -> bool {
    superpage % 4 == 3
}

fn owner(page: u64) -> u64 {
    let superpage = page / 512;
    if has_one_owner(superpage) { superpage / 4 % THREADS } else { page / 64 % THREADS }
}

#[derive(Default)]
struct Tally {
    filled: AtomicU64,
    verified: AtomicU64,
    zeroed: AtomicU64,
    freed: AtomicU64,
    counted: AtomicU64,
    read: AtomicU64,
    given: AtomicU64,
    taken: AtomicU64,
    zeros_seen: AtomicU64,
    targets: AtomicU64,
    sweeps: AtomicU64,
    consolidations: AtomicU64,
    audits: AtomicU64,
}

fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// What the threads share.
struct Stage {
    memory: Arc<GuestMemory>,
    seed: u64,
    hands: Vec<AtomicU8>,
    /// What the shared pages must hold, a word of each.
    counts: Vec<AtomicU64>,
    /// What the guest may use, in pages: the target as it knows it.
    goal: AtomicU64,
    stop: AtomicBool,
    progress: [AtomicU64; THREADS as usize + 2],
    tally: Tally,
    file: File,
}

impl Stage {
    fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn store(&self, page: u64, index: u64, value: u64) {
        self.memory.guest().store_word(page * PAGE_BYTES + index * 8, value).unwrap();
    }

    fn load(&self, page: u64, index: u64) -> u64 {
        self.memory.guest().load_word(page * PAGE_BYTES + index * 8).unwrap()
    }

    fn verify(&self, page: u64, content: Content) {
        if content == Content::Any {
            return;
        }
        for index in 0..WORDS {
            let (is, expected) = (self.load(page, index), content.word(page, index));
            assert!(
                is == expected,
                "seed {}: page {page:#x}, word {index}: {is:#x} instead of {expected:#x} \
                 ({content:?}; again: {:#x}), hand {}, {:?}",
                self.seed,
                self.load(page, index),
                self.hands[page as usize].load(Ordering::Relaxed),
                self.memory.snapshot(),
            );
        }
        add(&self.tally.verified, PAGE_BYTES);
    }

    fn address(&self, page: u64, index: u64) -> *mut u64 {
        let bytes = page * PAGE_BYTES + index * 8;
        self.memory.guest().as_ptr().cast_mut().wrapping_add(bytes as usize).cast()
    }

    fn shared_word(&self, page: u64, index: u64) -> &AtomicU64 {
        // SAFETY: within the guest's memory, aligned, and only reached through atomics.
        unsafe { AtomicU64::from_ptr(self.address(page, index)) }
    }
}

/// Ends the others when a thread fails.
struct StopOnPanic(Arc<Stage>);

impl Drop for StopOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop.store(true, Ordering::SeqCst);
            self.0.memory.lift("a thread of the test failed");
        }
    }
}

/// One virtual CPU.
struct Guest {
    stage: Arc<Stage>,
    number: u64,
    random: Random,
    /// Of every page of its own.
    contents: Vec<Content>,
    live: u64,
    generation: u64,
    offers: Sender<(u64, u64)>,
    last_counts: Vec<u64>,
}

impl Guest {
    fn run(mut self) -> Vec<Content> {
        self.stage.memory.add_vcpu(zerosweep_linux::sys::raw::thread_id());
        while !self.stage.stopping() {
            self.step();
            add(&self.stage.progress[self.number as usize], 1);
        }
        for page in 0..PAGES {
            if self.is_live(page) {
                self.stage.verify(page, self.contents[page as usize]);
            }
        }
        self.contents
    }

    fn step(&mut self) {
        let limit = self.stage.goal.load(Ordering::Relaxed) * 6 / 10 / THREADS;
        let (page, pages) = self.run_of_own();
        if self.live > limit {
            return self.free(page, pages);
        }
        match self.random.below(100) {
            0..=39 => (page..page + pages).for_each(|page| self.fill(page)),
            40..=59 => (page..page + pages).for_each(|page| self.look(page)),
            60..=69 => (page..page + pages).for_each(|page| self.zero(page)),
            70..=84 => self.free(page, pages),
            85..=89 => self.read_file(page, pages.min(16)),
            _ => self.count(),
        }
    }

    /// Some pages of its own in a row.
    fn run_of_own(&mut self) -> (u64, u64) {
        loop {
            let page = self.random.below(PAGES);
            if owner(page) != self.number {
                continue;
            }
            let (page, most) = match has_one_owner(page / 512) {
                true if self.random.below(3) == 0 => (page & !511, 512),
                _ => (page, 1 + self.random.below(64)),
            };
            let own =
                |page: &u64| *page < PAGES && owner(*page) == self.number && !is_shared(*page);
            let pages = (page..page + most).take_while(own).count() as u64;
            if pages > 0 {
                return (page, pages);
            }
        }
    }

    fn is_live(&self, page: u64) -> bool {
        self.contents[page as usize] != Content::Any
    }

    fn set(&mut self, page: u64, content: Content) {
        self.live -= u64::from(self.is_live(page));
        self.contents[page as usize] = content;
        self.live += u64::from(self.is_live(page));
    }

    /// Takes a page in use again, if the balloon is not at work on it.
    fn take(&mut self, page: u64) -> bool {
        let hand = &self.stage.hands[page as usize];
        let now = hand.load(Ordering::Acquire);
        if now == hand::BALLOON {
            return false;
        }
        if hand.compare_exchange(now, hand::OWNER, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return false;
        }
        if now == hand::OUT {
            if self.random.below(2) == 0 {
                let _ = self.stage.memory.deflate(Gfn::new(page), 1);
            }
            if self.random.below(2) == 0 {
                self.stage.verify(page, Content::Zero);
                add(&self.stage.tally.zeros_seen, 1);
            }
        }
        true
    }

    fn fill(&mut self, page: u64) {
        if self.is_live(page) || !self.take(page) {
            return;
        }
        self.generation += 1;
        let content = Content::Pattern(self.generation);
        (0..WORDS).for_each(|index| self.stage.store(page, index, content.word(page, index)));
        self.set(page, content);
        add(&self.stage.tally.filled, 1);
    }

    fn look(&mut self, page: u64) {
        if !self.is_live(page) {
            return;
        }
        self.stage.verify(page, self.contents[page as usize]);
        if self.random.below(4) == 0 {
            self.set(page, Content::Any);
            self.fill(page);
        }
    }

    fn zero(&mut self, page: u64) {
        if !self.is_live(page) && !self.take(page) {
            return;
        }
        (0..WORDS).for_each(|index| self.stage.store(page, index, 0));
        self.set(page, Content::Zero);
        add(&self.stage.tally.zeroed, 1);
    }

    /// Frees what is live, after a last look, and offers it to the balloon, or keeps it to itself.
    fn free(&mut self, page: u64, pages: u64) {
        let keep = self.random.below(4) == 0;
        for page in page..page + pages {
            if self.is_live(page) {
                self.stage.verify(page, self.contents[page as usize]);
                self.set(page, Content::Any);
                add(&self.stage.tally.freed, 1);
                self.stage.hands[page as usize].store(hand::FREE, Ordering::Release);
            }
        }
        if !keep {
            let _ = self.offers.send((page, pages));
        }
    }

    /// A device, or a system call, writes into pages: the kernel faults, and pins them.
    fn read_file(&mut self, page: u64, pages: u64) {
        let pages = (page..page + pages).take_while(|&page| self.is_live(page) || self.take(page));
        let pages = pages.count() as u64;
        if pages == 0 {
            return;
        }
        let from = self.random.below(FILE_PAGES - pages);
        let (fd, bytes) = (self.stage.file.as_raw_fd(), (pages * PAGE_BYTES) as usize);
        let to = self.stage.address(page, 0).cast();
        // SAFETY: memory of the guest, into which no reference points.
        let read = unsafe { libc::pread(fd, to, bytes, (from * PAGE_BYTES) as i64) };
        assert_eq!(read, bytes as isize, "{}", std::io::Error::last_os_error());
        for n in 0..pages {
            self.set(page + n, Content::File(from + n));
            self.stage.verify(page + n, Content::File(from + n));
        }
        add(&self.stage.tally.read, pages * PAGE_BYTES);
    }

    fn count(&mut self) {
        for _ in 0..16 {
            let superpage = self.random.below(SUPERPAGES);
            let (page, index) = (superpage * 512 + 511, self.random.below(WORDS));
            if !is_shared(page) {
                continue;
            }
            let at = (superpage * WORDS + index) as usize;
            let before = self.stage.shared_word(page, index).fetch_add(1, Ordering::AcqRel);
            assert!(
                before >= self.last_counts[at],
                "seed {}: page {page:#x}, word {index} fell from {} to {before}",
                self.stage.seed,
                self.last_counts[at],
            );
            self.last_counts[at] = before + 1;
            add(&self.stage.counts[at], 1);
            add(&self.stage.tally.counted, 1);
        }
    }
}

/// The balloon: gives back what is offered, and takes some of it again.
fn balloon(stage: &Stage, offers: &Receiver<(u64, u64)>) {
    let mut random = Random::new(stage.seed, 100);
    let mut out = Vec::new();
    while !stage.stopping() {
        add(&stage.progress[THREADS as usize], 1);
        if let Ok((page, pages)) = offers.recv_timeout(Duration::from_millis(5)) {
            give_back(stage, &mut random, page, pages);
            out.push((page, pages));
        }
        if out.len() > 64 && random.below(4) == 0 {
            let (page, pages) = out.swap_remove(random.below(out.len() as u64) as usize);
            match random.below(2) {
                // Once more: what is out already changes nothing.
                0 => give_back(stage, &mut random, page, pages),
                _ => {
                    stage.memory.deflate(Gfn::new(page), pages).unwrap();
                    add(&stage.tally.taken, pages);
                }
            }
        }
        out.truncate(4096);
    }
}

fn give_back(stage: &Stage, random: &mut Random, page: u64, pages: u64) {
    let discards = random.below(8) == 0;
    let small = Order::new(random.below(4) as u8).unwrap();
    let order = if pages == 512 { Order::SUPERPAGE } else { small };
    let step = order.pages();
    let mut at = page;
    while at < page + pages {
        let whole = at.is_multiple_of(step) && at + step <= page + pages;
        let count = if whole { step } else { 1 };
        let takes = (at..at + count).take_while(|&page| claim(stage, page)).count() as u64;
        if takes == count {
            let to = give_claimed(stage, at, if whole { order } else { Order::PAGE }, discards);
            (at..at + count).for_each(|page| put(stage, page, to));
        } else {
            (at..at + takes).for_each(|page| put(stage, page, hand::PERHAPS));
        }
        at += count;
    }
}

fn claim(stage: &Stage, page: u64) -> bool {
    [hand::FREE, hand::OUT, hand::PERHAPS].into_iter().any(|from| {
        let hand = &stage.hands[page as usize];
        hand.compare_exchange(from, hand::BALLOON, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    })
}

fn put(stage: &Stage, page: u64, to: u8) {
    stage.hands[page as usize].store(to, Ordering::Release);
}

fn give_claimed(stage: &Stage, page: u64, order: Order, discards: bool) -> u8 {
    let gfn = Gfn::new(page);
    if discards {
        stage.memory.discard(gfn, order.pages()).unwrap();
        return hand::PERHAPS;
    }
    let given = stage.memory.inflate(gfn, order).unwrap_or(0);
    add(&stage.tally.given, given);
    if given == order.pages() { hand::OUT } else { hand::PERHAPS }
}

/// Target, sweeps, consolidation, audits.
fn operate(stage: &Stage) {
    let mut random = Random::new(stage.seed, 200);
    let memory = &stage.memory;
    while !stage.stopping() {
        add(&stage.progress[THREADS as usize + 1], 1);
        let mib = TARGETS_MIB.start + random.below(TARGETS_MIB.end - TARGETS_MIB.start);
        let target = mib * MIB;
        // A guest that is warned, and one that is not.
        if random.below(2) == 0 {
            stage.goal.store(target / PAGE_BYTES, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(random.below(100)));
        }
        memory.set_target(target).unwrap();
        stage.goal.store(target / PAGE_BYTES, Ordering::Relaxed);
        add(&stage.tally.targets, 1);
        std::thread::sleep(Duration::from_millis(random.below(150)));
        match random.below(4) {
            0 => {
                let mut first = 0;
                while let Ok(Progress::More(next)) = memory.sweep(first, Duration::from_millis(5)) {
                    first = next;
                }
                add(&stage.tally.sweeps, 1);
            }
            1 => {
                let mut first = 0;
                let step = |first| memory.consolidate(first, Duration::from_millis(5)).unwrap();
                while let Progress::More(next) = step(first) {
                    first = next;
                }
                add(&stage.tally.consolidations, 1);
            }
            _ => {}
        }
        memory.audit().unwrap_or_else(|error| panic!("seed {}: {error:?}", stage.seed));
        add(&stage.tally.audits, 1);
        let quantities = memory.snapshot().quantities;
        assert!(quantities.guest() <= PAGES, "{quantities:?}");
    }
    memory.set_target(PAGES * PAGE_BYTES).unwrap();
}

/// Ends the process when a thread gets nowhere.
fn watch(stage: &Stage, time: Duration) {
    let began = Instant::now();
    let mut last: Vec<_> = stage.progress.iter().map(|n| (get(n), Instant::now())).collect();
    while began.elapsed() < time && !stage.stopping() {
        std::thread::sleep(Duration::from_millis(100));
        for (thread, (count, since)) in last.iter_mut().enumerate() {
            let now = get(&stage.progress[thread]);
            if now != *count {
                (*count, *since) = (now, Instant::now());
            } else if since.elapsed() >= HANGS {
                hangs(stage, &format!("thread {thread} got nowhere for {HANGS:?}"));
            }
        }
    }
}

fn hangs(stage: &Stage, what: &str) -> ! {
    eprintln!("HANG, seed {}: {what}", stage.seed);
    eprintln!("progress {:?}", stage.progress.iter().map(get).collect::<Vec<_>>());
    // The thread that hangs may hold the lock that a snapshot takes.
    let (memory, seed) = (Arc::clone(&stage.memory), stage.seed);
    std::thread::spawn(move || eprintln!("seed {seed}: {:?}", memory.snapshot()));
    std::thread::sleep(Duration::from_secs(2));
    std::process::abort();
}

/// Waits for a thread, not for ever; a failure in it is one here.
fn join<T>(stage: &Stage, name: &str, thread: JoinHandle<T>) -> T {
    let began = Instant::now();
    while !thread.is_finished() {
        if began.elapsed() >= HANGS {
            hangs(stage, &format!("{name} does not end"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    thread.join().unwrap()
}

/// A file of known content, read around the page cache where the file system can.
fn file() -> File {
    let path = std::env::temp_dir().join(format!("zerosweep-stress-{}", std::process::id()));
    let page = |page| (0..WORDS).map(move |index| Content::File(page).word(0, index));
    let bytes: Vec<u8> = (0..FILE_PAGES).flat_map(page).flat_map(u64::to_ne_bytes).collect();
    fs::write(&path, bytes).unwrap();
    let direct = File::options().read(true).custom_flags(libc::O_DIRECT).open(&path);
    let file = direct.or_else(|_| File::open(&path)).unwrap();
    fs::remove_file(&path).unwrap();
    file
}

/// How it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The cap is lifted, and the guest goes on.
    Lift,
    /// The guest is taken down.
    Stop,
}

fn stress(seed: u64, time: Duration, parking: Parking, end: End) {
    let mappings = large_mappings();
    let options = Options {
        target_bytes: 96 * MIB,
        policy: Policy::Zerosweep,
        on_exhaustion: OnExhaustion::Stall,
        parking,
        fault_threads: Options::DEFAULT_FAULT_THREADS,
        main_loop: MainLoop::None,
    };
    let region = Region::new(PAGES * PAGE_BYTES).unwrap();
    let stage = Arc::new(Stage {
        memory: GuestMemory::new(region, &options).unwrap(),
        seed,
        hands: (0..PAGES).map(|_| AtomicU8::new(hand::OWNER)).collect(),
        counts: (0..SUPERPAGES * WORDS).map(|_| AtomicU64::new(0)).collect(),
        goal: AtomicU64::new(options.target_bytes / PAGE_BYTES),
        stop: AtomicBool::new(false),
        progress: Default::default(),
        tally: Tally::default(),
        file: file(),
    });
    let contents = run(&stage, time);
    report(&stage, parking, end);
    if end == End::Lift {
        stage.memory.lift("the test is over");
        // The kernel alone has the memory now.
        verify_all(&stage, &contents);
        let Ok(resident) = stage.memory.machine().resident_pages() else { unreachable!() };
        assert!(resident <= PAGES, "{resident} pages are held");
    } else {
        stage.memory.stop();
        assert_eq!(stage.memory.snapshot().quantities.total(), 0);
        assert_eq!(stage.memory.machine().resident_pages(), Ok(0));
    }
    let progress = Arc::into_inner(stage);
    drop(progress);
    nothing_is_left(&mappings);
}

/// Runs all threads for a time; what is in each page at the end.
fn run(stage: &Arc<Stage>, time: Duration) -> Vec<Content> {
    let (offers, offered) = channel();
    let guest = |number| {
        let guest = Guest {
            stage: Arc::clone(stage),
            number,
            random: Random::new(stage.seed, number),
            contents: vec![Content::Any; PAGES as usize],
            live: 0,
            generation: number << 48,
            offers: offers.clone(),
            last_counts: vec![0; (SUPERPAGES * WORDS) as usize],
        };
        let guard = StopOnPanic(Arc::clone(stage));
        std::thread::spawn(move || {
            let _guard = guard;
            guest.run()
        })
    };
    let guests: Vec<_> = (0..THREADS).map(guest).collect();
    let spawn = |work: Box<dyn FnOnce(&Stage) + Send>| {
        let guard = StopOnPanic(Arc::clone(stage));
        std::thread::spawn(move || work(&guard.0))
    };
    let balloon = spawn(Box::new(move |stage| balloon(stage, &offered)));
    let operator = spawn(Box::new(operate));
    watch(stage, time);
    stage.stop.store(true, Ordering::SeqCst);
    // First, because it raises the target: then nobody stalls.
    join(stage, "the operator", operator);
    join(stage, "the balloon", balloon);
    let mut contents = vec![Content::Any; PAGES as usize];
    for (number, guest) in guests.into_iter().enumerate() {
        for (page, content) in join(stage, "a guest", guest).into_iter().enumerate() {
            if owner(page as u64) == number as u64 {
                contents[page] = content;
            }
        }
    }
    assert_eq!(stage.memory.snapshot().lifted, None);
    stage.memory.audit().unwrap();
    verify_all(stage, &contents);
    contents
}

fn verify_all(stage: &Stage, contents: &[Content]) {
    for (page, &content) in contents.iter().enumerate() {
        stage.verify(page as u64, content);
    }
    for page in (0..PAGES).filter(|&page| is_shared(page)) {
        for index in 0..WORDS {
            let expected = get(&stage.counts[(page / 512 * WORDS + index) as usize]);
            let is = stage.shared_word(page, index).load(Ordering::Acquire);
            assert_eq!(is, expected, "seed {}: page {page:#x}, word {index}", stage.seed);
        }
    }
}

fn report(stage: &Stage, parking: Parking, end: End) {
    let (tally, snapshot) = (&stage.tally, stage.memory.snapshot());
    let (statistics, counters) = (&snapshot.statistics, stage.memory.machine().counters());
    println!("seed {}, {parking:?}, {end:?}:", stage.seed);
    println!(
        "  guest: {} pages filled, {} zeroed, {} freed, {} bytes verified, {} read from a file, \
         {} counted, {} pages seen zero after the balloon",
        get(&tally.filled),
        get(&tally.zeroed),
        get(&tally.freed),
        get(&tally.verified),
        get(&tally.read),
        get(&tally.counted),
        get(&tally.zeros_seen),
    );
    println!(
        "  balloon: {} given back, {} taken again; operator: {} targets, {} sweeps, \
         {} consolidations, {} audits",
        get(&tally.given),
        get(&tally.taken),
        get(&tally.targets),
        get(&tally.sweeps),
        get(&tally.consolidations),
        get(&tally.audits),
    );
    println!(
        "  faults {}, {:?}, moves refused {}, repeated {}, small backing {}, \
         late backing {}",
        snapshot.faults,
        snapshot.fault_latency,
        get(&counters.busy),
        get(&counters.repeats),
        get(&counters.small_backing),
        get(&counters.late_backing),
    );
    println!("  {statistics:?}");
    assert!(get(&tally.targets) > 0 && get(&tally.given) > 0 && get(&tally.zeros_seen) > 0);
}

/// Mappings of this process that are as large as the guest.
fn large_mappings() -> HashSet<String> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let range = |line: &str| line.split(' ').next().unwrap().to_owned();
    let is_large = |range: &String| {
        let (start, end) = range.split_once('-').unwrap();
        let number = |text| u64::from_str_radix(text, 16).unwrap();
        number(end) - number(start) >= PAGES * PAGE_BYTES
    };
    maps.lines().map(range).filter(is_large).collect()
}

const OWN_THREADS: [&str; 3] = ["zs-faults", "zs-prefault", "zs-upkeep"];

fn own_threads() -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let name = |task: std::io::Result<fs::DirEntry>| {
        fs::read_to_string(task.ok()?.path().join("comm")).ok()
    };
    tasks.filter_map(name).filter(|name| OWN_THREADS.contains(&name.trim())).collect()
}

/// Threads end, and with the last of them the mappings go.
fn nothing_is_left(mappings: &HashSet<String>) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let new: Vec<_> = large_mappings().difference(mappings).cloned().collect();
        let threads = own_threads();
        if new.is_empty() && threads.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "left behind: threads {threads:?}, mappings {new:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
#[ignore = "needs userfaultfd in kernel mode: root, CAP_SYS_PTRACE or /dev/userfaultfd"]
fn no_byte_is_lost_under_stress() {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seconds = number("ZEROSWEEP_STRESS_SECONDS").unwrap_or(30);
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = number("ZEROSWEEP_SEED").unwrap_or(clock.as_nanos() as u64);
    println!("ZEROSWEEP_SEED={seed}");
    let (long, short) = (seconds * 3 / 4, seconds.div_ceil(4));
    stress(seed, Duration::from_secs(long), Parking::Lazy, End::Lift);
    stress(seed, Duration::from_secs(short), Parking::Eager(4), End::Stop);
}
