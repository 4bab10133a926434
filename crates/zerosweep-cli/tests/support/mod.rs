//! The surroundings of each test: a runtime directory, fake VMMs, a fake agent and a fake QMP.
#![expect(clippy::unwrap_used, reason = "test code; clippy does not see that in helpers")]
#![allow(dead_code, reason = "each test program uses a part")]
#![allow(unreachable_pub, reason = "shared by several test programs")]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use seccompiler::{
    SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};
use tempfile::TempDir;
use zerosweep_wire::{
    Answer, Counters, ErrorBody, ErrorKind, FaultLatency, Hello, HostMemory, MAP_SUPERPAGES, Map,
    OnExhaustion, Operation, PROTOCOL, Pages, Request, Response, ReturnMode, State, Status,
    Superpages,
};

/// `_IO(0xaa, 0)`: a userfaultfd from `/dev/userfaultfd`.
const USERFAULTFD_IOC_NEW: u64 = 0xaa00;

/// Nothing in a test may take longer, however busy the machine is.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A runtime directory and a place for files.
pub struct Place {
    directory: TempDir,
}

impl Place {
    pub fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Where the program keeps its sockets.
    pub fn runtime(&self) -> PathBuf {
        self.path().join("zerosweep")
    }

    pub fn make_runtime(&self) {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(self.runtime()).unwrap();
    }

    /// What is in the runtime directory; nothing if it is not there.
    pub fn left_behind(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.runtime()) else { return Vec::new() };
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// The program, in this place; the C library stands in for the agent, because preloading it
    /// does nothing.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_zerosweep"));
        command
            .args(arguments)
            .env("XDG_RUNTIME_DIR", self.path())
            .env("ZEROSWEEP_AGENT", c_library())
            .env_remove("LD_PRELOAD")
            .stdin(Stdio::null());
        command
    }

    pub fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Writes an executable shell script.
    pub fn script(&self, name: &str, text: &str) -> String {
        let path = self.path().join(name);
        let draft = self.path().join(format!("{name}.draft"));
        std::fs::write(&draft, format!("#!/bin/sh\n{text}\n")).unwrap();
        copy_program(&draft, &path);
        std::fs::remove_file(&draft).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

/// Copies a program, so that everybody can run it.
///
/// Another process does it: a child that a test beside this one starts meanwhile would inherit the
/// open file, and nobody can run a file that is open for writing.
pub fn copy_program(from: &Path, to: &Path) {
    let status = Command::new("install").args(["-m", "755"]).arg(from).arg(to).status().unwrap();
    assert!(status.success(), "install {}: {status}", to.display());
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The C library that this very process has loaded.
pub fn c_library() -> PathBuf {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let path = maps.lines().filter_map(|line| line.find('/').map(|at| &line[at..]));
    path.map(PathBuf::from)
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().contains("libc")))
        .expect("a C library is loaded")
}

/// Waits until `done`, or fails the test.
pub fn wait_until(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "waited too long until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Runs `work` in a thread, and so its child processes, that cannot get a userfaultfd.
pub fn without_userfaultfd<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> R {
    let new =
        SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, USERFAULTFD_IOC_NEW);
    let rules = BTreeMap::from([
        (libc::SYS_userfaultfd, vec![]),
        (libc::SYS_ioctl, vec![SeccompRule::new(vec![new.unwrap()]).unwrap()]),
    ]);
    let forbid = SeccompAction::Errno(libc::EPERM as u32);
    let architecture = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, forbid, architecture).unwrap();
    let program: seccompiler::BpfProgram = filter.try_into().unwrap();
    let thread = std::thread::spawn(move || {
        seccompiler::apply_filter(&program).unwrap();
        work()
    });
    thread.join().unwrap()
}

/// Serves connections on a socket until it is dropped.
pub struct Server {
    stop: Arc<AtomicBool>,
    path: PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn new(path: PathBuf, serve: impl Fn(UnixStream) + Send + Sync + 'static) -> Self {
        let listener = UnixListener::bind(&path).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, serve) = (Arc::clone(&stop), Arc::new(serve));
        let thread = std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let serve = Arc::clone(&serve);
                std::thread::spawn(move || serve(stream));
            }
        });
        Self { stop, path, thread: Some(thread) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // The program under test may have removed the socket; then the thread is left.
        if UnixStream::connect(&self.path).is_ok() {
            let _ = self.thread.take().map(JoinHandle::join);
        }
    }
}

/// An agent that answers with `status` and keeps what it was asked.
pub struct FakeAgent {
    pub status: Arc<Mutex<Status>>,
    pub asked: Arc<Mutex<Vec<Operation>>>,
    /// The superpage map.
    pub letters: Arc<Mutex<String>>,
    _server: Server,
}

