//! `zerosweep-qemu` with fake VMMs: what is passed on untouched, what is refused, and the
//! companion.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, Output, Stdio};

use crate::support::{self, FakeAgent, FakeQmp, Place, status, stderr, stdout, wait_until};
use rustix::process::{Pid, Signal};
use zerosweep_wire::{AgentConfig, BeforeStart, Operation, State};

const GIB: u64 = 1 << 30;
/// Says what it was given, and lives until it is told to end.
const SAYS: &str = "for word; do echo \"[$word]\"; done; echo \"preload=$LD_PRELOAD\"; \
                    echo \"config=$ZEROSWEEP_AGENT_CONFIG\"";
const LIVES: &str = "echo \"$$\" > \"$0.pid\"; echo \"$ZEROSWEEP_AGENT_CONFIG\" > \"$0.config\"\n\
                     while :; do sleep 0.05; done";

fn command(place: &Place, qemu: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zerosweep-qemu"));
    command
        .args(arguments)
        .env("XDG_RUNTIME_DIR", place.path())
        .env("ZEROSWEEP_AGENT", support::c_library())
        .env("ZEROSWEEP_QEMU", qemu)
        .env("ZEROSWEEP_QEMU_CONFIG", place.path().join("qemu.toml"))
        .env_remove("LD_PRELOAD")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn output(place: &Place, arguments: &[&str]) -> Output {
    let fake = place.script("fake-qemu", SAYS);
    command(place, &fake, arguments).output().unwrap()
}

#[test]
fn what_only_asks_is_passed_on_untouched() {
    let place = Place::new();
    let probe = ["-S", "-nodefaults", "-machine", "none,accel=kvm:tcg", "-daemonize"];
    for arguments in [probe.as_slice(), &["-version"], &["-cpu", "help"]] {
        let output = output(&place, arguments);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let words: String = arguments.iter().map(|word| format!("[{word}]\n")).collect();
        assert_eq!(stdout(&output), format!("{words}preload=\nconfig=\n"));
        assert!(!place.runtime().exists());
    }
}

/// libvirt runs it for every guest.
#[test]
fn it_has_no_web_server_in_it() {
    let serves = |program: &str| {
        let program = std::fs::read(program).unwrap();
        memchr::memmem::find(&program, b"/api/openapi.json").is_some()
    };
    assert!(serves(env!("CARGO_BIN_EXE_zerosweep")), "the other program has one");
    assert!(!serves(env!("CARGO_BIN_EXE_zerosweep-qemu")));
}

#[test]
fn what_cannot_be_managed_is_refused_with_all_reasons() {
    let place = Place::new();
    let arguments =
        ["-m", "1G", "-daemonize", "-later", "-readconfig", "x", "-device", "vhost-scsi"];
    let output = output(&place, &arguments);
    assert_eq!(output.status.code(), Some(2), "{}", stdout(&output));
    for part in ["3 reasons", "-daemonize", "-readconfig", "vhost-scsi"] {
        assert!(stderr(&output).contains(part), "{part}: {}", stderr(&output));
    }
}

#[test]
fn a_guest_that_the_settings_leave_alone_is_untouched() {
    let place = Place::new();
    let text = "[guest.vm]\nmanage = \"no\"\n";
    std::fs::write(place.path().join("qemu.toml"), text).unwrap();
    let output = output(&place, &["-name", "guest=vm,debug-threads=on", "-incoming", "defer"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).ends_with("preload=\nconfig=\n"), "{}", stdout(&output));
}

#[test]
fn what_cannot_be_managed_is_refused_with_the_reason() {
    let place = Place::new();
    let memfd = r#"{"qom-type":"memory-backend-memfd","id":"pc.ram","size":1073741824}"#;
    for (arguments, reason) in [
        (["-m", "1024", "-incoming", "rdma:host:1"], "-incoming"),
        (["-m", "1024", "-object", memfd], "memory-backend-memfd"),
    ] {
        let output = output(&place, &arguments);
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains(reason), "{}", stderr(&output));
        assert!(stdout(&output).is_empty() && !place.runtime().exists());
    }
    std::fs::write(place.path().join("qemu.toml"), "target = 5").unwrap();
    let output = output(&place, &["-version"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("qemu.toml"), "{}", stderr(&output));
}

#[test]
fn without_userfaultfd_it_says_what_libvirt_needs() {
    let said = support::without_userfaultfd(|| {
        let place = Place::new();
        let output = output(&place, &["-m", "1024"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(stdout(&output).is_empty() && place.left_behind().is_empty());
        stderr(&output)
    });
    for part in ["cgroup_device_acl", "/etc/libvirt/qemu.conf", "MODE=\"0660\"", "user = \"root\""]
    {
        assert!(said.contains(part), "{part}: {said}");
    }
}

/// A guest "vm" of 1 GiB with libvirt's monitor, and what the agent was told.
struct Running {
    child: Child,
    config: AgentConfig,
}

fn start(place: &Place, variables: &[(&str, &str)]) -> Running {
    let fake = place.script("fake-qemu", LIVES);
    let monitor = format!("socket,id=mon,path={},server=on", place.path().join("m").display());
    let arguments = [
        "-name",
        "guest=vm,debug-threads=on",
        "-m",
        "1024",
        "-chardev",
        &monitor,
        "-mon",
        "chardev=mon,mode=control",
        "-device",
        r#"{"driver":"virtio-balloon-pci","id":"balloon0"}"#,
    ];
    let mut command = command(place, &fake, &arguments);
    let child = command.envs(variables.iter().copied()).spawn().unwrap();
    let file = |name: &str| place.path().join(format!("fake-qemu.{name}"));
    let text = |name: &str| std::fs::read_to_string(file(name)).unwrap_or_default();
    wait_until("the VMM runs", || text("config").ends_with('\n'));
    assert_eq!(text("pid").trim(), child.id().to_string(), "it is the process that was started");
    let config = serde_json::from_str(&text("config")).unwrap();
    Running { child, config }
}

impl Running {
    fn end(&mut self, signal: Signal, place: &Place) {
        rustix::process::kill_process(Pid::from_child(&self.child), signal).unwrap();
        assert_eq!(self.child.wait().unwrap().signal(), Some(signal.as_raw()));
        wait_until("the companion has cleared up", || place.left_behind().is_empty());
    }
}

#[test]
#[ignore = "needs userfaultfd in kernel mode: root, CAP_SYS_PTRACE or /dev/userfaultfd"]
fn it_becomes_the_vmm_and_a_companion_looks_after_it() {
    let place = Place::new();
    let mut running = start(&place, &[]);
    let follow = running.config.follow.clone().unwrap();
    assert_eq!(follow.monitors, [place.path().join("m")]);
    assert_eq!(follow.before_start, BeforeStart::Target);
    assert_eq!((running.config.name.as_str(), running.config.max_mem_bytes), ("vm", GIB));

    // The balloon was asked for 128 MiB and is there; the target is still 256 MiB.
    let mut figures = status("vm");
    figures.balloon_request_bytes = Some(GIB / 8);
    let agent = FakeAgent::new(running.config.socket.clone(), figures);
    let qmp = FakeQmp::new(place.runtime().join("vm.qmp"), GIB, true);
    let asked = |wanted: &Operation| agent.asked.lock().unwrap().contains(wanted);
    wait_until("the agent knows the virtual CPUs", || {
        asked(&Operation::Vcpus { thread_ids: vec![11, 12] })
    });
    wait_until("the agent knows how far the guest is", || {
        asked(&Operation::Ballooned { actual_bytes: GIB })
    });
    let commands = qmp.asked.lock().unwrap().join("\n");
    assert!(!commands.contains(r#""balloon""#), "the other tool asks the balloon: {commands}");

    let second = output(&place, &["-name", "guest=vm", "-m", "1024"]);
    assert_eq!(second.status.code(), Some(2));
    assert!(stdout(&second).is_empty(), "no second VMM was started");
    let said = stderr(&second);
    assert!(said.contains("a guest named vm is running already"), "{said}");
    running.end(Signal::KILL, &place);
}

#[test]
#[ignore = "needs userfaultfd in kernel mode: root, CAP_SYS_PTRACE or /dev/userfaultfd"]
fn a_given_target_is_asked_for_when_the_guest_runs() {
    let place = Place::new();
    let mut running = start(&place, &[("ZEROSWEEP_TARGET", "256M")]);
    assert_eq!(running.config.target_bytes, GIB / 4);
    assert_eq!(running.config.follow.as_ref().unwrap().before_start, BeforeStart::Nothing);
    let _agent = FakeAgent::new(running.config.socket.clone(), status("vm"));
    let qmp = FakeQmp::new(place.runtime().join("vm.qmp"), GIB, true);
    wait_until("the balloon is asked", || {
        qmp.asked.lock().unwrap().iter().any(|line| line.contains(r#"{"value":268435456}"#))
    });
    let commands = qmp.asked.lock().unwrap().join("\n");
    let place_of = |word: &str| commands.find(word).unwrap();
    assert!(place_of("query-status") < place_of(r#""balloon""#), "{commands}");
    running.end(Signal::TERM, &place);
}

#[test]
#[ignore = "needs userfaultfd in kernel mode: root, CAP_SYS_PTRACE or /dev/userfaultfd"]
fn a_guest_that_cannot_be_managed_is_ended_and_the_log_says_why() {
    let place = Place::new();
    let running = start(&place, &[]);
    let mut figures = status("vm");
    figures.state = State::Failed;
    figures.reason = Some("guest RAM is shared".into());
    let _agent = FakeAgent::new(running.config.socket.clone(), figures);
    let output = running.child.wait_with_output().unwrap();
    assert_eq!(output.status.signal(), Some(Signal::TERM.as_raw()));
    assert!(stderr(&output).contains("guest RAM is shared"), "{}", stderr(&output));
    wait_until("the companion has cleared up", || place.left_behind().is_empty());
}

/// What `zerosweep-qemu` says of settings with this text and mode.
fn with_settings(place: &Place, text: &[u8], mode: u32) -> (Option<i32>, String) {
    let settings = place.path().join("qemu.toml");
    std::fs::write(&settings, text).unwrap();
    std::fs::set_permissions(&settings, std::fs::Permissions::from_mode(mode)).unwrap();
    let output = output(place, &["-name", "web1", "-version"]);
    (output.status.code(), stderr(&output))
}

#[test]
fn settings_that_others_can_write_are_refused_with_the_command_that_mends_it() {
    let place = Place::new();
    let path = place.path().join("qemu.toml").display().to_string();
    for mode in [0o666, 0o646, 0o664] {
        let (code, said) = with_settings(&place, b"", mode);
        let expect = format!("others can write to {path} (mode 0{mode:o}): chmod go-w {path}");
        assert!(code == Some(2) && said.contains(&expect), "{mode:o}: {code:?} {said}");
    }
    assert_eq!(with_settings(&place, b"", 0o644).0, Some(0));
}

#[test]
#[ignore = "needs a second user"]
fn settings_of_another_user_are_refused_with_the_command_that_mends_it() {
    let place = Place::new();
    let settings = place.path().join("qemu.toml");
    std::fs::write(&settings, "").unwrap();
    std::os::unix::fs::chown(&settings, Some(65_534), None).unwrap();
    let (code, said) = with_settings(&place, b"qemu = \"/tmp/evil\"\n", 0o644);
    let path = settings.display();
    let expect = format!("{path} belongs to user 65534: chown root {path}");
    assert!(code == Some(2) && said.contains(&expect), "{code:?} {said}");
}

#[test]
fn settings_without_end_are_not_read() {
    let place = Place::new();
    let (code, said) = with_settings(&place, &vec![b'#'; (1 << 20) + 1], 0o644);
    assert!(code == Some(2) && said.contains("has more than 1M"), "{code:?} {said}");
    let fake = place.script("fake-qemu", SAYS);
    for file in ["/dev/zero", "pipe"] {
        let path = place.path().join(file);
        if file == "pipe" {
            let mode = rustix::fs::Mode::from_raw_mode(0o600);
            rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0)
                .unwrap();
        }
        let mut command = command(&place, &fake, &["-version"]);
        // So that a failure of this test does not take the machine's memory.
        let mut child = command.env("ZEROSWEEP_QEMU_CONFIG", &path).spawn().unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(2);
        while child.try_wait().unwrap().is_none() && std::time::Instant::now() < deadline {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let _ = child.kill();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{file}: {}", stderr(&output));
        assert!(stderr(&output).contains("is not a file"), "{file}: {}", stderr(&output));
    }
}

#[test]
fn what_is_wrong_in_the_settings_is_named_with_key_and_line() {
    let place = Place::new();
    let path = place.path().join("qemu.toml").display().to_string();
    let text = b"# sizes\ntarget = \"1G\"\n\n[guest.web1]\ntarget = \"-5M\"\n";
    let (code, said) = with_settings(&place, text, 0o644);
    let expect = format!("{path}, line 5, target: ");
    assert!(code == Some(2) && said.contains(&expect), "{code:?} {said}");
    for (text, place_of_it) in [
        ("target = \"1G\"\non-exhaustion = \"wait\"", ", line 2, on-exhaustion: "),
        ("\nreturn = \"late\"", ", line 2, return: "),
        ("\n\nmanage = \"maybe\"", ", line 3, manage: "),
        ("policy = \"best\"", ", line 1, policy: "),
    ] {
        let (code, said) = with_settings(&place, text.as_bytes(), 0o644);
        assert!(code == Some(2) && said.contains(place_of_it), "{text}: {code:?} {said}");
    }
    // A line that nobody can read is not repeated.
    let (code, said) = with_settings(&place, "[".repeat(20_000).as_bytes(), 0o644);
    assert!(code == Some(2) && said.contains("line 1"), "{code:?} {said}");
    assert!(said.len() < 1000, "{} bytes", said.len());
}
