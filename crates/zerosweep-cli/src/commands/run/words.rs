//! What the VMM says on standard error: passed on as it is, and the last of it kept.
//!
//! It comes through a pipe that holds so much that a VMM does not wait for a `run` that is stopped.
//! QEMU ignores SIGPIPE: one whose `run` was killed goes on.

use std::io::{self, Read as _, Write as _};
use std::process::ChildStderr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How much is kept.
const KEPT: usize = 16 << 10;
const PIPE_BYTES: usize = 1 << 20;
/// How long the end of the pipe is waited for when the VMM has ended: a process that it started may
/// hold it open for ever.
const LAST_WORDS: Duration = Duration::from_millis(200);
const NAP: Duration = Duration::from_millis(5);

/// The pipe's other end.
#[derive(Debug)]
pub(super) struct Words {
    kept: Arc<Mutex<Vec<u8>>>,
    thread: JoinHandle<()>,
}

impl Words {
    /// Starts to pass on.
    pub(super) fn pass_on(mut from: ChildStderr) -> io::Result<Self> {
        // A smaller one does too.
        let _ = rustix::pipe::fcntl_setpipe_size(&from, PIPE_BYTES);
        let kept = Arc::new(Mutex::new(Vec::new()));
        let keeps = Arc::clone(&kept);
        let thread = std::thread::Builder::new().name("words".into()).spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                match from.read(&mut buffer) {
                    Ok(0) => return,
                    Ok(bytes) => {
                        // Nobody may be reading it.
                        let _ = io::stderr().lock().write_all(&buffer[..bytes]);
                        keep(&keeps, &buffer[..bytes]);
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => return,
                }
            }
        })?;
        Ok(Self { kept, thread })
    }

    /// The last of what was said by a VMM that has ended.
    pub(super) fn last(&self) -> String {
        let deadline = Instant::now() + LAST_WORDS;
        while !self.thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(NAP);
        }
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&kept).into_owned()
    }
}

fn keep(kept: &Mutex<Vec<u8>>, more: &[u8]) {
    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
    kept.extend_from_slice(more);
    let beyond = kept.len().saturating_sub(KEPT);
    kept.drain(..beyond);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_are_kept() {
        let kept = Mutex::new(Vec::new());
        for word in 0..2000 {
            keep(&kept, format!("word {word}\n").as_bytes());
        }
        let kept = String::from_utf8(kept.into_inner().unwrap()).unwrap();
        assert!(kept.len() == KEPT && kept.ends_with("word 1998\nword 1999\n"));
    }
}
