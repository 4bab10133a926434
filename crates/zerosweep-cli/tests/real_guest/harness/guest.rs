//! Starts guests, and makes sure that no guest outlives its test.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde::de::DeserializeOwned;
use tempfile::TempDir;
use zerosweep_lab::image::GuestImage;
use zerosweep_lab::real_guest::{Console, Line, MemoryCgroup};
use zerosweep_wire::{Status, runtime};

use super::control::{Agent, Qmp};
use super::{ENDING, PATIENCE, wait_until};

const VMM: &str = "qemu-system-x86_64";
/// KVM. Guests without nested virtualisation are refused nowhere; and virtualisation that is
/// emulated itself (QEMU 7.2) does not run the BIOS of a VGA card.
const KVM: [&str; 6] = ["-accel", "kvm", "-cpu", "host,-svm,-vmx", "-vga", "none"];
/// The directory for the output of guests of failed tests.
const KEPT: &str = env!("CARGO_TARGET_TMPDIR");

/// The kernel and the initramfs.
fn image() -> &'static GuestImage {
    static IMAGE: OnceLock<GuestImage> = OnceLock::new();
    IMAGE.get_or_init(|| GuestImage::find().unwrap_or_else(|error| panic!("{error:#}")))
}

/// The program under test: the one of the same build as this test, or the one that is named, such
/// as that of the release build.
fn program() -> PathBuf {
    std::env::var_os("ZEROSWEEP_PROGRAM")
        .map_or_else(|| env!("CARGO_BIN_EXE_zerosweep").into(), PathBuf::from)
}

/// Whether all guests are to run under KVM: `ZEROSWEEP_TEST_ACCEL=kvm`, for hosts that have it on
/// the processor.
pub(crate) fn wants_kvm() -> bool {
    match std::env::var("ZEROSWEEP_TEST_ACCEL").as_deref() {
        Err(_) | Ok("tcg") => false,
        Ok("kvm") => true,
        Ok(other) => panic!("ZEROSWEEP_TEST_ACCEL is {other}: tcg or kvm"),
    }
}

/// A runtime directory of its own.
pub(crate) struct Place {
    directory: TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Where the program keeps its sockets.
    pub(crate) fn runtime(&self) -> PathBuf {
        self.path().join("zerosweep")
    }

    /// What is in the runtime directory.
    pub(crate) fn left_behind(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.runtime()) else { return Vec::new() };
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// The program, in this place.
    pub(crate) fn command(&self, arguments: impl IntoIterator<Item: AsRef<OsStr>>) -> Command {
        let mut command = Command::new(program());
        command
            .args(arguments)
            .env("XDG_RUNTIME_DIR", self.path())
            .env_remove("LD_PRELOAD")
            .stdin(Stdio::null());
        command
    }

    /// The document that the program writes; it must succeed.
    pub(crate) fn json<T: DeserializeOwned>(
        &self,
        arguments: impl IntoIterator<Item: AsRef<OsStr>>,
    ) -> T {
        let output = self.output(arguments);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Runs the program to its end, which must come soon.
    pub(crate) fn output(&self, arguments: impl IntoIterator<Item: AsRef<OsStr>>) -> Output {
        let mut command = self.command(arguments);
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).spawn().unwrap();
        let deadline = Instant::now() + ENDING;
        while child.try_wait().unwrap().is_none() {
            if Instant::now() > deadline {
                let _ = rustix::process::kill_process_group(Pid::from_child(&child), Signal::KILL);
                let output = child.wait_with_output().unwrap();
                panic!("{command:?} did not end: {}{}", stdout(&output), stderr(&output));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        child.wait_with_output().unwrap()
    }
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A guest to start.
pub(crate) struct Spec<'a> {
    pub(crate) name: &'a str,
    /// Further options of `zerosweep run`.
    pub(crate) run: &'a [&'a str],
    /// Further options of QEMU.
    pub(crate) qemu: &'a [&'a str],
    /// Further words of the kernel's command line.
    pub(crate) append: &'a str,
    /// Where the VMM is to run.
    pub(crate) cgroup: Option<&'a MemoryCgroup>,
    /// Whether a guest that reboots boots again; else the VMM ends.
    pub(crate) reboots: bool,
    /// Whether KVM runs it, whatever runs the others.
    pub(crate) kvm: bool,
}

