//! `zerosweep set-target NAME SIZE`: what the guest may hold, and its balloon, together.
//!
//! As `xl mem-set`: the engine's target first, so that nothing more is given out beyond it; then
//! the balloon is asked to follow. `--wait` waits until it has.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use zerosweep_wire::{Operation, Status, runtime};

use super::ask;
use crate::cli::TargetArguments;
use crate::client::Client;
use crate::console::{Console, Terminal, Verbosity};
use crate::error::Failure;
use crate::output;
use crate::qmp::Qmp;
use crate::runtime::GuestFiles;
use crate::size::{PAGE_BYTES, Size, pages};

/// Longest wait for one answer of QEMU.
const QMP_TIMEOUT: Duration = Duration::from_secs(2);
/// Between two looks at the guest.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Sets the target.
pub(super) fn execute(arguments: &TargetArguments) -> Result<ExitCode, Failure> {
    let (name, size) = (arguments.guest.name.as_str(), arguments.size);
    let mut client = super::connect(name)?;
    let before = ask(&mut client, name, Operation::Status)?;
    let max = Size(before.max_mem_bytes);
    if !size.is_whole_pages() || size.0 == 0 || size > max {
        return Err(Failure::usage(format!(
            "a target of {size} cannot be: guest {name} has {max}, and a target is above 0, at most \
             that, and a multiple of 4K"
        )));
    }
    let mut status = ask(&mut client, name, Operation::SetTarget { target_bytes: size.0 })?;
    let files = GuestFiles::new(&runtime::directory(), name)?;
    let asked = Qmp::connect(&files.qmp, QMP_TIMEOUT).and_then(|mut qmp| qmp.set_balloon(size.0));
    if let Err(error) = asked {
        return Err(Failure::work(format!(
            "guest {name} has the target {size} now, but its balloon cannot be asked to follow: \
             {error}"
        )));
    }
    if let Some(limit) = arguments.wait {
        status = wait(&mut client, name, limit, &before)?;
    }
    if arguments.guest.json {
        output::json(&status)?;
    } else {
        output::text(&told(&status))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Waits until the guest owes nothing and holds no more than it may.
fn wait(
    client: &mut Client,
    name: &str,
    limit: Duration,
    before: &Status,
) -> Result<Status, Failure> {
    let console = Console::new(Verbosity::Normal, Terminal::Ours);
    let deadline = Instant::now() + limit;
    let owed = |status: &Status| status.pages.owed.max(0).unsigned_abs();
    let above = |status: &Status| status.pages.total.saturating_sub(status.pages.target);
    let first = before.pages.total.max(1);
    loop {
        let status = ask(client, name, Operation::Status)?;
        let left = owed(&status).max(above(&status));
        if left == 0 {
            return Ok(status);
        }
        if Instant::now() >= deadline {
            return Err(Failure::work(format!(
                "guest {name} is still {} away from its target after {limit:?}",
                pages(left)
            )));
        }
        let all = first.max(left);
        console.moving(&format!("guest {name}: {} to go", pages(left)), all - left, all);
        std::thread::sleep(LOOK_INTERVAL);
    }
}

fn told(status: &Status) -> String {
    let name = &status.name;
    let (target, holds) = (Size(status.target_bytes), Size(status.pages.total * PAGE_BYTES));
    let mut text = format!("{name}: target {target}, holds {}\n", holds.rounded());
    let owed = status.pages.owed;
    if owed > 0 {
        text += &format!("its balloon has {} to give back\n", pages(owed.unsigned_abs()));
    }
    text
}
