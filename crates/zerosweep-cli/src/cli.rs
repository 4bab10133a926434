//! The arguments of the program.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValue, PossibleValuesParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use zerosweep::Policy;
use zerosweep_client::size::Size;
use zerosweep_lab::xentrace::{Layout, Unknown};
use zerosweep_wire::{OnExhaustion, ReturnMode};

mod experiment;

pub(crate) use experiment::{
    Accelerator, ExperimentAction, ExperimentArguments, Machine, MergeArguments,
};

/// Guests on populate-on-demand memory that keeps superpages whole.
///
/// Sizes are written as 512M or 2G. Exit status: 0 done, 1 the work failed, 2 wrong usage. `run`
/// ends with the VMM's status, or with 1 if that is 0 and no guest was ever managed.
#[derive(Debug, Parser)]
#[command(name = "zerosweep", version, arg_required_else_help = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// One variant a command; each has a file in `commands`.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run an unmodified VMM (QEMU) with guest memory that is populated on demand
    Run(Box<RunArguments>),
    /// Show one guest's figures
    Status(GuestArguments),
    /// List the running guests
    Ps(ListArguments),
    /// Watch a guest: its superpage map and figures, updated each second
    Watch(WatchArguments),
    /// Set what a guest may hold, and have its balloon follow
    SetTarget(TargetArguments),
    /// Keep the targets of all guests within a budget, and give memory to those that need it
    Balance(Box<BalanceArguments>),
    /// Look at all of a guest's superpages, and take back those that are zero
    Sweep(GuestArguments),
    /// Move a guest's single pages together, so that whole superpages become free
    Consolidate(GuestArguments),
    /// Recount all figures of a guest and compare
    Audit(GuestArguments),
    /// Show all guests on a web page, and to Prometheus
    Serve(ServeArguments),
    /// Boot a scrubbing guest with a quarter of its memory, and watch it
    Demo(DemoArguments),
    /// Run every policy on every guest model and compare
    Experiment(Box<ExperimentArguments>),
    /// Run a script of steps on the engine and the software machine; print JSON lines
    Script(ScriptArguments),
    /// Read, draw and replay traces of Xen hosts or of --events
    #[command(subcommand)]
    Trace(TraceCommand),
    /// Check what this machine allows, and print the command that mends each gap
    Doctor(ListArguments),
    /// Build kernel and initramfs of the test guest
    GuestImage(ImageArguments),
    /// Print the completions for a shell
    Completions(CompletionsArguments),
    /// Write a man page for the program and for each command
    Man(ManArguments),
}

/// Arguments of `run`.
#[derive(Args, Debug)]
pub(crate) struct RunArguments {
    /// Name of the guest [default: the VMM's -name, else guest-PID]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// What the guest may hold of the host's memory; a multiple of 4K
    #[arg(long, value_name = "SIZE", value_parser = Size::parse)]
    pub(crate) target: Size,
    /// What the guest is told that it has [default: the VMM's -m]
    #[arg(long, value_name = "SIZE", value_parser = Size::parse)]
    pub(crate) max_mem: Option<Size>,
    /// How zero pages are found and superpages kept
    #[arg(long, default_value = Policy::NAMES[0], value_parser = PossibleValuesParser::new(Policy::NAMES))]
    pub(crate) policy: String,
    /// When no frame can be found: let the vCPU wait, exceed the target, or end the guest
    #[arg(long, value_enum, default_value_t)]
    pub(crate) on_exhaustion: Exhaustion,
    /// When cached memory goes back to the host
    #[arg(long = "return", value_name = "WHEN", value_enum, default_value_t)]
    pub(crate) return_mode: Return,
    /// Record what happens to the guest's memory, as a trace of Xen's; FILE is overwritten
    #[arg(long, value_name = "FILE")]
    pub(crate) events: Option<PathBuf>,
    /// Record the guest's side, and what zero checks see of its pages, for trace replay; packed by
    /// gzip; FILE is overwritten
    #[arg(long, value_name = "FILE", conflicts_with = "events")]
    pub(crate) record: Option<PathBuf>,
    /// Warn when the guest has given nothing back for this many seconds
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = parse_seconds)]
    pub(crate) wait_balloon: Duration,
    /// Kill a VMM that has not ended this many seconds after SIGTERM; a second signal kills it soon
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = parse_seconds)]
    pub(crate) wait_end: Duration,
    /// How long the agent may take to answer, in seconds
    #[arg(long, hide = true, value_name = "SECONDS", default_value = "10")]
    #[arg(value_parser = parse_seconds)]
    pub(crate) wait_agent: Duration,
    /// Report every step on standard error
    #[arg(short, long)]
    pub(crate) verbose: bool,
    /// The VMM and its arguments
    #[arg(last = true, required = true, value_name = "VMM ARGS")]
    pub(crate) vmm: Vec<OsString>,
}

