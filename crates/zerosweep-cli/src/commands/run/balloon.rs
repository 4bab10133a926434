//! Makes the guest balloon down to its target, through QMP.
//!
//! A connection is made for each step and closed after it, so that other tools get their turn.
//! The target is sent at once: the device keeps it until the guest's driver comes up, and through
//! reboots of the guest.
//!
//! A tool such as libvirt asks the balloon itself. Then nothing is asked here, and the agent reads
//! what that tool asks for. If a target was given, the balloon is asked for it when the guest runs,
//! because the tool's own first request comes before that.
//!
//! Known hole: the agent does not learn of the threads of vCPUs that are plugged in later.

use std::time::{Duration, Instant};

use zerosweep_client::qmp::{Qmp, QmpError};
use zerosweep_client::runtime::GuestFiles;
use zerosweep_client::size::Size;
use zerosweep_wire::{AgentConfig, BeforeStart, Status};

use crate::console::Console;

/// Longest wait for one answer of QEMU.
const QMP_TIMEOUT: Duration = Duration::from_secs(2);
/// A balloon that has not moved for so long may be that of a guest that is paused.
const REST: Duration = Duration::from_millis(900);
/// How long QMP may fail before that is reported: QEMU may still be opening disks.
const QUIET: Duration = Duration::from_secs(10);

/// Which program asks the balloon, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BalloonMode {
    /// It is asked at once.
    Asked,
    /// It is asked when the guest runs.
    AskedOnceItRuns,
    /// Another tool asks it.
    Followed,
}

impl BalloonMode {
    /// What the agent was told.
    pub(super) fn of(config: &AgentConfig) -> Self {
        match config.follow.as_ref().map(|follow| follow.before_start) {
            None => Self::Asked,
            Some(BeforeStart::Nothing) => Self::AskedOnceItRuns,
            Some(BeforeStart::Target) => Self::Followed,
        }
    }
}

/// What QEMU says that the guest's balloon has left it, in bytes.
pub(super) fn actual(files: &GuestFiles) -> Result<u64, QmpError> {
    Qmp::connect(&files.qmp, QMP_TIMEOUT)?.balloon_actual()
}

/// The same while the guest runs. `None`: it is paused, or has not arrived yet.
pub(super) fn actual_of_running(files: &GuestFiles) -> Result<Option<u64>, QmpError> {
    let mut qmp = Qmp::connect(&files.qmp, QMP_TIMEOUT)?;
    if qmp.is_running()? { qmp.balloon_actual().map(Some) } else { Ok(None) }
}

/// Asks the balloon for `bytes`, once more.
pub(super) fn ask(files: &GuestFiles, bytes: u64) -> Result<(), QmpError> {
    Qmp::connect(&files.qmp, QMP_TIMEOUT)?.set_balloon(bytes)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// vCPU threads and the check of guest RAM are still to be sent.
    Introduce,
    /// The balloon is still to be asked, or to be seen running.
    Start,
    /// The guest is on its way.
    Follow,
    /// It is there, or cannot balloon.
    Done,
}

/// Whether the agent has heard of the vCPU threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Delivery {
    /// It has, or will not.
    Settled,
    /// It did not answer.
    Again,
}

/// The way of one guest to its target.
pub(super) struct Balloon<'a> {
    config: &'a AgentConfig,
    files: &'a GuestFiles,
    console: &'a Console,
    /// How long the guest may give nothing back before that is reported.
    wait: Duration,
    phase: Phase,
    started: Instant,
    actual_bytes: u64,
    /// When `actual_bytes` changed.
    moved: Instant,
    is_paused: bool,
    ram_checked: bool,
    told_slow: bool,
    failing_since: Option<Instant>,
    told_failing: bool,
}

impl<'a> Balloon<'a> {
    pub(super) fn new(
        config: &'a AgentConfig,
        files: &'a GuestFiles,
        console: &'a Console,
        wait: Duration,
    ) -> Self {
        let now = Instant::now();
        Self {
            config,
            files,
            console,
            wait,
            phase: Phase::Introduce,
            started: now,
            actual_bytes: config.max_mem_bytes,
            moved: now,
            is_paused: false,
            ram_checked: false,
            told_slow: false,
            failing_since: None,
            told_failing: false,
        }
    }

    /// Whether the guest is known not to run.
    pub(super) fn is_paused(&self) -> bool {
        self.is_paused
    }

    /// Whether there is nothing more to do.
    pub(super) fn is_done(&self) -> bool {
        self.phase == Phase::Done
    }

    /// Goes one step towards `target_bytes`; hands the vCPU threads to `tell_vcpus`.
    pub(super) fn step(
        &mut self,
        target_bytes: u64,
        tell_vcpus: impl FnOnce(Vec<u32>) -> Delivery,
    ) {
        let outcome = match self.phase {
            Phase::Introduce => self.introduce(target_bytes, tell_vcpus),
            Phase::Start => self.start(target_bytes),
            Phase::Follow => self.follow(target_bytes),
            Phase::Done => Ok(()),
        };
        match outcome {
            Ok(()) => self.failing_since = None,
            Err(error) => self.failed(&error),
        }
        if self.phase == Phase::Done {
            self.console.clear();
        }
    }

