//! Takes guest RAM over, and cleans up at the VMM's exit.
//!
//! Guest RAM is recognised by what QEMU says of it, not by how it is mapped: TCG reserves a
//! gigabyte of its own, and the VGA's memory is marked in the same way, but has another size.

use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zerosweep_linux::references;
use zerosweep_linux::{GuestMemory, MainLoop, OnExhaustion, Options, Parking};
use zerosweep_wire::{AgentConfig, CONFIG_VARIABLE, PROTOCOL, ReturnMode};

use crate::{control, events, state, sys};

/// Cache slots that keep their host memory with `--return eager`.
const EAGER_STOCK: u64 = 16;

/// Reads the configuration. A process without one stays inert.
pub(crate) fn at_load() {
    let _ = catch_unwind(|| {
        let Some(text) = std::env::var_os(CONFIG_VARIABLE) else { return };
        let config = text.to_str().and_then(|text| serde_json::from_str::<AgentConfig>(text).ok());
        let Some(config) = config.filter(|config| config.protocol == PROTOCOL) else { return };
        // Nothing of ours may write to the VMM's terminal.
        std::panic::set_hook(Box::new(|_| {}));
        state::wait_for_ram(config);
    });
}

extern "C" fn in_child() {
    state::become_inert();
}

extern "C" fn at_exit() {
    if !state::is_owner() {
        return;
    }
    let _ = catch_unwind(events::end);
    let _ = catch_unwind(|| {
        for path in state::config().into_iter().flat_map(|config| &config.unlink_at_exit) {
            let _ = std::fs::remove_file(path);
        }
    });
}

/// Takes guest RAM over. Whatever the outcome, the VMM goes on, and the control socket reports it.
pub(crate) fn adopt(start: usize, bytes: usize) {
    if !state::begin_adoption() {
        return;
    }
    let outcome = catch_unwind(|| take_over(start, bytes));
    state::settle(outcome.unwrap_or_else(|_| Err("the agent panicked".to_owned())));
    let _ = catch_unwind(|| {
        sys::at_fork_and_exit(in_child, at_exit);
        leave_children_alone();
        control::start();
    });
}

fn take_over(start: usize, bytes: usize) -> Result<Arc<GuestMemory>, String> {
    let config = state::config().ok_or("the agent has no configuration")?;
    let options = Options {
        target_bytes: config.target_bytes,
        policy: config.policy.parse().map_err(|error| format!("{error}"))?,
        on_exhaustion: match config.on_exhaustion {
            zerosweep_wire::OnExhaustion::Stall => OnExhaustion::Stall,
            zerosweep_wire::OnExhaustion::Borrow => OnExhaustion::Borrow,
            zerosweep_wire::OnExhaustion::Kill => OnExhaustion::Kill,
        },
        parking: match config.return_mode {
            ReturnMode::Lazy => Parking::Lazy,
            ReturnMode::Eager => Parking::Eager(EAGER_STOCK),
        },
        fault_threads: Options::DEFAULT_FAULT_THREADS,
        main_loop: MainLoop::MainThread,
    };
    if let Some(holder) = references::find() {
        return Err(holder.to_string());
    }
    let region = sys::region(start, bytes).map_err(|error| error.to_string())?;
    let journal = events::begin(config);
    GuestMemory::recorded(region, &options, journal).map_err(|error| error.to_string())
}

/// Takes us out of the environment that children get.
fn leave_children_alone() {
    if let Ok(name) = CString::new(CONFIG_VARIABLE) {
        sys::set_variable(&name, None);
    }
    let Some(preloads) = std::env::var_os("LD_PRELOAD") else { return };
    let others = without_us(&preloads);
    let others = CString::new(others).ok().filter(|others| !others.is_empty());
    sys::set_variable(c"LD_PRELOAD", others.as_deref());
}

/// The list of preloaded libraries, by colons, without this one.
fn without_us(preloads: &OsStr) -> Vec<u8> {
    let is_us = |path: &[u8]| {
        let path: PathBuf = Path::new(OsStr::from_bytes(path)).into();
        path.file_name().is_some_and(|name| name == "libzerosweep_agent.so")
    };
    let split = |byte: &u8| *byte == b':' || *byte == b' ';
    let others = preloads.as_bytes().split(split).filter(|path| !path.is_empty() && !is_us(path));
    others.collect::<Vec<_>>().join(&b':')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::advice::{Advice, Decision, on_madvise, on_unmap};

    #[test]
    fn only_our_own_preload_is_taken_out() {
        let list = OsStr::new("/a/libzerosweep_agent.so:/b/libother.so /c/third.so");
        assert_eq!(without_us(list), b"/b/libother.so:/c/third.so");
        assert_eq!(without_us(OsStr::new("/x/libzerosweep_agent.so")), b"");
    }

    #[test]
    fn a_process_without_configuration_is_inert() {
        at_load();
        assert!(state::is_inert());
        assert_eq!(on_madvise(4096, 4096, Advice::DontNeed), Decision::Pass);
        on_unmap(4096, 4096, "nothing");
    }
}
