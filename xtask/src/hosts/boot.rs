//! Boots a host under QEMU's software CPU, and reads what its steps said.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::arch::Arch;
use super::kernel::HostKernel;

/// A host's memory, in MiB.
const MEMORY: &str = "4096";
/// What a host needs to boot and to end, beside the limits of its steps.
const BOOT: Duration = Duration::from_secs(300);

/// A step that was run.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Said {
    pub(crate) step: String,
    /// As a shell says it: 137 is a step that was killed at its limit.
    pub(crate) status: i32,
    pub(crate) seconds: f64,
    pub(crate) text: String,
}

/// Boots a kernel, and returns what the steps said that came to an end.
///
/// # Errors
/// When the host does not boot, or does not end. The error has the end of its console.
pub(crate) fn boot(
    kernel: &HostKernel,
    arch: Arch,
    initramfs: &Path,
    limit: Duration,
    log: &Path,
) -> Result<Vec<Said>> {
    let console = log.with_extension("console");
    let (results, port) = arch.results(&console, log.with_extension("results"));
    for file in [&console, &results] {
        let _ = fs::remove_file(file);
    }
    let mut command = Command::new("timeout");
    command.arg("--signal=KILL").arg((BOOT + limit).as_secs().to_string()).arg(arch.qemu());
    command.args(arch.machine()).args(["-m", MEMORY, "-nodefaults", "-display", "none"]);
    command.args(["-no-reboot", "-monitor", "none"]);
    command.arg("-serial").arg(format!("file:{}", console.display()));
    command.args(port);
    command.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(initramfs);
    command.args(["-append", &arch.command_line()]);
    // It warns of what its software CPU does not have.
    let status = command.stdin(Stdio::null()).stderr(File::create(log)?).status();
    let status = status.context("starting timeout")?;
    let said = fs::read(&results).unwrap_or_default();
    let steps = parse(&String::from_utf8_lossy(&said).replace('\r', ""));
    // What was done before the host ended counts, however it ended.
    if steps.is_empty() {
        let why = match status.code() {
            Some(124 | 137) => "it takes too long".to_owned(),
            Some(0) => "it ends before its first step".to_owned(),
            _ => format!("QEMU: {status}, {}", tail(log)),
        };
        bail!("{why}; its console ends with\n{}", tail(&console));
    }
    Ok(steps)
}

fn tail(file: &Path) -> String {
    let text = fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

/// Reads what [`super::system`]'s init writes.
fn parse(text: &str) -> Vec<Said> {
    let mut steps = Vec::new();
    let mut open: Option<(String, f64, String)> = None;
    for line in text.lines() {
        let words: Vec<_> = line.split(' ').collect();
        match (words.as_slice(), open.as_mut()) {
            (["@begin", name, at], _) => {
                open = Some(((*name).to_owned(), at.parse().unwrap_or(0.0), String::new()));
            }
            (["@end", name, status, at], Some((step, began, said))) if name == step => {
                steps.push(Said {
                    step: step.clone(),
                    status: status.parse().unwrap_or(-1),
                    seconds: at.parse().unwrap_or(0.0) - *began,
                    text: said.trim_end().to_owned(),
                });
                open = None;
            }
            (_, Some((_, _, said))) => {
                said.push_str(line);
                said.push('\n');
            }
            _ => {}
        }
    }
    if let Some((step, _, text)) = open {
        // The host ended, or was ended, meanwhile.
        steps.push(Said { step, status: -1, seconds: 0.0, text });
    }
    steps
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn steps_are_read_with_what_they_said() {
        let text = "@host 6.18\r\n@begin doctor 3.50\nok\n@end other 1 2\n\n@end doctor 0 5.00\n\
                    @begin demo 5.10\nhalf";
        let steps = parse(&text.replace('\r', ""));
        let [doctor, demo] = &steps[..] else { panic!("two steps") };
        assert_eq!((doctor.step.as_str(), doctor.status), ("doctor", 0));
        assert_eq!((doctor.text.as_str(), doctor.seconds), ("ok\n@end other 1 2", 1.5));
        assert_eq!((demo.status, demo.text.as_str()), (-1, "half\n"));
    }
}
