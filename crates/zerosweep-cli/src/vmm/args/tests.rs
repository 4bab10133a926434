//! Command lines in many forms.

use std::ffi::OsString;

use super::*;

const GIB: u64 = 1 << 30;
const BACKEND: &str = "memory-backend-ram,id=ram0,size=2G";

const HOST: Host = Host {
    shared_by_reference: |_| None,
    kernel: None,
    nested: None,
    vhost_sends_by_reference: false,
};

fn run_on(host: &Host, line: &str) -> Result<Analysis, Refusals> {
    let arguments: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
    analyse("qemu-system-x86_64", &Line::by_tables(&arguments), host)
}

/// What the line says, or the only thing in the way.
#[track_caller]
fn run(line: &str) -> Result<Analysis, Refusal> {
    run_on(&HOST, line).map_err(|Refusals(all)| {
        assert_eq!(all.len(), 1, "{line}: {all:?}");
        all[0].clone()
    })
}

const AS_RAM: &str = "-machine memory-backend=a -m 1G";

fn ram(line: &str) -> Ram {
    run(line).unwrap().ram
}

#[test]
fn ram_in_all_its_forms() {
    for line in [
        "-m 2048",
        "-m 2G",
        "--m 2g",
        "-m 2048M",
        "-m size=2G",
        "-m size=2097152k",
        "-m 2048.0",
        "-m 512 -m 2G",
        "-m 2147483647B",
        "-S -nodefaults -m 2G disk.img",
    ] {
        assert_eq!(ram(line), Ram::Given(2 * GIB), "{line}");
    }
    assert_eq!(ram(""), Ram::Default);
    assert_eq!(ram("-m 0"), Ram::Given(DEFAULT_RAM_BYTES));
    assert_eq!(ram("-append m=3G"), Ram::Default);
}

#[test]
fn an_argument_that_looks_like_an_option_is_none() {
    let arguments = ["-append", "-mem-path", "-m", "1G"].map(OsString::from);
    assert_eq!(analyse("qemu", &Line::by_tables(&arguments), &HOST).unwrap().ram, Ram::Given(GIB));
}

#[test]
fn a_size_that_is_none_is_refused() {
    let refusal = run("-m lots").unwrap_err();
    assert_eq!(refusal.to_string(), "-m \"lots\": not a memory size");
    assert!(matches!(run("-m 99999999999T"), Err(Refusal::BadSize { .. })));
    let without = format!("{AS_RAM} -object memory-backend-ram,id=a");
    assert!(matches!(run(&without), Err(Refusal::BadSize { .. })));
    assert!(matches!(run("-m 1G,maxmem=much"), Err(Refusal::BadSize { .. })));
}

#[test]
fn one_private_backend_is_guest_ram() {
    let machine = "-machine q35,memory-backend=ram0";
    assert_eq!(ram(&format!("-m 2G {machine} -object {BACKEND}")), Ram::Given(2 * GIB));
    assert_eq!(ram(&format!("{machine} -object {BACKEND}")), Ram::Given(2 * GIB));
    assert_eq!(
        ram(&format!("{machine} -object {BACKEND},share=off,prealloc=no")),
        Ram::Given(2 * GIB)
    );
    assert_eq!(
        ram(&format!("-m 2G -numa node,memdev=ram0 -object {BACKEND}")),
        Ram::Given(2 * GIB)
    );
    let json = r#"{"qom-type":"memory-backend-ram","id":"ram0","size":2147483648}"#;
    assert_eq!(ram(&format!("-m 2G {machine} -object {json}")), Ram::Given(2 * GIB));
}

#[test]
fn backends_that_are_not_the_one_block() {
    let machine = "-machine q35,memory-backend=ram0";
    let several =
        |line: &str| assert!(matches!(run(line), Err(Refusal::SeveralBlocks(_))), "{line}");
    several(&format!(
        "-m 4G -object {BACKEND} -object memory-backend-ram,id=b,size=2G -numa node,memdev=ram0 \
         -numa node,memdev=b"
    ));
    several("-m 2G,slots=2,maxmem=4G");
    several("-m 2G -m maxmem=4G,slots=1");
    several("-m 2G -device virtio-mem-pci,memdev=x");
    several("-m 2G -device pc-dimm,memdev=x");
    let refusal = run(&format!("-m 1G {machine} -object {BACKEND}")).unwrap_err();
    assert_eq!(refusal, Refusal::BackendSize { ram: GIB, backend: 2 * GIB });
    assert_eq!(run(machine), Err(Refusal::NoBackend("ram0".into())));
    let other = format!("-m 2G -object {BACKEND}");
    assert!(matches!(run(&other), Err(Refusal::SameSize(_))));
    assert_eq!(ram(&format!("-m 1G -object {BACKEND}")), Ram::Given(GIB));
    let refusal = run("-m 2G,maxmem=4G").unwrap_err().to_string();
    assert!(refusal.ends_with("guest RAM must be one block"), "{refusal}");
}

