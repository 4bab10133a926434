//! One message a line over a Unix stream socket. Every call has a deadline.
//!
//! Both the agent and QEMU live in a process that may be stopped, swapped out or stalled on its
//! own memory. No call in here waits beyond its deadline.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::trust::{self, Distrust};

/// Pause before connecting again to a listener whose backlog was full.
const RETRY_DELAY: Duration = Duration::from_millis(20);

/// A deadline missed by more than this means that this process was suspended.
const LATE: Duration = Duration::from_millis(500);
/// Extra time after that, granted once.
const GRACE: Duration = Duration::from_secs(2);

/// Why no line was read or written.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// Nobody listens there, or this user may not connect.
    #[error("cannot connect: {0}")]
    Connect(#[source] io::Error),
    /// The directory or the listener is not trusted.
    #[error(transparent)]
    Distrusted(Distrust),
    /// The deadline has passed.
    #[error("no answer in time")]
    Timeout,
    /// The other side ended the connection.
    #[error("the connection was closed")]
    Closed,
    /// The line is longer than the limit.
    #[error("a line of more than {0} bytes")]
    TooLong(usize),
    /// The line is not UTF-8.
    #[error("a line that is not UTF-8")]
    NotText,
    /// Anything else.
    #[error(transparent)]
    Io(io::Error),
}

impl LineError {
    /// Whether nobody listens on that path: it is missing, or left over from a dead process.
    pub fn is_nobody_there(&self) -> bool {
        matches!(self, Self::Connect(error) if matches!(
            error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound))
    }
}

impl From<Distrust> for LineError {
    fn from(distrust: Distrust) -> Self {
        match distrust {
            Distrust::Unknown { error, .. } => Self::Connect(error),
            distrust => Self::Distrusted(distrust),
        }
    }
}

impl From<io::Error> for LineError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Timeout,
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Self::Closed,
            _ => Self::Io(error),
        }
    }
}

/// A connection that carries lines of at most `limit_bytes`.
#[derive(Debug)]
pub struct LineStream {
    stream: UnixStream,
    peer: u32,
    unread: Vec<u8>,
    limit_bytes: usize,
}

impl LineStream {
    /// Connects to the socket at `path`, if it and its directory are trusted ([`trust`]).
    ///
    /// # Errors
    /// When nobody listens, the listener is not trusted, or the deadline passes.
    pub fn connect(path: &Path, limit_bytes: usize, deadline: Instant) -> Result<Self, LineError> {
        let owner = trust::directory(path.parent().unwrap_or(path))?;
        let stream = connect(path, deadline)?;
        let peer = trust::peer(&stream, path, owner)?;
        Ok(Self { stream, peer, unread: Vec::new(), limit_bytes })
    }

    /// The process that listens at the other end, as the kernel reports it.
    pub fn peer_pid(&self) -> Option<u32> {
        let credentials = rustix::net::sockopt::socket_peercred(&self.stream).ok()?;
        u32::try_from(credentials.pid.as_raw_nonzero().get()).ok()
    }

    /// The user who listens at the other end, as the kernel reports it.
    pub fn peer_user(&self) -> u32 {
        self.peer
    }

    /// The next line, without its end.
    ///
    /// # Errors
    /// When the line is too long or not text, or the connection or the deadline ends first.
    pub fn read_line(&mut self, deadline: Instant) -> Result<String, LineError> {
        let (mut deadline, mut was_stopped) = (deadline, false);
        let mut searched = 0;
        loop {
            if let Some(at) = self.unread[searched..].iter().position(|&byte| byte == b'\n') {
                return self.take_line(searched + at);
            }
            searched = self.unread.len();
            if searched > self.limit_bytes {
                return Err(LineError::TooLong(self.limit_bytes));
            }
            match self.read_more(deadline) {
                Err(LineError::Timeout) if !was_stopped && deadline.elapsed() > LATE => {
                    (deadline, was_stopped) = (Instant::now() + GRACE, true);
                }
                read => read?,
            }
        }
    }

    /// Sends `line` and its end.
    ///
    /// # Errors
    /// When the connection or the deadline ends first.
    pub fn write_line(&mut self, line: &str, deadline: Instant) -> Result<(), LineError> {
        let mut bytes = Vec::with_capacity(line.len() + 1);
        bytes.extend_from_slice(line.as_bytes());
        bytes.push(b'\n');
        let mut rest = bytes.as_slice();
        let stopped = deadline.elapsed() > LATE;
        let deadline = if stopped { Instant::now() + GRACE } else { deadline };
        while !rest.is_empty() {
            self.stream.set_write_timeout(Some(remaining(deadline)?)).map_err(LineError::Io)?;
            match self.stream.write(rest) {
                Ok(0) => return Err(LineError::Closed),
                Ok(count) => rest = &rest[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn take_line(&mut self, end: usize) -> Result<String, LineError> {
        if end > self.limit_bytes {
            return Err(LineError::TooLong(self.limit_bytes));
        }
        let rest = self.unread.split_off(end + 1);
        let mut line = std::mem::replace(&mut self.unread, rest);
        line.truncate(end);
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        String::from_utf8(line).map_err(|_| LineError::NotText)
    }

    fn read_more(&mut self, deadline: Instant) -> Result<(), LineError> {
        let mut chunk = [0; 4096];
        self.stream.set_read_timeout(Some(remaining(deadline)?)).map_err(LineError::Io)?;
        match self.stream.read(&mut chunk) {
            Ok(0) => Err(LineError::Closed),
            Ok(count) => {
                self.unread.extend_from_slice(&chunk[..count]);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// What is left until `deadline`, never zero (a zero timeout means "for ever" to the kernel).
fn remaining(deadline: Instant) -> Result<Duration, LineError> {
    match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(LineError::Timeout),
        // The kernel counts in microseconds; less would round to zero.
        left => Ok(left.max(Duration::from_micros(1))),
    }
}

/// Connects without ever blocking: a listener whose backlog is full is asked again.
fn connect(path: &Path, deadline: Instant) -> Result<UnixStream, LineError> {
    let fail = |errno: Errno| LineError::Connect(errno.into());
    let address = SocketAddrUnix::new(path).map_err(fail)?;
    loop {
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )
        .map_err(fail)?;
        match rustix::net::connect(&socket, &address) {
            Ok(()) => {
                let stream = UnixStream::from(socket);
                stream.set_nonblocking(false).map_err(LineError::Io)?;
                return Ok(stream);
            }
            Err(Errno::AGAIN | Errno::INTR) => {
                std::thread::sleep(remaining(deadline)?.min(RETRY_DELAY));
            }
            Err(errno) => return Err(fail(errno)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn who_was_stopped_still_gets_the_answer_that_has_come() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let mut lines = LineStream::connect(&path, 100, Instant::now() + GRACE).unwrap();
        let (mut other, _) = listener.accept().unwrap();
        other.write_all(b"answer\n").unwrap();
        let long_over = Instant::now().checked_sub(2 * LATE).unwrap();
        lines.write_line("request", long_over).unwrap();
        assert_eq!(lines.read_line(long_over).unwrap(), "answer");
        // A deadline that passes while this process runs gives no extra time.
        let began = Instant::now();
        assert!(matches!(lines.read_line(Instant::now()), Err(LineError::Timeout)));
        assert!(began.elapsed() < GRACE);
    }
}
