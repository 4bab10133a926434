//! `zerosweep run` with fake VMMs: exit status, signals, supervision, nothing left behind.

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::support::{self, FakeAgent, FakeQmp, Place, status, stderr, stdout, wait_until};
use rustix::process::{Pid, Signal};
use zerosweep_wire::{AgentConfig, Operation, State};

const GIB: u64 = 1 << 30;

/// Starts `zerosweep run OPTIONS -- VMM` for a guest "vm" of 1 GiB with a target of 256 MiB.
///
/// A shell starts its background jobs with SIGINT ignored, and no script can trap a signal that was
/// ignored when it started. `env` sets it back.
fn start(place: &Place, options: &[&str], vmm: &str) -> Child {
    let mut arguments = vec!["run", "--name", "vm", "--target", "256M"];
    arguments.extend(options);
    arguments.extend(["--", vmm, "-m", "1G"]);
    let program = place.command(&arguments);
    let mut command = Command::new("env");
    command.arg("--default-signal=INT").arg(program.get_program()).args(program.get_args());
    for (name, value) in program.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Ends a child that a failing test would leave.
fn end(mut child: Child) -> (Option<i32>, String) {
    let deadline = Instant::now() + support::PATIENCE;
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if Instant::now() > deadline => {
                let _ = child.kill();
                panic!("zerosweep run did not end");
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    assert_eq!(status.signal(), None, "zerosweep itself was ended by a signal");
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    (status.code(), said)
}

fn signal(child: &Child, signal: Signal) {
    rustix::process::kill_process(Pid::from_child(child), signal).unwrap();
}

#[test]
fn the_exit_status_is_the_vmms() {
    let place = Place::new();
    for (body, code) in [("exit 7", 7), ("kill -TERM $$", 143), ("kill -9 $$", 137)] {
        let fake = place.script("fake-qemu", body);
        let output = place.output(&["run", "--target", "64M", "--", &fake]);
        assert_eq!(output.status.code(), Some(code), "{body}: {}", stderr(&output));
        assert!(place.left_behind().is_empty(), "{body}: {:?}", place.left_behind());
    }
}

/// Without this error, a program that is not a VMM, or a script that does not wait for its VMM,
/// would look like success.
#[test]
fn where_no_guest_was_ever_managed_it_is_told_and_is_no_success() {
    let place = Place::new();
    let quiet = place.script("quiet", "exit 0");
    let run = |vmm: &[&str]| {
        place.output(&[&["run", "--name", "b", "--target", "100M", "--"], vmm].concat())
    };
    for vmm in [&["/bin/true"][..], &["sh", "-c", "sleep 0.5"], &[&quiet]] {
        let output = run(vmm);
        assert_eq!(output.status.code(), Some(1), "{vmm:?}: {}", stderr(&output));
        let message = format!("error: no guest was managed: {} ended (exit status: 0)", vmm[0]);
        assert!(stderr(&output).contains(&message), "{vmm:?}: {}", stderr(&output));
        assert!(place.left_behind().is_empty(), "{:?}", place.left_behind());
    }
    // Its own status stays, and what it died of is said.
    let dies = place.script("dies", "kill -SEGV $$");
    let output = run(&[&dies]);
    assert_eq!(output.status.code(), Some(139), "{}", stderr(&output));
    let message = format!("no guest was managed: {dies} ended (signal: 11 (SIGSEGV)");
    assert!(stderr(&output).contains(&message), "{}", stderr(&output));
    let fails = place.script("fails", "exit 9");
    let output = run(&[&fails]);
    assert_eq!(output.status.code(), Some(9));
    assert!(stderr(&output).contains("ended (exit status: 9)"), "{}", stderr(&output));
}

/// The loader would have the VMM die of SIGBUS.
#[test]
fn an_agent_library_that_is_cut_off_is_told_before_the_vmm_is_started() {
    let place = Place::new();
    let vmm = place.script("vmm", "touch \"$0.started\"");
    let whole = std::fs::read(support::c_library()).unwrap();
    let library = place.path().join("agent.so");
    for (length, why) in [
        (whole.len() / 2, "is cut off"),
        (100, "is cut off or broken"),
        (0, "is no shared library"),
    ] {
        std::fs::write(&library, &whole[..length]).unwrap();
        let mut command = place.command(&["run", "--target", "64M", "--", &vmm, "-m", "128"]);
        let output = command.env("ZEROSWEEP_AGENT", &library).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{length}: {}", stderr(&output));
        let said = stderr(&output);
        assert!(said.contains(why) && said.contains("agent.so"), "{length}: {said}");
        assert!(!place.path().join("vmm.started").exists(), "{length}: the VMM was started");
    }
}

/// QEMU's socket gives full control of the guest, so it has a lock of its own.
#[test]
fn the_sockets_of_a_guest_are_its_users_own() {
    use std::os::unix::fs::PermissionsExt as _;
    let place = Place::new();
    let (child, _agent, qmp) = managed(&place, &[], State::Managing, true);
    wait_until("QEMU is asked", || !qmp.asked.lock().unwrap().is_empty());
    wait_until("the sockets are private", || {
        ["vm.qmp", "vm.sock"].iter().all(|name| {
            let data = std::fs::metadata(place.runtime().join(name)).unwrap();
            data.permissions().mode() & 0o777 == 0o600
        })
    });
    signal(&child, Signal::TERM);
    assert_eq!(end(child).0, Some(5));
}

/// A process group from outside the container has no number in it.
#[test]
#[ignore = "needs root"]
fn the_exit_status_is_the_vmms_in_a_container_too() {
    let place = Place::new();
    let fake = place.script("fake-qemu", "kill -TERM $$");
    let run = place.command(&["run", "--target", "64M", "--", &fake]);
    let output = Command::new("unshare")
        .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
        .arg(run.get_program())
        .args(run.get_args())
        .envs(run.get_envs().filter_map(|(name, value)| Some((name, value?))))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(143), "{}", stderr(&output));
    assert!(place.left_behind().is_empty(), "{:?}", place.left_behind());
}

#[test]
fn the_vmm_gets_its_arguments_and_the_agent() {
    let place = Place::new();
    let text = "for word; do echo \"[$word]\"; done; echo \"$LD_PRELOAD\"; \
                echo \"$ZEROSWEEP_AGENT_CONFIG\"; cat; exit 3";
    let fake = place.script("fake-qemu", text);
    let library = support::c_library();
    let output = place
        .command(&["run", "--name", "vm", "--target", "256M", "--max-mem", "1G", "--policy"])
        .args([
            "xen-2016",
            "--on-exhaustion",
            "kill",
            "--return",
            "eager",
            "--",
            &fake,
            "-S",
            "a b",
        ])
        .env("LD_PRELOAD", &library)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    let said = stdout(&output);
    let lines: Vec<&str> = said.lines().collect();
    let qmp = place.runtime().join("vm.qmp");
    let qmp = format!("[unix:{},server=on,wait=off]", qmp.display());
    let balloon = "[virtio-balloon-pci,id=zerosweep-balloon]";
    let expect = ["[-S]", "[a b]", "[-m]", "[1048576K]", "[-device]", balloon, "[-qmp]", &qmp];
    assert_eq!(lines[..8], expect);
    assert_eq!(lines[8], format!("{0}:{0}", library.canonicalize().unwrap().display()));
    let config: AgentConfig = serde_json::from_str(lines[9]).unwrap();
    assert_eq!((config.max_mem_bytes, config.target_bytes), (GIB, GIB / 4));
    assert_eq!(config.policy, "xen-2016");
    assert_eq!(config.on_exhaustion, zerosweep_wire::OnExhaustion::Kill);
    assert_eq!(config.return_mode, zerosweep_wire::ReturnMode::Eager);
    assert_eq!(config.socket, place.runtime().join("vm.sock"));
    assert_eq!(config.unlink_at_exit, [config.socket, place.runtime().join("vm.qmp")]);
}

#[test]
fn the_name_is_the_vmms_own() {
    let place = Place::new();
    let fake = place.script("fake-qemu", "ls \"$XDG_RUNTIME_DIR/zerosweep\"");
    let run = |name: &str| {
        let output = place.output(&["run", "--target", "64M", "--", &fake, "-name", name]);
        stdout(&output).trim().to_owned()
    };
    assert_eq!(run("guest=db1,debug-threads=on"), "db1.lock");
    assert!(run("not a name").starts_with("guest-"));
}

#[test]
fn signals_are_passed_on_and_waited_for() {
    let place = Place::new();
    let text = "trap 'echo got INT; n=1' INT\ntrap 'echo got TERM; exit 9' TERM\n\
                touch \"$0.ready\"\nwhile :; do sleep 0.05; done";
    let fake = place.script("fake-qemu", text);
    let mut child = start(&place, &[], &fake);
    wait_until("the VMM runs", || place.path().join("fake-qemu.ready").exists());
    // The VMM does not mind SIGINT: neither one nor two may end the tool.
    for _ in 0..2 {
        signal(&child, Signal::INT);
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(child.try_wait().unwrap(), None);
    }
    signal(&child, Signal::TERM);
    let mut stdout = child.stdout.take().unwrap();
    let (code, said) = end(child);
    assert_eq!(code, Some(9), "{said}");
    let mut heard = String::new();
    stdout.read_to_string(&mut heard).unwrap();
    assert_eq!(heard, "got INT\ngot INT\ngot TERM\n");
    assert!(place.left_behind().is_empty());
}

/// Runs a VMM with this script and sends `run` these signals, each after a number of ms. Returns
/// the exit status, what `run` printed, and how long it took.
fn told_to_end(options: &[&str], body: &str, signals: &[(u64, Signal)]) -> (i32, String, Duration) {
    let place = Place::new();
    let text = format!("touch \"$0.ready\"\n{body}");
    let fake = place.script("fake-qemu", &text);
    let child = start(&place, options, &fake);
    wait_until("the VMM runs", || place.path().join("fake-qemu.ready").exists());
    std::thread::sleep(Duration::from_millis(200));
    let began = Instant::now();
    for &(after_ms, number) in signals {
        std::thread::sleep(Duration::from_millis(after_ms));
        signal(&child, number);
    }
    let (code, said) = end(child);
    assert!(place.left_behind().is_empty(), "{:?}", place.left_behind());
    (code.unwrap(), said, began.elapsed())
}

const IGNORES_IT: &str = "trap '' TERM INT\nwhile :; do sleep 0.05; done";

#[test]
fn sigterm_ends_a_vmm_that_ignores_it() {
    let (code, said, took) = told_to_end(&["--wait-end", "2"], IGNORES_IT, &[(0, Signal::TERM)]);
    assert_eq!(code, 137, "{said}");
    assert!(took > Duration::from_millis(1900), "it was given its time: {took:?}");
    for part in ["has not ended 1.", "after SIGTERM; it will be killed in", "it is killed"] {
        assert_eq!(said.matches(part).count(), 1, "{part}: {said}");
    }
}

#[test]
fn sigterm_ends_a_vmm_that_is_stopped() {
    let (code, said, _) = told_to_end(&["--wait-end", "1"], "kill -STOP $$", &[(0, Signal::TERM)]);
    assert_eq!(code, 137, "{said}");
    assert!(said.contains("it is killed"), "{said}");
}

#[test]
fn a_second_signal_hastens_the_end() {
    for second in [Signal::TERM, Signal::INT] {
        let signals = [(0, Signal::TERM), (1200, second)];
        let (code, said, took) = told_to_end(&["--wait-end", "60"], IGNORES_IT, &signals);
        assert_eq!(code, 137, "{said}");
        assert!(took < Duration::from_secs(6), "{took:?}: {said}");
    }
}

/// The VMM is a child of a script that dies of the signal.
#[test]
fn sigterm_ends_a_vmm_behind_a_script() {
    let stubborn = "sh -c \"trap '' TERM; while :; do sleep 0.05; done\"";
    for (vmm, killed) in [("sleep 600", false), (stubborn, true)] {
        let place = Place::new();
        let text = format!("{vmm} &\necho $! > \"$0.part\"; mv \"$0.part\" \"$0.pid\"; wait");
        let fake = place.script("fake-qemu", &text);
        let child = start(&place, &["--wait-end", "2"], &fake);
        let pid_file = place.path().join("fake-qemu.pid");
        wait_until("the VMM runs", || pid_file.exists());
        let pid = std::fs::read_to_string(&pid_file).unwrap().trim().parse::<i32>().unwrap();
        let mut shown = status("vm");
        shown.pid = pid.cast_unsigned();
        let agent = FakeAgent::new(place.runtime().join("vm.sock"), shown);
        let _qmp = FakeQmp::new(place.runtime().join("vm.qmp"), GIB, true);
        wait_until("the agent is asked", || !agent.asked.lock().unwrap().is_empty());
        std::thread::sleep(Duration::from_millis(200));
        signal(&child, Signal::TERM);
        let (code, said) = end(child);
        let pid = Pid::from_raw(pid).unwrap();
        let lives = rustix::process::test_kill_process(pid).is_ok();
        let _ = rustix::process::kill_process(pid, Signal::KILL);
        assert!(!lives || is_zombie(pid), "{vmm} lives on: {said}");
        assert_eq!(code, Some(143), "the script's own: {said}");
        assert_eq!(said.contains("it is killed"), killed, "{said}");
    }
}

/// Whether a process has ended and nothing has waited for it yet.
fn is_zombie(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    stat.is_ok_and(|stat| stat.contains(") Z "))
}

#[test]
fn a_vmm_that_takes_its_time_to_end_is_left_to_it() {
    let body = "trap 'sleep 1.5; exit 9' TERM\nwhile :; do sleep 0.05; done";
    let twice = [(0, Signal::TERM), (50, Signal::TERM)];
    let (code, said, _) = told_to_end(&["--wait-end", "20"], body, &twice);
    assert_eq!((code, said.as_str()), (9, ""));
}

#[test]
fn an_agent_that_never_answers_stops_the_vmm() {
    let place = Place::new();
    let fake = place.script("fake-qemu", "exec sleep 60");
    let (code, said) = end(start(&place, &["--wait-agent", "0.3"], &fake));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("stopping the VMM"), "{said}");
    assert!(place.left_behind().is_empty());
}

