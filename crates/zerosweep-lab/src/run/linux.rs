//! A run on real memory: the guest is threads of this process, and times are a clock's.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use zerosweep::{Gfn, Order, PAGE_BYTES, SUPERPAGE_PAGES};
use zerosweep_events::{Detail, Figures, Packing, Recording};
use zerosweep_linux::{
    AdoptError, FaultLatency, GuestMemory, MainLoop, OnExhaustion, Options, Parking, Region,
    Snapshot,
};

use super::{
    Experiment, Finished, Interrupted, Readings, Times, Watch, ZERO_WORDS, tell_unrecorded,
};
use crate::files;
use crate::guest::{Plan, Store};
use crate::ledger::{Expected, Ledger, Limit};
use crate::result::{Outcome, Run, TimeKind};
use crate::timeline::Recorder;

/// How often the run is looked at.
const WATCH: Duration = Duration::from_millis(50);
/// As above, when there is to be a timeline.
const WATCH_CLOSELY: Duration = Duration::from_millis(15);
/// How long all virtual CPUs of a guest may wait for frames before it is given up.
const GIVE_UP: Duration = Duration::from_secs(2);
/// How long nothing may move at the end; longer than the upkeep waits for more work.
const QUIET: Duration = Duration::from_millis(150);
/// What is done in the background at the end is done within this.
const SETTLE: Duration = Duration::from_secs(5);

/// Runs the guest.
///
/// # Errors
/// When memory cannot be managed here ([`AdoptError`] is then the cause), the guest was damaged (a
/// defect), or `watch` ended it.
pub fn on_linux(experiment: &Experiment, watch: Watch<'_>) -> Result<Run> {
    let plan = Arc::new(experiment.plan());
    let limit = Limit::of(&plan);
    let recording = record(experiment);
    let memory = adopt(experiment, recording.as_ref())?;
    let mut following = Following {
        ledger: Arc::new(Ledger::new(plan.shape().max_pages)),
        recorder: Recorder::new(experiment.timeline),
        pause: if experiment.timeline { WATCH_CLOSELY } else { WATCH },
        start: Instant::now(),
        ballooning: false,
        experiment,
        recording,
        memory,
        plan,
        watch,
    };
    let done = following.run(limit);
    following.end_recording();
    if done.is_err() {
        // The threads that serve the range end, and it is unmapped.
        following.memory.lift("the run failed");
    }
    done
}

/// Begins to record what happens, if that is wanted and can be.
fn record(experiment: &Experiment) -> Option<Arc<Recording>> {
    let path = experiment.events.as_ref()?;
    let max_pages = experiment.max_mem_bytes / PAGE_BYTES;
    let begun = files::create_private(path).and_then(|file| {
        let recording = Arc::new(Recording::new(file, max_pages, Detail::Xen, Packing::Plain));
        let thread = Arc::clone(&recording);
        std::thread::Builder::new().name("zs-events".into()).spawn(move || thread.run())?;
        Ok(recording)
    });
    begun.inspect_err(|error| tell_unrecorded(path, error)).ok()
}

fn adopt(
    experiment: &Experiment,
    recording: Option<&Arc<Recording>>,
) -> Result<Arc<GuestMemory>, AdoptError> {
    let region = Region::new(experiment.max_mem_bytes)?;
    let options = Options {
        target_bytes: experiment.target_bytes,
        policy: experiment.policy,
        on_exhaustion: OnExhaustion::Stall,
        parking: Parking::Lazy,
        fault_threads: Options::DEFAULT_FAULT_THREADS,
        main_loop: MainLoop::None,
    };
    let journal = recording.map(|recording| Arc::clone(recording.journal()));
    GuestMemory::recorded(region, &options, journal)
}

/// What the virtual CPUs share.
struct Vcpus {
    stop: AtomicBool,
    stores: AtomicU64,
}

/// A guest on its way through its plan.
struct Following<'a> {
    experiment: &'a Experiment,
    recording: Option<Arc<Recording>>,
    memory: Arc<GuestMemory>,
    plan: Arc<Plan>,
    ledger: Arc<Ledger>,
    recorder: Recorder,
    watch: Watch<'a>,
    pause: Duration,
    start: Instant,
    ballooning: bool,
}

