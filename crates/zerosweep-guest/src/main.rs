//! The `/init` of zerosweep's test guests: the only program in them, process 1, linked statically.
//!
//! It loads the virtio modules, fills memory with a pattern that tells a lost, moved or doubled
//! page at once, optionally scrubs and churns memory, loads the balloon driver, checks the pattern
//! while the balloon inflates and again at the end, and powers off. What to do comes from the
//! kernel command line ([`options`]); what happened goes to `/dev/console`, one line each, behind
//! the prefix `zerosweep-guest: ` ([`console`]):
//!
//! ```text
//! boot uptime=1.42 cpus=2 mem_total=2031248
//! modules loaded=virtio_ring,virtio,… absent=
//! filled bytes=100663296 seed=1 seconds=0.412
//! churned bytes=… files=… kept=… seconds=…
//! scrubbed bytes=… seconds=…
//! balloon loaded devices=1
//! balloon settled mem_before=2031248 mem_total=241248 seconds=1.804
//! touched bytes=… seconds=…
//! damaged page=17 offset=0 expected=0x… found=0x…
//! verified pages=24576 bad=0 passes=9
//! done ok
//! stirred round=0 bytes=… files=… bad=0
//! alive uptime=9.87 mem_total=241248 pages=24576 bad=0
//! ```
//!
//! A failure is a line `error …`, then `done failed reason=…`, and the end that was asked for; the
//! guest never hangs on one.
//!
//! Known holes: a kernel with a built-in balloon driver inflates before the scrub; memory that is
//! taken away while it is in use by the kernel itself ends in the kernel's own panic (boot with
//! `panic=-1` and QEMU's `-no-reboot`).
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::thread;
use std::time::Duration;

mod balloon;
mod churn;
mod console;
mod failure;
mod meminfo;
mod memory;
mod modules;
mod net;
mod options;
mod pattern;
mod scrub;
mod stages;
mod system;
mod watcher;

fn main() -> ExitCode {
    if std::process::id() != 1 {
        eprintln!(
            "zerosweep-guest is the /init of a test guest: it mounts filesystems and powers the \
             machine off, so it runs as process 1 only; `zerosweep guest-image` packs it"
        );
        return ExitCode::from(2);
    }
    std::panic::set_hook(Box::new(|panic| {
        console::mark(format_args!("error panic {panic}"));
        console::mark("done failed reason=panic");
        system::end(options::End::PowerOff);
    }));
    let end = stages::run();
    system::end(end);
    // Only reached when the kernel refused: process 1 must not return.
    loop {
        thread::sleep(Duration::from_secs(3600));
    }
}
