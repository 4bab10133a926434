//! One VMM with its guest: started, asked, and ended whatever happens.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal};
use zerosweep_client::agent::Client;
use zerosweep_client::qmp::{Qmp, QmpError};
use zerosweep_lab::real_guest::{Account, Console, Held, RealExperiment, Sampler};
use zerosweep_wire::{Operation, Status};

use super::directory::Directory;
use super::{Qemu, VMM};

/// Longest wait for one answer of QEMU.
const QMP_TIMEOUT: Duration = Duration::from_secs(5);
/// What ends when asked to, ends within this.
const ENDING: Duration = Duration::from_secs(5);

/// A VMM that runs. Dropping it ends the VMM.
pub(super) struct Vm {
    child: Child,
    ended: Option<ExitStatus>,
    pub(super) started: Instant,
    /// What the guest says.
    pub(super) console: Console,
    /// What QEMU and `zerosweep run` say.
    pub(super) errors: Console,
    /// Its name, where zerosweep manages it.
    name: Option<String>,
    client: Option<Client>,
    qmp: Option<Qmp>,
    account: Arc<Account>,
    sampler: Option<Sampler>,
    /// Removed last.
    directory: Directory,
}

impl Vm {
    /// Starts the guest of an experiment.
    pub(super) fn start(qemu: &Qemu, experiment: &RealExperiment) -> Result<Self> {
        let directory = Directory::new().context("a directory for temporary files")?;
        let account = Arc::new(Account::new());
        let vmm = match account.cgroup() {
            Some(cgroup) => cgroup.wrapper(directory.path(), VMM)?,
            None => PathBuf::from(VMM),
        };
        let name = experiment.policy.policy().map(|_| directory.guest_name());
        let mut command = match &name {
            Some(name) => managed(qemu, experiment, name, &vmm),
            None => Command::new(&vmm),
        };
        arguments(&mut command, qemu, experiment, &directory);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let sampler = Sampler::start(&account, experiment.max_mem_bytes);
        let started = Instant::now();
        let mut child = command.spawn().with_context(|| format!("starting {command:?}"))?;
        if name.is_none() {
            account.know(child.id());
        }
        let nothing = || Box::new(io::empty()) as Box<dyn io::Read + Send>;
        let console = child.stdout.take().map_or_else(nothing, |stream| Box::new(stream));
        let errors = child.stderr.take().map_or_else(nothing, |stream| Box::new(stream));
        Ok(Self {
            child,
            ended: None,
            started,
            console: Console::read(console),
            errors: Console::read(errors),
            name,
            client: None,
            qmp: None,
            account,
            sampler: Some(sampler),
            directory,
        })
    }

    /// Whether zerosweep manages it.
    pub(super) fn is_managed(&self) -> bool {
        self.name.is_some()
    }

    /// QEMU's monitor, once it answers.
    pub(super) fn qmp(&mut self) -> Option<&mut Qmp> {
        if self.qmp.is_none() {
            self.qmp = Qmp::connect(&self.directory.monitor(), QMP_TIMEOUT).ok();
        }
        self.qmp.as_mut()
    }

    /// What the guest has left of its memory; nothing while QEMU does not say.
    pub(super) fn balloon_actual(&mut self) -> Option<u64> {
        let actual = self.qmp()?.balloon_actual();
        if matches!(actual, Err(QmpError::Line(_))) {
            self.qmp = None;
        }
        actual.ok()
    }

    /// The engine's figures; nothing under plain QEMU, or while the agent does not answer.
    pub(super) fn status(&mut self) -> Option<Status> {
        self.ask(Operation::Status)
    }

    /// Sets what the guest may hold.
    pub(super) fn set_target(&mut self, target_bytes: u64) -> Option<Status> {
        self.ask(Operation::SetTarget { target_bytes })
    }

    fn ask(&mut self, operation: Operation) -> Option<Status> {
        let name = self.name.as_ref()?;
        if self.client.is_none() {
            self.client = super::super::super::connect(name).ok();
        }
        let answer = self.client.as_mut()?.request(operation);
        match &answer {
            Ok(status) => self.account.know(status.pid),
            Err(_) => self.client = None,
        }
        answer.ok()
    }

    /// How the process that was started ended, if it did.
    pub(super) fn try_wait(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended
    }

    /// Ends the looking at memory, while the VMM still runs.
    pub(super) fn finish_looking(&mut self) -> Held {
        self.sampler.take().map(Sampler::finish).unwrap_or_default()
    }

    /// Ends it: politely, then not.
    pub(super) fn stop(&mut self) {
        drop(self.sampler.take());
        let vmm = self.account.process();
        if self.try_wait().is_none() {
            kill(self.child.id(), Signal::TERM);
        }
        if !self.ends_within(ENDING) {
            // `zerosweep run` ends with the VMM that it waits for.
            vmm.into_iter().for_each(|vmm| kill(vmm, Signal::KILL));
        }
        if !self.ends_within(ENDING) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    fn ends_within(&mut self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while self.try_wait().is_none() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        true
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.stop();
    }
}

fn kill(process: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(process).ok().and_then(Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// `zerosweep run`, up to the VMM's own arguments.
fn managed(qemu: &Qemu, experiment: &RealExperiment, name: &str, vmm: &Path) -> Command {
    let target = if experiment.guest.is_told_late() {
        experiment.max_mem_bytes
    } else {
        experiment.target_bytes
    };
    let mut command = Command::new(&qemu.program);
    command.args(["run", "--name", name, "--target", &target.to_string(), "--policy"]);
    command.arg(experiment.policy.to_string());
    if let Some(file) = &experiment.events {
        command.arg("--events").arg(file);
    }
    command.arg("--").arg(vmm);
    command
}

/// QEMU's arguments: the same with and without zerosweep.
fn arguments(
    command: &mut Command,
    qemu: &Qemu,
    experiment: &RealExperiment,
    directory: &Directory,
) {
    let RealExperiment { guest, max_mem_bytes, target_bytes, seed, vcpus, .. } = experiment;
    let words = guest.kernel_words(*max_mem_bytes, *target_bytes, *seed);
    command.args(["-accel", qemu.accelerator.name(), "-m", &format!("{}K", max_mem_bytes >> 10)]);
    command.args(["-smp", &vcpus.to_string(), "-nographic", "-no-reboot"]);
    command.arg("-kernel").arg(&qemu.image.kernel).arg("-initrd").arg(&qemu.image.initrd);
    // A busy host has a software CPU fail the check of its timer, and the kernel gives up.
    command.args(["-append", &format!("console=ttyS0 quiet panic=-1 no_timer_check {words}")]);
    command.args(["-device", "virtio-balloon-pci", "-qmp"]);
    command.arg(format!("unix:{},server=on,wait=off", directory.monitor().display()));
}