#[test]
fn a_vmm_that_ends_early_is_not_blamed_on_the_agent() {
    let place = Place::new();
    let fake = place.script("fake-qemu", "echo 'qemu: no such disk' >&2; sleep 0.2; exit 1");
    let (code, said) = end(start(&place, &[], &fake));
    assert_eq!((code, said.as_str()), (Some(1), "qemu: no such disk\n"));
}

/// A VMM and its agent and QMP, for as long as `vmm` sleeps.
fn managed(
    place: &Place,
    options: &[&str],
    state: State,
    balloons: bool,
) -> (Child, FakeAgent, FakeQmp) {
    let fake = place.script("fake-qemu", "trap 'exit 5' USR1 TERM\nwhile :; do sleep 0.05; done");
    let child = start(place, options, &fake);
    wait_until("the name is taken", || place.runtime().join("vm.lock").exists());
    // The stale files are looked for right after the lock.
    std::thread::sleep(Duration::from_millis(100));
    let mut shown = status("vm");
    shown.state = state;
    let qmp = FakeQmp::new(place.runtime().join("vm.qmp"), GIB, balloons);
    (child, FakeAgent::new(place.runtime().join("vm.sock"), shown), qmp)
}

#[test]
fn a_guest_is_ballooned_to_its_target() {
    let place = Place::new();
    let (child, agent, qmp) = managed(&place, &[], State::WaitingForRam, true);
    wait_until("the agent is asked", || !agent.asked.lock().unwrap().is_empty());
    assert!(qmp.asked.lock().unwrap().is_empty(), "not before guest RAM is managed");
    agent.status.lock().unwrap().state = State::Managing;
    let asked = |what: &str| qmp.asked.lock().unwrap().iter().any(|line| line.contains(what));
    wait_until("the balloon is looked at", || asked("query-balloon"));
    std::thread::sleep(Duration::from_millis(300));
    signal(&child, Signal::TERM);
    let (code, said) = end(child);
    assert_eq!(code, Some(5), "{said}");
    assert!(asked("\"value\":268435456"));
    let vcpus = Operation::Vcpus { thread_ids: vec![11, 12] };
    assert!(agent.asked.lock().unwrap().contains(&vcpus));
    assert!(said.contains("has 256M of 1G, policy zerosweep"), "{said}");
    assert!(said.contains("guest vm is down to 256M"), "{said}");
    assert!(!said.contains("warning"), "{said}");
    assert!(place.left_behind().is_empty(), "{:?}", place.left_behind());
}

