//! Asks the agent inside a VMM, over its control socket.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use zerosweep_wire::{
    Answer, ErrorBody, Hello, MAX_LINE_BYTES, Operation, PROTOCOL, Request, Response, Status,
};

use crate::lines::{LineError, LineStream};
use crate::printable::{printable, printable_json};
use crate::trust;

/// Longest wait for an answer to a request for work. The agent stops when its own time is over, but
/// a busy host may delay it, and what it has freed goes back to the host page by page.
const WORK_TIMEOUT: Duration = Duration::from_secs(60);

/// Why the agent did not answer as asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The connection failed.
    #[error("{0}")]
    Line(#[from] LineError),
    /// The answer is no message of this protocol.
    #[error("the agent's answer is not understood: {0}")]
    Malformed(String),
    /// The agent is older or newer than this program.
    #[error(
        "the guest's agent speaks version {theirs} of the protocol, this zerosweep version \
         {PROTOCOL}; use the zerosweep that started the guest"
    )]
    Version {
        /// The agent's version.
        theirs: u32,
    },
    /// The agent belongs to another guest than its socket does.
    #[error("the agent that listens there names another guest ({theirs:?}); it is not trusted")]
    OtherGuest {
        /// The guest that the agent names.
        theirs: String,
    },
    /// The agent refuses.
    #[error("{}", .0.message)]
    Refused(ErrorBody),
}

impl ClientError {
    /// Whether nobody listens on the socket (see [`LineError::is_nobody_there`]).
    pub fn is_nobody_there(&self) -> bool {
        matches!(self, Self::Line(error) if error.is_nobody_there())
    }

    /// Whether the agent has ended the connection: its VMM has ended, or is about to.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Line(LineError::Closed)) || self.is_nobody_there()
    }
}

/// A connection to an agent of this version of the protocol.
#[derive(Debug)]
pub struct Client {
    lines: LineStream,
    hello: Hello,
    timeout: Duration,
    last_id: u64,
}

/// The part of a hello that every version has.
#[derive(Deserialize)]
struct AnyHello {
    protocol: u32,
}

impl Client {
    /// Connects to the socket at `path`. Neither this nor any request waits longer than `timeout`.
    ///
    /// # Errors
    /// When nobody answers in time, or it is no agent of this version and guest.
    pub fn connect(path: &Path, timeout: Duration) -> Result<Self, ClientError> {
        let deadline = Instant::now() + timeout;
        let mut lines = LineStream::connect(path, MAX_LINE_BYTES, deadline)?;
        let line = lines.read_line(deadline)?;
        // The version first: the rest of another version's hello may be anything.
        let AnyHello { protocol } = parse(&line)?;
        if protocol != PROTOCOL {
            return Err(ClientError::Version { theirs: protocol });
        }
        let hello: Hello = parse(&line)?;
        let is_its_own = |name: &str| path.file_name() == Some(OsStr::new(&format!("{name}.sock")));
        if path.extension() == Some(OsStr::new("sock")) && !is_its_own(&hello.name) {
            return Err(ClientError::OtherGuest { theirs: hello.name });
        }
        Ok(Self { lines, hello, timeout, last_id: 0 })
    }

    /// The user who runs the agent, if that is neither this user nor root.
    pub fn other_user(&self) -> Option<u32> {
        Some(self.lines.peer_user()).filter(|&user| trust::is_other(user))
    }

    /// The agent's hello, from when the connection was made.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Asks and waits for the answer. A request for work may take longer than a question.
    ///
    /// # Errors
    /// When the agent does not answer, does not answer as the protocol says, or refuses.
    pub fn request(&mut self, operation: Operation) -> Result<Status, ClientError> {
        let timeout = match operation {
            Operation::Sweep { .. }
            | Operation::Consolidate { .. }
            | Operation::SetTarget { .. }
            | Operation::Audit => self.timeout.max(WORK_TIMEOUT),
            _ => self.timeout,
        };
        let deadline = Instant::now() + timeout;
        self.last_id += 1;
        let request = Request { id: self.last_id, operation };
        let line = serde_json::to_string(&request)
            .map_err(|error| ClientError::Malformed(error.to_string()))?;
        self.lines.write_line(&line, deadline)?;
        let response: Response = parse(&self.lines.read_line(deadline)?)?;
        // Id 0: the agent could not read the request; that is its answer to this one.
        if response.id != request.id && response.id != 0 {
            let message = format!("response {} to request {}", response.id, request.id);
            return Err(ClientError::Malformed(message));
        }
        match response.answer {
            Answer::Ok(status) if status.name != self.hello.name => {
                Err(ClientError::OtherGuest { theirs: status.name })
            }
            Answer::Ok(status) => Ok(*status),
            Answer::Error(body) => Err(ClientError::Refused(body)),
        }
    }
}

/// A connection to an agent, made when it is needed and made again when it is broken.
#[derive(Debug)]
pub struct Link {
    socket: PathBuf,
    timeout: Duration,
    client: Option<Client>,
}

impl Link {
    /// Not connected yet. No question waits longer than twice `timeout`; a request for work may
    /// take longer ([`Client::request`]).
    pub fn new(socket: PathBuf, timeout: Duration) -> Self {
        Self { socket, timeout, client: None }
    }

    /// With an open connection.
    pub fn with(client: Client, socket: PathBuf, timeout: Duration) -> Self {
        Self { socket, timeout, client: Some(client) }
    }

    /// As [`Client::other_user`]; `None` also without a connection.
    pub fn other_user(&self) -> Option<u32> {
        self.client.as_ref().and_then(Client::other_user)
    }

