//! The control socket with hostile or broken clients: garbage, halves of requests, and clients that
//! connect and say nothing.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use zerosweep_wire::{State, runtime};

use super::harness::{Agent, Guest, MEBIBYTE, PATIENCE, Place, Spec, stderr, stdout, wait_until};

/// 300 MiB in pages.
const TARGET: u64 = 76_800;
/// Clients that connect and say nothing.
const SILENT: usize = 500;
/// The longest time for `zerosweep status`, which usually takes some ten milliseconds.
const ANSWER: Duration = Duration::from_secs(5);
/// What the VMM may hold more afterwards, in bytes: its own allocators keep some.
const GROWTH: u64 = 16 * MEBIBYTE;
/// How many descriptors may differ from before: QEMU opens and closes its own.
const FEW: usize = 4;

#[test]
#[ignore = "needs QEMU, a guest image and userfaultfd: cargo xtask test sets them up"]
fn a_flood_of_garbage_and_silence_locks_nobody_out() {
    let place = Place::new();
    let guest =
        Guest::managed(&place, &Spec { append: "zs.fill=64M zs.end=idle", ..Spec::default() });
    guest.marker("balloon settled");
    guest.marker("done ok");
    let vmm = guest.status().pid;
    let socket = runtime::control_socket(&place.runtime(), "vm");
    let mut slowest = asked(&place);
    let before = Cost::of(vmm);

    let mut sent = 0;
    for round in 0..20 {
        sent += garbage(&socket, round);
    }
    slowest = slowest.max(asked(&place));

    // One that came before all the others and has asked: it may lose its seat to none of them.
    let mut early = Agent::connect(&socket).unwrap();
    early.status().unwrap();
    let silent: Vec<UnixStream> = (0..SILENT)
        .map(|_| {
            wait_until("a silent client is let in", PATIENCE, || UnixStream::connect(&socket).ok())
        })
        .collect();
    for _ in 0..5 {
        slowest = slowest.max(asked(&place));
    }
    early.status().expect("a client that asks is served in spite of those that say nothing");
    let held = Cost::of(vmm);
    assert!(held.clients <= 64, "a thread for each of those that say nothing: {held:?}");
    drop((silent, early));

    let from = guest.console.len();
    assert!(guest.marker_from(from, "alive ").text.contains(" bad=0"), "the guest goes on");
    wait_until("all is as before", PATIENCE, || {
        let after = Cost::of(vmm);
        let few = after.descriptors.abs_diff(before.descriptors) <= FEW
            && after.clients <= before.clients + 1;
        few.then_some(())
    });
    let after = Cost::of(vmm);
    slowest = slowest.max(asked(&place));
    println!(
        "\n  {sent} pieces of garbage, {SILENT} silent clients: slowest status {:.0} ms\n  before {before:?}\n  \
         during {held:?}\n  after  {after:?}",
        slowest.as_secs_f64() * 1e3
    );
    // The guest's own memory is on other figures: it is at its target all the while.
    assert!(after.data_bytes <= before.data_bytes + GROWTH, "{before:?} {after:?}");
    let status = guest.status();
    let pages = &status.pages;
    if status.state != State::Managing || pages.total > pages.target || pages.target != TARGET {
        guest.fail("it is managed as before");
    }
    assert!(!guest.errors.has("does not answer"), "{}", guest.errors.tail(5));
    let audited = place.output(["audit", "vm"]);
    assert_eq!(audited.status.code(), Some(0), "{}{}", stdout(&audited), stderr(&audited));
}

/// Which users can connect, and which messages would make the VMM's main thread wait for memory.
#[test]
#[ignore = "needs QEMU, a guest image and userfaultfd: cargo xtask test sets them up"]
fn the_sockets_are_private_and_take_no_thread_but_those_of_virtual_cpus() {
    let place = Place::new();
    let guest =
        Guest::managed(&place, &Spec { append: "zs.fill=64M zs.end=idle", ..Spec::default() });
    guest.marker("balloon settled");
    let is_private = |name: &&str| {
        std::fs::metadata(place.runtime().join(name))
            .is_ok_and(|data| data.permissions().mode() & 0o777 == 0o600)
    };
    wait_until("both sockets are private", PATIENCE, || {
        ["vm.sock", "vm.qmp"].iter().all(is_private).then_some(())
    });
    let cpus = guest.qmp().execute("query-cpus-fast", &json!({})).unwrap();
    let cpus: Vec<_> =
        cpus.as_array().unwrap().iter().map(|cpu| cpu["thread-id"].clone()).collect();
    let mut agent = guest.agent();
    let vcpus = |ids: Value| json!({"id": 4, "op": "vcpus", "thread_ids": ids});
    let main = guest.status().pid;
    for (wrong, why) in [
        (json!([main]), "main thread"),
        (json!([cpus[0], 0]), "0 is not a thread of the VMM"),
        (json!([cpus[0], std::process::id()]), "is not a thread of the VMM"),
        (json!((0..9000).collect::<Vec<u32>>()), "is not a thread of the VMM"),
        (json!([]), "no thread is given"),
    ] {
        let error = agent.request(&vcpus(wrong)).unwrap_err().to_string();
        assert!(error.contains("bad_value") && error.contains(why), "{why}: {error}");
    }
    agent.request(&vcpus(json!(cpus))).unwrap();
    let too_much = json!({"id": 5, "op": "ballooned", "actual_bytes": u64::MAX});
    let error = agent.request(&too_much).unwrap_err().to_string();
    assert!(error.contains("cannot have left the guest"), "{error}");
    guest.marker("done ok");
}

