//! What stands in the way: command lines that cannot be managed, names and sockets of others, a
//! VMM that locks itself in.

use std::os::unix::net::UnixListener;
use std::time::Duration;

use rustix::process::{Pid, Signal};
use zerosweep_wire::{State, runtime};

use super::harness::{Guest, PATIENCE, Place, Spec, qemu_command, stderr, wait_until};

#[test]
#[ignore = "needs QEMU, a guest image and userfaultfd: cargo xtask test sets them up"]
fn memory_that_cannot_move_is_refused() {
    let place = Place::new();
    let directory = place.path().to_str().unwrap().to_owned();
    let memfd = ["-object", "memory-backend-memfd,id=m,size=2G", "-machine", "memory-backend=m"];
    let path = ["-mem-path", directory.as_str()];
    for (qemu, named) in [(memfd.as_slice(), "memory-backend-memfd"), (&path, "-mem-path")] {
        let words = qemu_command(&place, &Spec { qemu, ..Spec::default() });
        let start = ["run", "--name", "vm", "--target", "300M", "--"].map(str::to_owned);
        let output = place.output(start.into_iter().chain(words));
        assert_eq!(output.status.code(), Some(2), "{qemu:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(named), "{}", stderr(&output));
        assert_eq!(place.left_behind(), [""; 0]);
    }
}

/// The sockets of a dead guest are removed; those of a living guest stay.
#[test]
#[ignore = "needs QEMU, a guest image and userfaultfd: cargo xtask test sets them up"]
fn a_name_belongs_to_the_living() {
    let place = Place::new();
    let directory = place.runtime();
    std::fs::create_dir_all(&directory).unwrap();
    for file in [runtime::control_socket(&directory, "vm"), runtime::qmp_socket(&directory, "vm")] {
        drop(UnixListener::bind(&file).unwrap());
        assert!(file.exists(), "a listener that is gone leaves its file");
    }
    let mut first =
        Guest::managed(&place, &Spec { append: "init_on_free=1 zs.fill=64M", ..Spec::default() });
    first.marker("boot ");
    let pid = first.status().pid;

    let mut second = Guest::managed(&place, &Spec::default());
    assert_eq!(second.end(), 2, "the name is taken: wrong usage");
    wait_until("the reason is read", PATIENCE, || {
        second.errors.has("is running already").then_some(())
    });
    drop(second);
    let left = place.left_behind();
    assert!(
        left.contains(&"vm.sock".to_owned()) && left.contains(&"vm.qmp".to_owned()),
        "{left:?}"
    );

    assert_eq!(first.status().pid, pid, "the first one is undisturbed");
    assert!(first.marker("verified ").text.contains(" bad=0 "));
    first.marker("done ok");
    assert_eq!(first.end(), 0);
    first.wait_until_gone();
    assert_eq!(place.left_behind(), [""; 0]);
}

/// As libvirt starts QEMU.
#[test]
#[ignore = "needs QEMU, a guest image and userfaultfd: cargo xtask test sets them up"]
fn a_vmm_in_its_sandbox_is_managed() {
    let place = Place::new();
    let sandbox = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
    let qemu = ["-sandbox", sandbox];
    let append = "init_on_free=1 zs.fill=64M zs.end=idle";
    let guest = Guest::managed(&place, &Spec { qemu: &qemu, append, ..Spec::default() });
    guest.marker("balloon settled");
    assert!(guest.marker("verified ").text.contains(" bad=0 "));
    let from = guest.console.len();
    guest.marker_from(from, "alive ");
    std::thread::sleep(Duration::from_millis(200));
    let status = guest.status();
    if status.state != State::Managing || status.counters.engine.superpages_reclaimed == 0 {
        guest.fail("it is not managed in its sandbox");
    }
    assert!(status.counters.engine.peak_total <= status.pages.target);
}

/// A guest with a full bus starts without our device, and is managed.
#[test]
#[ignore = "needs QEMU, guest image, userfaultfd"]
fn a_guest_whose_bus_is_full_starts_without_our_balloon_device() {
    let place = Place::new();
    let devices: Vec<_> = (4..32).map(|slot| format!("virtio-rng-pci,addr={slot:#x}")).collect();
    let qemu: Vec<_> = devices.iter().flat_map(|device| ["-device", device.as_str()]).collect();
    let append = "init_on_free=1 zs.fill=96M zs.scrub=1 zs.balloon=0 zs.touch=32M zs.end=idle";
    let mut guest = Guest::managed(&place, &Spec { qemu: &qemu, append, ..Spec::default() });
    assert!(guest.marker("verified ").text.contains(" bad=0 "));
    guest.marker("done ok");
    assert!(guest.errors.has("no slot/function available"), "{}", guest.errors.tail(9));
    assert!(guest.errors.has("starts without it"), "{}", guest.errors.tail(9));
    let status = guest.status();
    if status.state != State::Managing
        || status.counters.engine.peak_total > status.pages.target
        || status.borrowed_pages != 0
    {
        guest.fail("it is not managed within its target");
    }
    guest.signal(Signal::TERM);
    assert_eq!(guest.end(), 0);
    guest.wait_until_gone();
    assert_eq!(place.left_behind(), [""; 0]);
}

/// A machine without a bus for the device is managed without it.
#[test]
#[ignore = "needs QEMU, userfaultfd"]
fn a_machine_without_pci_is_managed() {
    for program in ["qemu-system-x86_64", "qemu-system-i386"] {
        let place = Place::new();
        let words = "run --name vm --target 64M -- PROGRAM -M isapc -m 256 -display none";
        let words = words.replace("PROGRAM", program);
        let guest = Guest::run(&place, "vm", place.command(words.split(' ')));
        let mut agent = guest.agent();
        assert_eq!(agent.status().unwrap().state, State::Managing, "{program}");
        assert!(guest.errors.has("isapc has no bus"), "{}", guest.errors.tail(5));
    }
}

/// QEMU takes options from a file; zerosweep reads the same ones.
#[test]
#[ignore = "needs QEMU, userfaultfd"]
fn options_in_a_file_count() {
    let memory = "[memory]\nsize = \"192M\"\n[machine]\nmemory-backend = \"r\"\n";
    let balloon = "[device \"b\"]\ndriver = \"virtio-balloon-pci\"\n";
    for (kind, status) in [("memory-backend-ram", None), ("memory-backend-memfd", Some(2))] {
        let place = Place::new();
        let file = place.path().join("guest.conf");
        let object = format!("[object \"r\"]\nqom-type = \"{kind}\"\nsize = \"192M\"\n");
        std::fs::write(&file, format!("{object}{memory}{balloon}")).unwrap();
        let words = "run --name vm --target 64M -- qemu-system-x86_64 -display none -readconfig";
        let words = words.split(' ').chain([file.to_str().unwrap()]);
        let mut guest = Guest::run(&place, "vm", place.command(words));
        if let Some(status) = status {
            assert_eq!(guest.end(), status);
            let said = || guest.errors.has(kind).then_some(());
            wait_until("it says why", PATIENCE, said);
            continue;
        }
        let found = guest.agent().status().unwrap();
        assert_eq!((found.state, found.pages.max), (State::Managing, (192 << 20) / 4096));
        let words = std::fs::read(format!("/proc/{}/cmdline", found.pid)).unwrap();
        let words = String::from_utf8(words).unwrap();
        assert!(!words.contains("zerosweep-balloon"), "it has one in the file: {words}");
    }
}

/// `setuid` of the C library asks every thread of the process, those of the agent too.
#[test]
#[ignore = "needs QEMU, guest image, userfaultfd"]
fn a_vmm_that_gives_up_its_rights_is_managed() {
    let place = Place::new();
    let root = place.path().to_str().unwrap().to_owned();
    let mut ways = vec![vec!["-runas", "nobody"], vec!["-runas", "nobody", "-chroot", &root]];
    // From QEMU 9 on.
    let help = std::process::Command::new("qemu-system-x86_64").arg("-help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let (_, run_with) = help.split_once("\n-run-with ").unwrap_or_default();
    if run_with.lines().take(2).any(|line| line.contains("user=")) {
        ways.push(vec!["-run-with", "user=nobody"]);
    }
    if !help.contains("\n-runas ") {
        ways.retain(|way| way[0] != "-runas");
    }
    assert!(!ways.is_empty(), "{help}");
    for qemu in ways {
        let append = "zs.fill=64M zs.end=idle";
        let mut guest = Guest::managed(&place, &Spec { qemu: &qemu, append, ..Spec::default() });
        guest.marker("balloon settled");
        assert!(guest.marker("verified ").text.contains(" bad=0 "));
        guest.marker("done ok");
        let status = guest.status();
        let of_vmm = std::fs::read_to_string(format!("/proc/{}/status", status.pid)).unwrap();
        assert!(of_vmm.contains("\nUid:\t65534\t65534\t"), "{qemu:?}: {of_vmm}");
        if status.state != State::Managing
            || status.counters.engine.peak_total > status.pages.target
            || status.borrowed_pages != 0
        {
            guest.fail("it is not managed within its target");
        }
        for command in [["set-target", "vm", "400M"].as_slice(), &["sweep", "vm"], &["audit", "vm"]]
        {
            let output = place.output(command);
            assert_eq!(output.status.code(), Some(0), "{qemu:?}: {}", stderr(&output));
        }
        guest.signal(Signal::TERM);
        assert_eq!(guest.end(), 0, "{qemu:?}");
        guest.wait_until_gone();
        assert_eq!(place.left_behind(), [""; 0], "{qemu:?}");
    }
}

/// The memory policy that QEMU sets for guest RAM applies to its frames, which come from the pool.
#[test]
#[ignore = "needs QEMU, guest image, userfaultfd"]
fn host_nodes_and_policy_hold_for_the_frames() {
    if !std::path::Path::new("/proc/self/numa_maps").exists() {
        eprintln!("skipped: a kernel without NUMA");
        return;
    }
    let place = Place::new();
    let ram = "memory-backend-ram,id=ram0,size=2048M,host-nodes=0,policy=bind";
    let asked = ["-object", ram, "-machine", "memory-backend=ram0"];
    for (qemu, policy) in [(&asked[..], "bind:0"), (&[], "local")] {
        let append = "zs.fill=64M zs.end=idle";
        let spec = Spec { qemu, append, ..Spec::default() };
        let mut guest = Guest::managed(&place, &spec);
        assert!(guest.marker("verified ").text.contains(" bad=0 "));
        let status = guest.status();
        let numa = std::fs::read_to_string(format!("/proc/{}/numa_maps", status.pid)).unwrap();
        let of_policy = |line: &&str| line.split_ascii_whitespace().nth(1) == Some(policy);
        let anonymous = |line: &str| {
            let pages = line.split_ascii_whitespace().find_map(|word| word.strip_prefix("anon="));
            pages.map_or(0, |pages| pages.parse::<u64>().unwrap())
        };
        let pages: u64 = numa.lines().filter(of_policy).map(anonymous).sum();
        // The guest's 64 MiB and more, and what was got ready for it.
        assert!(pages >= (64 << 20) / 4096, "{policy}: {pages} pages in {numa}");
        let mappings = numa.lines().filter(of_policy).count();
        assert!(mappings >= 3, "guest, pool and scratch: {numa}");
        assert_eq!(status.state, State::Managing, "{status:?}");
        guest.signal(Signal::TERM);
        assert_eq!(guest.end(), 0);
    }
}

/// SIGTERM also ends a VMM that hangs.
#[test]
#[ignore = "needs QEMU, guest image, userfaultfd"]
fn sigterm_ends_a_guest_whose_vmm_hangs() {
    let place = Place::new();
    let run = ["--target", "300M", "--wait-end", "3"];
    let spec = Spec { run: &run, append: "zs.fill=64M zs.end=idle", ..Spec::default() };
    let mut guest = Guest::managed(&place, &spec);
    guest.marker("filled ");
    let vmm = i32::try_from(guest.status().pid).ok().and_then(Pid::from_raw).unwrap();
    rustix::process::kill_process(vmm, Signal::STOP).unwrap();
    guest.signal(Signal::TERM);
    assert_eq!(guest.end(), 137);
    assert!(guest.errors.has("it is killed"), "{}", guest.errors.tail(5));
    guest.wait_until_gone();
    assert_eq!(place.left_behind(), [""; 0]);
}

/// The missing balloon driver is reported, and the guest stays within its target all the same.
#[test]
#[ignore = "needs QEMU, a guest image and userfaultfd: cargo xtask test sets them up"]
fn a_guest_without_a_balloon_driver_is_reported_and_stays_within_its_target() {
    let place = Place::new();
    let run = ["--target", "300M", "--wait-balloon", "3"];
    let append = "init_on_free=1 zs.fill=96M zs.scrub=1 zs.balloon=0 zs.touch=32M zs.end=idle";
    let mut guest = Guest::managed(&place, &Spec { run: &run, append, ..Spec::default() });
    guest.marker("balloon left out");
    assert!(guest.marker("verified ").text.contains(" bad=0 "));
    guest.marker("done ok");
    wait_until("it is reported", PATIENCE, || {
        guest.errors.has("nothing was given back for 3 s").then_some(())
    });
    assert!(guest.errors.has("balloon driver loaded"), "{}", guest.errors.tail(5));
    let from = guest.console.len();
    assert!(guest.marker_from(from, "alive ").text.contains(" bad=0"));
    let status = guest.status();
    let pages = &status.pages;
    if status.state != State::Managing
        || pages.ballooned_out != 0
        || status.counters.engine.superpages_reclaimed == 0
        || status.counters.engine.peak_total > pages.target
        || status.borrowed_pages != 0
    {
        guest.fail("it is managed, within its target, by what is taken back of its zeros");
    }
    let audited = place.output(["audit", "vm"]);
    assert_eq!(audited.status.code(), Some(0), "{}", stderr(&audited));
    guest.signal(Signal::TERM);
    assert_eq!(guest.end(), 0);
    guest.wait_until_gone();
    assert_eq!(place.left_behind(), [""; 0]);
}
