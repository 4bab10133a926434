//! Checks that change nothing.

use std::fs;

use super::check::Check;
use super::defects::{self, Defect, Presence};
use crate::geometry::{HostPages, UnsuitablePages};
use crate::kernel_version::KernelVersion;
use crate::sys::{raw, uffd};

const THP: &str = "/sys/kernel/mm/transparent_hugepage";
/// `PR_GET_MEMORY_MERGE` (Linux 6.4).
const PR_GET_MEMORY_MERGE: i32 = 68;
/// Bit of `CAP_SYS_PTRACE` in /proc/self/status.
const CAP_SYS_PTRACE_BIT: u32 = 19;
/// Below this the pool of a small guest does not fit: 512 MiB.
const LOW_MEMORY_KIB: u64 = 512 << 10;

pub(super) fn checks() -> Vec<Check> {
    let mut checks = vec![
        architecture(std::env::consts::ARCH),
        pages(HostPages::running()),
        kernel(KernelVersion::running()),
    ];
    checks.push(kernel_defects(&defects::harmful()));
    checks.extend(userfaultfd());
    checks.push(huge_pages(&read(&format!("{THP}/enabled"))));
    checks.push(huge_pages_of_this_process());
    checks.push(huge_zero_page(&read(&format!("{THP}/use_zero_page"))));
    checks.push(merging());
    checks.extend(memory(&read("/proc/meminfo")));
    checks.push(address_space());
    checks
}

/// Returns a file's text without the last line break, or nothing if it cannot be read.
fn read(path: &str) -> String {
    fs::read_to_string(path).map_or_else(|_| String::new(), |text| text.trim_end().to_owned())
}

fn architecture(of_this_program: &str) -> Check {
    let name = "architecture";
    match of_this_program {
        "x86_64" => Check::ok(name, "x86_64"),
        "aarch64" => Check::ok(name, "aarch64 (tested on emulated machines, not measured)"),
        other => Check::fail(name, other, "use an x86-64 or aarch64 host"),
    }
}

fn pages(host: HostPages) -> Check {
    let name = "page sizes";
    match host.check() {
        Ok(()) => Check::ok(name, host.to_string()),
        Err(UnsuitablePages { found }) => Check::fail(
            name,
            format!("{found}; zerosweep needs {}", HostPages::SUITABLE),
            UnsuitablePages::MEND,
        ),
    }
}

fn kernel(version: Option<KernelVersion>) -> Check {
    let name = "kernel";
    match version {
        None => Check::warn(
            name,
            "its version cannot be read",
            format!("look whether `uname -r` is {} or newer", KernelVersion::OLDEST),
        ),
        Some(version) if version < KernelVersion::OLDEST => Check::fail(
            name,
            format!("Linux {version}, which cannot move pages (UFFDIO_MOVE)"),
            format!("boot Linux {} or newer", KernelVersion::OLDEST),
        ),
        Some(version) => Check::ok(name, format!("Linux {version}")),
    }
}

fn kernel_defects(harmful: &[(&Defect, Presence)]) -> Check {
    let name = "kernel defects";
    if harmful.is_empty() {
        return Check::ok(name, "none known that can do harm here");
    }
    let tell = |(defect, has): &(&Defect, Presence)| match has {
        Presence::Unknown => format!("perhaps {defect}"),
        _ => defect.to_string(),
    };
    let found = harmful.iter().map(tell).collect::<Vec<_>>().join("; ");
    let newest = harmful.iter().map(|(defect, _)| defect.fixed_in).max();
    let mend = match newest {
        Some(version) => format!("boot Linux {version} or a kernel with these fixes"),
        None => String::new(),
    };
    match harmful.iter().any(defects::is_refused) {
        true => Check::fail(name, found, mend),
        false => Check::warn(name, found, mend),
    }
}

