//! What comes in over a connection, and what must be true of it, whatever it is.

use std::fmt::Debug;
use std::io::BufReader;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use zerosweep_wire::{AgentConfig, Hello, MAX_LINE_BYTES, Request, Response, read_line, runtime};

/// This byte of an input stands for a quarter of the longest line, in blanks: inputs are short.
const BLANKS: u8 = 7;
/// No input stands for more bytes than this.
const MOST_BYTES: usize = 2 * MAX_LINE_BYTES;

/// What an input stands for.
pub(crate) fn unfolded(input: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for &byte in input {
        match byte {
            BLANKS => bytes.resize(bytes.len() + MAX_LINE_BYTES / 4, b' '),
            _ => bytes.push(byte),
        }
    }
    bytes.truncate(MOST_BYTES);
    bytes
}

/// Reads all lines as the agent does, and what is on them as either side does.
pub(crate) fn connection(input: &[u8]) {
    let bytes = unfolded(input);
    // A small buffer: lines come in pieces.
    let mut reader = BufReader::with_capacity(61, bytes.as_slice());
    let mut rest = bytes.as_slice();
    while let Some(line) = read_line(&mut reader).expect("memory can be read") {
        assert!(line.len() <= MAX_LINE_BYTES);
        assert_eq!(rest.iter().position(|&byte| byte == b'\n'), Some(line.len()));
        assert_eq!(rest[..line.len()], line);
        rest = &rest[line.len() + 1..];
        messages(&line);
    }
    let ends = rest.iter().position(|&byte| byte == b'\n');
    assert!(ends.is_none_or(|end| end > MAX_LINE_BYTES), "a line was left out");
}

fn messages(line: &[u8]) {
    match Request::read(line) {
        Ok(request) => drop(written(&request)),
        Err(response) => {
            assert_eq!(response.id, 0);
            assert!(written(&response).len() <= MAX_LINE_BYTES);
        }
    }
    // The client looks at text only.
    let Ok(text) = str::from_utf8(line) else { return };
    if let Some(hello) = reads::<Hello>(text)
        && runtime::check_name(&hello.name).is_ok()
    {
        let directory = Path::new("/run/zerosweep");
        let socket = runtime::control_socket(directory, &hello.name);
        assert_eq!(socket.parent(), Some(directory));
    }
    reads::<Response>(text);
    reads::<AgentConfig>(text);
}

/// The message in a text; what was read is written so that it reads as the same.
fn reads<T: Serialize + DeserializeOwned + PartialEq + Debug>(text: &str) -> Option<T> {
    let message = serde_json::from_str(text).ok()?;
    written(&message);
    Some(message)
}

/// Writes a message, as one line, and reads it.
fn written<T: Serialize + DeserializeOwned + PartialEq + Debug>(message: &T) -> String {
    let line = serde_json::to_string(message).expect("a message can be written");
    assert!(!line.contains('\n'));
    let read: T = serde_json::from_str(&line).expect("what was written can be read");
    assert_eq!(read, *message);
    line
}
