//! Processors of hosts, and the machines that emulate them.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::need::Need;
use crate::tests::program::On;
use crate::{aarch64, apt, machine};

/// A processor's architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Arch {
    /// With AMD's virtualisation
    #[value(name = "x86_64")]
    X86_64,
    /// Without KVM
    #[value(name = "aarch64")]
    Aarch64,
}

/// What one architecture has of everything that differs.
struct Facts {
    name: &'static str,
    debian: &'static str,
    qemu: &'static str,
    qemu_package: &'static str,
    strip: &'static str,
    /// What cargo builds for; `None`: this machine.
    target: Option<&'static str>,
    /// The arguments of QEMU. 7.2's software CPU damages a host when it has several threads.
    machine: &'static [&'static str],
    console: &'static str,
    /// The port for what steps say.
    port: &'static str,
}

const X86_64: Facts = Facts {
    name: "x86_64",
    debian: "amd64",
    qemu: "qemu-system-x86_64",
    qemu_package: "qemu-system-x86",
    strip: "strip",
    target: None,
    machine: &["-accel", "tcg,thread=single", "-cpu", "EPYC,+svm,+npt"],
    console: "ttyS0",
    port: "ttyS1",
};

/// This machine has one port only.
const AARCH64: Facts = Facts {
    name: "aarch64",
    debian: "arm64",
    qemu: "qemu-system-aarch64",
    qemu_package: "qemu-system-arm",
    strip: "aarch64-linux-gnu-strip",
    target: Some(aarch64::TARGET),
    machine: &["-accel", "tcg,thread=single", "-M", "virt", "-cpu", "max"],
    console: "ttyAMA0",
    port: "ttyAMA0",
};

impl Arch {
    fn facts(self) -> &'static Facts {
        match self {
            Self::X86_64 => &X86_64,
            Self::Aarch64 => &AARCH64,
        }
    }

    /// As Rust calls it.
    pub(crate) fn name(self) -> &'static str {
        self.facts().name
    }

    /// As Debian calls it.
    pub(crate) fn debian(self) -> &'static str {
        self.facts().debian
    }

    /// What follows the name of a package of this architecture.
    pub(crate) fn suffix(self) -> String {
        format!(":{}", self.debian())
    }

    /// The QEMU that emulates it.
    pub(crate) fn qemu(self) -> &'static str {
        self.facts().qemu
    }

    /// The package of that.
    pub(crate) fn qemu_package(self) -> &'static str {
        self.facts().qemu_package
    }

    /// The program that takes the symbols out of programs.
    pub(crate) fn strip(self) -> &'static str {
        self.facts().strip
    }

    /// The arguments of QEMU for the machine.
    pub(crate) fn machine(self) -> &'static [&'static str] {
        self.facts().machine
    }

    /// The kernel's command line.
    pub(crate) fn command_line(self) -> String {
        format!("console={} quiet loglevel=3 panic=-1 no_timer_check", self.facts().console)
    }

    /// The device of the port for what steps say, in the host.
    pub(crate) fn port(self) -> String {
        format!("/dev/{}", self.facts().port)
    }

    /// The file with what steps say, and the arguments of QEMU for it.
    pub(crate) fn results(self, console: &Path, results: PathBuf) -> (PathBuf, Vec<String>) {
        if self.facts().port == self.facts().console {
            return (console.to_owned(), Vec::new());
        }
        let arguments = vec!["-serial".to_owned(), format!("file:{}", results.display())];
        (results, arguments)
    }

    /// Whether guests run there under KVM.
    pub(crate) fn has_kvm(self) -> bool {
        self == Self::X86_64
    }

    /// Whether a host of it has this.
    pub(crate) fn has(self, need: Need) -> bool {
        match need {
            Need::Userfaultfd | Need::IoUring | Need::Root | Need::MemoryCgroup => true,
            Need::Qemu | Need::GuestImage | Need::Kvm | Need::HardwareKvm | Need::VhostNet => {
                self.has_kvm()
            }
            _ => false,
        }
    }

    /// The arguments and variables with which cargo builds for it.
    pub(crate) fn cargo(self) -> (Vec<&'static str>, &'static [(&'static str, &'static str)]) {
        match self.facts().target {
            None => (Vec::new(), &[]),
            Some(target) => (vec!["--target", target], &aarch64::VARIABLES),
        }
    }

    /// Where cargo leaves the programs of the release build, below its directory.
    pub(crate) fn release(self) -> PathBuf {
        self.facts().target.map_or_else(PathBuf::new, PathBuf::from).join("release")
    }

    /// What runs its test programs on this machine, to list their tests.
    pub(crate) fn on(self) -> On {
        match self {
            Self::X86_64 => On::Machine,
            Self::Aarch64 => On::Emulator,
        }
    }

    /// What this machine needs to build and emulate such hosts.
    pub(crate) fn needs(self) -> &'static [Need] {
        match self {
            Self::X86_64 => &[Need::Qemu, Need::GuestImage],
            Self::Aarch64 => &[Need::Aarch64],
        }
    }

    /// Gets the emulator, where it is not there.
    ///
    /// # Errors
    /// When there is none after that.
    pub(crate) fn get_emulator(self) -> Result<()> {
        if machine::program(self.qemu()).is_none() {
            apt::install(&[self.qemu_package()])?;
        }
        if machine::program(self.qemu()).is_none() {
            bail!("{} is not on the PATH: install {}", self.qemu(), self.qemu_package());
        }
        Ok(())
    }
}