/// It has no chance to give anything back.
#[test]
fn a_guest_that_is_paused_is_not_waited_for() {
    let place = Place::new();
    let (child, agent, qmp) = managed(&place, &["--wait-balloon", "0.5"], State::Managing, false);
    qmp.paused.store(true, Ordering::SeqCst);
    agent.status.lock().unwrap().pages.owed = 5;
    let set = place.command(&["set-target", "vm", "128M"]).output().unwrap();
    assert_eq!(set.status.code(), Some(0), "{}", stderr(&set));
    assert!(stderr(&set).contains("guest vm is paused: it has 20K to go"), "{}", stderr(&set));
    std::thread::sleep(Duration::from_millis(1500));
    signal(&child, Signal::TERM);
    let (_, said) = end(child);
    assert!(!said.contains("nothing was given back"), "{said}");
}

/// Once it is there: a guest whose balloon leaves it more is asked again, and the engine is told
/// what the balloon has.
#[test]
fn a_balloon_that_moves_by_itself_is_seen() {
    let place = Place::new();
    let (child, agent, qmp) = managed(&place, &[], State::Managing, true);
    let asked = |what: &str| qmp.asked.lock().unwrap().iter().filter(|l| l.contains(what)).count();
    wait_until("the balloon is asked", || asked("\"value\":268435456") > 0);
    wait_until("the balloon is looked at", || asked("query-balloon") > 0);
    let before = asked("\"value\":268435456");
    // Somebody else has it, or a driver was loaded again.
    let other = r#"{"execute": "balloon", "arguments": {"value": 805306368}, "id": 0}"#;
    let mut stream = UnixStream::connect(place.runtime().join("vm.qmp")).unwrap();
    stream.write_all(format!("{other}\n").as_bytes()).unwrap();
    wait_until("it is asked again", || asked("\"value\":268435456") > before);
    let reconciled = Operation::Reconcile { actual_bytes: 805_306_368 };
    assert!(agent.asked.lock().unwrap().contains(&reconciled));
    signal(&child, Signal::TERM);
    let (_, said) = end(child);
    assert!(said.contains("its balloon has left it 768M, its target is 256M"), "{said}");
}

