//! The demo with a real Linux guest under QEMU: first without us, then with.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde::Serialize;
use zerosweep_client::error::Failure;
use zerosweep_client::output;
use zerosweep_client::size::Size;
use zerosweep_lab::host::{HostFacts, rss_anon_bytes};
use zerosweep_lab::image::GuestImage;
use zerosweep_lab::result::SCHEMA;
use zerosweep_wire::{Operation, Status};

use super::{Narrator, sizes};
use crate::cli::DemoArguments;

const VMM: &str = "qemu-system-x86_64";
/// How long a guest may take in all.
const LIMIT: Duration = Duration::from_secs(180);
const MARKER: &str = "zerosweep-guest: ";

/// What was seen of one guest.
#[derive(Debug, Default, Serialize)]
struct Seen {
    with_zerosweep: bool,
    boot_seconds: Option<f64>,
    peak_rss_anon_bytes: u64,
    verified: Option<String>,
    done: bool,
    status: Option<Box<Status>>,
}

#[derive(Serialize)]
struct Document<'a> {
    schema: u32,
    host: HostFacts,
    max_mem_bytes: u64,
    target_bytes: u64,
    guests: &'a [Seen],
}

/// Runs both guests.
pub(super) fn execute(arguments: &DemoArguments) -> Result<ExitCode, Failure> {
    let (max_mem, target) = sizes(arguments, 2 << 30)?;
    let image = GuestImage::find().map_err(|error| {
        Failure::work(format!(
            "no guest image: {error:#}. `cargo xtask setup` gets QEMU and a kernel and builds one"
        ))
    })?;
    let say = Narrator { quiet: arguments.json };
    say.line(format_args!(
        "A Linux guest ({}) that clears freed memory (init_on_free=1) is told that it has {max_mem}.\n",
        image.version
    ));
    let mut guests = Vec::new();
    for managed in [false, true] {
        let title = if managed {
            format!("zerosweep run --target {target} -- {VMM}")
        } else {
            format!("{VMM} alone")
        };
        say.line(&title);
        let guest = Guest::start(&image, max_mem, target, managed)?;
        let seen = guest.follow(&say)?;
        say.line(format_args!(
            "  at most {} of host memory with QEMU's own\n",
            Size(seen.peak_rss_anon_bytes).rounded()
        ));
        guests.push(seen);
    }
    let (max_mem_bytes, target_bytes) = (max_mem.0, target.0);
    if arguments.json {
        let host = HostFacts::read();
        let schema = SCHEMA;
        output::json(&Document { schema, host, max_mem_bytes, target_bytes, guests: &guests })?;
    } else {
        output::text(&comparison(&guests))?;
    }
    let good = guests.iter().all(|seen| seen.done);
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn comparison(guests: &[Seen]) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{:16} {:>12} {:>14} {:>12}", "", "boot, s", "peak RSS", "pattern");
    for seen in guests {
        let name = if seen.with_zerosweep { "with zerosweep" } else { "plain QEMU" };
        let boot = seen.boot_seconds.map_or("-".into(), |seconds| format!("{seconds:.2}"));
        let peak = Size(seen.peak_rss_anon_bytes).rounded();
        let pattern = if seen.done { "intact" } else { "not checked" };
        let _ = writeln!(text, "{name:16} {boot:>12} {peak:>14} {pattern:>12}");
    }
    if let Some(status) = guests.iter().find_map(|seen| seen.status.as_ref()) {
        let whole = &status.superpages;
        let by_kernel = whole.in_guest_by_kernel.unwrap_or(0);
        let _ = writeln!(
            text,
            "\n{} whole superpages in the guest ({by_kernel} by the kernel), {} in the cache",
            whole.in_guest, whole.in_cache
        );
    }
    text
}

struct Guest {
    child: Child,
    name: Option<String>,
    started: Instant,
    lines: Receiver<String>,
}

impl Guest {
    fn start(
        image: &GuestImage,
        max_mem: Size,
        target: Size,
        managed: bool,
    ) -> Result<Self, Failure> {
        let name = managed.then(|| format!("demo-{}", std::process::id()));
        let mut command = match &name {
            None => Command::new(VMM),
            Some(name) => {
                let program = std::env::current_exe().map_err(Failure::work)?;
                let mut command = Command::new(program);
                command.args(["run", "--name", name, "--target", &target.0.to_string(), "--", VMM]);
                command
            }
        };
        let append = "console=ttyS0 quiet panic=-1 no_timer_check init_on_free=1 zs.fill=64M";
        command.args(["-m", &format!("{}M", max_mem.0 >> 20), "-nographic", "-no-reboot"]);
        command.arg("-kernel").arg(&image.kernel).arg("-initrd").arg(&image.initrd);
        command.args(["-append", append, "-device", "virtio-balloon-pci"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let started = Instant::now();
        let mut child = command.spawn().map_err(|error| {
            Failure::work(format!("cannot start {VMM}: {error}; `apt-get install qemu-system-x86`"))
        })?;
        let (send, lines) = channel();
        if let Some(stdout) = child.stdout.take() {
            std::thread::spawn(move || {
                let reader = BufReader::new(stdout);
                for line in reader.split(b'\n').map_while(Result::ok) {
                    if send.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                        break;
                    }
                }
            });
        }
        Ok(Self { child, name, started, lines })
    }

    /// Follows the guest to its end.
    fn follow(mut self, say: &Narrator) -> Result<Seen, Failure> {
        let mut seen = Seen { with_zerosweep: self.name.is_some(), ..Seen::default() };
        while self.started.elapsed() < LIMIT {
            match self.lines.recv_timeout(Duration::from_millis(50)) {
                Ok(line) => self.read(&line, &mut seen, say),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.sample(&mut seen);
        }
        self.stop();
        Ok(seen)
    }

    fn read(&self, line: &str, seen: &mut Seen, say: &Narrator) {
        let Some((_, marker)) = line.split_once(MARKER) else { return };
        let marker = marker.trim();
        let seconds = self.started.elapsed().as_secs_f64();
        say.line(format_args!("  {seconds:5.1} s  {marker}"));
        match marker.split_once(' ') {
            Some(("boot", _)) => seen.boot_seconds = Some(seconds),
            Some(("verified", rest)) => seen.verified = Some(rest.to_owned()),
            Some(("done", "ok")) => seen.done = true,
            _ => {}
        }
    }

    fn sample(&self, seen: &mut Seen) {
        let status = self
            .name
            .as_ref()
            .and_then(|name| super::super::connect(name).ok()?.request(Operation::Status).ok());
        let pid = status.as_ref().map_or(self.child.id(), |status| status.pid);
        let is_vmm = self.name.is_none() || status.is_some();
        if is_vmm && let Some(bytes) = rss_anon_bytes(pid) {
            seen.peak_rss_anon_bytes = seen.peak_rss_anon_bytes.max(bytes);
        }
        if let Some(status) = status {
            seen.status = Some(Box::new(status));
        }
    }

    fn stop(&mut self) {
        if self.started.elapsed() >= LIMIT {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}
