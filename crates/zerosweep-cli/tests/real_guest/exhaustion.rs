//! Rule [R15]: a guest that needs more than its target, and has nothing to give.
//!
//! [R15]: zerosweep::rules#r15

use std::time::{Duration, Instant};

use serde_json::json;
use zerosweep_linux::KernelVersion;
use zerosweep_wire::State;

use super::harness::{
    Agent, Guest, MEBIBYTE, PATIENCE, Place, Spec, stderr, wait_until, wants_kvm,
};

/// More than the target, none of it zero.
const APPEND: &str = "init_on_free=1 zs.fill=400M zs.end=idle";
const RAISED_BYTES: u64 = 600 << 20;
/// The longest time that QEMU is frozen. After two seconds a main thread that waits for a lock
/// counts as hanging; the rest is for slow machines.
const QMP_BOUND: Duration = Duration::from_secs(25);
/// The same on hosts that are emulated themselves: the faults of 64 MiB took 38 s there.
const QMP_BOUND_EMULATED: Duration = Duration::from_secs(100);
/// A virtual CPU of KVM with asynchronous page faults, which zerosweep leaves out otherwise: workers
/// of the host's kernel wait for memory, and the guest runs other tasks meanwhile.
const ASYNCHRONOUS: [&str; 2] = ["-cpu", "host,-svm,-vmx,kvm-asyncpf=on,kvm-asyncpf-int=on"];

/// A guest that wants more than it may hold.
fn above_its_target(place: &Place, on_exhaustion: &str, qemu: &[&str]) -> Guest {
    let run = ["--target", "300M", "--on-exhaustion", on_exhaustion];
    let kvm = !qemu.is_empty();
    let guest =
        Guest::managed(place, &Spec { run: &run, append: APPEND, qemu, kvm, ..Spec::default() });
    guest.marker("boot ");
    guest
}

/// Whether a worker of the kernel waits for a page of a guest's.
fn a_worker_waits() -> bool {
    let processes = std::fs::read_dir("/proc").unwrap();
    let stacks =
        processes.map(|entry| std::fs::read_to_string(entry.unwrap().path().join("stack")));
    stacks.flatten().any(|stack| stack.contains("async_pf_execute"))
}

#[test]
#[ignore = "needs QEMU, a guest image and userfaultfd: cargo xtask test sets them up"]
fn a_guest_above_its_target_stalls_until_the_target_rises() {
    stalls_until_the_target_rises(&[]);
}

#[test]
#[ignore = "needs QEMU, a guest image, userfaultfd, root, KVM on hardware"]
fn a_guest_with_asynchronous_page_faults_stalls_until_the_target_rises() {
    stalls_until_the_target_rises(&ASYNCHRONOUS);
}

fn stalls_until_the_target_rises(qemu: &[&str]) {
    let place = Place::new();
    let guest = above_its_target(&place, "stall", qemu);
    let mut agent = guest.agent();
    // It comes to stay like this: above no target, without damage, and everyone answers. Before, a
    // sweep may still find zeros for it.
    let (began, mut stalled_at) = (Instant::now(), None);
    let mut slowest = Duration::ZERO;
    // What waits in the end may be the virtual CPU itself: KVM leaves some faults to it.
    let mut workers = false;
    while stalled_at.is_none_or(|at: Instant| at.elapsed() < Duration::from_secs(4)) {
        if began.elapsed() > PATIENCE {
            guest.fail("it does not stall for good");
        }
        let asked = Instant::now();
        let running = guest.qmp().execute("query-status", &serde_json::json!({})).unwrap();
        assert_eq!(running["running"], true);
        slowest = slowest.max(asked.elapsed());
        let status = agent.status().unwrap();
        let total = status.pages.total;
        if total > status.pages.target || status.state != State::Managing {
            guest.fail("INV-3: above the target, and nobody asked to borrow");
        }
        match status.stalled_threads {
            0 => stalled_at = None,
            _ => stalled_at = stalled_at.or(Some(Instant::now())),
        }
        workers |= a_worker_waits();
        std::thread::sleep(Duration::from_millis(200));
    }
    println!("\n  stalled: slowest answer of QEMU {:.0} ms", slowest.as_secs_f64() * 1e3);
    // Without the property, KVM halts a virtual CPU for as long as a worker of its own waits.
    assert!(workers || qemu.is_empty(), "no worker was seen to wait");
    assert!(slowest < Duration::from_secs(5), "QEMU answered after {slowest:?}");
    assert!(
        guest.errors.has("waits for memory"),
        "the stall is reported: {}",
        guest.errors.tail(5)
    );

    // The guest must not be squeezed below what it filled.
    guest.qmp().balloon(RAISED_BYTES).unwrap();
    agent.set_target(RAISED_BYTES).unwrap();
    guest.marker("filled ");
    guest.marker("balloon settled");
    assert!(guest.marker("verified ").text.contains(" bad=0 "));
    guest.marker("done ok");
    let status = agent.status().unwrap();
    let target = RAISED_BYTES / 4096;
    if status.stalled_threads != 0
        || status.borrowed_pages != 0
        || status.counters.engine.peak_total > target
        || status.counters.engine.exhaustions == 0
    {
        guest.fail("it goes on within the new target, without borrowing");
    }
    let audited = place.output(["audit", "vm"]);
    assert_eq!(audited.status.code(), Some(0));
}