impl Default for Spec<'_> {
    fn default() -> Self {
        Self {
            name: "vm",
            run: &["--target", "300M"],
            qemu: &[],
            append: "",
            cgroup: None,
            reboots: false,
            kvm: false,
        }
    }
}

/// QEMU and the arguments of a guest of 2 GiB.
pub(crate) fn qemu_command(place: &Place, spec: &Spec<'_>) -> Vec<String> {
    let image = image();
    let vmm = match spec.cgroup {
        Some(cgroup) => {
            let wrapper = cgroup.wrapper(place.path(), VMM).unwrap();
            wrapper.to_str().unwrap().to_owned()
        }
        None => VMM.to_owned(),
    };
    // Without the last, a busy host has a software CPU fail the check of its timer, and the kernel
    // gives up.
    let append = format!("console=ttyS0 quiet panic=-1 no_timer_check {}", spec.append);
    let words = ["-m", "2048", "-nographic", "-kernel"].map(str::to_owned);
    let mut command = vec![vmm];
    if spec.kvm || wants_kvm() {
        command.extend(KVM.map(str::to_owned));
    }
    command.extend((!spec.reboots).then(|| "-no-reboot".to_owned()));
    command.extend(words);
    command.push(image.kernel.to_str().unwrap().to_owned());
    command.extend(["-initrd".to_owned(), image.initrd.to_str().unwrap().to_owned()]);
    command.extend(["-append".to_owned(), append]);
    command.extend(spec.qemu.iter().map(|&word| word.to_owned()));
    command
}

/// A guest that runs; dropping it kills all of its processes.
pub(crate) struct Guest {
    child: Child,
    ended: Option<ExitStatus>,
    pub(crate) started: Instant,
    pub(crate) console: Console,
    pub(crate) errors: Console,
    socket: PathBuf,
    qmp: PathBuf,
}

impl Guest {
    /// Under zerosweep.
    pub(crate) fn managed(place: &Place, spec: &Spec<'_>) -> Self {
        let mut words = vec!["run".to_owned(), "--name".to_owned(), spec.name.to_owned()];
        words.extend(spec.run.iter().map(|&word| word.to_owned()));
        words.push("--".to_owned());
        words.extend(qemu_command(place, spec));
        Self::run(place, spec.name, place.command(words))
    }

