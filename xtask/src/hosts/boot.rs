//! Boots a host under QEMU's software CPU, and reads what its steps said.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::Arch;
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
    let results = log.with_extension("results");
    let mut command = Command::new(arch.qemu());
    command.args(arch.machine()).args(["-m", MEMORY, "-nodefaults", "-display", "none"]);
    command.args(["-no-reboot", "-monitor", "none"]);
    for file in [&console, &results] {
        let _ = fs::remove_file(file);
    }
    command.arg("-serial").arg(format!("file:{}", console.display()));
    command.args(arch.results(&results));
    command.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(initramfs);
    command.args(["-append", &arch.command_line()]);
    // It warns of what its software CPU does not have.
    let errors = File::create(log)?;
    let ended = run(command.stdin(Stdio::null()).stderr(errors), BOOT + limit);
    let said = fs::read(&results).unwrap_or_default();
    let said = parse(&String::from_utf8_lossy(&said));
    let is_done = said.is_done;
    match ended {
        Ok(()) if is_done => Ok(said.steps),
        // What was done before counts.
        _ if !said.steps.is_empty() => Ok(said.steps),
        ended => {
            let why = ended.err().map_or_else(|| "it ended early".to_owned(), |e| format!("{e:#}"));
            bail!("{why}; its console ends with\n{}", tail(&console))
        }
    }
}

fn run(command: &mut Command, limit: Duration) -> Result<()> {
    let mut child = command.spawn().with_context(|| format!("starting {command:?}"))?;
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return if status.success() { Ok(()) } else { bail!("QEMU: {status}") };
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            bail!("it did not end within {} s", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn tail(console: &PathBuf) -> String {
    let text = fs::read(console).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

#[derive(Default)]
struct Results {
    steps: Vec<Said>,
    is_done: bool,
}

/// Reads what [`super::system`]'s init writes.
fn parse(text: &str) -> Results {
    let mut results = Results::default();
    let mut open: Option<(String, f64, String)> = None;
    for line in text.lines() {
        let words: Vec<_> = line.split(' ').collect();
        match (words.as_slice(), open.as_mut()) {
            (["@begin", name, at], _) => {
                open = Some(((*name).to_owned(), at.parse().unwrap_or(0.0), String::new()));
            }
            (["@end", name, status, at], Some((step, began, said))) if name == step => {
                results.steps.push(Said {
                    step: step.clone(),
                    status: status.parse().unwrap_or(-1),
                    seconds: at.parse().unwrap_or(0.0) - *began,
                    text: said.trim_end().to_owned(),
                });
                open = None;
            }
            (["@done"], _) => results.is_done = true,
            (_, Some((_, _, said))) => {
                said.push_str(line);
                said.push('\n');
            }
            _ => {}
        }
    }
    if let Some((step, _, text)) = open {
        // The host ended, or was ended, meanwhile.
        results.steps.push(Said { step, status: -1, seconds: 0.0, text });
    }
    results
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn steps_are_read_with_what_they_said() {
        let text = "@host 6.18\r\n@begin doctor 3.50\nok\n@end other 1 2\n\n@end doctor 0 5.00\n\
                    @begin demo 5.10\nhalf";
        let results = parse(&text.replace('\r', ""));
        assert!(!results.is_done);
        let [doctor, demo] = &results.steps[..] else { panic!("two steps") };
        assert_eq!((doctor.step.as_str(), doctor.status), ("doctor", 0));
        assert_eq!((doctor.text.as_str(), doctor.seconds), ("ok\n@end other 1 2", 1.5));
        assert_eq!((demo.status, demo.text.as_str()), (-1, "half\n"));
        assert!(parse("@done\n").is_done);
    }

    #[test]
    fn what_does_not_end_is_ended() {
        let mut sleeper = Command::new("sleep");
        sleeper.arg("100");
        let error = run(&mut sleeper, Duration::from_millis(200)).unwrap_err();
        assert!(error.to_string().contains("did not end"));
    }
}
