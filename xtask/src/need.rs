//! What tests need beyond cargo: the name of each need, whether this machine has it, and how to get
//! it.
//!
//! The reason for which a test is ignored names everything that it needs: `#[ignore = "needs
//! userfaultfd, KVM"]`. As root on Debian or Ubuntu, needs that can be installed are installed; the
//! others are properties of the machine.

use std::collections::BTreeSet;
use std::fmt;

use anyhow::{Context, Result};
use zerosweep_lab::image::{GuestImage, Image, Kernel, cache_dir, find_init};
use zerosweep_lab::real_guest::MemoryCgroup;

use crate::{aarch64, apt, machine};

/// Something that a test may need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Need {
    Libvirt,
    Qemu,
    GuestImage,
    Chromium,
    CTools,
    Xenalyze,
    Promtool,
    Userfaultfd,
    IoUring,
    Kvm,
    HardwareKvm,
    VhostNet,
    MemoryCgroup,
    Root,
    Aarch64,
}

/// All that a test needs.
pub(crate) type Needs = BTreeSet<Need>;

/// How a need that is not met can be met.
#[derive(Clone, Copy)]
enum Get {
    /// Debian's and Ubuntu's packages.
    Packages(&'static [&'static str]),
    /// Such packages, and the standard library for the target, from rustup.
    Target(&'static [&'static str]),
    /// A kernel package is downloaded, and the image built of it.
    Image,
    /// This machine has it, or does not have it.
    Machine,
}

struct Entry {
    need: Need,
    /// Its names in the reasons of tests; the first one is shown.
    names: &'static [&'static str],
    /// Why it is not there.
    check: fn() -> Result<(), String>,
    get: Get,
    /// Advice for people, where xtask cannot install anything.
    hint: &'static str,
}

const TABLE: [Entry; 15] = [
    Entry {
        need: Need::Libvirt,
        names: &["libvirt"],
        check: || programs(&["libvirtd", "virtlogd", "virsh"]),
        get: Get::Packages(&[
            "libvirt-daemon-system",
            "libvirt-daemon-driver-qemu",
            "libvirt-clients",
        ]),
        hint: "Fedora: `dnf install libvirt-daemon-driver-qemu libvirt-client`; Arch: \
               `pacman -S libvirt`",
    },
    Entry {
        need: Need::Qemu,
        names: &["QEMU"],
        check: || programs(&["qemu-system-x86_64"]),
        get: Get::Packages(&["qemu-system-x86", "seabios"]),
        hint: "Fedora: `dnf install qemu-system-x86-core`; Arch: `pacman -S qemu-system-x86`",
    },
    Entry {
        need: Need::GuestImage,
        names: &["a guest image", "guest image"],
        check: || GuestImage::find().map(|_| ()).map_err(|e| format!("no guest image ({e:#})")),
        get: Get::Image,
        hint: "download a kernel package such as Debian's linux-image-6.1.0-…-amd64 and give it \
               to `zerosweep guest-image`",
    },
    Entry {
        need: Need::Chromium,
        names: &["Chromium"],
        check: || any_program(&["chromium", "chromium-browser", "google-chrome"]),
        get: Get::Packages(&["chromium"]),
        hint: "Ubuntu: `snap install chromium`; Fedora: `dnf install chromium`; Arch: \
               `pacman -S chromium`",
    },
    Entry {
        need: Need::CTools,
        names: &["C tools"],
        check: || programs(&["c++", "valgrind"]),
        get: Get::Packages(&["g++", "valgrind"]),
        hint: "Fedora: `dnf install gcc-c++ valgrind`; Arch: `pacman -S gcc valgrind`",
    },
    Entry {
        need: Need::Xenalyze,
        names: &["xenalyze"],
        check: || programs(&["xenalyze"]),
        get: Get::Packages(&["xen-utils-common"]),
        hint: "Fedora: `dnf install xen-runtime`; elsewhere it is in Xen's tools/xentrace",
    },
    Entry {
        need: Need::Promtool,
        names: &["promtool"],
        check: || programs(&["promtool"]),
        get: Get::Packages(&["prometheus"]),
        hint: "Fedora: `dnf install golang-github-prometheus`; Arch: `pacman -S prometheus`",
    },
    Entry {
        need: Need::Userfaultfd,
        names: &["userfaultfd", "userfaultfd in kernel mode"],
        check: machine::userfaultfd,
        get: Get::Machine,
        hint: "Linux 6.8 or newer; root, or `sudo setfacl -m u:$USER:rw /dev/userfaultfd`",
    },
    Entry {
        need: Need::IoUring,
        names: &["io_uring"],
        check: machine::io_uring,
        get: Get::Machine,
        hint: "`sysctl kernel.io_uring_disabled=0`",
    },
    Entry {
        need: Need::Kvm,
        names: &["KVM"],
        check: machine::kvm,
        get: Get::Machine,
        hint: "a machine with virtualisation switched on; root, or \
               `sudo usermod -aG kvm $USER`",
    },
    Entry {
        need: Need::HardwareKvm,
        names: &["KVM on hardware"],
        check: machine::hardware_kvm,
        get: Get::Machine,
        hint: "a machine with nested page tables; or `cargo xtask hosts --scenario kvm`, which \
               emulates one",
    },
    Entry {
        need: Need::VhostNet,
        names: &["vhost-net"],
        check: machine::vhost_net,
        get: Get::Machine,
        hint: "`modprobe vhost_net tun`; or `cargo xtask hosts --scenario kvm`",
    },
    Entry {
        need: Need::MemoryCgroup,
        names: &["a memory cgroup"],
        check: || MemoryCgroup::create().map(|_| ()).map_err(|e| format!("no memory cgroup: {e}")),
        get: Get::Machine,
        hint: "root, or `systemd-run --user --scope -p Delegate=yes cargo xtask test`",
    },
    Entry {
        need: Need::Root,
        names: &["root", "a second user"],
        check: || if machine::is_root() { Ok(()) } else { Err("this is not root".to_owned()) },
        get: Get::Machine,
        hint: "`sudo -E cargo xtask test`",
    },
    Entry {
        need: Need::Aarch64,
        names: &["an aarch64 emulator"],
        check: aarch64::check,
        get: Get::Target(aarch64::PACKAGES),
        hint: aarch64::HINT,
    },
];

