//! What unit tests share: a status; in this crate, a server that plays one conversation.
#![allow(clippy::unwrap_used, reason = "test code")]

#[cfg(test)]
pub(crate) use server::{FakeServer, Peer, hello_line};
use zerosweep::Statistics;
use zerosweep_wire::{
    Counters, FaultLatency, HostMemory, OnExhaustion, PROTOCOL, Pages, ReturnMode, State, Status,
    Superpages,
};

/// Figures of a guest in which every part of a display has something to show.
#[must_use]
pub fn sample_status(name: &str) -> Status {
    Status {
        protocol: PROTOCOL,
        name: name.into(),
        pid: 4_194_303,
        state: State::Managing,
        reason: None,
        max_mem_bytes: 2 << 30,
        target_bytes: 768 << 20,
        policy: "rfc-2011:gate=always".into(),
        on_exhaustion: OnExhaustion::Stall,
        return_mode: ReturnMode::Lazy,
        pages: Pages {
            max: 524_288,
            target: 196_608,
            entries: 100_000,
            populated: 150_000,
            cache: 40_000,
            retained: 6_000,
            total: 196_000,
            ballooned_out: 274_288,
            debt: 54_000,
            owed: 53_392,
            can_touch: 46_000,
            likely: 30_000,
            short: 24_000,
        },
        superpages: Superpages { in_guest: 290, in_cache: 78, broken: 12, ..Default::default() },
        counters: Counters {
            faults: 123_456_789,
            engine: Statistics { bytes_scanned: 3 << 30, ..Statistics::default() },
        },
        fault_latency: FaultLatency { p50_ns: 52_000, p99_ns: 92_000, max_ns: 4_300_000 },
        host: HostMemory { rss_anon_bytes: 820 << 20 },
        next: None,
        map: None,
        stalled_threads: 0,
        borrowed_pages: 0,
        balloon_request_bytes: None,
        events: None,
    }
}

#[cfg(test)]
mod server {
    use std::io::{BufRead as _, BufReader, Read as _, Write as _};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::path::{Path, PathBuf};
    use std::thread::JoinHandle;

    use tempfile::TempDir;
    use zerosweep_wire::Hello;

    /// One accepted connection.
    pub(crate) struct Peer {
        reader: BufReader<UnixStream>,
    }

    impl Peer {
        /// Sends a line; a reader that is gone is no failure of the test.
        pub(crate) fn send(&mut self, line: &str) {
            let _ = self.reader.get_mut().write_all(format!("{line}\n").as_bytes());
        }

        pub(crate) fn receive(&mut self) -> String {
            let mut line = String::new();
            self.reader.read_line(&mut line).unwrap();
            line.trim_end().to_owned()
        }

        /// Says nothing until the client gives up.
        pub(crate) fn wait_for_close(&mut self) {
            let _ = self.reader.read_to_end(&mut Vec::new());
        }
    }

    /// Listens in a directory of its own and plays `conversation` with the first client.
    pub(crate) struct FakeServer {
        path: PathBuf,
        thread: Option<JoinHandle<()>>,
        _directory: TempDir,
    }

    impl FakeServer {
        pub(crate) fn new(conversation: impl FnOnce(&mut Peer) + Send + 'static) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("socket");
            let listener = UnixListener::bind(&path).unwrap();
            let thread = std::thread::spawn(move || {
                let (stream, _) = listener.accept().unwrap();
                conversation(&mut Peer { reader: BufReader::new(stream) });
            });
            Self { path, thread: Some(thread), _directory: directory }
        }

        pub(crate) fn path(&self) -> &Path {
            &self.path
        }
    }

    impl Drop for FakeServer {
        fn drop(&mut self) {
            let ended = self.thread.take().map(JoinHandle::join);
            if !std::thread::panicking() {
                ended.unwrap().expect("the conversation went as the test says");
            }
        }
    }

    pub(crate) fn hello_line(name: &str, pid: u32, protocol: u32) -> String {
        let hello = Hello { protocol, version: "0.1.0".into(), name: name.into(), pid };
        serde_json::to_string(&hello).unwrap()
    }
}
