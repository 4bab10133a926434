//! What this machine allows.

use std::env;
use std::fs;
use std::fs::OpenOptions;
use std::path::PathBuf;

/// Whether this process is root.
pub(crate) fn is_root() -> bool {
    status_field("Uid").is_some_and(|ids| ids.split_whitespace().nth(1) == Some("0"))
}

/// Whether apt manages this system.
pub(crate) fn has_apt() -> bool {
    program("apt-get").is_some() && program("dpkg-deb").is_some()
}

/// Where a program is on the PATH.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|dir| dir.join(name)).find(|path| path.is_file())
}

/// Whether a process may take the faults of kernel mode with userfaultfd, and move pages.
///
/// # Errors
/// Why not.
pub(crate) fn userfaultfd() -> Result<(), String> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    if kernel_version(&release).is_none_or(|version| version < (6, 8)) {
        return Err(format!("UFFDIO_MOVE needs Linux 6.8, this is {}", release.trim()));
    }
    if OpenOptions::new().read(true).write(true).open("/dev/userfaultfd").is_ok()
        || has_sys_ptrace()
        || fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd")
            .is_ok_and(|v| v.trim() == "1")
    {
        return Ok(());
    }
    Err("userfaultfd in kernel mode is not allowed to this user".to_owned())
}

/// Whether a process may start virtual machines.
///
/// # Errors
/// Why not.
pub(crate) fn kvm() -> Result<(), String> {
    device("/dev/kvm")
}

/// Whether the kernel serves the queues of network devices, and QEMU can make an interface.
///
/// # Errors
/// Why not.
pub(crate) fn vhost_net() -> Result<(), String> {
    device("/dev/vhost-net")?;
    device("/dev/net/tun")
}

/// Whether a device can be used.
fn device(path: &str) -> Result<(), String> {
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
            Err(format!("{path} is not allowed to this user"))
        }
        Err(e) => Err(format!("{path}: {e}")),
    }
}

/// Whether guests run on the processor itself, with nested page tables, and whether KVM's figures
/// can be read.
///
/// # Errors
/// Why not.
pub(crate) fn hardware_kvm() -> Result<(), String> {
    const NESTED: [&str; 2] =
        ["/sys/module/kvm_amd/parameters/npt", "/sys/module/kvm_intel/parameters/ept"];
    kvm()?;
    let is_on = |file: &&str| fs::read_to_string(file).is_ok_and(|v| matches!(v.trim(), "Y" | "1"));
    if !NESTED.iter().any(is_on) {
        return Err("KVM does not use a processor's nested page tables here".to_owned());
    }
    match fs::metadata("/sys/kernel/debug/kvm") {
        Ok(_) => Ok(()),
        Err(e) => Err(format!("/sys/kernel/debug/kvm: {e}")),
    }
}

/// Whether a process may use io_uring.
///
/// # Errors
/// Why not.
pub(crate) fn io_uring() -> Result<(), String> {
    const SETTING: &str = "/proc/sys/kernel/io_uring_disabled";
    let disabled = fs::read_to_string(SETTING).map_err(|e| {
        format!("this kernel has no io_uring, or is older than 6.6 ({SETTING}: {e})")
    })?;
    match disabled.trim() {
        "0" => Ok(()),
        "1" if is_root() => Ok(()),
        value => Err(format!("{SETTING} is {value}")),
    }
}

/// What the CPU calls itself, fit for a file name.
pub(crate) fn slug() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field =
        |name| info.lines().find_map(|line| Some(line.strip_prefix(name)?.split_once(':')?.1));
    // Arm has no name there, but numbers.
    slug_of(field("model name").or_else(|| field("CPU part")).unwrap_or(env::consts::ARCH))
}

fn slug_of(name: &str) -> String {
    let name = name.to_lowercase().replace("(r)", " ").replace("(tm)", " ");
    let words = name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-")
}

/// The running kernel.
pub(crate) fn kernel() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

/// Load averages and the number of CPUs.
pub(crate) fn load() -> String {
    let averages = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let averages: Vec<_> = averages.split_whitespace().take(3).collect();
    let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get());
    format!("{} on {cpus} CPUs", averages.join(" "))
}

fn has_sys_ptrace() -> bool {
    const CAP_SYS_PTRACE: u32 = 19;
    status_field("CapEff")
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask >> CAP_SYS_PTRACE & 1 == 1)
}

fn status_field(name: &str) -> Option<String> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.to_owned()))
}

fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod unit_tests {
    use super::{kernel_version, slug_of};

    #[test]
    fn names_of_cpus_are_fit_for_files() {
        assert_eq!(slug_of(" Intel(R) Xeon(R) Processor"), "intel-xeon-processor");
        assert_eq!(slug_of("AMD EPYC 9R14 @ 3.7GHz"), "amd-epyc-9r14-3-7ghz");
    }

    #[test]
    fn kernel_versions_compare_by_number() {
        assert_eq!(kernel_version("6.18.44-fc-v669\n"), Some((6, 18)));
        assert_eq!(kernel_version("5.15-rc1"), Some((5, 15)));
        assert!(kernel_version("6.10.0") > kernel_version("6.8.0"));
        assert_eq!(kernel_version("none"), None);
    }
}
