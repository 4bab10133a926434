//! The arguments of `experiment`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use zerosweep_client::size::Size;
use zerosweep_lab::guest::DEFAULT_SEED;
use zerosweep_lab::matrix::{Shard, Stage};

/// Arguments of `experiment`.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct ExperimentArguments {
    #[command(subcommand)]
    pub(crate) action: Option<ExperimentAction>,
    /// Guests: linux, linux-scrub, windows, scrub, churn, hostile, with commas between, or all;
    /// parameters follow as in scrub:dirty_percent=5,clustered. Under QEMU: qemu-linux,
    /// qemu-linux-scrub, qemu-churn, or all
    #[arg(long, value_name = "GUEST,…", default_value = "all")]
    pub(crate) guest: String,
    /// Policies, with commas between, or all: none, hypercall-2011, rfc-2011:gate=debt, xen-2012,
    /// xen-2016, zerosweep; there is also rfc-2011:gate=always. Under QEMU also plain: QEMU without
    /// zerosweep
    #[arg(long, value_name = "POLICY,…", default_value = "all")]
    pub(crate) policy: String,
    /// Where the guests run
    #[arg(long, value_enum, default_value_t)]
    pub(crate) machine: Machine,
    /// Under QEMU: its software CPU, which needs nothing, or KVM
    #[arg(long, value_enum, default_value_t)]
    pub(crate) accel: Accelerator,
    /// What each guest is told that it has [default: 4G; 2G under QEMU]
    #[arg(long, value_name = "SIZE", value_parser = Size::parse)]
    pub(crate) max_mem: Option<Size>,
    /// What it may hold [default: 1G; 768M under QEMU]
    #[arg(long, value_name = "SIZE", value_parser = Size::parse)]
    pub(crate) target: Option<Size>,
    /// Virtual CPUs of each guest; on real memory each is a thread
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) vcpus: u32,
    /// What the guests' random choices depend on
    #[arg(long, value_name = "N", default_value_t = DEFAULT_SEED)]
    pub(crate) seed: u64,
    /// Run everything N times, each time with the next seed
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) repeat: u32,
    /// Runs at a time on the software machine [default: as many as processors and memory allow]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) jobs: Option<u32>,
    /// Do only every N-th run, from number I: 0/4 to 3/4 together are everything, once. Under QEMU
    /// the policies of a guest and a seed stay together
    #[arg(long, value_name = "I/N")]
    pub(crate) shard: Option<Shard>,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
    /// Write a report with plots: one HTML file
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
    /// Write the JSON document here as well, with timelines; overwrite it after each run
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Record what happens in each run, as a trace of Xen's: DIR/GUEST.POLICY.MACHINE.SEED.bin.
    /// Not for plain QEMU
    #[arg(long, value_name = "DIR")]
    pub(crate) events: Option<PathBuf>,
    /// Go on: what FILE has of these runs is not run again; new ones are added to it
    #[arg(long, value_name = "FILE", conflicts_with = "out")]
    pub(crate) resume: Option<PathBuf>,
    /// Cost model for modelled times, as --calibrate writes it [default: a built-in one]
    #[arg(long, value_name = "FILE")]
    pub(crate) costs: Option<PathBuf>,
    /// Measure what faults, scans and flushes cost on this machine; run nothing else
    #[arg(long, conflicts_with_all = ["report", "shard", "resume", "costs", "events"])]
    pub(crate) calibrate: bool,
}

/// Subcommands of `experiment`.
#[derive(Debug, Subcommand)]
pub(crate) enum ExperimentAction {
    /// Join JSON documents of `experiment`
    Merge(MergeArguments),
}

/// Arguments of `experiment merge`.
#[derive(Args, Debug)]
pub(crate) struct MergeArguments {
    /// Documents that `experiment` wrote
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
    /// Write a report with plots: one HTML file
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
}

/// Where guests run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Machine {
    /// In this process, deterministic; times are modelled
    #[default]
    Software,
    /// Threads on real memory through userfaultfd; times are measured
    Linux,
    /// Real Linux guests under QEMU, one after the other; times are measured
    Qemu,
}

/// What executes a real guest's instructions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Accelerator {
    /// QEMU's software CPU; slow, the same everywhere
    #[default]
    Tcg,
    /// The processor itself
    Kvm,
}

impl Accelerator {
    /// As QEMU spells it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tcg => "tcg",
            Self::Kvm => "kvm",
        }
    }
}

impl From<Machine> for Stage {
    fn from(given: Machine) -> Self {
        match given {
            Machine::Software => Self::Software,
            Machine::Linux => Self::Linux,
            Machine::Qemu => Self::Qemu,
        }
    }
}