#[test]
fn memory_that_cannot_be_moved_is_refused() {
    assert!(matches!(run("-mem-path /dev/hugepages"), Err(Refusal::NotAnonymous(_))));
    for line in [
        "-object memory-backend-file,id=a,size=1G,mem-path=/x",
        "-object memory-backend-memfd,id=a,size=1G",
        "-object memory-backend-memfd,hugetlb=on,id=a,size=1G",
        "-object memory-backend-ram,id=a,size=1G,share=on",
        "-object memory-backend-ram,id=a,size=1G,share",
        "-object memory-backend-shm,id=a,size=1G",
        r#"-object {"qom-type":"memory-backend-ram","id":"a","size":1073741824,"share":true}"#,
    ] {
        let line = format!("{AS_RAM} {line}");
        assert!(matches!(run(&line), Err(Refusal::NotAnonymous(_))), "{line}");
    }
    let huge = format!("{AS_RAM} -object memory-backend-memfd,hugetlb=on,id=a,size=1G");
    let refusal = run(&huge).unwrap_err();
    assert!(refusal.to_string().contains("hugetlb=on"), "{refusal}");
}

#[test]
fn memory_filled_or_locked_ahead_is_refused() {
    let backend = format!("{AS_RAM} -object memory-backend-ram,id=a,size=1G,prealloc=on");
    for line in ["-mem-prealloc", &backend] {
        assert!(matches!(run(line), Err(Refusal::Preallocated(_))), "{line}");
    }
    for line in [
        "-overcommit mem-lock=on",
        "-overcommit cpu-pm=on,mem-lock=on",
        "-overcommit mem-lock",
        "-overcommit mem-lock=on-fault",
        "-realtime mlock=on",
    ] {
        assert!(matches!(run(line), Err(Refusal::Locked(_))), "{line}");
    }
    assert!(run("-overcommit mem-lock=off,cpu-pm=on -realtime mlock=off").is_ok());
}

#[test]
fn devices_that_pin_or_share_are_refused() {
    for line in [
        "-device vfio-pci,host=01:00.0",
        r#"-device {"driver":"vfio-pci","host":"01:00.0"}"#,
        "-device driver=vfio-ap",
        "-netdev vhost-vdpa,id=n",
        "-netdev type=vhost-vdpa,id=n",
    ] {
        assert!(matches!(run(line), Err(Refusal::Pins(_))), "{line}");
    }
    for line in [
        "-device vhost-user-blk-pci,chardev=c",
        "-device vhost-user-fs-pci,chardev=c",
        "-netdev vhost-user,id=n,chardev=c",
        "-nic vhost-user",
        r#"-netdev {"type":"vhost-user","id":"n"}"#,
    ] {
        assert!(matches!(run(line), Err(Refusal::VhostUser(_))), "{line}");
    }
    assert!(run("-device vhost-vsock-pci,guest-cid=3 -netdev tap,id=n,vhost=on").is_ok());
}

#[test]
fn confidential_guests_are_refused() {
    for line in [
        "-object sev-guest,id=s",
        "-object sev-snp-guest,id=s",
        r#"-object {"qom-type":"tdx-guest","id":"t"}"#,
        "-object s390-pv-guest,id=s",
        "-machine q35,confidential-guest-support=s",
        "-M memory-encryption=s",
    ] {
        assert!(matches!(run(line), Err(Refusal::Confidential(_))), "{line}");
    }
}

#[test]
fn what_zerosweep_run_cannot_follow_is_refused() {
    assert_eq!(run("-daemonize"), Err(Refusal::Daemonize));
    assert!(matches!(run("-readconfig q.cfg"), Err(Refusal::Unread { .. })));
}

#[test]
fn a_guest_that_arrives_is_managed_unless_a_device_writes_to_its_memory() {
    for uri in ["defer", "tcp:0:4444", "fd:7", "exec:cat file", "unix:/run/m", "file:/var/m"] {
        assert!(run(&format!("-incoming {}", uri.replace(' ', "_"))).is_ok(), "{uri}");
    }
    for uri in ["rdma:host:4444", r#"{"addr":{"transport":"rdma","host":"h","port":"4"}}"#] {
        let refused = run(&format!("-incoming {uri}")).unwrap_err();
        assert!(matches!(refused, Refusal::Pins(_)), "{uri}: {refused:?}");
    }
}