/// Arguments of commands on one guest.
#[derive(Args, Debug)]
pub(crate) struct GuestArguments {
    /// Name of the guest; `zerosweep ps` lists them
    pub(crate) name: String,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `watch`.
#[derive(Args, Debug)]
pub(crate) struct WatchArguments {
    /// Name of the guest; `zerosweep ps` lists them
    pub(crate) name: String,
    /// Seconds between two updates
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = parse_interval)]
    pub(crate) interval: Duration,
    /// Show the guest N times, then end [default: until the guest ends or Ctrl-C]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
    /// Print one JSON document per line
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `set-target`.
#[derive(Args, Debug)]
pub(crate) struct TargetArguments {
    #[command(flatten)]
    pub(crate) guest: GuestArguments,
    /// What the guest may hold, as 512M or 2G
    #[arg(value_name = "SIZE", value_parser = Size::parse)]
    pub(crate) size: Size,
    /// Give up waiting for the balloon when it has not moved for this many seconds
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = parse_seconds)]
    pub(crate) wait: Duration,
    /// Do not wait until the balloon has followed
    #[arg(long, conflicts_with = "wait")]
    pub(crate) no_wait: bool,
}

/// Arguments of `balance`.
#[derive(Args, Debug)]
pub(crate) struct BalanceArguments {
    /// What all guests together may hold [default: the policy's]
    #[arg(long, value_name = "SIZE", value_parser = Size::parse)]
    pub(crate) total: Option<Size>,
    /// One guest's limits, as web1:min=256M,max=2G,shares=2; may be given several times
    #[arg(long, value_name = "NAME:KEY=VALUE,…")]
    pub(crate) guest: Vec<String>,
    /// A file with total, [default] and [guest.NAME] (TOML, or JSON)
    #[arg(long, value_name = "FILE")]
    pub(crate) policy: Option<PathBuf>,
    /// Seconds between two rounds
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = parse_seconds)]
    pub(crate) interval: Duration,
    /// Print one round's decisions with their reasons, and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Do one round
    #[arg(long)]
    pub(crate) once: bool,
    /// Print one JSON document for each round, on a line of its own
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `ps`.
#[derive(Args, Debug)]
pub(crate) struct ListArguments {
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `serve`.
#[derive(Args, Debug)]
pub struct ServeArguments {
    /// Where to listen
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:7300")]
    #[arg(value_parser = parse_listen)]
    pub listen: SocketAddr,
    /// Let other machines connect; reading then needs the token too
    #[arg(long)]
    pub allow_remote: bool,
    /// A name of this host that browsers may use, as behind a proxy; can be repeated
    #[arg(long, value_name = "NAME")]
    pub allow_host: Vec<String>,
    /// Require the token for reading too, also on this machine
    #[arg(long)]
    pub private: bool,
    /// Take the token from a file instead of making one
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Print the address as one JSON document
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `demo`.
#[derive(Args, Debug)]
pub(crate) struct DemoArguments {
    /// Which guest: threads that write to memory of this process, or a real Linux under QEMU
    #[arg(long, value_enum, default_value_t)]
    pub(crate) guest: DemoGuest,
    /// What the guest is told that it has [default: 1G; 2G with QEMU]
    #[arg(long, value_name = "SIZE", value_parser = Size::parse)]
    pub(crate) max_mem: Option<Size>,
    /// What the guest may hold [default: a quarter]
    #[arg(long, value_name = "SIZE", value_parser = Size::parse)]
    pub(crate) target: Option<Size>,
    /// Print one JSON document, and nothing else
    #[arg(long)]
    pub(crate) json: bool,
}

/// The guests of `demo`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum DemoGuest {
    /// Threads of this process; nothing to install
    #[default]
    Threads,
    /// A Debian kernel under QEMU; `cargo xtask setup` gets both
    Qemu,
}

/// Arguments of `guest-image`.
#[derive(Args, Debug)]
pub(crate) struct ImageArguments {
    /// A kernel package (.deb; with Ubuntu also its modules package) or an unpacked one
    /// [default: the running kernel's files in /boot]
    #[arg(long, value_name = "PATH")]
    pub(crate) kernel: Vec<PathBuf>,
    /// The init program [default: zerosweep-guest beside this program, or built from source]
    #[arg(long, value_name = "FILE")]
    pub(crate) init: Option<PathBuf>,
    /// Where the image goes [default: the cache directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `script`.
#[derive(Args, Debug)]
pub(crate) struct ScriptArguments {
    /// The script, or `-` for standard input; docs/script.md describes the language
    pub(crate) file: PathBuf,
    /// How zero pages are found and superpages kept
    #[arg(long, default_value = Policy::NAMES[0], value_parser = PossibleValuesParser::new(Policy::NAMES))]
    pub(crate) policy: String,
    /// What the guest is told that it has; a multiple of 4K
    #[arg(long, value_name = "SIZE", value_parser = Size::parse)]
    pub(crate) max_mem: Size,
    /// What the guest may hold; a multiple of 4K
    #[arg(long, value_name = "SIZE", value_parser = Size::parse)]
    pub(crate) target: Size,
}

/// The commands of `trace`.
#[derive(Debug, Subcommand)]
pub(crate) enum TraceCommand {
    /// Count what populate on demand did to each domain
    Read(TraceReadArguments),
    /// Draw how a domain's memory changed: one HTML page
    Report(TraceReportArguments),
    /// Replay what the guest did under every policy, and compare
    Replay(TraceReplayArguments),
}

/// Which trace, and how it is written.
#[derive(Args, Debug)]
pub(crate) struct TraceFile {
    /// A trace of `xentrace`, packed by gzip, xz or zstd, or not; - is standard input
    pub(crate) file: PathBuf,
    /// How domain and order are written: words since Xen 4.18, halves before [default: guessed]
    #[arg(long, value_enum)]
    pub(crate) layout: Option<TraceLayout>,
}

/// Arguments of `trace read`.
#[derive(Args, Debug)]
pub(crate) struct TraceReadArguments {
    #[command(flatten)]
    pub(crate) trace: TraceFile,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `trace report`.
#[derive(Args, Debug)]
pub(crate) struct TraceReportArguments {
    #[command(flatten)]
    pub(crate) trace: TraceFile,
    /// Where the page goes
    #[arg(short, long, value_name = "PAGE")]
    pub(crate) output: PathBuf,
    /// The domain to draw [default: the only domain in the trace]
    #[arg(long, value_name = "NUMBER")]
    pub(crate) domain: Option<u32>,
    /// Time stamps per second, as 2.4G; traces of `--events` have 1G. Without it the page shows no
    /// seconds
    #[arg(long, value_name = "HZ", value_parser = parse_hertz)]
    pub(crate) cpu_hz: Option<f64>,
}

/// Arguments of `trace replay`.
#[derive(Args, Debug)]
pub(crate) struct TraceReplayArguments {
    #[command(flatten)]
    pub(crate) trace: TraceFile,
    /// The domain to replay [default: the only domain in the trace]
    #[arg(long, value_name = "NUMBER")]
    pub(crate) domain: Option<u32>,
    /// The policy to replay under; can be repeated [default: all]
    #[arg(long, value_parser = PossibleValuesParser::new(Policy::NAMES))]
    pub(crate) policy: Vec<String>,
    /// What the guest may hold [default: what it had after its balloon was done]
    #[arg(long, value_name = "SIZE", value_parser = Size::parse)]
    pub(crate) target: Option<Size>,
    /// The content of pages of which the trace says nothing
    #[arg(long, value_enum, default_value_t)]
    pub(crate) unknown: TraceUnknown,
    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,
}

/// [`Unknown`] on the command line.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(crate) enum TraceUnknown {
    /// Something
    #[default]
    Data,
    /// Zeros
    Zero,
}

impl From<TraceUnknown> for Unknown {
    fn from(given: TraceUnknown) -> Self {
        match given {
            TraceUnknown::Data => Self::Data,
            TraceUnknown::Zero => Self::Zero,
        }
    }
}

/// [`Layout`] on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum TraceLayout {
    /// A word each
    Words,
    /// Two halves of a word, and a word of rubbish
    Halves,
}

impl From<TraceLayout> for Layout {
    fn from(given: TraceLayout) -> Self {
        match given {
            TraceLayout::Words => Self::Words,
            TraceLayout::Halves => Self::Halves,
        }
    }
}

/// Arguments of `completions`.
#[derive(Args, Debug)]
pub(crate) struct CompletionsArguments {
    /// Which shell
    pub(crate) shell: clap_complete::Shell,
}

/// Arguments of `man`.
#[derive(Args, Debug)]
pub(crate) struct ManArguments {
    /// Where the pages go; created if it does not exist
    pub(crate) dir: PathBuf,
}

/// [`OnExhaustion`] on the command line.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Exhaustion(pub(crate) OnExhaustion);

impl ValueEnum for Exhaustion {
    fn value_variants<'a>() -> &'a [Self] {
        const {
            let [stall, borrow, kill] = OnExhaustion::ALL;
            &[Self(stall), Self(borrow), Self(kill)]
        }
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.0.name()).help(match self.0 {
            OnExhaustion::Stall => "The vCPU waits until frames become free or the target rises",
            OnExhaustion::Borrow => "Host memory beyond the target is taken, and reported",
            OnExhaustion::Kill => "The VMM is ended",
        }))
    }
}