impl Need {
    /// All that a reason names: needs with commas or an `and` between them, and after a colon what
    /// else there is to say. `None` if it is a reason of another kind.
    ///
    /// # Errors
    /// When it names something that is not known.
    pub(crate) fn all_in(reason: &str) -> Result<Option<Needs>, String> {
        let Some(list) = reason.strip_prefix("needs ") else { return Ok(None) };
        let list = list.split(": ").next().unwrap_or_default();
        let names = list.split(", ").flat_map(|part| part.split(" and "));
        let known = |name: &str| {
            let name = name.strip_prefix("and ").unwrap_or(name);
            let entry = TABLE.iter().find(|entry| entry.names.contains(&name));
            entry.map(|entry| entry.need).ok_or_else(|| {
                let all: Vec<_> = TABLE.iter().flat_map(|entry| entry.names).copied().collect();
                format!("unknown need `{name}`: tests can need {}", all.join(", "))
            })
        };
        names.map(known).collect::<Result<_, _>>().map(Some)
    }

    fn entry(self) -> &'static Entry {
        TABLE.iter().find(|entry| entry.need == self).expect("each need is in the table")
    }

    /// Why it is not there, and how to get it.
    pub(crate) fn missing(self) -> Option<Missing> {
        let what = (self.entry().check)().err()?;
        Some(Missing { need: self, what })
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.entry().names[0])
    }
}

/// Something that is not there.
#[derive(Clone, Debug)]
pub(crate) struct Missing {
    pub(crate) need: Need,
    pub(crate) what: String,
}

impl Missing {
    /// How to get it.
    pub(crate) fn how(&self) -> String {
        let entry = self.need.entry();
        match entry.get {
            Get::Packages(packages) | Get::Target(packages) => format!(
                "Debian, Ubuntu: `apt-get install --no-install-recommends {}`; {}",
                packages.join(" "),
                entry.hint
            ),
            Get::Image => {
                format!("Debian, Ubuntu: `cargo xtask setup` as root; elsewhere {}", entry.hint)
            }
            Get::Machine => entry.hint.to_owned(),
        }
    }

    /// Whether it is something that [`obtain`] gets on this machine.
    pub(crate) fn is_installable(&self) -> bool {
        can_install()
            && match self.need.entry().get {
                Get::Packages(_) | Get::Image => true,
                Get::Target(_) => aarch64::can_be_installed(),
                Get::Machine => false,
            }
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.what, self.how())
    }
}

/// Whether packages can be installed and downloaded: this is root where apt is.
pub(crate) fn can_install() -> bool {
    machine::is_root() && machine::has_apt()
}

