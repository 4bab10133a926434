//! What another user of the host can do with a directory, a socket or a file, and what is trusted.
//!
//! The other user is a thread of the test. Linux keeps user ids by thread, and reports to a process
//! that connects the ids of the thread that began to listen.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::mpsc;

use rustix::process::{Gid, Uid};
use zerosweep_wire::{
    Answer, ErrorBody, ErrorKind, Hello, Operation, PROTOCOL, Request, Response, Status,
};

use crate::support::{FakeAgent, Place, copy_program, status, stderr, stdout};

/// The other user, and another one.
const NOBODY: u32 = 65_534;
const SOMEBODY: u32 = 65_533;

/// A title for the terminal, red, a screen cleared; a C1 control; text that runs backwards; a line.
const EVIL: &str = "\x1b]0;PWNED\x07\x1b[31mEVIL\x1b[2J\u{9b}31m\u{202e}\nvm  1 managing";

/// Runs `work` as this user, who owns the files and sockets that it makes.
fn as_user<R: Send + 'static>(user: u32, work: impl FnOnce() -> R + Send + 'static) -> R {
    std::thread::spawn(move || {
        rustix::thread::set_thread_gid(Gid::from_raw(user)).unwrap();
        rustix::thread::set_thread_uid(Uid::from_raw(user)).unwrap();
        work()
    })
    .join()
    .unwrap()
}

/// A place whose runtime directory belongs to `owner`.
fn place_of(owner: u32) -> Place {
    let place = Place::new();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    place.make_runtime();
    chown(place.runtime(), Some(owner), Some(owner)).unwrap();
    place
}

/// Listens as `user` and plays an agent that says `hello` and `status` of itself.
fn agent_of(user: u32, socket: &Path, hello: &str, status: Status) {
    let (path, hello) = (socket.to_owned(), hello.to_owned());
    let listener = as_user(user, move || UnixListener::bind(path).unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let (hello, status) = (hello.clone(), status.clone());
            std::thread::spawn(move || answer(stream, hello, &status));
        }
    });
}

fn answer(mut stream: UnixStream, name: String, status: &Status) {
    let send = |stream: &mut UnixStream, line: String| writeln!(stream, "{line}").is_ok();
    let hello = Hello { protocol: PROTOCOL, version: "fake".into(), name, pid: status.pid };
    if !send(&mut stream, serde_json::to_string(&hello).unwrap()) {
        return;
    }
    let reader = BufReader::new(stream.try_clone().unwrap());
    for line in reader.lines().map_while(Result::ok) {
        let request: Request = serde_json::from_str(&line).unwrap();
        let answer = match &request.operation {
            Operation::Status => Answer::Ok(Box::new(status.clone())),
            _ => Answer::Error(ErrorBody { kind: ErrorKind::NotManaging, message: EVIL.into() }),
        };
        let response = Response { id: request.id, answer };
        if !send(&mut stream, serde_json::to_string(&response).unwrap()) {
            return;
        }
    }
}

fn evil(name: &str) -> Status {
    Status { policy: EVIL.into(), reason: Some(EVIL.into()), ..status(name) }
}

/// All that is said: nothing in it moves a cursor, or turns the text round.
#[track_caller]
fn said(output: &Output) -> String {
    let said = stdout(output) + &stderr(output);
    let wild = |c: &char| c.is_control() && *c != '\n' || *c == '\u{202e}';
    assert!(!said.chars().any(|c| wild(&c)), "{said:?}");
    assert!(
        !said.lines().any(|line| line.starts_with("vm  1 managing")),
        "a line of its own: {said}"
    );
    said
}

/// `sweep` and the like, on one guest.
const COMMANDS: [&[&str]; 7] = [
    &["status", "vm"],
    &["audit", "vm"],
    &["sweep", "vm"],
    &["consolidate", "vm"],
    &["set-target", "vm", "128M"],
    &["watch", "vm", "--count", "1"],
    &["balance", "--total", "1G", "--once"],
];

#[test]
fn what_an_agent_says_does_not_steer_the_terminal() {
    let place = Place::new();
    place.make_runtime();
    let _agent = FakeAgent::new(place.runtime().join("vm.sock"), evil("vm"));
    for arguments in COMMANDS.into_iter().chain([&["ps"][..]]) {
        let said = said(&place.output(arguments));
        if matches!(arguments[0], "ps" | "status" | "audit") {
            assert!(said.contains(r"\u{1b}]0;PWNED\u{7}"), "{arguments:?}: {said}");
        }
    }
}

