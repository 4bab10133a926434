//! `zerosweep doctor`: what this machine allows, and the command that mends each gap.
//!
//! Exit status 0 when guests can run here, 1 when something that they need is missing. What only
//! tests or speed want is a warning.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::process::{Command, ExitCode};

use serde::Serialize;
use zerosweep_client::error::Failure;
use zerosweep_client::output;
use zerosweep_lab::image::GuestImage;
use zerosweep_linux::probe::{Check, Probe, Status};

use crate::cli::ListArguments;
use crate::vmm::host::Host;

/// Prints every finding.
pub(super) fn execute(arguments: &ListArguments) -> Result<ExitCode, Failure> {
    let mut findings: Vec<Finding> = Probe::run().checks.iter().map(Finding::from).collect();
    let host = Host::this();
    findings.extend([
        kvm(),
        nested_guests(&host),
        vhost_net(&host),
        qemu(),
        agent(),
        guest_image(),
    ]);
    let can_run = findings.iter().all(|finding| finding.status != "fail");
    if arguments.json {
        output::json(&Document { schema: 1, can_run, checks: &findings })?;
    } else {
        output::text(&render(&findings, can_run))?;
    }
    Ok(if can_run { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

#[derive(Serialize)]
struct Document<'a> {
    schema: u32,
    can_run: bool,
    checks: &'a [Finding],
}

/// One thing that was looked at.
#[derive(Serialize)]
struct Finding {
    name: String,
    status: &'static str,
    found: String,
    mend: Option<String>,
}

impl Finding {
    fn ok(name: &str, found: impl Into<String>) -> Self {
        Self { name: name.into(), status: "ok", found: found.into(), mend: None }
    }

    fn warn(name: &str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        let (found, mend) = (found.into(), Some(mend.into()));
        Self { name: name.into(), status: "warn", found, mend }
    }
}

impl From<&Check> for Finding {
    fn from(check: &Check) -> Self {
        let status = match check.status {
            Status::Ok => "ok",
            Status::Warn => "warn",
            Status::Fail => "fail",
        };
        let mend = check.mend.as_ref().map(ToString::to_string);
        Self { name: check.name.to_string(), status, found: check.found.to_string(), mend }
    }
}

fn kvm() -> Finding {
    match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => Finding::ok("KVM", "/dev/kvm can be opened"),
        Err(error) => Finding::warn(
            "KVM",
            format!("/dev/kvm: {error}; guests run on the software CPU, slowly"),
            if cfg!(target_arch = "x86_64") {
                "modprobe kvm_intel || modprobe kvm_amd; usermod -aG kvm $USER"
            } else {
                "boot a machine that lets its kernel be a hypervisor; usermod -aG kvm $USER"
            },
        ),
    }
}

/// Guests whose pages the kernel uses in a way that a move does not see are refused by `run`.
fn nested_guests(host: &Host) -> Finding {
    let name = "nested guests";
    match (host.nested_by_reference(), host.nested) {
        (Some((feature, kernel)), _) => Finding::warn(
            name,
            format!("Linux {kernel} does not pin their pages; `-cpu host` is refused"),
            format!("-cpu host,-{feature} for each guest; or Linux 6.13 or newer"),
        ),
        (None, Some(_)) => Finding::ok(name, "allowed, and their pages are pinned"),
        (None, None) => Finding::ok(name, "KVM does not let guests run guests of their own"),
    }
}

fn vhost_net(host: &Host) -> Finding {
    let name = "vhost-net";
    if host.vhost_sends_by_reference {
        Finding::warn(
            name,
            "experimental_zcopytx=1 sends guest pages by reference; `vhost=on` is refused",
            "modprobe -r vhost_net; modprobe vhost_net experimental_zcopytx=0",
        )
    } else {
        Finding::ok(name, "copies what it sends, or is not loaded")
    }
}

fn qemu() -> Finding {
    let (program, package) = if cfg!(target_arch = "aarch64") {
        ("qemu-system-aarch64", "qemu-system-arm")
    } else {
        ("qemu-system-x86_64", "qemu-system-x86")
    };
    match Command::new(program).arg("--version").output() {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout);
            Finding::ok("QEMU", text.lines().next().unwrap_or_default())
        }
        _ => Finding::warn(
            "QEMU",
            format!("{program} cannot be run"),
            format!("apt-get install {package}"),
        ),
    }
}

fn agent() -> Finding {
    match crate::agent::find() {
        Ok(path) => Finding::ok("agent", path.display().to_string()),
        Err(error) => {
            Finding::warn("agent", error.to_string(), "cargo build --release -p zerosweep-agent")
        }
    }
}

fn guest_image() -> Finding {
    match GuestImage::find() {
        Ok(image) => Finding::ok("guest image", format!("Linux {}", image.version)),
        Err(error) => Finding::warn(
            "guest image",
            format!("none, only tests and demos need it ({error})"),
            "cargo xtask setup",
        ),
    }
}

fn render(findings: &[Finding], can_run: bool) -> String {
    let mut text = String::new();
    for finding in findings {
        let Finding { name, status, found, mend } = finding;
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{status:5} {name}: {found}");
        if let Some(mend) = mend {
            let _ = writeln!(text, "      mend: {mend}");
        }
    }
    let verdict = if can_run {
        "guests can run on populate-on-demand memory here"
    } else {
        "guests cannot run on populate-on-demand memory here yet: mend each finding marked fail"
    };
    let _ = writeln!(text, "\n{verdict}");
    text
}

#[cfg(test)]
mod tests {
    use zerosweep_linux::KernelVersion;

    use super::*;

    #[test]
    fn what_makes_run_refuse_guests_is_told_before() {
        let host = |minor, nested, vhost_sends_by_reference| Host {
            shared_by_reference: |_| None,
            kernel: Some(KernelVersion::new(6, minor)),
            nested,
            vhost_sends_by_reference,
        };
        let old = nested_guests(&host(12, Some("svm"), false));
        assert_eq!(old.status, "warn");
        assert!(old.mend.unwrap().starts_with("-cpu host,-svm for each guest"));
        assert_eq!(nested_guests(&host(13, Some("svm"), false)).status, "ok");
        assert_eq!(nested_guests(&host(12, None, false)).status, "ok");
        assert_eq!(vhost_net(&host(12, None, true)).status, "warn");
        assert_eq!(vhost_net(&host(12, None, false)).status, "ok");
    }
}