#[test]
fn trouble_is_told_once() {
    let place = Place::new();
    let (child, agent, _qmp) = managed(&place, &["--wait-balloon", "0.5"], State::Managing, false);
    agent.status.lock().unwrap().stalled_threads = 3;
    std::thread::sleep(Duration::from_millis(2600));
    {
        let mut status = agent.status.lock().unwrap();
        status.state = State::CapLifted;
        status.reason = Some("the pool is gone".into());
    }
    std::thread::sleep(Duration::from_millis(1500));
    signal(&child, Signal::TERM);
    let (code, said) = end(child);
    assert_eq!(code, Some(5), "{said}");
    for part in ["waits for memory (3 threads)", "nothing was given back", "the pool is gone"] {
        assert_eq!(said.matches(part).count(), 1, "{part}: {said}");
    }
    assert!(said.contains("raise --target") && said.contains("virtio_balloon"), "{said}");
}

#[test]
fn an_agent_that_failed_stops_the_vmm() {
    let place = Place::new();
    let (child, agent, _qmp) = managed(&place, &[], State::WaitingForRam, true);
    {
        let mut status = agent.status.lock().unwrap();
        status.state = State::Failed;
        status.reason = Some("userfaultfd: EPERM".into());
    }
    let (code, said) = end(child);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("userfaultfd: EPERM"), "{said}");
    assert!(place.left_behind().is_empty());
}

