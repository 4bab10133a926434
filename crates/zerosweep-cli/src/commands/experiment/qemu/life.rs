//! Follows a guest from its start to its last word.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use zerosweep_lab::real_guest::{Line, RealExperiment};
use zerosweep_lab::result::Outcome;
use zerosweep_lab::run::{Interrupted, Watch};
use zerosweep_wire::{State, Status};

use super::vm::Vm;

/// How long a guest may take in all.
const LIMIT: Duration = Duration::from_secs(180);
/// How long a guest may wait for a frame, while nothing moves, before it is given up.
const GIVE_UP: Duration = Duration::from_secs(10);
/// Between two looks at everything.
const LOOK: Duration = Duration::from_millis(10);
/// Between two questions to the agent.
const ASK: Duration = Duration::from_millis(200);
/// The most by which the balloon may miss its target, in bytes: a few pages stay where they are.
const NEARLY_BYTES: u64 = 64 << 10;
/// How long nothing may have moved at the end, before the last look.
const QUIET: Duration = Duration::from_millis(600);
/// How long after its last word a guest may still balloon.
const LATE: Duration = Duration::from_secs(30);
/// Lines that a failure shows.
const TAIL: usize = 12;

/// What was seen.
#[derive(Default)]
pub(super) struct Story {
    pub(super) outcome: Option<Outcome>,
    /// From the start to the guest's first marker.
    pub(super) boot: Duration,
    /// From the start of the guest's balloon driver until the target was reached.
    pub(super) balloon: Duration,
    /// The engine's figures when the balloon driver started.
    pub(super) booted: Option<Status>,
    /// The engine's figures at the end.
    pub(super) end: Option<Status>,
}

/// A guest on its way.
pub(super) struct Life<'a> {
    experiment: &'a RealExperiment,
    vm: &'a mut Vm,
    watch: Watch<'a>,
    story: Story,
    /// Lines of the console that were read.
    lines: usize,
    booted: bool,
    asked_to_balloon: bool,
    /// When the balloon driver was there and had been asked.
    ballooning: Option<Instant>,
    /// Whether the target was reached.
    reached: bool,
    /// When the guest said that all was well.
    done: Option<Instant>,
    asked_agent: Instant,
    /// What moved last, and when.
    progress: ([u64; 3], Instant),
    borrowed: bool,
}

impl<'a> Life<'a> {
    pub(super) fn new(experiment: &'a RealExperiment, vm: &'a mut Vm, watch: Watch<'a>) -> Self {
        let now = Instant::now();
        Self {
            experiment,
            vm,
            watch,
            story: Story::default(),
            lines: 0,
            booted: false,
            asked_to_balloon: false,
            ballooning: None,
            reached: false,
            done: None,
            asked_agent: now,
            progress: ([0; 3], now),
            borrowed: false,
        }
    }

    /// Follows it until it is done, gives up, or is ended.
    ///
    /// # Errors
    /// When it did not start, was damaged, lost its cap by a defect, or was interrupted.
    pub(super) fn follow(mut self) -> Result<Story> {
        let outcome = loop {
            if (self.watch)(&[]).is_break() {
                bail!(Interrupted);
            }
            if let Some(outcome) = self.look()? {
                break outcome;
            }
            std::thread::sleep(LOOK);
        };
        if let Some(status) = self.vm.status() {
            self.story.end = Some(status);
        }
        if !self.booted {
            self.story.boot = self.vm.started.elapsed();
        }
        if let (Some(start), false) = (self.ballooning, self.reached) {
            self.story.balloon = start.elapsed();
        }
        self.story.outcome = Some(match outcome {
            Outcome::Ok if self.borrowed => Outcome::Exhausted,
            outcome => outcome,
        });
        Ok(self.story)
    }