impl Following<'_> {
    fn run(&mut self, limit: Limit) -> Result<Run> {
        let outcome = self.boot()?;
        let boot_seconds = self.start.elapsed().as_secs_f64();
        let booted = self.memory.snapshot().statistics;
        let start = Instant::now();
        if outcome == Outcome::Ok {
            self.balloon()?;
        }
        let balloon_seconds = start.elapsed().as_secs_f64();
        self.sample()?;
        let end = self.readings(outcome)?;
        let FaultLatency { p50_ns, p99_ns, max_ns } = self.memory.snapshot().fault_latency;
        let fault_ns = Some((p50_ns, p99_ns, max_ns));
        let kind = TimeKind::Measured;
        let times = Times { boot_seconds, balloon_seconds, kind, fault_ns };
        let ledger = Arc::clone(&self.ledger);
        let recorder = std::mem::replace(&mut self.recorder, Recorder::new(false));
        let run = Finished {
            experiment: self.experiment,
            machine: "linux",
            outcome,
            limit,
            ledger: &ledger,
            booted,
            end,
            times,
            timeline: recorder.finish(),
        }
        .assemble();
        self.end_recording();
        // Last, because a read of what was reclaimed may populate it again.
        self.verify()?;
        if outcome == Outcome::Ok {
            self.memory.stop();
        }
        Ok(run)
    }

    /// Writes the events that are left, and reports those that are missing.
    fn end_recording(&mut self) {
        let recording = self.recording.take().zip(self.experiment.events.as_ref());
        let Some((recording, file)) = recording else { return };
        recording.finish();
        match recording.figures() {
            Figures { error: Some(error), .. } => tell_unrecorded(file, &error),
            Figures { lost, .. } if lost > 0 => {
                tell_unrecorded(file, &format_args!("{lost} came too fast"));
            }
            _ => {}
        }
    }

    /// Every virtual CPU follows its part of the plan.
    fn boot(&mut self) -> Result<Outcome> {
        let vcpus = Arc::new(Vcpus { stop: AtomicBool::new(false), stores: AtomicU64::new(0) });
        let threads: Vec<_> = (0..self.plan.shape().vcpus)
            .map(|n| {
                let (memory, plan) = (Arc::clone(&self.memory), Arc::clone(&self.plan));
                let (ledger, vcpus) = (Arc::clone(&self.ledger), Arc::clone(&vcpus));
                std::thread::spawn(move || follow(&memory, plan.boot_of(n), &ledger, &vcpus))
            })
            .collect();
        let outcome = self.watch_boot(&threads, &vcpus);
        if outcome.is_err() {
            vcpus.stop.store(true, Ordering::Relaxed);
            self.memory.lift("the run failed");
        }
        // A thread that panicked has said so itself.
        threads.into_iter().for_each(|thread| drop(thread.join()));
        outcome
    }

    fn watch_boot(&mut self, threads: &[JoinHandle<()>], vcpus: &Vcpus) -> Result<Outcome> {
        let mut seen = Instant::now();
        let mut progress = (0, Instant::now());
        while !threads.iter().all(JoinHandle::is_finished) {
            std::thread::sleep(Duration::from_millis(1));
            if seen.elapsed() < self.pause {
                continue;
            }
            seen = Instant::now();
            let snapshot = self.sample()?;
            let stores = vcpus.stores.load(Ordering::Relaxed);
            if stores != progress.0 || snapshot.stalled == 0 {
                progress = (stores, Instant::now());
            }
            let stopped = vcpus.stop.load(Ordering::Relaxed);
            if let (Some(reason), false) = (snapshot.lifted, stopped) {
                bail!("the cap had to be lifted: {reason}");
            }
            if progress.1.elapsed() >= GIVE_UP {
                // Lets the threads go on, so that they can end.
                vcpus.stop.store(true, Ordering::Relaxed);
                self.memory.lift("the run was given up");
            }
        }
        Ok(if vcpus.stop.load(Ordering::Relaxed) { Outcome::Stalled } else { Outcome::Ok })
    }

    fn balloon(&mut self) -> Result<()> {
        self.ballooning = true;
        let plan = Arc::clone(&self.plan);
        let mut seen = Instant::now();
        for (n, &page) in plan.balloon().iter().enumerate() {
            let gfn = Gfn::new(page);
            self.ledger.give_back(gfn);
            self.memory.inflate(gfn, Order::PAGE).context("the balloon of the guest failed")?;
            if n % 256 == 0 && seen.elapsed() >= self.pause {
                self.sample()?;
                seen = Instant::now();
            }
        }
        Ok(())
    }

    fn sample(&mut self) -> Result<Snapshot> {
        let letters = self.memory.map_letters();
        let snapshot = self.memory.snapshot();
        let seconds = self.start.elapsed().as_secs_f64();
        self.recorder.add(seconds, self.ballooning, &snapshot.quantities, &letters);
        if (self.watch)(&letters).is_break() {
            bail!(Interrupted);
        }
        Ok(snapshot)
    }

    fn readings(&self, outcome: Outcome) -> Result<Readings> {
        let end = match outcome {
            Outcome::Ok => self.settled()?,
            _ => self.memory.snapshot(),
        };
        self.memory.audit().context("the audit failed")?;
        Ok(Readings {
            superpages_in_cache: end.superpages_in_cache,
            singles_in_cache: end.quantities.cache - end.superpages_in_cache * SUPERPAGE_PAGES,
            total_pages: end.quantities.total(),
            superpages_returned: end.statistics.superpages_returned,
            statistics: end.statistics,
            letters: self.memory.map_letters(),
        })
    }

    /// The figures once nothing moves any more, and engine and kernel agree: after the balloon,
    /// upkeep is done in the background.
    fn settled(&self) -> Result<Snapshot> {
        let deadline = Instant::now() + SETTLE;
        let mut before = self.memory.snapshot();
        loop {
            std::thread::sleep(QUIET);
            let end = self.memory.snapshot();
            let by_kernel = self.memory.machine().whole_superpages()?;
            let engine = end.superpages_in_guest;
            let quiet = end.statistics == before.statistics;
            if quiet && engine == by_kernel {
                return Ok(end);
            }
            if Instant::now() >= deadline {
                bail!("{engine} superpages are whole, the kernel says {by_kernel}; quiet: {quiet}");
            }
            before = end;
        }
    }

    fn verify(&self) -> Result<()> {
        let guest = self.memory.guest();
        for gfn in (0..self.plan.shape().max_pages).map(Gfn::new) {
            let found = |word: u16| guest.load_word(gfn.raw() * PAGE_BYTES + u64::from(word) * 8);
            let as_expected = match self.ledger.expected(gfn) {
                Expected::GivenBack => true,
                Expected::Zero => {
                    let words = ZERO_WORDS.map(found).into_iter().collect::<Result<Vec<_>, _>>()?;
                    words.iter().all(|&word| word == 0)
                }
                Expected::Word { word, value } => found(word)? == value,
            };
            if !as_expected {
                bail!("{gfn:?} was damaged: {:?} should be there", self.ledger.expected(gfn));
            }
        }
        Ok(())
    }
}

/// One virtual CPU.
fn follow(
    memory: &GuestMemory,
    stores: impl Iterator<Item = Store>,
    ledger: &Ledger,
    vcpus: &Vcpus,
) {
    memory.add_vcpu(zerosweep_linux::sys::raw::thread_id());
    for store in stores {
        if vcpus.stop.load(Ordering::Relaxed) {
            return;
        }
        ledger.note(&store);
        let offset = store.gfn.raw() * PAGE_BYTES + u64::from(store.word) * 8;
        // The page is in range and the offset aligned: the store cannot fail.
        let _ = memory.guest().store_word(offset, store.value);
        vcpus.stores.fetch_add(1, Ordering::Relaxed);
    }
}
