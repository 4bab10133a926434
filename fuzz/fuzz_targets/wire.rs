//! Whatever comes in over a control socket, read as the agent and as the client read it.
#![no_main]

#[path = "../../crates/zerosweep-wire/tests/corpus/check.rs"]
mod check;

use std::fs::DirBuilder;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use zerosweep_client::lines::{LineError, LineStream};
use zerosweep_wire::MAX_LINE_BYTES;

/// Long enough to be never over: everything is there before anything is read.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where the client connects to.
static LISTENER: LazyLock<(UnixListener, PathBuf)> = LazyLock::new(|| {
    // The client trusts no socket in a directory that other users can write to.
    let directory = std::env::temp_dir().join(format!("zerosweep-fuzz-{}", std::process::id()));
    DirBuilder::new().mode(0o700).create(&directory).expect("a directory");
    let path = directory.join("socket");
    (UnixListener::bind(&path).expect("a socket"), path)
});

fuzz_target!(|input: &[u8]| {
    check::connection(input);
    client(&check::unfolded(input));
});

/// Reads lines as the client does, until one is too long or they end.
fn client(bytes: &[u8]) {
    let (listener, path) = &*LISTENER;
    let deadline = Instant::now() + PATIENCE;
    let mut lines = LineStream::connect(path, MAX_LINE_BYTES, deadline).expect("someone listens");
    let sent = {
        let (mut agent, _) = listener.accept().expect("someone connects");
        agent.set_nonblocking(true).expect("a socket can be told");
        // What the socket has no room for is not sent.
        let mut sent = 0;
        while sent < bytes.len() {
            match agent.write(&bytes[sent..]) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        sent
    };
    let mut rest = &bytes[..sent];
    loop {
        let end = rest.iter().position(|&byte| byte == b'\n');
        let read = lines.read_line(deadline);
        let Some(end) = end.filter(|&end| end <= MAX_LINE_BYTES) else {
            match read {
                Err(LineError::TooLong(_)) => assert!(rest.len() > MAX_LINE_BYTES),
                Err(LineError::Closed) => assert!(end.is_none() && rest.len() <= MAX_LINE_BYTES),
                read => panic!("{read:?}"),
            }
            return;
        };
        let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]);
        match read {
            Ok(text) => assert_eq!(text.as_bytes(), line),
            Err(LineError::NotText) => assert!(str::from_utf8(line).is_err()),
            Err(error) => panic!("{error}"),
        }
        rest = &rest[end + 1..];
    }
}
