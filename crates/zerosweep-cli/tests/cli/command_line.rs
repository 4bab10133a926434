//! `zerosweep run` and `zerosweep-qemu` before any VMM is started: how its command line is read,
//! what is refused with all reasons, and what is added to it.

use std::process::Stdio;

use crate::support::{Place, stderr, stdout};

/// The exit status of `zerosweep run OPTIONS -- VMM LINE`, and what was said. The VMM prints its
/// arguments, one a line.
fn run(options: &str, line: &str) -> (Option<i32>, String, String) {
    let place = Place::new();
    let fake = place.script("fake-qemu", "for word; do echo \"[$word]\"; done; exit 3");
    let words = ["run", "--name", "vm"].into_iter().chain(options.split_whitespace());
    let words: Vec<&str> = words.chain(["--", &fake]).chain(line.split_whitespace()).collect();
    let output = place.output(&words);
    (output.status.code(), stdout(&output), stderr(&output))
}

/// What the fake VMM ends with.
const STARTED: Option<i32> = Some(3);

/// `zerosweep run` refuses the line, in one go with all of `parts`.
#[track_caller]
fn refused(line: &str, parts: &[&str]) -> String {
    let (code, started, said) = run("--target 64M", line);
    assert_eq!((code, started.as_str()), (Some(2), ""), "{line}: {said}");
    for part in parts {
        assert!(said.contains(part), "{line}: {part:?} is not in: {said}");
    }
    said
}

/// Options of QEMU 9 and of one that is not there yet.
const WITHOUT_ARGUMENT: [&str; 4] = ["-perfmap", "-jitdump", "--perfmap", "-some-future-switch"];

#[test]
fn an_option_that_is_not_known_does_not_swallow_the_next() {
    for option in WITHOUT_ARGUMENT {
        let (code, started, said) = run("--target 200M", &format!("{option} -m 512"));
        assert_eq!(code, STARTED, "{option}: {said}");
        assert!(started.starts_with(&format!("[{option}]\n[-m]\n[512]\n[-device]")), "{started}");
    }
}

#[test]
fn nothing_that_must_be_refused_hides_behind_an_option_that_is_not_known() {
    for option in WITHOUT_ARGUMENT {
        for hidden in ["-daemonize", "-mem-prealloc", "-incoming rdma:h:1", "-mem-path /x"] {
            let name = hidden.split(' ').next().unwrap();
            refused(&format!("-m 512 {option} {hidden}"), &[name]);
        }
    }
}

