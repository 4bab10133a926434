//! A small QMP client: what `zerosweep` asks of QEMU.
//!
//! QEMU serves one QMP client at a time on a socket and lets others wait, so a connection is made
//! for a few questions and closed again; two tools can then take turns.

use std::path::Path;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::lines::{LineError, LineStream};
use crate::printable::printable;

/// Longest line that is accepted; QEMU's answers here have a few kilobytes.
const LIMIT_BYTES: usize = 4 << 20;

/// Why QEMU did not answer as asked.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The connection failed.
    #[error("QMP: {0}")]
    Line(#[from] LineError),
    /// The answer is not QMP.
    #[error("QMP: not understood: {0}")]
    Malformed(String),
    /// QEMU refuses.
    #[error("QEMU refused {command}: {reason}")]
    Refused {
        /// The command.
        command: &'static str,
        /// QEMU's message.
        reason: String,
    },
}

/// A connection in command mode.
#[derive(Debug)]
pub struct Qmp {
    lines: LineStream,
    timeout: Duration,
    last_id: u64,
}

#[derive(Deserialize)]
struct Vcpu {
    #[serde(rename = "thread-id")]
    thread_id: u32,
}

/// What a guest's balloon driver reports of its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestStats {
    /// Time of the report, in seconds since 1970; 0 for never.
    pub updated_seconds: u64,
    /// What its programs could allocate without swapping.
    pub available_bytes: u64,
    /// What its kernel manages, without the balloon's pages.
    pub total_bytes: u64,
}

#[derive(Deserialize)]
struct AllStats {
    #[serde(rename = "last-update")]
    last_update: u64,
    stats: DriverStats,
}

#[derive(Deserialize)]
struct DriverStats {
    #[serde(rename = "stat-available-memory", default = "unknown", deserialize_with = "signed")]
    available: i64,
    #[serde(rename = "stat-total-memory", default = "unknown", deserialize_with = "signed")]
    total: i64,
}

const fn unknown() -> i64 {
    -1
}

/// QEMU writes -1 as 18446744073709551615.
fn signed<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    let value = Value::deserialize(deserializer)?;
    Ok(value.as_i64().unwrap_or(unknown()))
}

#[derive(Deserialize)]
struct Object {
    name: String,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct RunState {
    running: bool,
}

#[derive(Deserialize)]
struct Balloon {
    actual: u64,
}

#[derive(Deserialize)]
struct HumanReadable {
    #[serde(rename = "human-readable-text")]
    text: String,
}

impl Qmp {
    /// Connects, takes the greeting and enters command mode. Neither this nor any command waits
    /// longer than `timeout`.
    ///
    /// # Errors
    /// When nobody answers in time, or it is not QMP.
    pub fn connect(path: &Path, timeout: Duration) -> Result<Self, QmpError> {
        let deadline = Instant::now() + timeout;
        let mut lines = LineStream::connect(path, LIMIT_BYTES, deadline)?;
        let greeting = lines.read_line(deadline)?;
        if parse(&greeting)?.get("QMP").is_none() {
            return Err(QmpError::Malformed(format!("greeting {greeting:.80?}")));
        }
        let mut qmp = Self { lines, timeout, last_id: 0 };
        qmp.execute("qmp_capabilities", None)?;
        Ok(qmp)
    }

    /// Threads of the virtual CPUs.
    ///
    /// # Errors
    /// When QEMU does not answer, or refuses.
    pub fn vcpu_threads(&mut self) -> Result<Vec<u32>, QmpError> {
        let vcpus: Vec<Vcpu> = read(self.execute("query-cpus-fast", None)?)?;
        Ok(vcpus.into_iter().map(|vcpu| vcpu.thread_id).collect())
    }

    /// Whether the guest runs: not before the first `cont`, and not while it is paused.
    ///
    /// # Errors
    /// When QEMU does not answer, or refuses.
    pub fn is_running(&mut self) -> Result<bool, QmpError> {
        read::<RunState>(self.execute("query-status", None)?).map(|state| state.running)
    }

    /// Used sizes of all RAM blocks in bytes; empty when QEMU's table is not understood.
    ///
    /// # Errors
    /// When QEMU does not answer, or refuses.
    pub fn ram_blocks(&mut self) -> Result<Vec<u64>, QmpError> {
        let table: HumanReadable = read(self.execute("x-query-ramblock", None)?)?;
        Ok(parse_ram_blocks(&table.text))
    }

    /// Asks the guest to balloon to `bytes`. The device remembers it: also for a guest whose
    /// driver has not started yet, and after a reboot.
    ///
    /// # Errors
    /// When QEMU does not answer, or refuses: it has no balloon device, for example.
    pub fn set_balloon(&mut self, bytes: u64) -> Result<(), QmpError> {
        self.execute("balloon", Some(json!({ "value": bytes }))).map(drop)
    }

