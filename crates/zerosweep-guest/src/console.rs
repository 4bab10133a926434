//! Markers: lines on the console that programs outside the guest read.

use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::sync::OnceLock;

/// What every marker starts with. Firmware and kernel write without line ends now and then, so look
/// for it anywhere in a line.
pub(crate) const PREFIX: &str = "zerosweep-guest: ";

/// Prints one marker. Line ends inside `text` become spaces; the line goes out in one write.
pub(crate) fn mark(text: impl fmt::Display) {
    static CONSOLE: OnceLock<Option<File>> = OnceLock::new();
    let line = line(text);
    let console =
        CONSOLE.get_or_init(|| OpenOptions::new().write(true).open("/dev/console").ok()).as_ref();
    // Without a console there is no one to tell.
    let _ = match console {
        Some(mut file) => file.write_all(line.as_bytes()),
        None => std::io::stdout().write_all(line.as_bytes()),
    };
}

fn line(text: impl fmt::Display) -> String {
    let mut line = String::from(PREFIX);
    // Writing to a string does not fail.
    let _ = write!(line, "{text}");
    let mut line = line.trim_end().replace(['\r', '\n'], " ");
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::line;

    #[test]
    fn a_marker_is_one_line() {
        assert_eq!(line("done ok"), "zerosweep-guest: done ok\n");
        assert_eq!(line("error a\r\nb\n"), "zerosweep-guest: error a  b\n");
    }
}