    /// Without it, but with the same devices.
    pub(crate) fn plain(place: &Place, spec: &Spec<'_>) -> Self {
        fs::create_dir_all(place.runtime()).unwrap();
        let words = qemu_command(place, spec);
        let qmp = runtime::qmp_socket(&place.runtime(), spec.name);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).args(["-device", "virtio-balloon-pci", "-qmp"]);
        command.arg(format!("unix:{},server=on,wait=off", qmp.display())).stdin(Stdio::null());
        Self::run(place, spec.name, command)
    }

    /// By a command of the test's own.
    pub(crate) fn run(place: &Place, name: &str, mut command: Command) -> Self {
        // A group of its own: so that all of it can be found and killed.
        command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped());
        let started = Instant::now();
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self {
            console: Console::read(child.stdout.take().unwrap()),
            errors: Console::read(child.stderr.take().unwrap()),
            child,
            ended: None,
            started,
            socket: runtime::control_socket(&place.runtime(), name),
            qmp: runtime::qmp_socket(&place.runtime(), name),
        }
    }

    /// Waits for a marker of the guest.
    #[track_caller]
    pub(crate) fn marker(&self, marker: &str) -> Line {
        self.marker_from(0, marker)
    }

    /// Waits for a marker in the console's lines from `from` on.
    #[track_caller]
    pub(crate) fn marker_from(&self, from: usize, marker: &str) -> Line {
        match self.console.marker(marker, from, PATIENCE) {
            Ok(line) => line,
            Err(why) => self.fail(&format!("no marker {marker:?}: {why}")),
        }
    }

    /// Fails the test. What guest and program said is shown when the guest is dropped.
    #[track_caller]
    pub(crate) fn fail(&self, why: &str) -> ! {
        let status = self.try_status().map_or_else(|e| e.to_string(), |s| format!("{s:#?}"));
        panic!("{why}\nstatus: {status}");
    }

    /// Writes all that guest and program said to a file, and shows it: the reason of a failure is
    /// often long before its end.
    fn keep_what_was_said(&self) {
        let said = format!(
            "console:\n{}standard error:\n{}",
            timed(&self.console, self.started),
            timed(&self.errors, self.started)
        );
        let test = std::thread::current().name().unwrap_or("test").replace("::", "-");
        let file = Path::new(KEPT).join(format!("{test}-{}.console", self.child.id()));
        match fs::write(&file, &said) {
            Ok(()) => println!("{said}kept in {}", file.display()),
            Err(error) => println!("{said}not kept in {}: {error}", file.display()),
        }
    }

    /// The same, if there is an agent.
    pub(crate) fn try_status(&self) -> std::io::Result<Status> {
        Agent::connect(&self.socket)?.status()
    }

    /// A connection to the agent.
    #[track_caller]
    pub(crate) fn agent(&self) -> Agent {
        wait_until("the agent answers", PATIENCE, || Agent::connect(&self.socket).ok())
    }

    /// The agent's figures.
    #[track_caller]
    pub(crate) fn status(&self) -> Status {
        self.try_status().unwrap_or_else(|error| self.fail(&format!("no status: {error}")))
    }

    /// A connection to QEMU.
    #[track_caller]
    pub(crate) fn qmp(&self) -> Qmp {
        wait_until("QEMU answers", PATIENCE, || Qmp::connect(&self.qmp).ok())
    }

    /// Sends a signal to the process that was started.
    pub(crate) fn signal(&self, signal: Signal) {
        rustix::process::kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Sends a signal to it and to all that it started, as a terminal does.
    pub(crate) fn signal_group(&self, signal: Signal) {
        rustix::process::kill_process_group(self.group(), signal).unwrap();
    }

    /// Waits until the process that was started has ended: its exit status, as a shell says it.
    #[track_caller]
    pub(crate) fn end(&mut self) -> i32 {
        let deadline = Instant::now() + ENDING;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                self.ended = Some(status);
                return status.code().or(status.signal().map(|signal| 128 + signal)).unwrap();
            }
            if Instant::now() > deadline {
                self.fail("it does not end");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until no process of the guest is left.
    #[track_caller]
    pub(crate) fn wait_until_gone(&self) {
        let gone = || self.processes().is_empty().then_some(());
        wait_until("no process of the guest is left", PATIENCE, gone);
    }

    fn group(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// The processes of the guest that run: those of its group. The group keeps its number for as
    /// long as it has a member.
    pub(crate) fn processes(&self) -> Vec<u32> {
        processes_of(self.child.id())
    }
}

/// Every line, with the seconds from the start to it.
fn timed(console: &Console, started: Instant) -> String {
    let second = |line: &Line| line.at.saturating_duration_since(started).as_secs_f64();
    let lines = console.lines(0);
    lines.iter().map(|line| format!("{:9.3} {}\n", second(line), line.text)).collect()
}

/// The processes of a group that run.
pub(crate) fn processes_of(group: u32) -> Vec<u32> {
    let group = group.to_string();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let is_in_group = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        let mut fields = after_name.split(' ');
        let is_running = fields.next().is_some_and(|state| !matches!(state, "Z" | "X"));
        is_running && fields.nth(1) == Some(group.as_str())
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(is_in_group)
        .collect()
}

impl Drop for Guest {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.keep_what_was_said();
        }
        // Once the child was waited for, its number could be another's: look who is left.
        if self.ended.is_none() || !self.processes().is_empty() {
            let _ = rustix::process::kill_process_group(self.group(), Signal::KILL);
        }
        let _ = self.child.wait();
        let deadline = Instant::now() + ENDING;
        while !self.processes().is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