    /// What the guest has left of its memory, in bytes.
    ///
    /// # Errors
    /// When QEMU does not answer, or refuses.
    pub fn balloon_actual(&mut self) -> Result<u64, QmpError> {
        read::<Balloon>(self.execute("query-balloon", None)?).map(|balloon| balloon.actual)
    }

    /// The report of the guest's own balloon driver; `None` without a balloon device or a report.
    /// `ask_for_them` has QEMU poll the driver from now on, if it does not yet.
    ///
    /// # Errors
    /// When QEMU does not answer, or refuses.
    pub fn guest_stats(&mut self, ask_for_them: bool) -> Result<Option<GuestStats>, QmpError> {
        let Some(path) = self.balloon_path()? else { return Ok(None) };
        let get = |property| Some(json!({ "path": &path, "property": property }));
        let interval = self.execute("qom-get", get("guest-stats-polling-interval"))?;
        if interval == json!(0) && ask_for_them {
            let arguments =
                json!({ "path": &path, "property": "guest-stats-polling-interval", "value": 2 });
            self.execute("qom-set", Some(arguments))?;
        }
        let all: AllStats = read(self.execute("qom-get", get("guest-stats"))?)?;
        // The driver leaves at -1 what it does not know.
        let known = |bytes: i64| u64::try_from(bytes).ok();
        let (Some(available), Some(total)) = (known(all.stats.available), known(all.stats.total))
        else {
            return Ok(None);
        };
        Ok(Some(GuestStats {
            updated_seconds: all.last_update,
            available_bytes: available,
            total_bytes: total,
        }))
    }

    /// Where the balloon device is among QEMU's objects.
    fn balloon_path(&mut self) -> Result<Option<String>, QmpError> {
        for directory in ["/machine/peripheral", "/machine/peripheral-anon"] {
            let arguments = json!({ "path": directory });
            let objects: Vec<Object> = read(self.execute("qom-list", Some(arguments))?)?;
            let found =
                objects.iter().find(|object| object.kind.starts_with("child<virtio-balloon"));
            if let Some(object) = found {
                return Ok(Some(format!("{directory}/{}", object.name)));
            }
        }
        Ok(None)
    }

