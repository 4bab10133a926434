//! `zerosweep-qemu`: what a libvirt domain names in `<emulator>`. It becomes QEMU, with the agent
//! preloaded, in the process that libvirt started.
//!
//! ```text
//! libvirt ─exec─► zerosweep-qemu ─exec─► QEMU + agent      the same process: libvirt's pid, cgroup,
//!                       │                  ▲               descriptors and log are QEMU's own
//!                       └─starts─► companion               `run`'s supervisor; ends with QEMU
//! ```
//!
//! | module | what |
//! | --- | --- |
//! | `settings` | target and the rest: environment, `/etc/zerosweep/qemu.toml` |
//! | `companion` | the process beside QEMU |
//!
//! A command line that only asks what QEMU can do (libvirt's probing, `-version`) is passed on
//! untouched. Other command lines are refused for the same reasons as by `zerosweep run`, with the
//! same messages, before QEMU is started. libvirt shows the messages, and they are in
//! `/var/log/libvirt/qemu/NAME.log`.
//!
//! **The target.** libvirt passes `<memory>` to QEMU on the command line and `<currentMemory>`
//! later: it starts QEMU stopped (`-S`), sends `balloon` over QMP, and then lets the guest run
//! (`cont`). `virsh setmem` sends `balloon` again. No command of QEMU says what its balloon was
//! asked for, and QEMU serves libvirt's socket to libvirt alone. So the agent inside QEMU also
//! reads what comes in on that socket. The first request sets the target before the guest has run
//! at all, and a higher one raises the target before the balloon gets it. A lower one is followed
//! by the companion, as the guest gives pages back. A target in the settings is used from the
//! start, and the companion asks the balloon for it when the guest runs.
//!
//! Why there is a companion, and not more work for the agent: the companion tells the agent which
//! threads are virtual CPUs, checks guest RAM, reports alarms, and clears up after a QEMU that was
//! killed. It does all of this with the code of `run`, and no error in it can harm the guest. If
//! the companion is killed, the guest goes on, and a higher request still raises its target.

mod companion;
mod settings;

use std::convert::Infallible;
use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use zerosweep_client::error::Failure;
use zerosweep_client::output::eprint_line;
use zerosweep_linux::probe::Probe;
use zerosweep_wire::EventDetail;
use zerosweep_wire::runtime as wire;

use self::settings::{Manage, Settings};
use crate::commands::run::plan::{ManagedBy, Plan, Wanted};
use crate::vmm::options::{Help, Line};
use crate::vmm::{args, program, queries};

/// Becomes QEMU, or the companion of one.
pub(crate) fn execute(arguments: Vec<OsString>) -> Result<ExitCode, Failure> {
    if let Some(code) = companion::execute(&arguments)? {
        return Ok(code);
    }
    let settings = Settings::read(args::name(&Line::by_tables(&arguments)).as_deref())?;
    let never = if settings.manage == Manage::No || only_asks(&settings, &arguments) {
        Err(become_program(Command::new(&settings.qemu).args(&arguments)))
    } else {
        become_managed(&settings, arguments)
    };
    match never {
        Err(failure) => Err(failure),
        Ok(never) => match never {},
    }
}

fn only_asks(settings: &Settings, arguments: &[OsString]) -> bool {
    let path = std::env::var_os("PATH");
    let ask = || Help::of(&program::find(&settings.qemu, path.as_deref()).ok()?);
    queries::only_asks(&Line::read(arguments, ask))
}

fn become_managed(settings: &Settings, arguments: Vec<OsString>) -> Result<Infallible, Failure> {
    let mut vmm = vec![settings.qemu.clone()];
    vmm.extend(arguments);
    let wanted = Wanted {
        name: None,
        target: settings.target,
        max_mem: None,
        policy: &settings.policy,
        on_exhaustion: settings.on_exhaustion,
        return_mode: settings.return_mode,
        events: None,
        event_detail: EventDetail::Xen,
        vmm: &vmm,
        managed_by: ManagedBy::AnotherTool,
    };
    let directory = directory();
    let plan = Plan::new(&wanted, &directory)?;
    check_machine()?;
    plan.notes.iter().for_each(|note| eprint_line(&format!("warning: {note}")));
    companion::start(&plan)?;
    Err(become_program(&mut plan.command()?))
}

fn become_program(command: &mut Command) -> Failure {
    let error = command.exec();
    Failure::work(format!("cannot start {}: {error}", Path::new(command.get_program()).display()))
}

/// Where the sockets go. A service has no runtime directory of its own: one is made for it.
fn directory() -> PathBuf {
    let is_set = std::env::var_os("XDG_RUNTIME_DIR").is_some_and(|value| !value.is_empty());
    let uid = rustix::process::geteuid().as_raw();
    directory_for(is_set, uid, |path| path.is_dir())
}

fn directory_for(is_set: bool, uid: u32, is_there: impl Fn(&Path) -> bool) -> PathBuf {
    if is_set {
        return wire::directory();
    }
    // A session's libvirt passes no XDG_RUNTIME_DIR on; its user's tools have one all the same.
    let session = PathBuf::from(format!("/run/user/{uid}"));
    if uid != 0 && is_there(&session) {
        session.join("zerosweep")
    } else {
        PathBuf::from(wire::SERVICE_DIRECTORY)
    }
}

/// Refuses a machine on which the agent would fail inside QEMU, where its messages are harder to
/// see.
fn check_machine() -> Result<(), Failure> {
    let probe = Probe::run();
    let Some(check) = probe.first_failure() else { return Ok(()) };
    let libvirt = if check.name.contains("userfaultfd") {
        ". Under libvirt: write \"/dev/userfaultfd\" into cgroup_device_acl in \
             /etc/libvirt/qemu.conf (with the devices that the comment there lists), write \
             KERNEL==\"userfaultfd\", GROUP=\"kvm\", MODE=\"0660\" into \
             /etc/udev/rules.d/70-userfaultfd.rules, then `udevadm control --reload; udevadm trigger \
             /dev/userfaultfd; systemctl restart libvirtd`; or set user = \"root\" there \
             (docs/libvirt.md)"
    } else {
        ""
    };
    Err(Failure::work(format!("this guest cannot be managed here: {check}{libvirt}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_where_tools_look() {
        let service = PathBuf::from("/run/zerosweep-qemu");
        assert_eq!(directory_for(false, 64_055, |_| false), service);
        assert_eq!(directory_for(false, 0, |_| true), service, "root's session is not libvirt's");
        assert_eq!(directory_for(false, 1000, |_| true), PathBuf::from("/run/user/1000/zerosweep"));
        assert_eq!(directory_for(true, 0, |_| true), wire::directory());
        assert!(wire::directories().contains(&service));
    }
}
