//! What the VMM says on standard error: passed on as it is, and the last of it kept.
//!
//! It comes through a large pipe, so that a VMM does not wait for a `run` that is stopped. QEMU
//! ignores SIGPIPE: it goes on after its `run` was killed.

use std::io::{self, Read as _, Write as _};
use std::process::ChildStderr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How much is kept.
const KEPT: usize = 16 << 10;
const PIPE_BYTES: usize = 1 << 20;
/// How long nothing must come from a VMM that has ended: a process that it started may hold the
/// pipe open for ever.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// How long the reader of our own standard error may take for what is left.
const READER: Duration = Duration::from_secs(10);
const NAP: Duration = Duration::from_millis(5);

/// The pipe's other end.
#[derive(Debug)]
pub(super) struct Words {
    said: Arc<Mutex<Said>>,
    thread: JoinHandle<()>,
}

#[derive(Debug)]
struct Said {
    kept: Vec<u8>,
    /// Whether some of it is being passed on.
    is_writing: bool,
    /// When that began or ended.
    changed: Instant,
}

impl Words {
    /// Starts to pass on.
    pub(super) fn pass_on(mut from: ChildStderr) -> io::Result<Self> {
        // A smaller one does too.
        let _ = rustix::pipe::fcntl_setpipe_size(&from, PIPE_BYTES);
        let said = Said { kept: Vec::new(), is_writing: false, changed: Instant::now() };
        let said = Arc::new(Mutex::new(said));
        let told = Arc::clone(&said);
        let thread = std::thread::Builder::new().name("words".into()).spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                match from.read(&mut buffer) {
                    Ok(0) => return,
                    Ok(bytes) => {
                        lock(&told).keep(&buffer[..bytes]);
                        // Nobody may be reading it.
                        let _ = io::stderr().lock().write_all(&buffer[..bytes]);
                        lock(&told).written();
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => return,
                }
            }
        })?;
        Ok(Self { said, thread })
    }

    /// The last of what was said by a VMM that has ended, when all of it has been passed on.
    pub(super) fn last(&self) -> String {
        let began = Instant::now();
        while !self.thread.is_finished() {
            let said = lock(&self.said);
            let quiet = began.max(said.changed).elapsed();
            if quiet >= if said.is_writing { READER } else { LAST_WORDS } {
                break;
            }
            drop(said);
            std::thread::sleep(NAP);
        }
        String::from_utf8_lossy(&lock(&self.said).kept).into_owned()
    }
}

impl Said {
    fn keep(&mut self, more: &[u8]) {
        self.kept.extend_from_slice(more);
        let beyond = self.kept.len().saturating_sub(KEPT);
        self.kept.drain(..beyond);
        (self.is_writing, self.changed) = (true, Instant::now());
    }

    fn written(&mut self) {
        (self.is_writing, self.changed) = (false, Instant::now());
    }
}

fn lock(said: &Mutex<Said>) -> MutexGuard<'_, Said> {
    said.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_are_kept() {
        let mut said = Said { kept: Vec::new(), is_writing: false, changed: Instant::now() };
        for word in 0..2000 {
            said.keep(format!("word {word}\n").as_bytes());
        }
        let kept = String::from_utf8(said.kept).unwrap();
        assert!(kept.len() == KEPT && kept.ends_with("word 1998\nword 1999\n"));
    }
}
