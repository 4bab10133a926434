//! Clients of the agent's socket and of QEMU's, as a tool would have them that is not ours.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use zerosweep_wire::{Hello, PROTOCOL, Status};

/// Longest wait for one answer. QEMU's may take the two seconds after which memory is borrowed for
/// a main thread that hangs, and a little more.
const ANSWER: Duration = Duration::from_secs(120);

/// Lines of JSON over a Unix socket.
struct JsonLines {
    stream: BufReader<UnixStream>,
}

impl JsonLines {
    fn connect(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.set_write_timeout(Some(ANSWER))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    fn receive(&mut self) -> io::Result<Value> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_str(&line)?)
    }

    fn send(&mut self, message: &Value) -> io::Result<()> {
        self.stream.get_mut().write_all(format!("{message}\n").as_bytes())
    }
}

/// A connection to the agent.
pub(crate) struct Agent(JsonLines);

impl Agent {
    pub(crate) fn connect(socket: &Path) -> io::Result<Self> {
        let mut lines = JsonLines::connect(socket)?;
        let hello: Hello = serde_json::from_value(lines.receive()?)?;
        assert_eq!(hello.protocol, PROTOCOL, "another version of the agent");
        Ok(Self(lines))
    }

    pub(crate) fn request(&mut self, request: &Value) -> io::Result<Status> {
        self.0.send(request)?;
        let mut answer = self.0.receive()?;
        match answer.get_mut("ok") {
            Some(status) => Ok(serde_json::from_value(status.take())?),
            None => Err(io::Error::other(answer.to_string())),
        }
    }

    pub(crate) fn status(&mut self) -> io::Result<Status> {
        self.request(&json!({"id": 1, "op": "status"}))
    }

    /// The status with the superpage map.
    pub(crate) fn map(&mut self) -> io::Result<Status> {
        self.request(&json!({"id": 3, "op": "map", "first": 0}))
    }

    pub(crate) fn set_target(&mut self, bytes: u64) -> io::Result<Status> {
        self.request(&json!({"id": 2, "op": "set_target", "target_bytes": bytes}))
    }
}

/// A connection to QEMU, which serves one client at a time.
pub(crate) struct Qmp(JsonLines);

impl Qmp {
    pub(crate) fn connect(socket: &Path) -> io::Result<Self> {
        let mut lines = JsonLines::connect(socket)?;
        lines.receive()?;
        let mut qmp = Self(lines);
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    pub(crate) fn execute(&mut self, command: &str, arguments: &Value) -> io::Result<Value> {
        self.0.send(&json!({"execute": command, "arguments": arguments}))?;
        loop {
            let mut message = self.0.receive()?;
            if let Some(result) = message.get_mut("return") {
                return Ok(result.take());
            }
            if message.get("error").is_some() {
                return Err(io::Error::other(message.to_string()));
            }
            // Anything else is an event.
        }
    }

    /// What the guest has left of its memory, in bytes.
    pub(crate) fn balloon_actual(&mut self) -> io::Result<u64> {
        let answer = self.execute("query-balloon", &json!({}))?;
        answer["actual"].as_u64().ok_or_else(|| io::Error::other(answer.to_string()))
    }

    /// Makes the guest balloon until it has `bytes`.
    pub(crate) fn balloon(&mut self, bytes: u64) -> io::Result<()> {
        self.execute("balloon", &json!({"value": bytes})).map(drop)
    }
}
