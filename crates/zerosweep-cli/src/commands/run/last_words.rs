//! What QEMU's last words mean for a guest of ours.

use std::fmt::Write as _;
use std::fs;

use super::plan::{BALLOON, Plan};
use crate::size::Size;

/// What is known of an end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// There is no place for the balloon device that was added: QEMU's words.
    NoPlaceForBalloon(String),
    /// What a person should know.
    Hint(String),
}

/// Reads them.
pub(super) fn meaning(words: &str, plan: &Plan) -> Option<Meaning> {
    let about = |part: &str| words.lines().rev().find(|line| line.contains(part));
    let own_device = format!("id={BALLOON}");
    if let Some(line) = about(&own_device) {
        let reason = line.split_once(&format!("{own_device}: ")).map_or(line, |(_, reason)| reason);
        return Some(Meaning::NoPlaceForBalloon(reason.trim().to_owned()));
    }
    let line = about("cannot set up guest memory")?;
    let block = line.split('\'').nth(1).unwrap_or_default();
    let size = Size(plan.config.max_mem_bytes);
    Some(Meaning::Hint(no_memory(size, block, plan, &Promises::of_host())))
}

/// What the host promises to processes.
struct Promises {
    /// `vm.overcommit_memory`.
    overcommit: Option<u8>,
    /// Memory and swap.
    all: Option<Size>,
    /// `ulimit -v`.
    addresses: Option<Size>,
}

impl Promises {
    fn of_host() -> Self {
        let overcommit = fs::read_to_string("/proc/sys/vm/overcommit_memory");
        let info = rustix::system::sysinfo();
        let limit = rustix::process::getrlimit(rustix::process::Resource::As).current;
        Self {
            overcommit: overcommit.ok().and_then(|text| text.trim().parse().ok()),
            all: info
                .totalram
                .checked_add(info.totalswap)
                .map(|units| Size(units.saturating_mul(u64::from(info.mem_unit)))),
            addresses: limit.map(Size),
        }
    }
}

/// QEMU could not get guest RAM.
fn no_memory(size: Size, block: &str, plan: &Plan, host: &Promises) -> String {
    let mut text = format!("the host does not promise {size} at once to a process");
    // Writing to a string cannot fail.
    let _ = match (host.overcommit, host.all) {
        (Some(mode), Some(all)) => write!(
            text,
            ": it has {} of memory and swap, and vm.overcommit_memory is {mode}",
            all.rounded()
        ),
        _ => Ok(()),
    };
    let _ = match host.addresses {
        Some(limit) => write!(text, "; ulimit -v is {}: raise it", limit.rounded()),
        None => Ok(()),
    };
    let is_own_block = plan.arguments.iter().any(|word| {
        let word = word.to_string_lossy();
        word.starts_with("memory-backend-ram") && word.contains(&format!("id={block}"))
    });
    let _ = match (host.overcommit, is_own_block) {
        // It promises nothing beyond what it has, reserved or not.
        (Some(2), _) => {
            write!(text, ". Set vm.overcommit_memory to 0 or 1, or give the guest less")
        }
        (_, true) => write!(
            text,
            ". Have QEMU ask without a promise: add reserve=off to -object \
             memory-backend-ram,id={block}, or set vm.overcommit_memory to 1"
        ),
        (_, false) => write!(
            text,
            ". Have QEMU ask without a promise: add -object \
             memory-backend-ram,id=ram0,size={size},reserve=off -machine memory-backend=ram0, or set \
             vm.overcommit_memory to 1"
        ),
    };
    text
}
