//! `zerosweep run … -- VMM ARGS`: an unmodified VMM on populate-on-demand memory.
//!
//! ```text
//! plan       refuses what must be refused, before anything is started
//! process    the VMM: started with the agent preloaded, signalled, waited for
//! words      passes on what the VMM prints
//! last_words explains the last messages of the VMM
//! signals    signals to this process are passed on to the VMM
//! ending     a VMM that does not end at SIGTERM is killed
//! supervise  a thread: the agent comes up, the guest balloons, trouble is reported
//! balloon    QMP: vCPU threads, RAM check, ballooning to the target
//! drift      a balloon that moves without being asked
//! absence    why an agent does not answer
//! alarms     figures that a person should know
//! ```
//!
//! The main thread only waits for the VMM to end. A failure in the supervisor is only a warning:
//! the guest matters more than its tool. A `run` that is killed leaves the guest alive and managed;
//! the agent removes the sockets when the VMM ends.

mod absence;
mod alarms;
mod balloon;
mod drift;
mod ending;
mod last_words;
pub(crate) mod plan;
mod process;
mod signals;
pub(crate) mod supervise;
mod words;

use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitCode, ExitStatus};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use zerosweep_client::error::Failure;
use zerosweep_client::output::eprint_line;
use zerosweep_client::runtime::{self, Claim};
use zerosweep_client::size::Size;
use zerosweep_lab::files;
use zerosweep_wire::{OnExhaustion, runtime as wire};

use self::ending::{Ending, Step};
use self::last_words::Meaning;
use self::plan::{Plan, Wanted};
use self::process::{TerminalMode, Vmm};
use self::signals::Running;
use self::supervise::{Process as _, Supervisor};
use crate::cli::RunArguments;
use crate::console::{Console, Verbosity};

/// How often the VMM is looked at when no signal says that it changed.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// How long the VMM may take to end when asked to.
pub(crate) const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// What the main thread is woken for.
#[derive(Debug)]
pub(crate) enum Event {
    /// The VMM may have ended.
    VmmChanged,
    /// A signal was passed on to the VMM.
    Signal(Signal),
    /// The guest cannot be managed: end it.
    Failed(String),
}

/// Runs the VMM to its end and passes its exit status on.
pub(crate) fn execute(arguments: &RunArguments) -> Result<ExitCode, Failure> {
    let directory = wire::directory();
    let plan = Plan::new(&Wanted::from(arguments), &directory)?;
    let verbosity = if arguments.verbose { Verbosity::Verbose } else { Verbosity::Normal };
    let console = Arc::new(Console::new(verbosity, plan.terminal));
    runtime::create_directory(&directory)?;
    let claim = Claim::take(&plan.config.name, plan.files.clone(), |file| {
        console.verbose(&format!("removed {}, left by a dead guest", file.display()));
    })?;

    // Before the VMM is there, so that no signal can end this process and leave it behind.
    let received = signals::Received::new()?;
    let mode = TerminalMode::save();
    plan.notes.iter().for_each(|note| console.warn(note));
    let ended = live(plan, arguments, received, &console);
    console.close();
    drop(claim);
    if !matches!(&ended, Ok(status) if status.code().is_some()) {
        mode.restore();
    }
    ended.map(exit_code)
}

/// Starts the VMM and supervises it until it ends. Starts it once more if only our own device kept
/// it from starting.
fn live(
    mut plan: Plan,
    arguments: &RunArguments,
    received: signals::Received,
    console: &Arc<Console>,
) -> Result<ExitStatus, Failure> {
    let start = |plan: &Plan| {
        // The agent wants it there, and empty.
        if let Some(file) = &plan.config.events {
            files::create_private(file).map_err(|error| {
                Failure::work(format!("cannot write {}: {error}", file.display()))
            })?;
        }
        console.verbose(&format!("starting {}", plan.shown()));
        Vmm::spawn(plan).map(Arc::new)
    };
    let (sender, mut events) = mpsc::channel();
    let mut vmm = start(&plan)?;
    let running = Arc::new(Running::new(Arc::clone(&vmm), sender.clone()));
    let mut threads = received
        .forward(Arc::clone(&running))
        .and_then(|()| supervisor(&plan, arguments, &vmm, console).start(sender));
    loop {
        if let Err(failure) = threads {
            vmm.stop(STOP_TIMEOUT);
            return Err(failure);
        }
        let mut ending = Ending::new(arguments.wait_end);
        let ended = wait(&vmm, &events, &mut ending, console);
        let words = vmm.words.last();
        let status = ended?;
        match last_words::meaning(&words, &plan).filter(|_| status.code() == Some(1)) {
            None if vmm.was_managed() || ending.was_told() || plan.only_asks => {
                if !ending.was_told() {
                    killed(&plan, status).inspect(|reason| console.warn(reason));
                }
                return Ok(status);
            }
            None => return never_managed(&plan, status, &words, console),
            Some(Meaning::Hint(hint)) => {
                console.warn(&hint);
                return Ok(status);
            }
            Some(Meaning::NoPlaceForBalloon(reason)) => {
                let name = plan.config.name.clone();
                let Some(without) = plan.without_balloon() else { return Ok(status) };
                console.warn(&format!(
                    "QEMU has no place for zerosweep's own balloon device ({reason}): guest {name} \
                     starts without it. It is not asked to give memory back; free a slot, or add a \
                     -device virtio-balloon-… where there is one"
                ));
                plan = without;
                plan.files.remove_sockets();
                let (sender, ear) = mpsc::channel();
                let Some(next) = running.replace(|| start(&plan), sender.clone())? else {
                    return Ok(status);
                };
                (vmm, events) = (next, ear);
                threads = supervisor(&plan, arguments, &vmm, console).start(sender);
            }
        }
    }
}