/// Gets what is missing of `needs` as far as that can be installed here, and returns what is missing
/// then.
pub(crate) fn obtain(needs: &Needs) -> Vec<Missing> {
    let missing: Vec<_> = needs.iter().filter_map(|need| need.missing()).collect();
    if missing.is_empty() || !can_install() {
        return missing;
    }
    let packages = |missing: &Missing| match missing.need.entry().get {
        Get::Packages(packages) | Get::Target(packages) => packages,
        Get::Image | Get::Machine => &[],
    };
    let all: Vec<_> = missing.iter().flat_map(packages).copied().collect();
    let mut failures = Vec::new();
    if !all.is_empty() && apt::install(&all).is_err() {
        // One package that is not available keeps the others from being installed.
        for missing in &missing {
            let packages = packages(missing);
            if !packages.is_empty()
                && let Err(error) = apt::install(packages)
            {
                failures.push((missing.need, error));
            }
        }
    }
    if missing.iter().any(|missing| missing.need == Need::GuestImage)
        && let Err(error) = build_image()
    {
        failures.push((Need::GuestImage, error));
    }
    if missing.iter().any(|missing| missing.need == Need::Aarch64)
        && let Err(error) = aarch64::get_target()
    {
        failures.push((Need::Aarch64, error));
    }
    let mut missing: Vec<_> = missing.iter().filter_map(|old| old.need.missing()).collect();
    for missing in &mut missing {
        if let Some((_, error)) = failures.iter().find(|(need, _)| *need == missing.need) {
            missing.what = format!("{}: {error:#}", missing.what);
        }
    }
    missing
}

/// Builds the guest image of the installed kernel if that can be a guest, else of one from the
/// distribution's packages.
fn build_image() -> Result<()> {
    let kernel = match Kernel::installed() {
        Ok(kernel) if kernel.has_balloon() => kernel,
        _ => {
            let packages = apt::download_kernel(&cache_dir().join("packages"))?;
            Kernel::from_debs(&packages).context("the downloaded kernel")?
        }
    };
    Image::build(&kernel, &find_init()?, &GuestImage::default_dir()).map(|_| ())
}

fn programs(names: &[&str]) -> Result<(), String> {
    let missing: Vec<_> =
        names.iter().copied().filter(|name| machine::program(name).is_none()).collect();
    if missing.is_empty() { Ok(()) } else { Err(not_on_the_path(&missing)) }
}

fn any_program(names: &[&str]) -> Result<(), String> {
    let is_there = names.iter().any(|name| machine::program(name).is_some());
    if is_there { Ok(()) } else { Err(not_on_the_path(&names[..1])) }
}

fn not_on_the_path(names: &[&str]) -> String {
    let verb = if names.len() == 1 { "is" } else { "are" };
    format!("{} {verb} not on the PATH", names.join(", "))
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    fn needs<const N: usize>(needs: [Need; N]) -> Result<Option<Needs>, String> {
        Ok(Some(Needs::from(needs)))
    }

    #[test]
    fn a_reason_names_all_that_a_test_needs() {
        let all_in = Need::all_in;
        assert_eq!(all_in("needs userfaultfd in kernel mode"), needs([Need::Userfaultfd]));
        let both = needs([Need::Userfaultfd, Need::Kvm]);
        assert_eq!(all_in("needs userfaultfd, KVM"), both);
        assert_eq!(all_in("needs KVM and userfaultfd"), both);
        let guest = needs([Need::Qemu, Need::GuestImage, Need::Userfaultfd]);
        assert_eq!(all_in("needs QEMU, a guest image and userfaultfd: see README"), guest);
        assert_eq!(all_in("needs QEMU, a guest image, and userfaultfd"), guest);
        assert_eq!(all_in("needs a second user"), needs([Need::Root]));
        assert_eq!(all_in("takes an hour"), Ok(None));
        let unknown = all_in("needs userfaultfd, patience").unwrap_err();
        assert!(unknown.starts_with("unknown need `patience`: tests can need libvirt, QEMU, "));
    }

    #[test]
    fn each_need_is_once_in_the_table_and_shown_by_a_name_that_is_read() {
        for entry in &TABLE {
            let shown = format!("needs {}", entry.need);
            assert_eq!(Need::all_in(&shown), needs([entry.need]), "{shown}");
            assert_eq!(TABLE.iter().filter(|other| other.need == entry.need).count(), 1);
        }
    }
}
