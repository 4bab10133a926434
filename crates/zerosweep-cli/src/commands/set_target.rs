//! `zerosweep set-target NAME SIZE`: what the guest may hold, and its balloon, together.
//!
//! As `xl mem-set`: the engine's target first, so that nothing more is given out beyond it; then
//! the balloon is asked to follow, and waited for while it moves.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use zerosweep_client::agent::Client;
use zerosweep_client::error::Failure;
use zerosweep_client::output;
use zerosweep_client::qmp::Qmp;
use zerosweep_client::runtime;
use zerosweep_client::size::{PAGE_BYTES, Size, pages};
use zerosweep_client::target::{self, Change};
use zerosweep_wire::{Operation, Status};

use super::ask;
use crate::cli::TargetArguments;
use crate::console::{Console, Terminal, Verbosity};

/// Between two looks at the guest.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// What is no difference between a balloon and its target, in pages.
const SLACK_PAGES: u64 = 16;

/// A balloon that has not moved for so long may be that of a guest that is paused, or be where it
/// should be without the engine's knowing.
const REST: Duration = Duration::from_millis(500);

/// Sets the target.
pub(super) fn execute(arguments: &TargetArguments) -> Result<ExitCode, Failure> {
    let (name, size) = (arguments.guest.name.as_str(), arguments.size);
    let mut client = super::connect(name)?;
    let files = runtime::find(name)?;
    let Change { after, mut qmp } = target::set(&mut client, &files, name, size)?;
    let status = if arguments.no_wait {
        after
    } else {
        Following { client: &mut client, qmp: &mut qmp, name, size }.wait(arguments.wait)?
    };
    if arguments.guest.json {
        output::json(&status)?;
    } else {
        output::text(&told(&status))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A balloon on its way to a target.
struct Following<'a> {
    client: &'a mut Client,
    qmp: &'a mut Qmp,
    name: &'a str,
    size: Size,
}

impl Following<'_> {
    /// Waits until it is there, or has not moved for `patience`. Does not wait for a guest that is
    /// paused.
    fn wait(&mut self, patience: Duration) -> Result<Status, Failure> {
        let name = self.name;
        let console = Console::new(Verbosity::Normal, Terminal::Ours);
        let (mut first, mut nearest, mut moved) = (0, u64::MAX, Instant::now());
        let mut is_reconciled = false;
        loop {
            let status = ask(self.client, name, Operation::Status)?;
            let left = self.left(&status)?;
            if left == 0 {
                return Ok(status);
            }
            if left < nearest {
                (nearest, moved) = (left, Instant::now());
            }
            // QEMU that does not answer this says nothing of the guest.
            if moved.elapsed() >= REST && self.qmp.is_running().is_ok_and(|runs| !runs) {
                console.clear();
                console.warn(&format!(
                    "guest {name} is paused: it has {} to go, and follows when it goes on",
                    pages(left)
                ));
                return Ok(status);
            }
            if moved.elapsed() >= REST && !std::mem::replace(&mut is_reconciled, true) {
                self.reconcile();
                continue;
            }
            if moved.elapsed() >= patience {
                console.clear();
                return Err(Failure::work(self.does_not_follow(&status, left, patience)));
            }
            first = left.max(first);
            console.moving(&format!("guest {name}: {} to go", pages(left)), first - left, first);
            std::thread::sleep(LOOK_INTERVAL);
        }
    }

    /// A balloon that is where it should be, while the engine counts otherwise: the guest has loaded
    /// a snapshot, say. The engine then counts what the balloon has. An agent that cannot is waited
    /// for as ever.
    fn reconcile(&mut self) {
        if let Ok(actual_bytes) = self.qmp.balloon_actual()
            && actual_bytes.abs_diff(self.size.0) <= SLACK_PAGES * PAGE_BYTES
        {
            let _ = ask(self.client, self.name, Operation::Reconcile { actual_bytes });
        }
    }

    /// Pages that are still to be given back, or taken again.
    fn left(&mut self, status: &Status) -> Result<u64, Failure> {
        let figures = &status.pages;
        let owed = figures.owed.max(0).unsigned_abs();
        let above = figures.total.saturating_sub(figures.target);
        if owed.max(above) > 0 {
            return Ok(owed.max(above));
        }
        let actual = self.qmp.balloon_actual().map_err(|error| {
            Failure::work(format!("cannot read the balloon of guest {}: {error}", self.name))
        })?;
        Ok(self.size.0.saturating_sub(actual).div_ceil(PAGE_BYTES))
    }

    fn does_not_follow(&self, status: &Status, left: u64, patience: Duration) -> String {
        let Self { name, size, .. } = self;
        let why = match status.pages.ballooned_out {
            0 => "it has never given a page back: is a balloon driver loaded in it?",
            _ => "it may have no memory left to give",
        };
        format!(
            "guest {name} has the target {size} now, but does not follow: {} are still to go, and \
             nothing has moved for {patience:?}; {why}",
            pages(left)
        )
    }
}

fn told(status: &Status) -> String {
    let name = &status.name;
    let (target, holds) =
        (Size(status.target_bytes), Size(status.pages.total.saturating_mul(PAGE_BYTES)));
    let mut text = format!("{name}: target {target}, holds {}\n", holds.rounded());
    let owed = status.pages.owed;
    if owed > 0 {
        text += &format!("its balloon has {} to give back\n", pages(owed.unsigned_abs()));
    }
    text
}