    /// Asks and waits for the answer.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn request(&mut self, operation: Operation) -> Result<Status, ClientError> {
        let mut client = match self.client.take() {
            Some(client) => client,
            None => Client::connect(&self.socket, self.timeout)?,
        };
        let answer = client.request(operation);
        // After a timeout the next line would be the answer to this request: connect again.
        if matches!(answer, Ok(_) | Err(ClientError::Refused(_))) {
            self.client = Some(client);
        }
        answer
    }
}

/// The message in a line, with its control characters escaped. All text from an agent goes through
/// here before it is shown.
fn parse<T: DeserializeOwned>(line: &str) -> Result<T, ClientError> {
    serde_json::from_str(line)
        .and_then(|value| serde_json::from_value(printable_json(value)))
        .map_err(|error| ClientError::Malformed(printable(&error.to_string()).into_owned()))
}

#[cfg(test)]
mod tests {
    use zerosweep_wire::ErrorKind;

    use super::*;
    use crate::test_support::{FakeServer, hello_line, sample_status};

    const TIMEOUT: Duration = Duration::from_millis(500);

    fn ok_line(id: u64) -> String {
        let answer = Answer::Ok(Box::new(sample_status("vm")));
        serde_json::to_string(&Response { id, answer }).unwrap()
    }

    #[test]
    fn asks_and_is_answered() {
        let server = FakeServer::new(|peer| {
            peer.send(&hello_line("vm", 42, PROTOCOL));
            let request: Request = serde_json::from_str(&peer.receive()).unwrap();
            assert_eq!(request, Request { id: 1, operation: Operation::Status });
            peer.send(&ok_line(1));
            let request: Request = serde_json::from_str(&peer.receive()).unwrap();
            assert_eq!(request.id, 2);
            let body = ErrorBody { kind: ErrorKind::AuditFailed, message: "B is 3, not 4".into() };
            let response = Response { id: 2, answer: Answer::Error(body) };
            peer.send(&serde_json::to_string(&response).unwrap());
        });
        let mut client = Client::connect(server.path(), TIMEOUT).unwrap();
        assert_eq!(client.hello().pid, 42);
        assert_eq!(client.request(Operation::Status).unwrap(), sample_status("vm"));
        let error = client.request(Operation::Audit).unwrap_err();
        assert_eq!(error.to_string(), "B is 3, not 4");
        assert!(matches!(error, ClientError::Refused(b) if b.kind == ErrorKind::AuditFailed));
    }

    #[test]
    fn another_version_is_named() {
        let server = FakeServer::new(|peer| peer.send(r#"{"protocol":9,"all":"new"}"#));
        let error = Client::connect(server.path(), TIMEOUT).unwrap_err();
        assert!(matches!(error, ClientError::Version { theirs: 9 }));
        assert!(error.to_string().contains("version 9"), "{error}");
    }

    #[test]
    fn a_silent_agent_is_a_timeout() {
        let server = FakeServer::new(|peer| peer.wait_for_close());
        let error = Client::connect(server.path(), Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, ClientError::Line(LineError::Timeout)), "{error:?}");
    }

    #[test]
    fn nobody_there_is_told_from_other_failures() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vm.sock");
        assert!(Client::connect(&path, TIMEOUT).unwrap_err().is_nobody_there());
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(Client::connect(&path, TIMEOUT).unwrap_err().is_nobody_there());
        let server = FakeServer::new(|_| {});
        let error = Client::connect(server.path(), TIMEOUT).unwrap_err();
        assert!(matches!(error, ClientError::Line(LineError::Closed)), "{error:?}");
        assert!(!error.is_nobody_there());
    }

    #[test]
    fn a_full_backlog_is_a_timeout() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vm.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let _first = std::os::unix::net::UnixStream::connect(&path).unwrap();
        let error = Client::connect(&path, Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, ClientError::Line(LineError::Timeout)), "{error:?}");
    }

    #[test]
    fn too_long_a_line_ends_it() {
        let server = FakeServer::new(|peer| {
            peer.send(&"x".repeat(MAX_LINE_BYTES + 1));
        });
        let error = Client::connect(server.path(), TIMEOUT).unwrap_err();
        assert!(matches!(error, ClientError::Line(LineError::TooLong(_))), "{error:?}");
    }

    #[test]
    fn what_is_quoted_of_an_answer_does_not_steer_the_terminal() {
        let server = FakeServer::new(|peer| {
            peer.send(&hello_line("vm", 42, PROTOCOL));
            peer.receive();
            peer.send(r#"{"id":1,"error":{"kind":"\u001b[2J\u202e","message":""}}"#);
        });
        let mut client = Client::connect(server.path(), TIMEOUT).unwrap();
        let error = client.request(Operation::Status).unwrap_err();
        assert!(matches!(error, ClientError::Malformed(_)), "{error:?}");
        assert!(!error.to_string().contains(['\x1b', '\u{202e}']), "{error}");
    }

    #[test]
    fn figures_of_another_guest_are_not_taken() {
        let server = FakeServer::new(|peer| {
            peer.send(&hello_line("web", 42, PROTOCOL));
            peer.receive();
            peer.send(&ok_line(1));
        });
        let mut client = Client::connect(server.path(), TIMEOUT).unwrap();
        let error = client.request(Operation::Status).unwrap_err();
        assert!(matches!(error, ClientError::OtherGuest { theirs } if theirs == "vm"));
    }

    #[test]
    fn an_answer_to_another_request_is_not_taken() {
        let server = FakeServer::new(|peer| {
            peer.send(&hello_line("vm", 42, PROTOCOL));
            peer.receive();
            peer.send(&ok_line(7));
        });
        let mut client = Client::connect(server.path(), TIMEOUT).unwrap();
        let error = client.request(Operation::Status).unwrap_err();
        assert!(matches!(error, ClientError::Malformed(_)), "{error:?}");
    }
}
