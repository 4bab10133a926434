//! The thread that does what can wait: it clears frames that came back dirty, and breaks superpages
//! with retained pages once the balloon is done (rules [R11], [R12]).
//!
//! It is limited to about half a core, except while the total is above the target. A balloon that
//! has stopped short of the target for [`IDLE`] counts as done.
//!
//! When the guest has been quiet for a while, the thread packs live singles into fewer superframes
//! (rule [R13]), if any have come about since the last time. It uses a tenth of a core for that.
//!
//! [R11]: zerosweep::rules#r11
//! [R12]: zerosweep::rules#r12
//! [R13]: zerosweep::rules#r13

use std::sync::Arc;
use std::time::{Duration, Instant};

use zerosweep::Progress;

use crate::domain::SharedDomain;
use crate::operation::{self, consolidation};

/// Superpages that are worked on at a time, roughly.
const STEPS: u64 = 4;
/// A balloon that has given nothing back for this long has stopped.
const IDLE: Duration = Duration::from_millis(100);
/// Work that was not possible (a page is in use) is tried again after this time.
const AGAIN: Duration = Duration::from_millis(20);
/// A guest that has given nothing back for this long is quiet. Two consolidations are this far
/// apart, too.
const QUIET: Duration = Duration::from_secs(10);
/// A consolidation works for this long, then rests nine times as long.
const CONSOLIDATE: Duration = Duration::from_millis(2);
/// The longest sleep without a signal.
const POLL: Duration = Duration::from_secs(1);

/// Starts the thread. It ends when the domain is no longer served.
pub(crate) fn start(domain: &Arc<SharedDomain>) -> std::io::Result<()> {
    super::spawn(domain, "zs-upkeep", run)
}

fn run(domain: &SharedDomain) {
    let mut given_back = 0;
    let mut since = Instant::now();
    let mut consolidation = Background::default();
    let signal = domain.signals.upkeep();
    while domain.is_served() {
        signal.set_awake();
        let now = domain.lock().statistics().pages_given_back;
        if now != given_back {
            (given_back, since) = (now, Instant::now());
        }
        let idle = since.elapsed() >= IDLE;
        if domain.lock().wants_upkeep(idle) {
            work(domain, idle);
            continue;
        }
        signal.set_asleep();
        // Between the question and this moment a thread may have found it awake: ask again.
        if domain.lock().wants_upkeep(idle) {
            continue;
        }
        if since.elapsed() >= QUIET && consolidation.is_due(domain) {
            consolidation.step(domain);
            continue;
        }
        let above = !idle && domain.lock().quantities().above_target() > 0;
        let wait = if above { IDLE } else { POLL };
        signal.wait(wait.as_millis() as u32);
    }
}

fn work(domain: &SharedDomain, idle: bool) {
    let began = Instant::now();
    let Ok(progress) = operation::run(domain, |session| session.upkeep(STEPS, idle)) else {
        return;
    };
    let locked = domain.lock();
    let left = locked.wants_upkeep(idle);
    let urgent = locked.quantities().above_target() > 0;
    drop(locked);
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
    /// Singles that had come about by the last consolidation, and when it ended.
    singles: u64,
    ended: Option<Instant>,
}

impl Background {
    fn is_due(&self, domain: &SharedDomain) -> bool {
        let rested = self.ended.is_none_or(|ended| ended.elapsed() >= QUIET);
        self.under_way || (rested && singles(domain) > self.singles)
    }

    fn step(&mut self, domain: &SharedDomain) {
        let began = Instant::now();
        let singles = singles(domain);
        let first = u64::from(self.under_way);
        let done = consolidation::try_consolidate(domain, first, CONSOLIDATE);
        self.under_way = matches!(done, Some(Ok(crate::outcome::Progress::More(_))));
        if !self.under_way {
            (self.singles, self.ended) = (singles, Some(Instant::now()));
        }
        std::thread::sleep(began.elapsed() * 9);
    }
}

/// Returns how often singles have come about.
fn singles(domain: &SharedDomain) -> u64 {
    let locked = domain.lock();
    let statistics = locked.statistics();
    statistics.populates_4k + statistics.shatters + statistics.evacuations
}