#[test]
fn the_guest_outlives_a_tool_that_is_killed() {
    let place = Place::new();
    let fake = place.script("fake-qemu", "echo $$ > \"$0.pid\"; exec sleep 30");
    let mut child = start(&place, &[], &fake);
    let pid_file = place.path().join("fake-qemu.pid");
    let pid = || std::fs::read_to_string(&pid_file).ok()?.trim().parse::<i32>().ok();
    wait_until("the VMM runs", || pid().is_some());
    child.kill().unwrap();
    child.wait().unwrap();
    let vmm = Pid::from_raw(pid().unwrap()).unwrap();
    rustix::process::test_kill_process(vmm).expect("the VMM lives");
    rustix::process::kill_process(vmm, Signal::KILL).unwrap();
    assert_eq!(place.left_behind(), ["vm.lock"]);
    place.output(&["ps"]);
    assert!(place.left_behind().is_empty());
}

#[test]
fn a_stale_socket_is_removed_and_told_only_to_the_curious() {
    let place = Place::new();
    let fake = place.script("fake-qemu", "exit 3");
    for (option, told) in [("--verbose", true), ("--policy=none", false)] {
        place.make_runtime();
        drop(UnixListener::bind(place.runtime().join("vm.sock")).unwrap());
        let (code, said) = end(start(&place, &[option], &fake));
        assert_eq!(code, Some(3));
        assert_eq!(said.contains("vm.sock"), told, "{said}");
        assert!(place.left_behind().is_empty());
    }
}

