//! A trace of what happens, if one is wanted.
//!
//! A thread that answers a fault leaves a note in a bounded journal. The thread `zs-events` writes
//! the file. A file that cannot be written ends the recording and nothing else: `status` says why.

use std::fs::OpenOptions;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use zerosweep::PAGE_BYTES;
use zerosweep_events::{Detail, Journal, Packing, Recording};
use zerosweep_wire::{AgentConfig, EventDetail, Recorded};

/// The recording, or why there is none.
static RECORDING: OnceLock<Result<Arc<Recording>, String>> = OnceLock::new();

/// Begins what the configuration wants.
pub(crate) fn begin(config: &AgentConfig) -> Option<Arc<Journal>> {
    let path = config.events.as_ref()?;
    let (detail, packing) = match config.event_detail {
        EventDetail::Xen => (Detail::Xen, Packing::of(path)),
        EventDetail::Guest => (Detail::Guest, Packing::Gzip),
    };
    let max_pages = config.max_mem_bytes / PAGE_BYTES;
    let begun = catch_unwind(|| start(path, max_pages, detail, packing));
    let begun = begun.unwrap_or_else(|_| Err("the agent panicked".to_owned()));
    let recording = RECORDING.get_or_init(|| begun).as_ref().ok()?;
    Some(Arc::clone(recording.journal()))
}

fn start(
    path: &Path,
    max_pages: u64,
    detail: Detail,
    packing: Packing,
) -> Result<Arc<Recording>, String> {
    let file = OpenOptions::new().append(true).open(path).map_err(|error| error.to_string())?;
    let recording = Arc::new(Recording::new(file, max_pages, detail, packing));
    let run = {
        let recording = Arc::clone(&recording);
        move || {
            zerosweep_linux::sys::raw::block_signals();
            let _ = catch_unwind(AssertUnwindSafe(|| recording.run()));
        }
    };
    let builder = std::thread::Builder::new().name("zs-events".into());
    builder.spawn(run).map_err(|error| format!("cannot start a thread: {error}"))?;
    Ok(recording)
}

/// The VMM exits: what is left is written.
pub(crate) fn end() {
    if let Some(Ok(recording)) = RECORDING.get() {
        recording.finish();
    }
}

/// The figures of the recording.
pub(crate) fn figures() -> Option<Recorded> {
    let file = crate::state::config()?.events.clone()?;
    Some(match RECORDING.get()? {
        Ok(recording) => {
            let figures = recording.figures();
            let (records, bytes, lost) = (figures.records, figures.bytes, figures.lost);
            Recorded { file, records, bytes, lost, error: figures.error }
        }
        Err(error) => Recorded { file, error: Some(error.clone()), ..Recorded::default() },
    })
}
