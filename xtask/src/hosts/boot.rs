//! Boots a host under QEMU's software CPU, and reads what its steps said.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::arch::Arch;
use super::kernel::HostKernel;

/// A host's memory, in MiB.
const MEMORY: &str = "4096";
/// What a host needs to boot and to end, beside the limits of its steps.
const BOOT: Duration = Duration::from_secs(300);
/// What a step may take longer by this machine's clock than by the host's.
const SLACK: Duration = Duration::from_secs(120);
/// A host that uses so little of the processor for so long does nothing: an idle one has timers.
const IDLE: Duration = Duration::from_secs(60);
const IDLE_TICKS: u64 = 5;

/// A step that was run.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Said {
    pub(crate) step: String,
    /// As a shell says it: 137 is a step that was killed at its limit; or [`CUT_OFF`].
    pub(crate) status: i32,
    pub(crate) seconds: f64,
    pub(crate) text: String,
}

/// The status of a step in which the host ended, or stood still.
pub(crate) const CUT_OFF: i32 = -1;

impl Said {
    /// A step that was not run, or not to its end.
    pub(crate) fn cut_off(step: &str) -> Self {
        Self { step: step.to_owned(), status: CUT_OFF, seconds: 0.0, text: String::new() }
    }
}

/// Boots a kernel, and returns what the steps said, as far as they came. The last may be
/// [`CUT_OFF`]. `limit` gives the longest time for a step.
///
/// # Errors
/// When the host does not come to its first step. The error has the end of its console.
pub(crate) fn boot(
    kernel: &HostKernel,
    arch: Arch,
    initramfs: &Path,
    limit: &dyn Fn(&str) -> Duration,
    log: &Path,
) -> Result<Vec<Said>> {
    let console = log.with_extension("console");
    let (results, port) = arch.results(&console, log.with_extension("results"));
    for file in [&console, &results] {
        let _ = fs::remove_file(file);
    }
    // It ends with this process.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", arch.qemu()]);
    command.args(arch.machine()).args(["-m", MEMORY, "-nodefaults", "-display", "none"]);
    command.args(["-no-reboot", "-monitor", "none"]);
    command.arg("-serial").arg(format!("file:{}", console.display()));
    command.args(port);
    command.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(initramfs);
    command.args(["-append", &arch.command_line()]);
    // It warns of what its software CPU does not have.
    command.stdin(Stdio::null()).stderr(File::create(log)?);
    let mut child = command.spawn().context("starting setpriv")?;
    let ended = watch(&mut child, &results, limit);
    let _ = child.kill();
    let status = child.wait()?;
    let steps = read(&results);
    if steps.is_empty() {
        let why = match (ended, status.success()) {
            (Err(why), _) => why.to_owned(),
            (Ok(()), true) => "it ends before its first step".to_owned(),
            (Ok(()), false) => format!("QEMU: {status}, {}", tail(log)),
        };
        bail!("{why}; its console ends with\n{}", tail(&console));
    }
    Ok(steps)
}

/// Waits until a host has ended.
///
/// # Errors
/// When a step takes longer than it may, or the host does nothing at all: the timers of an emulated
/// processor may be lost, and with them the host's own limits.
fn watch(
    child: &mut Child,
    results: &Path,
    limit: &dyn Fn(&str) -> Duration,
) -> Result<(), &'static str> {
    let mut deadline = Instant::now() + BOOT;
    let (mut length, mut busy, mut ticks) = (0, Instant::now(), 0);
    loop {
        if !matches!(child.try_wait(), Ok(None)) {
            return Ok(());
        }
        let now = fs::metadata(results).map_or(0, |metadata| metadata.len());
        if now != length {
            length = now;
            let open = read(results).pop().filter(|said| said.status == CUT_OFF);
            deadline = Instant::now() + open.map_or(BOOT, |said| limit(&said.step) + SLACK);
        }
        let used = processor_ticks(child.id());
        if used.saturating_sub(ticks) > IDLE_TICKS {
            (busy, ticks) = (Instant::now(), used);
        }
        if busy.elapsed() > IDLE {
            return Err("it stands still");
        }
        if Instant::now() > deadline {
            return Err("it takes too long");
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// The processor time of a process, in hundredths of a second.
fn processor_ticks(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name before it may have blanks.
    let fields = text.rsplit(')').next().unwrap_or_default();
    fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum()
}

fn read(results: &Path) -> Vec<Said> {
    let said = fs::read(results).unwrap_or_default();
    parse(&String::from_utf8_lossy(&said).replace('\r', ""))
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
        steps.push(Said { text, ..Said::cut_off(&step) });
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
        assert_eq!((demo.status, demo.text.as_str()), (CUT_OFF, "half\n"));
    }

    #[test]
    fn the_processor_time_of_a_process_is_read() {
        let end = Instant::now() + Duration::from_secs(10);
        let mut sum = 0_u64;
        while processor_ticks(std::process::id()) < 5 {
            sum = (0..1 << 16).fold(sum, |sum, n| sum.wrapping_add(std::hint::black_box(n)));
            assert!(Instant::now() < end, "{sum}");
        }
        assert_eq!(processor_ticks(u32::MAX), 0);
    }

    #[test]
    fn a_host_that_ends_is_not_waited_for() {
        let mut ended = Command::new("true").spawn().unwrap();
        let limit = |_: &str| Duration::ZERO;
        assert_eq!(watch(&mut ended, Path::new("/nonexistent"), &limit), Ok(()));
    }
}