/// Runs `zerosweep status`, which must answer within [`ANSWER`]. Returns how long it took.
#[track_caller]
fn asked(place: &Place) -> Duration {
    let began = Instant::now();
    let output = place.output(["status", "vm"]);
    let took = began.elapsed();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(took <= ANSWER, "status took {took:?}");
    took
}

/// What clients cost the VMM.
#[derive(Debug)]
struct Cost {
    descriptors: usize,
    /// Threads that serve a client.
    clients: usize,
    /// Memory outside the guest's: the agent's heap and all stacks are in it.
    data_bytes: u64,
}

impl Cost {
    fn of(pid: u32) -> Self {
        let process = Path::new("/proc").join(pid.to_string());
        let entries = |name| std::fs::read_dir(process.join(name)).unwrap().flatten();
        let is_client = |task: &std::fs::DirEntry| {
            let name = std::fs::read_to_string(task.path().join("comm"));
            name.is_ok_and(|name| name.trim_end() == "zs-client")
        };
        let status = std::fs::read_to_string(process.join("status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        let kib: u64 = line.split_ascii_whitespace().next().unwrap().parse().unwrap();
        Self {
            descriptors: entries("fd").count(),
            clients: entries("task").filter(is_client).count(),
            data_bytes: kib << 10,
        }
    }
}

/// Sends everything that a client should not send, each on a connection of its own. Returns how
/// many.
fn garbage(socket: &Path, round: u64) -> usize {
    let mut random = vec![0; 200_000];
    let mut state = round + 1;
    for byte in &mut random {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        *byte = (state >> 56) as u8;
    }
    let endless = vec![b'x'; 300_000];
    let deep = [b"[".repeat(60_000), b"\n".to_vec()].concat();
    let pieces: [&[u8]; 14] = [
        b"",
        b"\n\n\n\n",
        &random,
        &endless,
        &deep,
        b"{\"id\": 1, \"op\": \"sta",
        b"{\"id\": 1, \"op\": \"status\"",
        b"{}\n[]\nnull\n\"status\"\n17\n",
        b"{\"id\": -1, \"op\": \"status\"}\n{\"id\": 1e99, \"op\": \"status\"}\n",
        b"{\"id\": 1, \"op\": \"set_target\"}\n{\"id\": 1, \"op\": \"set_target\", \"target_bytes\": -4096}\n",
        b"{\"id\": 1, \"op\": \"set_target\", \"target_bytes\": 0}\n{\"id\": 1, \"op\": \"set_target\", \"target_bytes\": 18446744073709547520}\n",
        b"{\"id\": 1, \"op\": \"set_target\", \"target_bytes\": 4097}\n{\"id\": 2, \"op\": \"vcpus\", \"thread_ids\": [\"a\"]}\n",
        b"{\"id\": 1, \"op\": \"map\", \"first\": 18446744073709551615}\n{\"id\": 1, \"op\": \"sweep\", \"first\": 18446744073709551615}\n",
        b"\xff\xfe\x00\x00{\"id\":1,\"op\":\"status\"}\r\n",
    ];
    for piece in pieces {
        let connect = || UnixStream::connect(socket).ok();
        let mut stream = wait_until("garbage is let in", PATIENCE, connect);
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(10))).unwrap();
        // Closed in the middle by the other side, or not: both are well.
        let _ = stream.write_all(piece);
        if round.is_multiple_of(2) {
            // Every other client is gone before it can be answered.
            continue;
        }
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answers = String::new();
        match stream.read_to_string(&mut answers) {
            Ok(_) => {
                let refused = answers.lines().skip(1).all(is_an_answer);
                assert!(refused, "{}: {answers}", String::from_utf8_lossy(piece));
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
        }
    }
    pieces.len()
}

fn is_an_answer(line: &str) -> bool {
    let answer: Value = serde_json::from_str(line).unwrap_or_default();
    answer.get("error").is_some() || answer.get("ok").is_some()
}