/// The right to handle the kernel's faults, and the features.
fn userfaultfd() -> Vec<Check> {
    let right = "userfaultfd in kernel mode";
    let (device, call) = (uffd::open_by_device(), uffd::open_by_system_call());
    let way = match (&device, &call) {
        (Ok(_), Ok(_)) => format!("through /dev/userfaultfd, and {}", why_call_works()),
        (Ok(_), Err(_)) => "through /dev/userfaultfd".to_owned(),
        (Err(_), Ok(_)) => why_call_works().to_owned(),
        (Err(by_device), Err(by_call)) => {
            let found = format!("/dev/userfaultfd: {by_device}; {by_call}");
            let mend = match by_call.is(libc::ENOSYS) {
                true => "boot a kernel with CONFIG_USERFAULTFD=y",
                false => {
                    "run as root, or `setfacl -m u:$USER:rw /dev/userfaultfd`, or start it with \
                     CAP_SYS_PTRACE as an ambient capability (systemd: \
                     `AmbientCapabilities=CAP_SYS_PTRACE`) (libvirt: add \"/dev/userfaultfd\" to \
                     cgroup_device_acl in /etc/libvirt/qemu.conf), or `sysctl -w \
                     vm.unprivileged_userfaultfd=1`"
                }
            };
            return vec![Check::fail(right, found, mend)];
        }
    };
    let features = "userfaultfd features";
    let offered = device.or(call).and_then(|fd| uffd::handshake(&fd, 0));
    let features = match offered {
        Err(error) => Check::fail(features, error.to_string(), "boot Linux 6.8 or newer"),
        Ok(offered) => {
            let missing: Vec<_> = uffd::missing_features(offered).collect();
            match missing.is_empty() {
                true => Check::ok(features, "moving pages, write-protection, thread numbers"),
                false => Check::fail(
                    features,
                    format!("without {}", missing.join(", ")),
                    "boot Linux 6.8 or newer with CONFIG_USERFAULTFD=y on x86-64 or aarch64",
                ),
            }
        }
    };
    vec![Check::ok(right, way), features]
}

fn why_call_works() -> &'static str {
    match has_ptrace_capability(&read("/proc/self/status")) {
        true => "by the system call (root or CAP_SYS_PTRACE)",
        false => "by the system call (vm.unprivileged_userfaultfd=1)",
    }
}

fn has_ptrace_capability(status: &str) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    bits.is_some_and(|bits| bits >> CAP_SYS_PTRACE_BIT & 1 == 1)
}

/// Returns the chosen word of `always [madvise] never`.
fn chosen(text: &str) -> &str {
    let bracketed = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    bracketed.map_or("", |(word, _)| word)
}

fn huge_pages(enabled: &str) -> Check {
    let name = "huge pages";
    let turn_on = format!("`echo madvise > {THP}/enabled`");
    match chosen(enabled) {
        word @ ("always" | "madvise") => Check::ok(name, word),
        "never" => Check::fail(name, "never", turn_on),
        _ => Check::fail(
            name,
            "this kernel has no transparent huge pages",
            format!("boot a kernel with CONFIG_TRANSPARENT_HUGEPAGE=y, then {turn_on}"),
        ),
    }
}

fn huge_pages_of_this_process() -> Check {
    let name = "huge pages of this process";
    match raw::prctl_get(libc::PR_GET_THP_DISABLE) {
        Ok(0) => Check::ok(name, "allowed"),
        Ok(_) => Check::fail(
            name,
            "turned off by PR_SET_THP_DISABLE, which is inherited from the program's starter",
            "start it another way (systemd: leave out `MemoryTHP=disable`)",
        ),
        Err(error) => Check::warn(name, error.to_string(), "boot a newer kernel"),
    }
}

fn huge_zero_page(use_zero_page: &str) -> Check {
    let name = "huge zero page";
    match use_zero_page {
        "1" => Check::ok(name, "in use"),
        other => Check::warn(
            name,
            format!(
                "not in use (use_zero_page is {other:?}): populating is slower, and memory that is \
                 only read takes frames, within the target"
            ),
            format!("`echo 1 > {THP}/use_zero_page`"),
        ),
    }
}

fn merging() -> Check {
    let name = "samepage merging";
    if let Ok(1..) = raw::prctl_get(PR_GET_MEMORY_MERGE) {
        return Check::fail(
            name,
            "turned on for all memory of this process by PR_SET_MEMORY_MERGE; merged pages cannot \
             be moved",
            "start it another way (systemd: leave out `MemoryKSM=yes`)",
        );
    }
    match read("/sys/kernel/mm/ksm/run").as_str() {
        "1" => Check::warn(
            name,
            "running; a guest that was offered for merging before it is adopted cannot be managed",
            "add `mem-merge=off` to QEMU's -machine, or `echo 2 > /sys/kernel/mm/ksm/run`",
        ),
        _ => Check::ok(name, "not running"),
    }
}

