//! What process 1 does to its machine: mounts and the end.

use std::fs;
use std::io;
use std::path::Path;

use rustix::mount::{MountFlags, mount};
use rustix::system::RebootCommand;

use crate::failure::Failure;
use crate::options::End;

/// Where the files of the churn live.
pub(crate) const WORK: &str = "/work";

/// Mounts what the first marker needs.
pub(crate) fn mount_console() -> Result<(), Failure> {
    mount_at("devtmpfs", "/dev", c"")?;
    mount_at("proc", "/proc", c"")
}

/// Mounts the rest.
pub(crate) fn mount_rest() -> Result<(), Failure> {
    mount_at("sysfs", "/sys", c"")?;
    mount_at("tmpfs", WORK, c"size=100%")
}

fn mount_at(kind: &str, target: &str, data: &std::ffi::CStr) -> Result<(), Failure> {
    let fail = |e: io::Error| Failure::new("mount", format_args!("{kind} on {target}: {e}"));
    fs::create_dir_all(Path::new(target)).map_err(fail)?;
    match mount(kind, target, kind, MountFlags::empty(), data) {
        // Some kernels mount /dev themselves.
        Ok(()) | Err(rustix::io::Errno::BUSY) => Ok(()),
        Err(e) => Err(fail(e.into())),
    }
}

/// Seconds since the kernel started.
pub(crate) fn uptime_seconds() -> f64 {
    let text = fs::read_to_string("/proc/uptime").unwrap_or_default();
    text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0.0)
}

/// Ends the machine; returns for [`End::Idle`], and when the kernel refuses.
pub(crate) fn end(end: End) {
    let command = match end {
        End::PowerOff => RebootCommand::PowerOff,
        End::Reboot => RebootCommand::Restart,
        End::Idle => return,
    };
    rustix::fs::sync();
    if rustix::system::reboot(command).is_err() {
        // A machine without a way to switch itself off.
        let _ = rustix::system::reboot(RebootCommand::Halt);
    }
}