#[test]
fn one_of_two_that_start_at_once_wins() {
    let place = Place::new();
    let fake = place.script("fake-qemu", "touch \"$0.ready\"; sleep 1; exit 3");
    let first = start(&place, &[], &fake);
    wait_until("the VMM runs", || place.path().join("fake-qemu.ready").exists());
    let (code, said) = end(start(&place, &[], &fake));
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains(&format!("being started (zerosweep pid {})", first.id())), "{said}");
    assert_eq!(end(first).0, Some(3));
    assert!(place.left_behind().is_empty());
}

#[test]
#[ignore = "needs QEMU"]
fn a_real_qemu_accepts_what_is_added() {
    let qemu = "qemu-system-x86_64";
    let place = Place::new();
    let arguments = ["run", "--name", "vm", "--target", "64M", "--", qemu, "-m", "128", "-S"];
    let mut command = place.command(&arguments);
    command.args(["-display", "none", "-accel", "tcg", "-serial", "none", "-monitor", "none"]);
    let child = command.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    wait_until("QEMU listens", || place.runtime().join("vm.qmp").exists());
    let agent = FakeAgent::new(place.runtime().join("vm.sock"), status("vm"));
    {
        let mut status = agent.status.lock().unwrap();
        (status.max_mem_bytes, status.target_bytes) = (128 << 20, 64 << 20);
    }
    let asked_vcpus = || {
        agent.asked.lock().unwrap().iter().any(|operation| {
            matches!(operation, Operation::Vcpus { thread_ids } if thread_ids.len() == 1)
        })
    };
    wait_until("QEMU was asked for its vCPUs", asked_vcpus);
    std::thread::sleep(Duration::from_millis(500));
    signal(&child, Signal::TERM);
    let (code, said) = end(child);
    assert_eq!(code, Some(0), "{said}");
    assert!(!said.contains("warning"), "{said}");
    assert!(place.left_behind().is_empty());
}