#[test]
fn an_agent_is_not_believed_about_another_guest() {
    let place = Place::new();
    place.make_runtime();
    let _agent = FakeAgent::new(place.runtime().join("db.sock"), status("web"));
    for arguments in [&["status", "db"][..], &["audit", "db"], &["ps"]] {
        let said = said(&place.output(arguments));
        assert!(said.contains("names another guest (\"web\")"), "{arguments:?}: {said}");
    }
}

#[test]
fn a_directory_that_others_can_write_to_is_not_believed() {
    let place = Place::new();
    place.make_runtime();
    let _agent = FakeAgent::new(place.runtime().join("vm.sock"), status("vm"));
    fs::set_permissions(place.runtime(), fs::Permissions::from_mode(0o1777)).unwrap();
    for arguments in
        COMMANDS.into_iter().chain([&["ps"][..], &["serve", "--listen", "127.0.0.1:0"]])
    {
        let output = place.output(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", stdout(&output));
        let mends = format!("chmod 700 {}", place.runtime().display());
        assert!(stderr(&output).contains(&mends), "{arguments:?}: {}", stderr(&output));
    }
}

#[test]
#[ignore = "needs a second user"]
fn a_socket_of_another_user_in_ones_own_directory_is_not_believed() {
    let place = place_of(0);
    // Made while the directory was open to all; closed since.
    fs::set_permissions(place.runtime(), fs::Permissions::from_mode(0o777)).unwrap();
    agent_of(NOBODY, &place.runtime().join("vm.sock"), "vm", status("vm"));
    fs::set_permissions(place.runtime(), fs::Permissions::from_mode(0o700)).unwrap();
    for arguments in COMMANDS {
        let output = place.output(arguments);
        let said = said(&output);
        assert!(said.contains("user 65534 listens"), "{arguments:?}: {said}");
        assert!(!said.contains("256M"), "its figures: {arguments:?}: {said}");
    }
    let said = said(&place.output(&["ps"]));
    assert!(said.contains("user 65534 listens") && !said.contains("256M"), "{said}");
}

#[test]
#[ignore = "needs a second user"]
fn root_reads_another_users_directory_and_only_that_users_sockets_in_it() {
    let place = place_of(NOBODY);
    agent_of(NOBODY, &place.runtime().join("vm.sock"), "vm", evil("vm"));
    fs::set_permissions(place.runtime(), fs::Permissions::from_mode(0o777)).unwrap();
    agent_of(SOMEBODY, &place.runtime().join("other.sock"), "other", status("other"));
    fs::set_permissions(place.runtime(), fs::Permissions::from_mode(0o700)).unwrap();
    let ps = said(&place.output(&["ps"]));
    assert!(ps.contains(r"\u{1b}]0;PWNED"), "{ps}");
    assert!(ps.contains("user 65533 listens"), "{ps}");
    assert!(ps.contains("vm: what the agent of user 65534 says"), "{ps}");
    let shown = said(&place.output(&["status", "vm"]));
    assert!(shown.contains("what the agent of user 65534 says"), "{shown}");
    let list: serde_json::Value =
        serde_json::from_slice(&place.output(&["ps", "--json"]).stdout).unwrap();
    assert_eq!(list["guests"][1]["agent_uid"], NOBODY, "{list}");
}

/// The program where any user can start it.
fn program_for_all(place: &Place) -> std::path::PathBuf {
    let program = place.path().join("program");
    copy_program(Path::new(env!("CARGO_BIN_EXE_zerosweep")), &program);
    program
}

#[test]
#[ignore = "needs a second user"]
fn a_user_believes_no_directory_of_another_user() {
    use std::os::unix::process::CommandExt as _;
    let place = place_of(SOMEBODY);
    fs::set_permissions(place.runtime(), fs::Permissions::from_mode(0o755)).unwrap();
    let socket = place.runtime().join("vm.sock");
    agent_of(SOMEBODY, &socket, "vm", status("vm"));
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
    let program = program_for_all(&place);
    for arguments in COMMANDS.into_iter().chain([&["ps"][..]]) {
        let mut command = Command::new(&program);
        command.args(arguments).env("XDG_RUNTIME_DIR", place.path()).uid(NOBODY).gid(NOBODY);
        let output = command.output().unwrap();
        let said = said(&output);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.contains("belongs to user 65533"), "{arguments:?}: {said}");
        assert!(!said.contains("256M"), "{arguments:?}: {said}");
    }
}