/// Returns a figure of /proc/meminfo, in KiB.
fn kib(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

fn memory(meminfo: &str) -> [Check; 2] {
    let name = "memory available";
    let available = match kib(meminfo, "MemAvailable") {
        Some(kib) if kib < LOW_MEMORY_KIB => Check::warn(
            name,
            format!("{} MiB", kib >> 10),
            "end other programs, or `echo 1 > /proc/sys/vm/drop_caches; echo 1 > \
             /proc/sys/vm/compact_memory`",
        ),
        Some(kib) => Check::ok(name, format!("{} MiB", kib >> 10)),
        None => Check::warn(name, "/proc/meminfo cannot be read", "mount /proc"),
    };
    let name = "swap";
    let swap = match kib(meminfo, "SwapTotal") {
        Some(0) | None => Check::ok(name, "none"),
        Some(kib) => Check::warn(
            name,
            format!("{} MiB: superpages that were swapped out come back in pieces", kib >> 10),
            "`swapoff -a`, or for the guest's service alone `systemctl set-property UNIT \
             MemorySwapMax=0`",
        ),
    };
    [available, swap]
}

fn address_space() -> Check {
    let name = "address space";
    match raw::soft_limit(i64::from(libc::RLIMIT_AS)) {
        Ok(None) => Check::ok(name, "unlimited"),
        Ok(Some(bytes)) => Check::warn(
            name,
            format!("limited to {} MiB: the pool needs twice as much as the guest", bytes >> 20),
            "`ulimit -v unlimited`",
        ),
        Err(error) => Check::warn(name, error.to_string(), "`ulimit -v unlimited`"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::Status;
    use super::*;

    #[test]
    fn reads_the_settings() {
        assert_eq!(huge_pages("always [madvise] never").status, Status::Ok);
        assert_eq!(huge_pages("[always] madvise never").found, "always");
        let never = huge_pages("always madvise [never]");
        assert_eq!(never.status, Status::Fail);
        let mend = "`echo madvise > /sys/kernel/mm/transparent_hugepage/enabled`";
        assert_eq!(never.mend.as_deref(), Some(mend));
        assert_eq!(huge_pages("").status, Status::Fail);
        assert_eq!(huge_zero_page("0").status, Status::Warn);
    }

    #[test]
    fn refuses_other_architectures_and_other_pages() {
        let status = |name| architecture(name).status;
        assert_eq!(["x86_64", "aarch64"].map(status), [Status::Ok; 2]);
        assert_eq!(status("riscv64"), Status::Fail);
        assert_eq!(pages(HostPages::SUITABLE).found, "pages of 4 KiB and huge pages of 2 MiB");
        let large = pages(HostPages::new(64 << 10));
        assert_eq!(large.status, Status::Fail);
        assert!(large.found.starts_with("pages of 64 KiB and huge pages of 512 MiB; zerosweep"));
        assert!(large.mend.unwrap().starts_with("boot a kernel with 4 KiB pages"));
    }

    #[test]
    fn reads_old_kernels_and_capabilities() {
        assert_eq!(kernel(Some(KernelVersion::new(6, 1))).status, Status::Fail);
        assert_eq!(kernel(Some(KernelVersion::OLDEST)).status, Status::Ok);
        assert!(has_ptrace_capability("Name:\tx\nCapEff:\t0000000000080000\n"));
        assert!(!has_ptrace_capability("CapEff:\t0000000000040000\n"));
    }

    #[test]
    fn reads_memory() {
        let [available, swap] = memory("MemAvailable:   24361208 kB\nSwapTotal:        0 kB\n");
        assert_eq!((available.status, available.found.as_str()), (Status::Ok, "23790 MiB"));
        assert_eq!(swap.status, Status::Ok);
        let [available, swap] = memory("MemAvailable:   1024 kB\nSwapTotal:  2048 kB\n");
        assert_eq!((available.status, swap.status), (Status::Warn, Status::Warn));
    }
}