/// [`ReturnMode`] on the command line.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Return(pub(crate) ReturnMode);

impl ValueEnum for Return {
    fn value_variants<'a>() -> &'a [Self] {
        const {
            let [eager, lazy] = ReturnMode::ALL;
            &[Self(eager), Self(lazy)]
        }
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.0.name()).help(match self.0 {
            ReturnMode::Eager => "At once, but for a small stock",
            ReturnMode::Lazy => "When the target is lowered",
        }))
    }
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(time) if time <= Duration::from_secs(86_400) => Ok(time),
        _ => Err("not a number of seconds from 0 to 86400".into()),
    }
}

fn parse_hertz(text: &str) -> Result<f64, String> {
    let units = [("G", 1e9), ("M", 1e6), ("K", 1e3), ("", 1.0)];
    let value = units
        .iter()
        .find_map(|(unit, factor)| Some(text.strip_suffix(unit)?.parse::<f64>().ok()? * factor));
    let value = value.filter(|hertz| hertz.is_finite() && *hertz >= 1.0);
    value.ok_or_else(|| "not a rate, as 2.4G or 2400M".to_owned())
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    match parse_seconds(text)? {
        time if time >= Duration::from_millis(50) => Ok(time),
        _ => Err("at least 0.05 seconds".into()),
    }
}

fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    let local = text.strip_prefix("localhost:").and_then(|port| port.parse().ok());
    match local {
        Some(port) => Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
        None => text.parse().map_err(|_| {
            "not an address and a port, as 127.0.0.1:7300, [::1]:7300 or 0.0.0.0:7300".to_owned()
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        use clap::CommandFactory as _;
        Arguments::command().debug_assert();
    }

    #[test]
    fn run_takes_the_vmm_behind_two_dashes() {
        let words = "zerosweep run --target 1G --policy rfc-2011:gate=always -- qemu -m 2G -S";
        let Command::Run(run) = Arguments::try_parse_from(words.split(' ')).unwrap().command else {
            panic!("not run");
        };
        assert_eq!(run.target, Size(1 << 30));
        assert_eq!(run.vmm, ["qemu", "-m", "2G", "-S"]);
        assert_eq!(run.wait_balloon, Duration::from_secs(60));
    }

    #[test]
    fn addresses_to_listen_on() {
        for text in ["127.0.0.1:7300", "localhost:7300"] {
            assert_eq!(parse_listen(text).unwrap().to_string(), "127.0.0.1:7300");
        }
        assert!(parse_listen("[::1]:0").unwrap().is_ipv6());
        for text in ["", "7300", "127.0.0.1", "localhost:", "localhost:99999", "example.org:80"] {
            assert!(parse_listen(text).unwrap_err().contains("127.0.0.1:7300"), "{text}");
        }
    }

    #[test]
    fn seconds() {
        assert_eq!(parse_seconds("0.25"), Ok(Duration::from_millis(250)));
        for text in ["", "-1", "NaN", "1e99", "soon"] {
            assert!(parse_seconds(text).is_err(), "{text}");
        }
    }
}