/// Only a dead guest's own user removes what it left: root would follow that user's links.
#[test]
#[ignore = "needs a second user"]
fn root_follows_no_link_of_another_users_directory() {
    let place = place_of(NOBODY);
    let victim = place.path().join("victim");
    let (socket, lock) = (place.runtime().join("vm.sock"), place.runtime().join("vm.lock"));
    let target = victim.clone();
    as_user(NOBODY, move || {
        drop(UnixListener::bind(socket).unwrap());
        symlink(target, lock).unwrap();
    });
    let mut child = place.command(&["ps"]).spawn().unwrap();
    let (sender, ended) = mpsc::channel();
    let pid = rustix::process::Pid::from_child(&child);
    std::thread::spawn(move || sender.send(child.wait().unwrap()));
    let ended = ended.recv_timeout(crate::support::PATIENCE);
    if ended.is_err() {
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }
    assert!(!victim.exists(), "made by root through a link of another user");
    assert!(ended.expect("ps ends").success());
}

/// A directory like `/tmp`, with this user's file outside of it, and links to that of another
/// user's.
struct Shared {
    place: Place,
    victim: std::path::PathBuf,
}

impl Shared {
    fn new() -> Self {
        let place = place_of(0);
        let victim = place.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        let shared = Self { place, victim };
        fs::create_dir(shared.file("")).unwrap();
        fs::set_permissions(shared.file(""), fs::Permissions::from_mode(0o1777)).unwrap();
        shared
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.place.path().join("shared").join(name)
    }

    /// A link of the other user's to the precious file.
    fn link(&self, name: &str) -> String {
        let (target, link) = (self.victim.clone(), self.file(name));
        let text = link.to_str().unwrap().to_owned();
        as_user(NOBODY, move || symlink(target, link).unwrap());
        text
    }

    fn run(&self, options: &[&str]) -> Output {
        let vmm = self.place.script("vmm", "touch \"$0.started\"");
        let vmm = ["--", &vmm, "-m", "128"];
        self.place.output(&[&["run", "--name", "z1", "--target", "64M"], options, &vmm].concat())
    }

    /// It was refused, and nothing was touched.
    #[track_caller]
    fn refused(&self, output: &Output, why: &str) {
        assert!(stderr(output).contains(why), "{} {}", stderr(output), stdout(output));
        assert!(matches!(output.status.code(), Some(1 | 2)), "{:?}", output.status);
        assert_eq!(fs::read_to_string(&self.victim).unwrap(), "precious");
        assert!(!self.place.path().join("vmm.started").exists(), "the VMM was started");
        assert!(self.place.left_behind().is_empty(), "{:?}", self.place.left_behind());
    }
}

/// Linux may see to it itself (`fs.protected_symlinks`), and need not.
#[test]
#[ignore = "needs a second user"]
fn no_file_is_written_through_a_link_of_another_user() {
    let shared = Shared::new();
    let link = shared.link("link.bin");
    let why = "it is a link of user 65534: name the file that is meant";
    for option in ["--events", "--record"] {
        shared.refused(&shared.run(&[option, &link]), why);
    }
    let experiment = ["experiment", "--guest", "scrub", "--policy", "none", "--max-mem", "16M"];
    let experiment = [&experiment[..], &["--target", "8M"]].concat();
    for option in ["--out", "--report"] {
        let output = shared.place.output(&[&experiment[..], &[option, &link]].concat());
        shared.refused(&output, why);
    }
    let trace = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/xentrace/oom-4.20.bin.gz");
    let output = shared.place.output(&["trace", "report", trace, "-o", &link]);
    shared.refused(&output, why);
    // The names of what an experiment records can be known before.
    let directory = shared.file("");
    shared.link("scrub.none.software.7777.bin");
    let more = ["--events", directory.to_str().unwrap()];
    let output = shared.place.output(&[&experiment[..], &more].concat());
    assert!(stderr(&output).contains(why), "{}", stderr(&output));
    assert_eq!(fs::read_to_string(&shared.victim).unwrap(), "precious");
}

/// What a guest has in its pages would be for another to read.
#[test]
#[ignore = "needs a second user"]
fn no_recording_is_written_to_a_file_of_another_user() {
    let shared = Shared::new();
    let file = shared.file("theirs.bin");
    let theirs = file.clone();
    as_user(NOBODY, move || {
        fs::write(&theirs, "theirs").unwrap();
        fs::set_permissions(&theirs, fs::Permissions::from_mode(0o666)).unwrap();
    });
    for option in ["--events", "--record"] {
        shared.refused(&shared.run(&[option, file.to_str().unwrap()]), "it belongs to user 65534");
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "theirs");
}