/// `zerosweep set-target` ends a stall as well as the agent's own call, in steps that are not
/// enough and one that is.
#[test]
#[ignore = "needs QEMU, a guest image and userfaultfd: cargo xtask test sets them up"]
fn a_stalled_guest_goes_on_when_the_target_is_set_by_command() {
    let place = Place::new();
    let guest = Guest::managed(&place, &Spec { append: APPEND, ..Spec::default() });
    let mut agent = stalled(&guest);
    for size in ["340M", "380M", "600M"] {
        let began = Instant::now();
        let output = place.output(["set-target", "vm", size, "--no-wait"]);
        assert!(output.status.success(), "{}", stderr(&output));
        println!("\n  set-target {size}: {:.0} ms", began.elapsed().as_secs_f64() * 1e3);
        if size != "600M" {
            wait_until("the guest stalls again", PATIENCE, || {
                let status = agent.status().unwrap();
                let full = status.pages.total == status.pages.target;
                (status.stalled_threads >= 1 && full).then_some(())
            });
        }
    }
    guest.marker("filled ");
    guest.marker("balloon settled");
    assert!(guest.marker("verified ").text.contains(" bad=0 "));
    guest.marker("done ok");
    let status = agent.status().unwrap();
    if status.stalled_threads != 0 || status.borrowed_pages != 0 {
        guest.fail("it goes on within the new target, without borrowing");
    }
    assert!(place.output(["audit", "vm"]).status.success());
}

/// QEMU's main thread waits for virtual CPUs when it is to stop or reset the machine, and writes to
/// guest memory itself when it loads what is loaded at a reset. While the guest stalls, each of
/// these ends by borrowing: after two seconds where QEMU waits for a CPU that waits for memory.
#[test]
#[ignore = "needs QEMU, a guest image and userfaultfd: cargo xtask test sets them up"]
fn qemu_itself_never_waits_for_memory_for_good() {
    let place = Place::new();
    let blob = place.path().join("blob");
    std::fs::write(&blob, vec![0x5a; 4 << 20]).unwrap();
    let saved = place.path().join("saved");
    let loader = format!("loader,file={},addr=0x70000000,force-raw=on", blob.display());
    let qemu = ["-device", &loader];
    let spec = Spec { append: APPEND, qemu: &qemu, reboots: true, ..Spec::default() };
    let guest = Guest::managed(&place, &spec);
    let commands = [
        // Memory that is promised, read by the main thread.
        ("pmemsave", json!({"val": 0x6000_0000_u64, "size": 64 << 20, "filename": saved})),
        ("stop", json!({})),
        ("cont", json!({})),
        ("system_reset", json!({})),
        ("query-status", json!({})),
    ];
    println!();
    let mut borrowed = Vec::new();
    for (command, arguments) in &commands {
        let mut agent = stalled(&guest);
        let before = agent.status().unwrap();
        let began = Instant::now();
        if let Err(error) = guest.qmp().execute(command, arguments) {
            guest.fail(&format!("{command}: {error}"));
        }
        let took = began.elapsed();
        // What it is followed by is answered as well.
        guest.qmp().execute("query-status", &json!({})).unwrap();
        let after = agent.status().unwrap();
        let pages = after.borrowed_pages.saturating_sub(before.borrowed_pages);
        println!(
            "  {command}: {:.0} ms, and {:.0} ms with the next; {pages} pages borrowed",
            took.as_secs_f64() * 1e3,
            began.elapsed().as_secs_f64() * 1e3,
        );
        borrowed.push((*command, pages));
        let bound = if wants_kvm() { QMP_BOUND_EMULATED } else { QMP_BOUND };
        assert!(began.elapsed() < bound, "{command}: QEMU was frozen for {:?}", began.elapsed());
        if *command == "stop" {
            guest.qmp().execute("cont", &json!({})).unwrap();
        }
    }
    // What is read takes no frame (R22), what is written does: the loader's file at a reset.
    if KernelVersion::running().unwrap() >= KernelVersion::WITH_TABLE_RECLAIM {
        assert_eq!(borrowed[0], ("pmemsave", 0));
    }
    assert!(borrowed.iter().any(|&(_, pages)| pages > 0), "{borrowed:?}");
    assert!(place.output(["audit", "vm"]).status.success());
}

