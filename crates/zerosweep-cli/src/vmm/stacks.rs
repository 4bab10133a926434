//! Command lines as other programs write them: the files in `tests/command_lines`.
//!
//! The first line of such a file is the program, each further one an option and, after a blank, its
//! argument; a `#` begins a comment. Names of files in them count from the package's directory, where
//! tests run. What lies under `/nfs` lies on NFS.

use std::ffi::OsString;
use std::path::Path;

use zerosweep_linux::references::FileSystem;

use super::args::{Analysis, Ram, Refusals, analyse};
use super::host::Host;
use super::monitors::{Socket, sockets};
use super::options::Line;

const HOST: Host = Host {
    shared_by_reference: |path| path.starts_with("/nfs").then_some(FileSystem::Nfs),
    kernel: None,
    nested: None,
    vhost_sends_by_reference: false,
};

/// What zerosweep is to make of a command line.
enum Expect {
    /// A guest with this much memory in MiB. Whether it has a balloon device of its own; the QMP
    /// socket, as a path or `fd=NUMBER`.
    Managed { mib: u64, balloon: bool, qmp: &'static str },
    /// All reasons against it, each by its beginning.
    Refused(&'static [&'static str]),
}

use Expect::{Managed, Refused};

/// What is left out of the line before it is looked at: what the reason against it says.
type Without = &'static [&'static str];

/// Every file that is there, some of them twice.
const LINES: &[(&str, Without, Expect)] = &[
    ("libvirt-9.0", &[], Managed { mib: 2048, balloon: true, qmp: "fd=30" }),
    ("libvirt-11", &[], Managed { mib: 2048, balloon: true, qmp: "fd=30" }),
    ("libvirt-11-restore", &[], Managed { mib: 2048, balloon: false, qmp: "fd=30" }),
    ("libvirt-11-hotplug", &[], Refused(&["-m maxmem=8388608k (memory hotplug)"])),
    ("kubevirt-1", &[], Managed { mib: 1024, balloon: true, qmp: "fd=16" }),
    (
        "kubevirt-1-hugepages",
        &[],
        Refused(&[
            "-object memory-backend-memfd,hugetlb=on: ",
            "-object memory-backend-memfd,prealloc=on fills",
        ]),
    ),
    (
        "kubevirt-1-virtiofs",
        &[],
        Refused(&["-device vhost-user-fs-pci shares", "-object memory-backend-memfd: "]),
    ),
    ("nova-29", &[], Managed { mib: 4096, balloon: true, qmp: "fd=27" }),
    ("nova-29-nfs", &[], Refused(&["-blockdev {\"driver\":\"file\",\"filename\":\"/nfs/nova/"])),
    ("nova-29-file-backed", &[], Refused(&["-object memory-backend-file: "])),
    ("nova-29-numa", &[], Refused(&["-object memory-backend-ram,id=ram-node1 is a further block"])),
    (
        "nova-29-hugepages",
        &[],
        Refused(&[
            "-object memory-backend-memfd,hugetlb=on: ",
            "-object memory-backend-memfd,prealloc=on fills",
            "-object memory-backend-memfd,hugetlb=on: ",
            "-object memory-backend-memfd,prealloc=on fills",
            "-object memory-backend-memfd,id=ram-node1 is a further block",
        ]),
    ),
    ("proxmox-8", &[], Refused(&["-daemonize: "])),
    ("proxmox-8", &["daemonize"], proxmox(true, "/var/run/qemu-server/100.qmp")),
    ("proxmox-9", &["daemonize"], proxmox(false, "/var/run/qemu-server/101.qmp")),
    ("proxmox-9-q35", &["daemonize"], proxmox(true, "/var/run/qemu-server/102.qmp")),
    ("proxmox-9-nfs", &["daemonize"], Refused(&["-blockdev {\"driver\":\"throttle\""])),
    ("proxmox-9-numa", &["daemonize"], proxmox(true, "/var/run/qemu-server/104.qmp")),
    (
        "proxmox-9-hugepages",
        &[],
        Refused(&[
            "-daemonize: ",
            "-object memory-backend-file: ",
            "-object memory-backend-file,prealloc=on fills",
            "-object memory-backend-file: ",
            "-object memory-backend-file,prealloc=on fills",
            "-object memory-backend-file,id=ram-node1 is a further block",
        ]),
    ),
    (
        "proxmox-9-hotplug",
        &[],
        Refused(&["-daemonize: ", "-device pc-dimm: ", "-m maxmem=524288M (memory hotplug)"]),
    ),
    (
        "incus-6",
        &[],
        Refused(&[
            "-daemonize: ",
            "-object memory-backend-memfd: ",
            "-m maxmem=16384M (memory hotplug)",
        ]),
    ),
    (
        "incus-6-private",
        &["daemonize"],
        Managed { mib: 1024, balloon: true, qmp: "/run/incus/c1/qemu.monitor" },
    ),
    (
        "lxd-5",
        &[],
        Refused(&[
            "-daemonize: ",
            "-device vhost-user-fs-pci shares",
            "-object memory-backend-memfd: ",
        ]),
    ),
];