/// Runs a VMM of `body`, whose agent has a second to answer. The C library takes the place of an
/// agent that is loaded into it.
fn never_managed(body: &str, agent: Option<&std::path::Path>) -> String {
    let place = Place::new();
    let fake = place.script("fake-qemu", body);
    let words = ["run", "--name", "vm", "--target", "64M", "--wait-agent", "1", "--", &fake];
    let mut command = place.command(&words);
    if let Some(agent) = agent {
        command.env("ZEROSWEEP_AGENT", agent);
    }
    let output = command.args(["-m", "512"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(place.left_behind().is_empty());
    stderr(&output)
}

#[test]
fn a_vmm_that_marks_no_memory_is_not_blamed_on_the_loader() {
    let said = never_managed("exec sleep 60", None);
    assert!(said.contains("not allocated one block of 512M for its guest within 3s"), "{said}");
    assert!(said.contains("marked no memory") && !said.contains("LD_PRELOAD"), "{said}");
}

#[test]
fn a_vmm_that_the_agent_is_not_in_is_blamed_on_the_loader() {
    let library = crate::support::c_library().with_file_name("libm.so.6");
    let said = never_managed("unset LD_PRELOAD; exec sleep 60", Some(&library));
    assert!(said.contains("did not answer within 1s. LD_PRELOAD was probably"), "{said}");
}

#[test]
#[ignore = "needs QEMU"]
fn a_vmm_with_another_memory_size_is_told_with_the_sizes_that_it_has() {
    let vmm = "qemu-system-x86_64 -m 256 -display none -S -nodefaults";
    for body in [format!("exec {vmm}"), format!("{vmm} & trap \"kill $!\" TERM; wait")] {
        let said = never_managed(&body, None);
        assert!(said.contains("not allocated one block of 512M"), "{said}");
        assert!(said.contains("256M") && said.contains("another memory size"), "{said}");
    }
}

/// `zerosweep run` starts the VMM with the line as it is.
#[track_caller]
pub(crate) fn accepted(line: &str) -> String {
    let (code, started, said) = run("--target 64M", line);
    assert_eq!(code, STARTED, "{line}: {said}");
    let words: String = line.split_whitespace().map(|word| format!("[{word}]\n")).collect();
    assert!(started.starts_with(&words), "{line}: {started}");
    started
}

#[test]
fn a_size_that_nothing_can_be_plugged_beyond_is_no_hotplug() {
    for line in [
        "-m size=512M,maxmem=512M",
        "-m 512 -m maxmem=536870912",
        "-object memory-backend-ram,id=r,size=1G -machine memory-backend=r -m maxmem=1G",
    ] {
        accepted(line);
    }
    refused("-m 512M,maxmem=1G", &["maxmem=1G", "hotplug"]);
    refused("-m 512M,slots=2,maxmem=513M", &["maxmem=513M", "hotplug"]);
}

#[test]
fn objects_that_are_not_guest_ram_are_the_vmms_own() {
    for line in [
        "-object memory-backend-file,id=i,share=on,size=4M,mem-path=/dev/shm/x -device \
         ivshmem-plain,memdev=i",
        "-object memory-backend-memfd,id=i,size=16M -object rng-random,id=r,filename=/dev/urandom",
        "-object memory-backend-ram,id=i,size=8M,prealloc=on",
        "-object memory-backend-ram,id=r,size=512M -machine memory-backend=r -object \
         memory-backend-shm,id=i,size=64M",
    ] {
        accepted(&format!("-m 512 {line}"));
    }
    // The agent finds guest RAM by its size.
    let same = "-object memory-backend-ram,id=i,size=512M -m 512";
    refused(same, &["id=i", "as large as the guest's RAM"]);
    refused(
        "-m 512 -object memory-backend-memfd,id=r,size=512M -machine memory-backend=r",
        &["memory-backend-memfd", "private anonymous"],
    );
}

#[test]
fn all_reasons_are_told_at_once() {
    let said = refused(
        "-m 512 -daemonize -readconfig /x -overcommit mem-lock=on -device vfio-pci,host=1",
        &["4 reasons", "-daemonize", "-readconfig", "mem-lock=on", "vfio-pci"],
    );
    assert_eq!(said.lines().filter(|line| line.starts_with("  - ")).count(), 4, "{said}");
    refused(
        "-m 512 -object memory-backend-ram,id=r,size=512M,prealloc=on,share=on -machine \
         memory-backend=r -overcommit mem-lock=on",
        &["3 reasons", "prealloc=on", "share=on", "mem-lock=on"],
    );
    let one = refused("-m 512 -daemonize", &["cannot manage this guest: -daemonize: "]);
    assert_eq!(one.lines().count(), 1, "{one}");
}

#[test]
fn devices_and_drivers_that_use_guest_pages_unseen_are_refused() {
    for (line, parts) in [
        ("-device vhost-scsi-pci,wwpn=naa.1", ["vhost-scsi-pci", "virtio-scsi"]),
        (r#"-device {"driver":"vhost-scsi-pci","wwpn":"x"}"#, ["vhost-scsi-pci", "reference"]),
        ("-drive file=nvme://0000:01:00.0/1,if=none", ["nvme://", "pins"]),
        ("nvme://0000:01:00.0/1", ["nvme://", "pins"]),
        ("-blockdev driver=nvme,device=0000:01:00.0,namespace=1,node-name=n", ["nvme", "pins"]),
        ("-blockdev driver=raw,node-name=n,file.driver=nvme,file.device=0", ["nvme", "pins"]),
        (
            r#"-blockdev {"driver":"raw","node-name":"n","file":{"driver":"nvme","device":"0"}}"#,
            ["nvme", "pins"],
        ),
        ("-global migration.zero-copy-send=on", ["zero-copy-send", "migrat"]),
        ("-global driver=migration,property=x-zero-copy-send,value=true", ["zero-copy", "migrat"]),
    ] {
        refused(&format!("-m 512 {line}"), &parts);
    }
    accepted("-m 512 -device nvme,serial=1,drive=d -global migration.zero-copy-send=off");
    accepted("-m 512 -device virtio-scsi-pci -drive if=none,file=/nvme,cache=none");
}

#[test]
fn options_that_are_set_apart_are_read_too() {
    let ram = "-m 512 -object memory-backend-ram,id=r,size=512M -machine memory-backend=r";
    refused(&format!("{ram} -set object.r.share=on"), &["share=on"]);
    refused(&format!("-set object.r.prealloc=on {ram}"), &["prealloc=on"]);
    accepted(&format!("{ram} -set object.other.share=on"));
}

/// A VMM that cannot take the balloon device that is added to its line, for this reason.
fn without_place(reason: &str, otherwise: &str) -> (Option<i32>, String, String) {
    let place = Place::new();
    let fake = place.script(
        "fake-qemu",
        &format!(
            "case \"$*\" in *zerosweep-balloon*) echo \"qemu: -device \
             virtio-balloon-pci,id=zerosweep-balloon: {reason}\" >&2; exit 1;; esac\n{otherwise}"
        ),
    );
    let words = ["run", "--name", "vm", "--target", "64M", "--", &fake, "-m", "512"];
    let output = place.output(&words);
    assert!(place.left_behind().is_empty());
    (output.status.code(), stdout(&output), stderr(&output))
}

#[test]
fn a_guest_without_a_place_for_our_balloon_device_starts_without_it() {
    for reason in [
        "No 'PCI' bus found for device 'virtio-balloon-pci'",
        "PCI: no slot/function available for virtio-balloon-pci, all in use or reserved",
        "Bus 'pci.0' does not support hotplugging",
    ] {
        let started = "for word; do echo \"[$word]\"; done; exit 7";
        let (code, started, said) = without_place(reason, started);
        assert_eq!(code, Some(7), "{said}");
        assert!(started.starts_with("[-m]\n[512]\n[-qmp]\n"), "{started}");
        assert!(said.contains("zerosweep's own balloon device"), "{said}");
        assert!(said.contains("starts without it"), "{said}");
        assert!(said.contains(reason), "QEMU's own words: {said}");
    }
}

#[test]
fn a_guest_that_does_not_start_without_the_device_either_is_not_tried_for_ever() {
    let (code, _, said) = without_place("no slot", "echo 'qemu: no such disk' >&2; exit 1");
    assert_eq!(code, Some(1), "{said}");
    assert_eq!(said.matches("no such disk").count(), 1, "{said}");
    assert_eq!(said.matches("starts without it").count(), 1, "{said}");
}

#[test]
fn a_machine_without_a_bus_is_not_given_a_balloon_device() {
    let (code, started, said) = run("--target 64M", "-M isapc -m 256");
    assert_eq!(code, STARTED, "{said}");
    assert!(!started.contains("balloon"), "{started}");
    assert!(said.contains("isapc has no bus for a balloon device"), "{said}");
}

/// What a VMM says is passed on as it is, and does not hold `run` up.
#[test]
fn the_vmms_own_words_are_passed_on() {
    let place = Place::new();
    let text = "printf 'a line\\nhalf' >&2; sleep 30 >/dev/null & exit 3";
    let fake = place.script("fake-qemu", text);
    let began = std::time::Instant::now();
    let mut command = place.command(&["run", "--target", "64M", "--", &fake]);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let status = child.wait().unwrap();
    assert!(began.elapsed() < std::time::Duration::from_secs(10), "it waits for a grandchild");
    assert_eq!(status.code(), Some(3));
    let mut said = [0; 11];
    std::io::Read::read_exact(&mut child.stderr.take().unwrap(), &mut said).unwrap();
    assert_eq!(said, *b"a line\nhalf");
}

/// This holds however fast the VMM writes, and however slowly the reader reads.
#[test]
fn many_words_are_passed_on_too() {
    let place = Place::new();
    let fake = place.script("fake-qemu", "head -c 3000000 /dev/zero | tr '\\0' x >&2; exit 3");
    let mut command = place.command(&["run", "--target", "64M", "--", &fake]);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut errors = child.stderr.take().unwrap();
    std::thread::sleep(std::time::Duration::from_secs(1));
    let mut said = Vec::new();
    std::io::Read::read_to_end(&mut errors, &mut said).unwrap();
    assert_eq!((child.wait().unwrap().code(), said.len()), (Some(3), 3_000_000));
    assert!(said.iter().all(|&byte| byte == b'x'));
}

#[test]
fn memory_that_the_host_does_not_promise_is_explained() {
    let place = Place::new();
    for (name, more, hint) in [
        ("pc.ram", "", "-object memory-backend-ram,id=ram0,size=64G,reserve=off"),
        ("mach-virt.ram", "", "-machine memory-backend=ram0"),
        ("r", " -object memory-backend-ram,id=r,size=64G -machine memory-backend=r", "id=r,"),
    ] {
        let text = format!(
            "echo \"qemu: cannot set up guest memory '{name}': Cannot allocate memory\" >&2; exit 1"
        );
        let fake = place.script("fake-qemu", &text);
        let line = format!("run --name vm --target 1G -- {fake} -m 64G{more}");
        let output = place.output(&line.split(' ').collect::<Vec<_>>());
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("does not promise 64G at once"), "{said}");
        assert!(said.contains(hint) && said.contains("reserve=off"), "{said}");
        assert!(said.contains("vm.overcommit_memory"), "{said}");
    }
}

#[test]
#[ignore = "needs QEMU"]
fn memory_that_the_host_does_not_promise_to_qemu_is_explained() {
    let overcommit = std::fs::read_to_string("/proc/sys/vm/overcommit_memory").unwrap();
    assert_ne!(overcommit.trim(), "1", "this host promises everything");
    let place = Place::new();
    for more in ["", " -object memory-backend-ram,id=r,size=16T -machine memory-backend=r"] {
        let line = format!(
            "run --name vm --target 1G -- qemu-system-x86_64 -M q35 -cpu max -display none -m 16T{more}"
        );
        let output = place.output(&line.split(' ').collect::<Vec<_>>());
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("cannot set up guest memory"), "QEMU's own words: {said}");
        assert!(said.contains("does not promise 16T at once"), "{said}");
        assert!(said.contains("reserve=off"), "{said}");
    }
}