/// A guest that has touched all that it may.
#[track_caller]
fn stalled(guest: &Guest) -> Agent {
    let mut agent = guest.agent();
    wait_until("the guest stalls", PATIENCE, || {
        (agent.status().unwrap().stalled_threads >= 1).then_some(())
    });
    agent
}

#[test]
#[ignore = "needs QEMU, a guest image and userfaultfd: cargo xtask test sets them up"]
fn a_guest_above_its_target_borrows_and_says_so() {
    borrows_and_says_so(&[]);
}

#[test]
#[ignore = "needs QEMU, a guest image, userfaultfd, KVM on hardware"]
fn a_guest_with_asynchronous_page_faults_borrows_and_says_so() {
    borrows_and_says_so(&ASYNCHRONOUS);
}

fn borrows_and_says_so(qemu: &[&str]) {
    let place = Place::new();
    let guest = above_its_target(&place, "borrow", qemu);
    // As above; zerosweep has sent its own target before.
    guest.qmp().balloon(RAISED_BYTES).unwrap();
    let began = Instant::now();
    guest.marker("filled ");
    let status = guest.status();
    println!(
        "\n  borrowed {} MiB; filled after {:.1} s; {} sweep steps looked at {} pages",
        status.borrowed_pages * 4096 / MEBIBYTE,
        began.elapsed().as_secs_f64(),
        status.counters.engine.emergency_sweeps,
        status.counters.engine.zero_checks_4k
    );
    if status.borrowed_pages == 0 || status.state != State::Managing {
        guest.fail("more than the target is filled, so something is borrowed");
    }
    assert!(guest.marker("verified ").text.contains(" bad=0 "));
    guest.marker("done ok");
    wait_until("the borrowing is reported", Duration::from_secs(5), || {
        guest.errors.has("beyond its target").then_some(())
    });
    let audited = place.output(["audit", "vm"]);
    assert_eq!(audited.status.code(), Some(0));
}

#[test]
#[ignore = "needs QEMU, a guest image, userfaultfd"]
fn a_guest_above_its_target_is_ended_where_that_is_asked_for() {
    is_ended(&[]);
}

#[test]
#[ignore = "needs QEMU, a guest image, userfaultfd, KVM on hardware"]
fn a_guest_with_asynchronous_page_faults_is_ended_where_that_is_asked_for() {
    is_ended(&ASYNCHRONOUS);
}

fn is_ended(qemu: &[&str]) {
    let place = Place::new();
    let mut guest = above_its_target(&place, "kill", qemu);
    wait_until("the guest is ended", PATIENCE, || guest.processes().is_empty().then_some(()));
    assert_eq!(guest.end(), 137, "as a shell says it: 128 and SIGKILL");
    assert!(!guest.console.has("filled "), "it has all that it wanted");
    assert!(guest.errors.has("`--on-exhaustion kill` does that"), "{}", guest.errors.tail(5));
    assert_eq!(place.left_behind(), [""; 0]);
}