fn supervisor(
    plan: &Plan,
    arguments: &RunArguments,
    vmm: &Arc<Vmm>,
    console: &Arc<Console>,
) -> Supervisor<Vmm> {
    Supervisor {
        config: plan.config.clone(),
        agent: plan.agent.clone(),
        files: plan.files.clone(),
        wait_agent: arguments.wait_agent,
        wait_balloon: arguments.wait_balloon,
        vmm: Arc::clone(vmm),
        console: Arc::clone(console),
    }
}

/// Waits for the VMM's end, or ends it when the guest cannot be managed.
fn wait(
    vmm: &Vmm,
    events: &Receiver<Event>,
    ending: &mut Ending,
    console: &Console,
) -> Result<ExitStatus, Failure> {
    loop {
        let event = match events.recv_timeout(LOOK_INTERVAL) {
            Ok(event) => event,
            Err(RecvTimeoutError::Timeout) => Event::VmmChanged,
            Err(RecvTimeoutError::Disconnected) => {
                std::thread::sleep(LOOK_INTERVAL);
                Event::VmmChanged
            }
        };
        let ended = vmm
            .try_wait()
            .map_err(|error| Failure::work(format!("cannot wait for the VMM: {error}")))?;
        if let Event::Signal(signal) = event {
            ending.received(signal, Instant::now());
        }
        if let (Some(status), Event::VmmChanged | Event::Signal(_)) = (ended, &event) {
            return Ok(status);
        }
        match (ended, event) {
            (Some(status), Event::Failed(reason)) => {
                console.clear();
                eprint_line(&format!("warning: {reason}"));
                return Ok(status);
            }
            (None, Event::Failed(reason)) => {
                console.close();
                eprint_line(&format!("error: {reason}; stopping the VMM (pid {})", vmm.pid));
                vmm.stop(STOP_TIMEOUT);
                return Err(Failure::work("the guest was stopped"));
            }
            (_, Event::Signal(_) | Event::VmmChanged) => {}
        }
        see_to_its_end(vmm, ending, console)?;
    }
}

/// Reports a VMM that ended by itself before its guest was managed, if the VMM itself printed
/// nothing or ended with success.
fn never_managed(
    plan: &Plan,
    status: ExitStatus,
    words: &str,
    console: &Console,
) -> Result<ExitStatus, Failure> {
    let name = plan.program_name.to_string_lossy();
    let what = format!("no guest was managed: {name} ended ({status}) before zerosweep's agent");
    if status.success() {
        return Err(Failure::work(format!(
            "{what} found guest memory. It is not a VMM, or a script that does not wait for its VMM"
        )));
    }
    if status.signal().is_some() {
        console.warn(&format!("{what} found guest memory"));
    } else if words.trim().is_empty() {
        console.warn(&format!("{what} found guest memory, and it printed nothing"));
    }
    Ok(status)
}

/// Who may have killed a VMM that nobody here killed.
fn killed(plan: &Plan, status: ExitStatus) -> Option<String> {
    let config = &plan.config;
    let is_asked_for = config.on_exhaustion == OnExhaustion::Kill;
    (is_asked_for && status.signal() == Some(Signal::KILL.as_raw())).then(|| {
        format!(
            "the VMM of guest {} was killed. `--on-exhaustion kill` does that to a guest that wants \
             more than its target of {} and has no page of zeros to give: start it with a larger \
             --target, or with --on-exhaustion stall or borrow. The host's kernel kills too, when \
             the host's memory runs out: `dmesg` says so",
            config.name,
            Size(config.target_bytes)
        )
    })
}

/// Does the next step for a VMM that got a signal to end and has not ended.
fn see_to_its_end(vmm: &Vmm, ending: &mut Ending, console: &Console) -> Result<(), Failure> {
    let pid = vmm.pid;
    match ending.step(Instant::now()) {
        Step::Wait => {}
        Step::Tell(waited, left) => console.warn(&format!(
            "the VMM (pid {pid}) has not ended {waited:.1?} after SIGTERM; it will be killed in \
             {left:.0?}, or at once if another SIGTERM or Ctrl-C comes"
        )),
        Step::Kill(waited) => {
            console.warn(&format!(
                "the VMM (pid {pid}) has not ended {waited:.1?} after SIGTERM: it is killed"
            ));
            vmm.signal(Signal::KILL);
        }
        Step::GiveUp => {
            return Err(Failure::work(format!(
                "the VMM (pid {pid}) was killed and has not ended: it waits in the kernel (ps -o \
                 pid,stat,wchan -p {pid}), for a disk or a network file system perhaps"
            )));
        }
    }
    Ok(())
}

/// The VMM's own exit status, or 128 and the signal that ended it, as a shell says it.
fn exit_code(status: ExitStatus) -> ExitCode {
    let number = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    ExitCode::from(number.and_then(|number| u8::try_from(number).ok()).unwrap_or(1))
}