#[test]
fn the_balloon_device_that_fits() {
    let missing = |line: &str| run(line).unwrap().missing_balloon;
    assert_eq!(missing("-m 1G"), Some("virtio-balloon-pci"));
    assert_eq!(missing("-M microvm,acpi=off"), Some("virtio-balloon-device"));
    assert_eq!(missing("-machine type=microvm"), Some("virtio-balloon-device"));
    assert_eq!(missing("-machine s390-ccw-virtio-7.2"), Some("virtio-balloon-ccw"));
    assert_eq!(
        analyse("/usr/bin/qemu-system-s390x", &Line::default(), &HOST).unwrap().missing_balloon,
        Some("virtio-balloon-ccw")
    );
    assert_eq!(missing("-machine isapc"), None);
    assert_eq!(run("-machine isapc").unwrap().without_bus, Some("isapc"));
    assert_eq!(run("-machine pc").unwrap().without_bus, None);
    assert_eq!(missing("-device virtio-balloon"), None);
    assert_eq!(missing("-device virtio-balloon-pci-non-transitional,id=b"), None);
    assert_eq!(missing(r#"-device {"driver":"virtio-balloon-pci","id":"b"}"#), None);
}

/// A guest that may run guests, on a kernel that keeps references to their pages.
#[test]
fn nested_guests_are_refused_where_the_kernel_does_not_pin_their_pages() {
    use zerosweep_linux::KernelVersion;
    let host = |minor, nested| Host { kernel: Some(KernelVersion::new(6, minor)), nested, ..HOST };
    let old = host(12, Some("vmx"));
    for line in ["-accel kvm -cpu host", "-enable-kvm -cpu max", "-M accel=kvm -cpu qemu64,+vmx"] {
        let refusal = run_on(&old, line).unwrap_err().to_string();
        assert!(refusal.contains("(vmx)") && refusal.contains("kernel (6.12)"), "{refusal}");
        assert!(refusal.contains(",-vmx; or use Linux 6.13"), "{refusal}");
        for other in [host(13, Some("vmx")), host(12, None), host(12, Some("svm")), HOST] {
            let is_svm = other.nested == Some("svm") && !line.contains("vmx");
            assert_eq!(run_on(&other, line).is_err(), is_svm, "{line}, {other:?}");
        }
    }
    for line in [
        "-accel kvm -cpu host,-vmx,-svm",
        "-accel kvm",
        "-accel kvm -cpu Skylake-Server",
        "-accel tcg -cpu max",
        "-cpu host,vmx=off -enable-kvm",
    ] {
        assert!(run_on(&old, line).is_ok(), "{line}");
    }
    let line = Line::by_tables(&["-cpu", "host"].map(OsString::from));
    let by_name = analyse("/usr/bin/kvm", &line, &old);
    assert!(by_name.is_err(), "the program's name says that it uses KVM");
}

#[test]
fn packets_that_the_kernel_sends_from_guest_pages_are_refused() {
    let host = Host { vhost_sends_by_reference: true, ..HOST };
    for line in [
        "-netdev tap,id=n,vhost=on",
        "-netdev tap,id=n,fd=3,vhostfd=4",
        r#"-netdev {"type":"tap","id":"n","vhost":true}"#,
        "-nic tap,vhostforce=on",
    ] {
        let refusal = run_on(&host, line).unwrap_err().to_string();
        assert!(refusal.contains("experimental_zcopytx=0"), "{refusal}");
        assert!(run(line).is_ok(), "{line}");
    }
    for line in ["-netdev tap,id=n", "-netdev tap,id=n,vhost=off", "-netdev user,id=n"] {
        assert!(run_on(&host, line).is_ok(), "{line}");
    }
}

#[test]
fn the_guests_name() {
    let name = |line: &str| run(line).unwrap().name;
    assert_eq!(name("-name vm1").as_deref(), Some("vm1"));
    assert_eq!(name("-name guest=vm2,debug-threads=on").as_deref(), Some("vm2"));
    assert_eq!(name("-name vm1,process=q -name debug-threads=on").as_deref(), Some("vm1"));
    assert_eq!(name(""), None);
}

#[test]
fn who_uses_the_terminal() {
    let uses = |line: &str| run(line).unwrap().uses_terminal;
    for line in [
        "-nographic",
        "-serial stdio",
        "-serial mon:stdio",
        "-monitor stdio",
        "-display curses",
        "-chardev stdio,id=c,signal=off",
        r#"-chardev {"backend":"stdio","id":"c"}"#,
        "-serial file:/dev/stdout",
        "-chardev file,id=c,path=/dev/stdout",
    ] {
        assert!(uses(line), "{line}");
    }
    for line in ["", "-display none -serial file:/tmp/log", "-serial pty", "-monitor none"] {
        assert!(!uses(line), "{line}");
    }
}
