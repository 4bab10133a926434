//! Standard output: what a command answers.
//!
//! `println!` panics when the reader is gone (`zerosweep status vm | head -1`). Here that is no
//! error at all: nobody wants the rest.

use std::io::{self, Write as _};

use serde::Serialize;

use crate::error::Failure;

/// Writes `text` as it is.
pub(crate) fn text(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::work(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Writes `document` as one JSON document with a newline.
pub(crate) fn json(document: &impl Serialize) -> Result<(), Failure> {
    written(serde_json::to_string_pretty(document))
}

/// Writes `document` as JSON on a line of its own.
pub(crate) fn json_line(document: &impl Serialize) -> Result<(), Failure> {
    written(serde_json::to_string(document))
}

fn written(document: serde_json::Result<String>) -> Result<(), Failure> {
    let mut line =
        document.map_err(|error| Failure::work(format!("cannot write JSON: {error}")))?;
    line.push('\n');
    text(&line)
}