impl FakeAgent {
    pub fn new(path: PathBuf, status: Status) -> Self {
        let status = Arc::new(Mutex::new(status));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let letters = Arc::new(Mutex::new(String::new()));
        let (shown, kept, drawn) = (Arc::clone(&status), Arc::clone(&asked), Arc::clone(&letters));
        let server = Server::new(path, move |mut stream| {
            let Status { name, pid, protocol, .. } = shown.lock().unwrap().clone();
            let hello = Hello { protocol, version: "fake".into(), name, pid };
            if send(&mut stream, &serde_json::to_string(&hello).unwrap()).is_err() {
                return;
            }
            let reader = BufReader::new(stream.try_clone().unwrap());
            for line in reader.lines().map_while(Result::ok) {
                let request: Request = serde_json::from_str(&line).unwrap();
                let mut status = shown.lock().unwrap().clone();
                if let Operation::Map { first } = request.operation {
                    status.map = Some(map(&drawn.lock().unwrap(), first));
                }
                let response =
                    Response { id: request.id, answer: answer(&request.operation, &status) };
                kept.lock().unwrap().push(request.operation);
                if send(&mut stream, &serde_json::to_string(&response).unwrap()).is_err() {
                    return;
                }
            }
        });
        Self { status, asked, letters, _server: server }
    }
}

/// The superpages from `first` on that fit into one answer; what holds a frame, holds 512.
fn map(letters: &str, first: u64) -> Map {
    let rest = letters.get(usize::try_from(first).unwrap()..).unwrap_or_default();
    let letters = &rest[..rest.len().min(usize::try_from(MAP_SUPERPAGES).unwrap())];
    let live = letters.chars().map(|letter| if "Wrb".contains(letter) { "200" } else { "000" });
    Map { first, letters: letters.to_owned(), live: live.collect() }
}

/// An audit fails when the status has a reason.
fn answer(operation: &Operation, status: &Status) -> Answer {
    match (operation, &status.reason) {
        (Operation::Audit, Some(reason)) => {
            Answer::Error(ErrorBody { kind: ErrorKind::AuditFailed, message: reason.clone() })
        }
        _ => Answer::Ok(Box::new(status.clone())),
    }
}

/// A QEMU with one guest, whose balloon follows at once when `balloons`.
pub struct FakeQmp {
    pub asked: Arc<Mutex<Vec<String>>>,
    /// Whether the guest is paused.
    pub paused: Arc<AtomicBool>,
    _server: Server,
}

impl FakeQmp {
    pub fn new(path: PathBuf, ram_bytes: u64, balloons: bool) -> Self {
        let actual = Arc::new(AtomicU64::new(ram_bytes));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&asked);
        let paused = Arc::new(AtomicBool::new(false));
        let is_paused = Arc::clone(&paused);
        let server = Server::new(path, move |mut stream| {
            let _ = send(&mut stream, r#"{"QMP": {"version": {}, "capabilities": []}}"#);
            let reader = BufReader::new(stream.try_clone().unwrap());
            for line in reader.lines().map_while(Result::ok) {
                let request: serde_json::Value = serde_json::from_str(&line).unwrap();
                let command = request["execute"].as_str().unwrap();
                kept.lock().unwrap().push(line.clone());
                let result = match command {
                    "query-cpus-fast" => serde_json::json!([{"thread-id": 11}, {"thread-id": 12}]),
                    "x-query-ramblock" => serde_json::json!({"human-readable-text": format!(
                        " Block Name PSize Offset Used Total\n pc.ram 4 KiB 0x0 0x{ram_bytes:x} \
                         0x{ram_bytes:x}\n")}),
                    "balloon" => {
                        if balloons {
                            let value = request["arguments"]["value"].as_u64().unwrap();
                            actual.store(value, Ordering::SeqCst);
                        }
                        serde_json::json!({})
                    }
                    "query-status" => {
                        serde_json::json!({"running": !is_paused.load(Ordering::SeqCst)})
                    }
                    "query-balloon" => serde_json::json!({"actual": actual.load(Ordering::SeqCst)}),
                    _ => serde_json::json!({}),
                };
                let answer = serde_json::json!({"return": result, "id": request["id"]});
                if send(&mut stream, &answer.to_string()).is_err() {
                    return;
                }
            }
        });
        Self { asked, paused, _server: server }
    }
}

fn send(stream: &mut UnixStream, line: &str) -> std::io::Result<()> {
    stream.write_all(format!("{line}\n").as_bytes())
}

/// The figures of a guest of 1 GiB with a target of 256 MiB.
pub fn status(name: &str) -> Status {
    Status {
        protocol: PROTOCOL,
        name: name.into(),
        pid: std::process::id(),
        state: State::Managing,
        reason: None,
        max_mem_bytes: 1 << 30,
        target_bytes: 256 << 20,
        policy: "zerosweep".into(),
        on_exhaustion: OnExhaustion::Stall,
        return_mode: ReturnMode::Lazy,
        pages: Pages { max: 1 << 18, target: 1 << 16, total: 1 << 16, ..Pages::default() },
        superpages: Superpages::default(),
        counters: Counters::default(),
        fault_latency: FaultLatency::default(),
        host: HostMemory::default(),
        stalled_threads: 0,
        borrowed_pages: 0,
        balloon_request_bytes: None,
        events: None,
        next: None,
        map: None,
    }
}