const fn proxmox(balloon: bool, qmp: &'static str) -> Expect {
    Managed { mib: 4096, balloon, qmp }
}

/// The program and the words after it.
fn read(name: &str, without: Without) -> (String, Vec<OsString>) {
    let text = std::fs::read_to_string(directory().join(format!("{name}.txt"))).unwrap();
    let mut lines = text.lines().filter(|line| !line.starts_with('#'));
    let program = lines.next().unwrap().to_owned();
    let mut words = Vec::new();
    for line in lines {
        let (option, value) = line.split_once(' ').map_or((line, None), |(o, v)| (o, Some(v)));
        let option = option.strip_prefix('-').unwrap();
        if !without.contains(&option) {
            words.push(format!("-{option}").into());
            words.extend(value.map(OsString::from));
        }
    }
    (program, words)
}

fn directory() -> &'static Path {
    Path::new("tests/command_lines")
}

#[test]
fn lines_of_other_programs_are_managed_or_refused_with_all_reasons() {
    for (name, without, expect) in LINES {
        let (program, words) = read(name, without);
        let line = Line::by_tables(&words);
        match (expect, analyse(&program, &line, &HOST)) {
            (Managed { mib, balloon, qmp }, Ok(analysis)) => {
                let Analysis { ram, missing_balloon, without_bus, .. } = analysis;
                assert_eq!(ram, Ram::Given(mib << 20), "{name}");
                let added = (!balloon).then_some("virtio-balloon-pci");
                assert_eq!((missing_balloon, without_bus), (added, None), "{name}");
                let found = sockets(&line).into_iter().map(|socket| match socket {
                    Socket::Path(path) => path.display().to_string(),
                    Socket::Descriptor(number) => format!("fd={number}"),
                });
                assert_eq!(found.collect::<Vec<_>>(), [*qmp], "{name}");
            }
            (Refused(reasons), Err(Refusals(all))) => {
                let said: Vec<_> = all.iter().map(ToString::to_string).collect();
                assert_eq!(said.len(), reasons.len(), "{name}: {said:#?}");
                for (said, reason) in said.iter().zip(*reasons) {
                    assert!(said.starts_with(reason), "{name}: {reason:?} does not begin {said}");
                }
            }
            (_, outcome) => panic!("{name}: {outcome:#?}"),
        }
    }
}

#[test]
fn every_file_is_looked_at() {
    let mut there: Vec<_> = std::fs::read_dir(directory())
        .unwrap()
        .filter_map(|entry| {
            entry
                .unwrap()
                .file_name()
                .into_string()
                .unwrap()
                .strip_suffix(".txt")
                .map(str::to_owned)
        })
        .collect();
    there.sort();
    let mut named: Vec<_> = LINES.iter().map(|(name, ..)| (*name).to_owned()).collect();
    named.sort();
    named.dedup();
    assert_eq!(there, named);
}
