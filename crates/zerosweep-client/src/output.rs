//! Standard output, which has a command's answer, and standard error, which has lines for a person.
//!
//! `println!` panics when the reader is gone (`zerosweep status vm | head -1`). Here that is no
//! error: nobody wants the rest.

use std::io::{self, Write as _};

use serde::Serialize;

use crate::error::Failure;
use crate::printable::printable_lines;

/// Writes `text` to standard output as it is.
///
/// # Errors
/// When standard output cannot be written to, except where its reader is gone.
pub fn text(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::work(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Writes `document` to standard output as one JSON document with a newline.
///
/// # Errors
/// As [`text`].
pub fn json(document: &impl Serialize) -> Result<(), Failure> {
    written(serde_json::to_string_pretty(document))
}

/// Writes `document` to standard output as JSON on a line of its own.
///
/// # Errors
/// As [`text`].
pub fn json_line(document: &impl Serialize) -> Result<(), Failure> {
    written(serde_json::to_string(document))
}

/// Writes one line to standard error. A reader that is gone is no error.
pub fn eprint_line(line: &str) {
    let _ = writeln!(io::stderr().lock(), "zerosweep: {}", printable_lines(line));
}

fn written(document: serde_json::Result<String>) -> Result<(), Failure> {
    let mut line =
        document.map_err(|error| Failure::work(format!("cannot write JSON: {error}")))?;
    line.push('\n');
    text(&line)
}
