//! The thread that does what can wait: clears frames that came back dirty, and breaks superpages of
//! which pages are retained, once the balloon is done (rules R11, R12).
//!
//! It takes at most about half of a core, but for what brings the total down to the target: that is
//! wanted at once. A balloon that has stopped short of the target for [`IDLE`] is taken as done.
//!
//! When the guest has been quiet for a while, live singles are moved together (rule R13), with a
//! tenth of a core, if any have come about since the last time.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use zerosweep::Progress;

use crate::error::SysError;
use crate::memory::GuestMemory;
use crate::sys::poll::{WakeEvent, wait_one};

/// Superpages or so that are worked on at a time.
const STEPS: u64 = 4;
/// A balloon that has given nothing back for so long has stopped.
const IDLE: Duration = Duration::from_millis(100);
/// What could not be done (a page is in use) is tried again after this.
const AGAIN: Duration = Duration::from_millis(20);

/// The guest is quiet when it has given nothing back for so long; so much lies between two
/// consolidations.
const QUIET: Duration = Duration::from_secs(10);
/// A consolidation works for this long, then rests nine times as long.
const CONSOLIDATE: Duration = Duration::from_millis(2);

/// What the thread shares with the others.
pub(crate) struct UpkeepState {
    call: WakeEvent,
    /// It is at work, or was called: nobody needs to call it again.
    awake: AtomicBool,
}

impl UpkeepState {
    pub(crate) fn new() -> Result<Self, SysError> {
        Ok(Self { call: WakeEvent::new()?, awake: AtomicBool::new(false) })
    }

    /// There may be something to do.
    pub(crate) fn call(&self) {
        if !self.awake.swap(true, Ordering::AcqRel) {
            self.call.call();
        }
    }
}

/// Starts the thread. It ends when the service does.
pub(crate) fn start(memory: &Arc<GuestMemory>) -> std::io::Result<()> {
    crate::threads::spawn(memory, "zs-upkeep", run)
}

fn run(memory: &GuestMemory) {
    let mut given_back = 0;
    let mut since = Instant::now();
    let mut consolidation = Background::default();
    while memory.is_served() {
        let state = &memory.upkeep;
        state.awake.store(true, Ordering::Release);
        let now = memory.lock().statistics().pages_given_back;
        if now != given_back {
            (given_back, since) = (now, Instant::now());
        }
        let idle = since.elapsed() >= IDLE;
        if memory.lock().wants_upkeep(idle) {
            work(memory, idle);
            continue;
        }
        state.awake.store(false, Ordering::Release);
        // Between the question and this moment someone may have found it awake: ask again.
        if memory.lock().wants_upkeep(idle) {
            continue;
        }
        if since.elapsed() >= QUIET && consolidation.is_due(memory) {
            consolidation.go_on(memory);
            continue;
        }
        let above = !idle && memory.lock().quantities().above_target() > 0;
        let wait = if above { IDLE } else { Duration::from_secs(1) };
        let _ = wait_one(state.call.as_fd(), Some(wait.as_millis() as u32));
        state.call.clear();
    }
}

fn work(memory: &GuestMemory, idle: bool) {
    let began = Instant::now();
    let Ok(progress) = memory.operate(|session| session.upkeep(STEPS, idle)) else { return };
    let domain = memory.lock();
    let left = domain.wants_upkeep(idle);
    let urgent = domain.quantities().above_target() > 0;
    drop(domain);
    if progress == Progress::Done && left {
        std::thread::sleep(AGAIN);
    } else if !urgent {
        std::thread::sleep(began.elapsed());
    }
}

/// The consolidation in the background.
#[derive(Default)]
struct Background {
    under_way: bool,
    /// Singles that had come about by the last one, and when it ended.
    singles: u64,
    ended: Option<Instant>,
}

impl Background {
    fn is_due(&self, memory: &GuestMemory) -> bool {
        let rested = self.ended.is_none_or(|ended| ended.elapsed() >= QUIET);
        self.under_way || (rested && singles(memory) > self.singles)
    }

    fn go_on(&mut self, memory: &GuestMemory) {
        let began = Instant::now();
        let singles = singles(memory);
        let first = u64::from(self.under_way);
        let done = memory.consolidate_if_alone(first, CONSOLIDATE);
        self.under_way = matches!(done, Some(Ok(crate::Progress::More(_))));
        if !self.under_way {
            (self.singles, self.ended) = (singles, Some(Instant::now()));
        }
        std::thread::sleep(began.elapsed() * 9);
    }
}

/// How often singles have come about so far.
fn singles(memory: &GuestMemory) -> u64 {
    let domain = memory.lock();
    let statistics = domain.statistics();
    statistics.populates_4k + statistics.shatters + statistics.evacuations
}
