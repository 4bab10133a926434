//! `experiment --machine qemu`: real Linux guests, under each policy and under plain QEMU.
//!
//! ```text
//! Qemu::find   reports what is missing on this machine before any work starts
//! vm           one VMM: started as `zerosweep run … -- qemu …` or by itself; ends with its Vm
//! life         follows the guest: markers, balloon, exhaustion, time limit
//! figures      what was seen, as a Run
//! ```
//!
//! Every guest has the same command line, whether zerosweep manages it or not. The VMM is in a
//! memory cgroup of its own where there may be one.

mod directory;
mod figures;
mod life;
mod vm;

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Once;

use anyhow::Result;
use zerosweep_client::error::Failure;
use zerosweep_lab::image::GuestImage;
use zerosweep_lab::real_guest::{RealExperiment, Rival};
use zerosweep_lab::result::Run;
use zerosweep_lab::run::Watch;
use zerosweep_linux::probe::{Probe, Status};

use self::life::Life;
use self::vm::Vm;
use crate::cli::Accelerator;

/// The VMM.
const VMM: &str = "qemu-system-x86_64";

/// All that guests need here.
pub(super) struct Qemu {
    /// This very program.
    program: PathBuf,
    image: GuestImage,
    accelerator: Accelerator,
    warm: Once,
}

impl Qemu {
    /// Looks for what the guests need.
    ///
    /// # Errors
    /// What is missing, and the command that mends it.
    pub(super) fn find(rivals: &[Rival], accelerator: Accelerator) -> Result<Self, Failure> {
        require_vmm()?;
        accelerator.require()?;
        if rivals.iter().any(|rival| rival.policy().is_some()) {
            require_userfaultfd()?;
            crate::agent::find()?;
        }
        let image = GuestImage::find().map_err(|error| {
            Failure::work(format!(
                "no guest image: {error:#}. `cargo xtask setup` gets a kernel and builds one"
            ))
        })?;
        let program = std::env::current_exe()
            .map_err(|error| Failure::work(format!("cannot find this program: {error}")))?;
        Ok(Self { program, image, accelerator, warm: Once::new() })
    }

    /// Runs one guest to its end.
    ///
    /// # Errors
    /// When it cannot be started or was damaged, or `watch` ended it.
    pub(super) fn run(&self, experiment: &RealExperiment, watch: Watch<'_>) -> Result<Run> {
        self.warm.call_once(|| touch(experiment.max_mem_bytes));
        let mut vm = Vm::start(self, experiment)?;
        let story = Life::new(experiment, &mut vm, watch).follow()?;
        let held = vm.finish_looking();
        vm.stop();
        figures::run(experiment, self.accelerator, &story, &held)
    }
}

fn require_vmm() -> Result<(), Failure> {
    let mut command = Command::new(VMM);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Failure::work(format!("{VMM} --version: {status}"))),
        Err(error) => Err(Failure::work(format!(
            "{VMM} cannot be run: {error}; `apt-get install qemu-system-x86 seabios` gets it"
        ))),
    }
}

impl Accelerator {
    fn require(self) -> Result<(), Failure> {
        if self == Self::Tcg {
            return Ok(());
        }
        let opened = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
        opened.map(drop).map_err(|error| {
            Failure::work(format!(
                "/dev/kvm cannot be opened: {error}; `modprobe kvm_intel || modprobe kvm_amd; \
                 usermod -aG kvm $USER` allows it, and --accel tcg does without"
            ))
        })
    }
}

fn require_userfaultfd() -> Result<(), Failure> {
    let checks = Probe::run().checks;
    let Some(check) = checks.iter().find(|check| check.status == Status::Fail) else {
        return Ok(());
    };
    let mend = check.mend.as_ref().map_or_else(String::new, |mend| format!("; mend: {mend}"));
    Err(Failure::work(format!(
        "guests cannot be managed here: {}: {}{mend}. --policy plain needs none of it",
        check.name, check.found
    )))
}

/// Touches `bytes` of memory once and gives them back. If the host is a guest itself, its own host
/// must find this memory first; without this, the first guest would pay for that.
fn touch(bytes: u64) {
    const CHUNK_BYTES: u64 = 64 << 20;
    let chunks: Vec<Vec<u8>> =
        (0..bytes / CHUNK_BYTES).map(|_| vec![1; CHUNK_BYTES as usize]).collect();
    std::hint::black_box(&chunks);
}
