//! Wrong usage: each message, exit status 2, nothing started and nothing left behind.

use crate::support::{Place, stderr, stdout};

/// `zerosweep run OPTIONS -- VMM` must exit with 2 and say all of `parts`.
fn refused(options: &str, vmm: &str, parts: &[&str]) {
    let place = Place::new();
    let fake = place.script("fake-qemu", "touch \"$0.started\"");
    let vmm = vmm.replace("VMM", &fake);
    let line = format!("run {options} -- {vmm}");
    let arguments: Vec<&str> = line.split_whitespace().collect();
    let output = place.output(&arguments);
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{line}: {message}");
    for part in parts {
        assert!(message.contains(part), "{line}: {part:?} is not in: {message}");
    }
    assert!(!place.path().join("fake-qemu.started").exists(), "{line}: the VMM was started");
    assert!(!place.runtime().exists(), "{line}: the runtime directory was made");
    assert!(output.stdout.is_empty(), "{line}");
}

#[test]
fn targets_that_cannot_be() {
    refused("--target 0", "VMM -m 1G", &["--target 0", "above 0"]);
    refused("--target 2G", "VMM -m 1G", &["--target 2G", "above the guest's memory size (1G)"]);
    refused("--target 1000", "VMM -m 1G", &["--target 1000", "multiple of 4K"]);
    refused("--target 256M", "VMM", &["--target 256M", "128M"]);
    refused("--target lots", "VMM -m 1G", &["lots", "512M or 2G"]);
    refused("--target=-1", "VMM -m 1G", &["--target"]);
    refused("", "VMM -m 1G", &["--target"]);
}

#[test]
fn max_mem_must_agree_with_the_vmm() {
    refused("--target 64M --max-mem 2G", "VMM -m 1G", &["2G", "1G", "must be equal"]);
    refused("--target 64M --max-mem 0", "VMM", &["--max-mem 0"]);
    refused("--target 64M --max-mem 1G", "VMM -m what", &["-m", "what", "not a memory size"]);
}

#[test]
fn names_policies_and_modes() {
    refused("--name ../x --target 64M", "VMM", &["../x", "letters, digits"]);
    refused("--policy best --target 64M", "VMM", &["best", "xen-2016", "rfc-2011:gate=debt"]);
    refused("--on-exhaustion pray --target 64M", "VMM", &["pray", "stall, borrow, kill"]);
    refused("--return never --target 64M", "VMM", &["never", "eager, lazy"]);
    refused("--name x --target 64M --frobnicate", "VMM", &["--frobnicate"]);
}

#[test]
fn guests_that_cannot_be_managed() {
    for (arguments, parts) in [
        ("-mem-path /x", ["-mem-path /x", "private anonymous"]),
        (
            "-M memory-backend=a -object memory-backend-file,id=a,size=1G",
            ["memory-backend-file", "Leave"],
        ),
        (
            "-M memory-backend=a -object memory-backend-memfd,id=a,size=1G",
            ["memory-backend-memfd", "anonymous"],
        ),
        (
            "-M memory-backend=a -object memory-backend-ram,id=a,size=1G,share=on",
            ["share=on", "anonymous"],
        ),
        (
            "-M memory-backend=a -object memory-backend-memfd,id=a,size=1G,hugetlb=on",
            ["hugetlb=on", "anonymous"],
        ),
        ("-mem-prealloc", ["-mem-prealloc", "populate on demand"]),
        (
            "-M memory-backend=a -object memory-backend-ram,id=a,size=1G,prealloc=on",
            ["prealloc=on", "fills"],
        ),
        ("-overcommit mem-lock=on", ["mem-lock=on", "locked pages"]),
        ("-realtime mlock=on", ["mlock=on", "locked pages"]),
        ("-incoming rdma:h:1", ["-incoming", "pinned pages"]),
        ("-device vfio-pci,host=1", ["vfio-pci", "pinned pages"]),
        ("-device vhost-user-blk-pci", ["vhost-user-blk-pci", "another process"]),
        ("-netdev vhost-user,id=n", ["vhost-user", "another process"]),
        ("-object sev-guest,id=s", ["sev-guest", "confidential"]),
        ("-machine q35,confidential-guest-support=s", ["confidential-guest-support", "encrypted"]),
        ("-m 1G,maxmem=2G,slots=1", ["maxmem=2G", "must be one block"]),
        ("-object memory-backend-ram,id=a,size=1G", ["id=a", "as large as the guest's RAM"]),
        ("-daemonize", ["-daemonize", "exit status"]),
        ("-readconfig f", ["-readconfig", "command line"]),
    ] {
        refused("--target 64M", &format!("VMM -m 1G {arguments}"), &parts);
    }
}

#[test]
fn vmms_that_are_not_there_or_cannot_be_preloaded_into() {
    refused("--target 64M", "no-such-vmm-anywhere", &["no-such-vmm-anywhere", "PATH"]);
    refused("--target 64M", "/no/such/vmm", &["/no/such/vmm", "no such file"]);
    refused("--target 64M", "/etc/passwd", &["/etc/passwd", "not an executable"]);
    refused("--target 64M", "/etc", &["/etc", "not an executable"]);
    refused("--target 64M", "cloud-hypervisor", &["only QEMU's command line"]);
    refused("--target 64M", "", &["VMM ARGS"]);
}

#[test]
fn a_setuid_vmm_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let place = Place::new();
    let fake = place.script("fake-qemu", "exit 0");
    std::fs::set_permissions(&fake, std::fs::Permissions::from_mode(0o4755)).unwrap();
    let output = place.output(&["run", "--target", "64M", "--", &fake]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("setuid"), "{}", stderr(&output));
}

#[test]
fn a_missing_agent_is_a_failure_of_the_work() {
    let place = Place::new();
    let fake = place.script("fake-qemu", "exit 0");
    let output = place
        .command(&["run", "--target", "64M", "--", &fake])
        .env("ZEROSWEEP_AGENT", "/no/such/agent.so")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let message = stderr(&output);
    assert!(
        message.contains("/no/such/agent.so") && message.contains("ZEROSWEEP_AGENT"),
        "{message}"
    );
    assert!(place.left_behind().is_empty());
}

#[test]
fn the_program_itself() {
    let place = Place::new();
    assert_eq!(place.output(&[]).status.code(), Some(2));
    assert_eq!(place.output(&["frobnicate"]).status.code(), Some(2));
    assert_eq!(place.output(&["status"]).status.code(), Some(2));
    assert_eq!(place.output(&["status", "../x"]).status.code(), Some(2));
    let help = place.output(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(stdout(&help).contains("audit"));
    assert_eq!(place.output(&["--version"]).status.code(), Some(0));
}