    /// One look at everything; how it ended, if it did.
    fn look(&mut self) -> Result<Option<Outcome>> {
        // Before the console: what it has said by then is read below.
        let ended = self.vm.try_wait();
        let console_ended = self.vm.console.has_ended();
        for line in self.vm.console.lines(self.lines) {
            self.lines += 1;
            if self.hear(&line)? {
                return Ok(Some(Outcome::Killed));
            }
        }
        if ended.is_some() || console_ended {
            return self.ended_by_itself().map(Some);
        }
        self.balloon();
        let stalled = self.ask_agent()?;
        Ok(match self.done {
            Some(_) if self.is_quiet() => Some(Outcome::Ok),
            Some(at) if !self.reached && at.elapsed() > LATE => Some(Outcome::Stalled),
            _ if stalled || self.vm.started.elapsed() > LIMIT => Some(Outcome::Stalled),
            _ => None,
        })
    }

    /// Reads one line of the guest. Returns whether its kernel has given up.
    fn hear(&mut self, line: &Line) -> Result<bool> {
        let Some(marker) = line.marker() else { return Ok(line.is_panic()) };
        match marker.split(' ').next().unwrap_or_default() {
            "boot" if !self.booted => {
                self.booted = true;
                self.story.boot = line.at - self.vm.started;
            }
            "churned" if self.experiment.guest.is_told_late() => self.tell_late(),
            "balloon" if marker.starts_with("balloon loaded") => {
                self.ballooning = Some(line.at);
                self.story.booted = self.vm.status();
            }
            "done" if marker == "done ok" => self.done = Some(line.at),
            "done" => bail!("the guest failed: {marker}\n{}", self.vm.console.tail(TAIL)),
            _ => {}
        }
        Ok(false)
    }

    /// The VMM is gone before its guest was done.
    fn ended_by_itself(&self) -> Result<Outcome> {
        if self.booted {
            return Ok(Outcome::Killed);
        }
        let said = [&self.vm.errors, &self.vm.console].map(|console| console.tail(TAIL));
        bail!("the guest did not start:\n{}", said.concat())
    }

    /// Lowers the target of a guest that had all of its memory so far.
    fn tell_late(&mut self) {
        let target = self.experiment.target_bytes;
        // The engine first: what the balloon gives back goes by its target.
        self.vm.set_target(target);
        self.ask_to_balloon();
    }

    fn ask_to_balloon(&mut self) {
        let target = self.experiment.target_bytes;
        self.asked_to_balloon = self.vm.qmp().is_some_and(|qmp| qmp.set_balloon(target).is_ok());
    }

    /// Asks plain QEMU to balloon as soon as it answers, and sees how far the balloon is.
    fn balloon(&mut self) {
        if !self.asked_to_balloon && !self.vm.is_managed() && !self.experiment.guest.is_told_late()
        {
            self.ask_to_balloon();
        }
        let Some(start) = self.ballooning else { return };
        if self.reached {
            return;
        }
        let Some(actual) = self.vm.balloon_actual() else { return };
        if actual <= self.experiment.target_bytes + NEARLY_BYTES {
            self.reached = true;
            self.story.balloon = start.elapsed();
            self.progress.1 = Instant::now();
        }
    }

    /// Reads the engine's figures now and then. Returns whether the guest has waited too long.
    fn ask_agent(&mut self) -> Result<bool> {
        if !self.vm.is_managed() || self.asked_agent.elapsed() < ASK {
            return Ok(false);
        }
        self.asked_agent = Instant::now();
        let Some(status) = self.vm.status() else { return Ok(false) };
        if matches!(status.state, State::CapLifted | State::Failed) {
            let reason = status.reason.as_deref().unwrap_or("no reason given");
            bail!("the cap had to be lifted: {reason}");
        }
        let counters = &status.counters;
        self.borrowed |= status.borrowed_pages > 0;
        let moved = [counters.faults, counters.engine.pages_given_back, status.pages.populated];
        if moved != self.progress.0 {
            self.progress = (moved, Instant::now());
        }
        let stalled = status.stalled_threads > 0 && self.progress.1.elapsed() > GIVE_UP;
        self.story.end = Some(status);
        Ok(stalled)
    }

    /// Whether the balloon is there, and nothing has moved for a while.
    fn is_quiet(&self) -> bool {
        let since = self.done.map_or(self.progress.1, |done| done.max(self.progress.1));
        self.reached && since.elapsed() > QUIET
    }
}