    fn introduce(
        &mut self,
        target_bytes: u64,
        tell_vcpus: impl FnOnce(Vec<u32>) -> Delivery,
    ) -> Result<(), QmpError> {
        let mut qmp = Qmp::connect(&self.files.qmp, QMP_TIMEOUT)?;
        let told = tell_vcpus(qmp.vcpu_threads()?);
        if !std::mem::replace(&mut self.ram_checked, true) {
            self.check_ram(&mut qmp);
        }
        if BalloonMode::of(self.config) == BalloonMode::Asked {
            qmp.set_balloon(target_bytes)?;
        }
        if told == Delivery::Settled {
            self.phase = match BalloonMode::of(self.config) {
                BalloonMode::Asked => Phase::Follow,
                BalloonMode::AskedOnceItRuns | BalloonMode::Followed => Phase::Start,
            };
            self.moved = Instant::now();
        }
        Ok(())
    }

    /// Another tool has the guest run.
    fn start(&mut self, target_bytes: u64) -> Result<(), QmpError> {
        let mut qmp = Qmp::connect(&self.files.qmp, QMP_TIMEOUT)?;
        if !qmp.is_running()? {
            return Ok(());
        }
        self.moved = Instant::now();
        self.phase = match BalloonMode::of(self.config) {
            BalloonMode::Followed => Phase::Done,
            BalloonMode::Asked | BalloonMode::AskedOnceItRuns => {
                qmp.set_balloon(target_bytes)?;
                Phase::Follow
            }
        };
        Ok(())
    }

    /// Whether the guest runs with the target that it had before anything was asked for.
    pub(super) fn runs_unasked(&self, status: &Status) -> bool {
        BalloonMode::of(self.config) == BalloonMode::Followed
            && self.is_done()
            && status.balloon_request_bytes.is_none()
            && status.target_bytes == self.config.target_bytes
            && status.target_bytes < status.max_mem_bytes
    }

    /// The agent took a mapping of the right size for guest RAM; QEMU should know one too.
    fn check_ram(&self, qmp: &mut Qmp) {
        let max = Size(self.config.max_mem_bytes);
        match qmp.ram_blocks() {
            Ok(blocks) if blocks.contains(&max.0) => {
                self.console.verbose(&format!("QEMU has one block of {max}"));
            }
            Ok(blocks) if blocks.is_empty() => {
                self.console.verbose("QEMU's table of RAM blocks is not understood");
                self.warn(&format!("cannot check that guest RAM is one block of {max}"));
            }
            Ok(_) => self.warn(&format!("QEMU has no RAM block of {max}; is --max-mem right?")),
            Err(error) => {
                self.warn(&format!("cannot check that guest RAM is one block of {max}: {error}"));
            }
        }
    }

    fn follow(&mut self, target_bytes: u64) -> Result<(), QmpError> {
        let mut qmp = Qmp::connect(&self.files.qmp, QMP_TIMEOUT)?;
        let actual_bytes = qmp.balloon_actual()?;
        let max_bytes = self.config.max_mem_bytes;
        if actual_bytes != self.actual_bytes {
            if self.actual_bytes == max_bytes && actual_bytes > target_bytes {
                self.console.verbose("the guest's balloon driver is at work");
            }
            (self.actual_bytes, self.moved) = (actual_bytes, Instant::now());
        }
        let name = &self.config.name;
        if actual_bytes <= target_bytes {
            self.phase = Phase::Done;
            self.console.clear();
            if target_bytes < max_bytes {
                let (size, seconds) =
                    (Size(actual_bytes).rounded(), self.started.elapsed().as_secs_f64());
                self.console.note(&format!("guest {name} is down to {size} after {seconds:.1} s"));
            }
            return Ok(());
        }
        self.is_paused = self.moved.elapsed() >= REST.min(self.wait) && !qmp.is_running()?;
        if self.is_paused {
            self.moved = Instant::now();
            self.console.waiting(&format!("guest {name}: paused"));
            return Ok(());
        }
        self.tell_when_slow(target_bytes);
        if actual_bytes >= max_bytes {
            self.console.waiting(&format!("guest {name}: waiting for its balloon driver"));
        } else {
            let (done, all) = (max_bytes - actual_bytes, max_bytes - target_bytes);
            let shown = format!("{} of {}", Size(done).rounded(), Size(all).rounded());
            self.console.moving(&format!("guest {name}: ballooning {shown}"), done, all);
        }
        Ok(())
    }

    fn tell_when_slow(&mut self, target_bytes: u64) {
        if self.told_slow || self.moved.elapsed() < self.wait {
            return;
        }
        self.told_slow = true;
        let seconds = self.wait.as_secs_f64();
        let name = &self.config.name;
        let (actual, target) = (Size(self.actual_bytes).rounded(), Size(target_bytes).rounded());
        let trouble = if self.actual_bytes >= self.config.max_mem_bytes {
            format!(
                "nothing was given back for {seconds} s. Is the guest's balloon driver loaded (Linux: \
                 lsmod | grep virtio_balloon; Windows: the Balloon device and service of \
                 virtio-win)? `zerosweep status {name}` shows how much it can still touch"
            )
        } else {
            format!(
                "ballooning has stopped at {actual} for {seconds} s (target {target}): the \
                 guest's own programs may need the rest. `zerosweep status {name}` shows what it owes"
            )
        };
        self.warn(&trouble);
    }

    /// A refusal of QEMU's is final. A connection that fails is tried again.
    fn failed(&mut self, error: &QmpError) {
        let since = *self.failing_since.get_or_insert_with(Instant::now);
        let is_final = matches!(error, QmpError::Refused { .. });
        if is_final {
            self.phase = Phase::Done;
        }
        if (is_final || since.elapsed() >= QUIET)
            && !std::mem::replace(&mut self.told_failing, true)
        {
            self.warn(&format!(
                "it cannot be asked to balloon: {error}. It goes on within its target"
            ));
        }
    }

    fn warn(&self, what: &str) {
        self.console.warn(&format!("guest {}: {what}", self.config.name));
    }
}