    /// Sends one command and waits for its answer; events and other answers are skipped.
    fn execute(
        &mut self,
        command: &'static str,
        arguments: Option<Value>,
    ) -> Result<Value, QmpError> {
        let deadline = Instant::now() + self.timeout;
        self.last_id += 1;
        let mut request = json!({ "execute": command, "id": self.last_id });
        if let Some(arguments) = arguments {
            request["arguments"] = arguments;
        }
        self.lines.write_line(&request.to_string(), deadline)?;
        loop {
            let mut answer = parse(&self.lines.read_line(deadline)?)?;
            if answer.get("id").and_then(Value::as_u64) != Some(self.last_id) {
                continue;
            }
            if let Some(error) = answer.get("error") {
                let reason = error.get("desc").and_then(Value::as_str).unwrap_or("no reason given");
                let reason = printable(reason).into_owned();
                return Err(QmpError::Refused { command, reason });
            }
            return Ok(answer["return"].take());
        }
    }
}

fn parse(line: &str) -> Result<Value, QmpError> {
    serde_json::from_str(line).map_err(|error| malformed(&error))
}

fn read<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, QmpError> {
    serde_json::from_value(value).map_err(|error| malformed(&error))
}

/// The reason may quote what was read.
fn malformed(error: &serde_json::Error) -> QmpError {
    QmpError::Malformed(printable(&error.to_string()).into_owned())
}

/// Reads the column "Used" of the table that QEMU prints for people:
///
/// ```text
///               Block Name    PSize              Offset               Used              Total
///                   pc.ram    4 KiB  0x0000000000000000 0x0000000040000000 0x0000000040000000
/// ```
fn parse_ram_blocks(table: &str) -> Vec<u64> {
    let hex = |word: &str| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok();
    table
        .lines()
        .filter_map(|line| {
            // Later versions add columns behind; the three numbers are the first hexadecimal ones.
            let mut numbers = line.split_whitespace().filter_map(hex);
            let (_offset, used, _total) = (numbers.next()?, numbers.next()?, numbers.next()?);
            Some(used)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{FakeServer, Peer};

    const TIMEOUT: Duration = Duration::from_millis(500);
    const GREETING: &str = r#"{"QMP": {"version": {}, "capabilities": ["oob"]}}"#;

    fn greet(peer: &mut Peer) {
        peer.send(GREETING);
        let request: Value = serde_json::from_str(&peer.receive()).unwrap();
        assert_eq!(request, json!({ "execute": "qmp_capabilities", "id": 1 }));
        peer.send("{\"return\": {}, \"id\": 1}\r");
    }

    #[test]
    fn asks_for_the_vcpus_and_skips_events() {
        let server = FakeServer::new(|peer| {
            greet(peer);
            assert!(peer.receive().contains("query-cpus-fast"));
            peer.send(r#"{"event": "RESUME", "data": {}, "timestamp": {}}"#);
            peer.send(r#"{"return": {}, "id": "somebody else's"}"#);
            peer.send(r#"{"return": [{"thread-id": 7, "x": 1}, {"thread-id": 9}], "id": 2}"#);
        });
        let mut qmp = Qmp::connect(server.path(), TIMEOUT).unwrap();
        assert_eq!(qmp.vcpu_threads().unwrap(), [7, 9]);
    }

    #[test]
    fn balloons() {
        let server = FakeServer::new(|peer| {
            greet(peer);
            let request: Value = serde_json::from_str(&peer.receive()).unwrap();
            assert_eq!(request["arguments"], json!({ "value": 536_870_912 }));
            peer.send(r#"{"return": {}, "id": 2}"#);
            peer.receive();
            peer.send(r#"{"return": {"actual": 1073741824}, "id": 3}"#);
        });
        let mut qmp = Qmp::connect(server.path(), TIMEOUT).unwrap();
        qmp.set_balloon(512 << 20).unwrap();
        assert_eq!(qmp.balloon_actual().unwrap(), 1 << 30);
    }

    #[test]
    fn guest_statistics_are_asked_for_where_nobody_did() {
        let server = FakeServer::new(|peer| {
            greet(peer);
            assert!(peer.receive().contains("/machine/peripheral"));
            peer.send(r#"{"return": [{"name": "type", "type": "string"}], "id": 2}"#);
            assert!(peer.receive().contains("/machine/peripheral-anon"));
            peer.send(
                r#"{"return": [{"name": "device[1]", "type": "child<virtio-balloon-pci>"}], "id": 3}"#,
            );
            assert!(peer.receive().contains("/machine/peripheral-anon/device[1]"));
            peer.send(r#"{"return": 0, "id": 4}"#);
            assert!(peer.receive().contains("qom-set"));
            peer.send(r#"{"return": {}, "id": 5}"#);
            peer.receive();
            peer.send(
                r#"{"return": {"last-update": 7, "stats": {"stat-available-memory": 4096,
                "stat-total-memory": 8192, "stat-htlb-pgfail": 18446744073709551615}}, "id": 6}"#
                    .replace('\n', " ")
                    .as_str(),
            );
        });
        let mut qmp = Qmp::connect(server.path(), TIMEOUT).unwrap();
        let stats = qmp.guest_stats(true).unwrap();
        let expect = GuestStats { updated_seconds: 7, available_bytes: 4096, total_bytes: 8192 };
        assert_eq!(stats, Some(expect));
    }

    #[test]
    fn a_refusal_has_qemus_words() {
        let server = FakeServer::new(|peer| {
            greet(peer);
            peer.receive();
            peer.send(r#"{"error": {"class": "X", "desc": "no balloon device"}, "id": 2}"#);
        });
        let mut qmp = Qmp::connect(server.path(), TIMEOUT).unwrap();
        let error = qmp.balloon_actual().unwrap_err().to_string();
        assert_eq!(error, "QEMU refused query-balloon: no balloon device");
    }

    #[test]
    fn what_it_says_does_not_steer_the_terminal() {
        let server = FakeServer::new(|peer| {
            greet(peer);
            peer.receive();
            peer.send(r#"{"error": {"desc": "no\u001b[2J\u009b\nballoon"}, "id": 2}"#);
            peer.receive();
            peer.send(r#"{"return": {"actual": "\u001b[2J"}, "id": 3}"#);
        });
        let mut qmp = Qmp::connect(server.path(), TIMEOUT).unwrap();
        let error = qmp.balloon_actual().unwrap_err().to_string();
        assert_eq!(error, r"QEMU refused query-balloon: no\u{1b}[2J\u{9b}\nballoon");
        let error = qmp.balloon_actual().unwrap_err().to_string();
        assert!(error.contains(r"\u{1b}[2J") && !error.contains('\x1b'), "{error:?}");
    }

    #[test]
    fn something_else_on_the_socket_is_noticed() {
        let server = FakeServer::new(|peer| peer.send(r#"{"hello": 1}"#));
        let error = Qmp::connect(server.path(), TIMEOUT).unwrap_err();
        assert!(matches!(error, QmpError::Malformed(_)), "{error:?}");
    }

    #[test]
    fn a_server_busy_with_another_client_is_a_timeout() {
        let server = FakeServer::new(|peer| peer.wait_for_close());
        let error = Qmp::connect(server.path(), Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, QmpError::Line(LineError::Timeout)), "{error:?}");
    }

    #[test]
    fn the_table_of_ram_blocks() {
        let table = "              Block Name    PSize              Offset               Used\
                     \n                  pc.ram    4 KiB  0x0000000000000000 0x0000000040000000 \
                     0x0000000040000000\n   0000:00:02.0/vga.vram    4 KiB  0x0000000040080000 \
                     0x0000000001000000 0x0000000001000000  0x00007f rw\n";
        assert_eq!(parse_ram_blocks(table), [1 << 30, 16 << 20]);
        assert!(parse_ram_blocks("a new format").is_empty());
    }
}
