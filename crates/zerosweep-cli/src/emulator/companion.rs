//! The process beside QEMU: `run`'s supervisor, for a VMM that is no child of it.
//!
//! ```text
//! zerosweep-qemu ──► launcher ──► companion          the launcher ends at once, so that QEMU has
//!        ◄── "ready", or why not ─────┘              no child that it did not start
//! ```
//!
//! The companion holds the guest's name for as long as QEMU lives, writes to the same log, and ends
//! with QEMU. Its standard input is QEMU's process (a pidfd, so that no other process can be taken
//! for it). Its standard output leads to the process that waits for its first line. The descriptors
//! that libvirt meant for QEMU end with the launcher.

use std::ffi::OsString;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{PidfdFlags, Signal};
use zerosweep_client::error::Failure;
use zerosweep_client::output::eprint_line;
use zerosweep_client::runtime::{self, Claim, GuestFiles};
use zerosweep_wire::AgentConfig;

use crate::commands::run::plan::Plan;
use crate::commands::run::supervise::{Process, Supervisor};
use crate::commands::run::{Event, STOP_TIMEOUT};
use crate::console::{Console, Terminal, Verbosity};

/// First arguments; QEMU would take such a word for a disk image.
const LAUNCHER: &str = "zerosweep-launcher";
const COMPANION: &str = "zerosweep-companion";
/// The companion's first word when all is well.
const READY: &str = "ready";

/// How long the agent may take to answer, and the balloon to begin, before that is reported.
const WAIT_AGENT: Duration = Duration::from_secs(10);
const WAIT_BALLOON: Duration = Duration::from_secs(60);

/// Starts a companion of this very process, which is about to become QEMU.
///
/// # Errors
/// What the companion says, such as a name that is taken.
pub(super) fn start(plan: &Plan) -> Result<(), Failure> {
    let cannot = |error: io::Error| Failure::work(format!("cannot start a companion: {error}"));
    let config = serde_json::to_string(&plan.config)
        .map_err(|error| Failure::work(format!("cannot write the agent's settings: {error}")))?;
    let this = rustix::process::getpid();
    let this = rustix::process::pidfd_open(this, PidfdFlags::empty())
        .map_err(|errno| cannot(errno.into()))?;
    let mut launcher = companion_command(LAUNCHER, &config, &plan.agent)
        .and_then(|mut command| command.stdin(Stdio::from(this)).stdout(Stdio::piped()).spawn())
        .map_err(cannot)?;
    let said = launcher.stdout.take().map(|from| {
        let mut line = String::new();
        BufReader::new(from).read_line(&mut line).map(|_| line)
    });
    let ended = launcher.wait().map_err(cannot)?;
    match said.transpose().map_err(cannot)?.as_deref().map(str::trim_end) {
        Some(READY) => Ok(()),
        None | Some("") => Err(cannot(io::Error::other(format!("it ended at once ({ended})")))),
        Some(reason) => Err(Failure::usage(reason)),
    }
}

fn companion_command(word: &str, config: &str, agent: &Path) -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args([word, config]).arg(agent).env_remove("LD_PRELOAD");
    Ok(command)
}

/// Is the launcher or the companion, where the arguments say so.
pub(super) fn execute(arguments: &[OsString]) -> Result<Option<ExitCode>, Failure> {
    let [word, config, agent] = arguments else { return Ok(None) };
    let agent = Path::new(agent);
    let (Some(word), Some(config)) = (word.to_str(), config.to_str()) else { return Ok(None) };
    match word {
        LAUNCHER => launch(config, agent).map(Some),
        COMPANION => attend(config, agent).map(Some),
        _ => Ok(None),
    }
}

fn launch(config: &str, agent: &Path) -> Result<ExitCode, Failure> {
    let cannot = |error: io::Error| Failure::work(format!("cannot start a companion: {error}"));
    zerosweep_linux::sys::raw::close_on_exec_from(3)
        .map_err(|error| Failure::work(error.to_string()))?;
    // A group of its own: Ctrl-C in a terminal is for QEMU, and the companion ends after it.
    let mut command = companion_command(COMPANION, config, agent).map_err(cannot)?;
    command.process_group(0).spawn().map_err(cannot)?;
    Ok(ExitCode::SUCCESS)
}

/// Looks after the guest until QEMU ends.
fn attend(config: &str, agent: &Path) -> Result<ExitCode, Failure> {
    let config: AgentConfig = serde_json::from_str(config)
        .map_err(|error| Failure::usage(format!("not a companion's settings: {error}")))?;
    let claimed = claim(&config);
    let word = match &claimed {
        Ok(_) => READY.to_owned(),
        Err(failure) => failure.to_string().replace('\n', " "),
    };
    let _ = writeln!(io::stdout(), "{word}");
    let Ok((files, claim)) = claimed else { return Ok(ExitCode::from(1)) };

    let console = Arc::new(Console::new(Verbosity::Normal, Terminal::Ours));
    let vmm = Arc::new(DetachedVmm);
    let (sender, events) = mpsc::channel();
    let supervisor = Supervisor {
        config,
        agent: agent.to_owned(),
        files,
        wait_agent: WAIT_AGENT,
        wait_balloon: WAIT_BALLOON,
        vmm: Arc::clone(&vmm),
        console: Arc::clone(&console),
    };
    supervisor.start(sender.clone())?;
    std::thread::Builder::new()
        .name("vmm".into())
        .spawn(move || {
            DetachedVmm.wait();
            let _ = sender.send(Event::VmmChanged);
        })
        .map_err(|error| Failure::work(format!("cannot start a thread: {error}")))?;
    wait(&vmm, &events);
    console.close();
    drop(claim);
    Ok(ExitCode::SUCCESS)
}

fn claim(config: &AgentConfig) -> Result<(GuestFiles, Claim), Failure> {
    let directory = config.socket.parent().unwrap_or(&config.socket);
    runtime::create_directory(directory)?;
    let files = GuestFiles::new(directory, &config.name)?;
    let claim = Claim::take(&config.name, files.clone(), |_| ())?;
    Ok((files, claim))
}

/// Waits for QEMU's end, or ends it when the guest cannot be managed.
fn wait(vmm: &DetachedVmm, events: &Receiver<Event>) {
    while let Ok(Event::Failed(reason)) = events.recv() {
        eprint_line(&format!("error: {reason}; stopping QEMU"));
        vmm.stop(STOP_TIMEOUT);
    }
}

/// The process at standard input.
struct DetachedVmm;

impl DetachedVmm {
    fn poll(&self, limit: Option<&Timespec>) -> bool {
        let stdin = io::stdin();
        let mut process = [PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN)];
        matches!(rustix::event::poll(&mut process, limit), Ok(ready) if ready > 0)
    }

    /// Waits until it has ended.
    fn wait(&self) {
        while !self.poll(None) {}
    }
}

impl Process for DetachedVmm {
    fn is_running(&self) -> bool {
        !self.poll(Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))
    }

    fn pid(&self) -> Option<u32> {
        let about = std::fs::read_to_string("/proc/self/fdinfo/0").ok()?;
        about.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok())
    }

    fn signal(&self, signal: Signal) {
        let _ = rustix::process::pidfd_send_signal(io::stdin(), signal);
    }
}
