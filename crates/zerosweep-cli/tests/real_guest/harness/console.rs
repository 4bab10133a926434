//! What a guest, or a program, says: each line with the time at which it came.

use std::io::{BufRead as _, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// What stands before each marker of the guest.
const PREFIX: &str = "zerosweep-guest: ";

/// One line, or one marker without its prefix.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) at: Instant,
    pub(crate) text: String,
}

impl Line {
    /// The value of `KEY=VALUE` in it.
    #[track_caller]
    pub(crate) fn value(&self, key: &str) -> f64 {
        let found = self.text.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        found
            .and_then(|value| value.parse().ok())
            .unwrap_or_else(|| panic!("no {key}=NUMBER in {:?}", self.text))
    }
}

#[derive(Default)]
struct Said {
    lines: Vec<Line>,
    ended: bool,
}

/// A stream that a thread reads to its end.
#[derive(Clone)]
pub(crate) struct Console {
    said: Arc<(Mutex<Said>, Condvar)>,
}

impl Console {
    pub(crate) fn read(stream: impl Read + Send + 'static) -> Self {
        let said: Arc<(Mutex<Said>, Condvar)> = Arc::default();
        let kept = Arc::clone(&said);
        std::thread::spawn(move || {
            let mut stream = BufReader::new(stream);
            loop {
                let mut bytes = Vec::new();
                let read = stream.read_until(b'\n', &mut bytes);
                let at = Instant::now();
                let mut said = kept.0.lock().unwrap();
                if read.is_ok_and(|count| count > 0) {
                    let text = String::from_utf8_lossy(&bytes).trim_end().to_owned();
                    said.lines.push(Line { at, text });
                } else {
                    said.ended = true;
                }
                kept.1.notify_all();
                if said.ended {
                    return;
                }
            }
        });
        Self { said }
    }

    /// How many lines there are.
    pub(crate) fn len(&self) -> usize {
        self.said.0.lock().unwrap().lines.len()
    }

    /// The first marker that starts with `marker`, from line `from` on.
    ///
    /// # Errors
    /// Not in time, or never any more: the stream ended, or the guest failed.
    pub(crate) fn marker(
        &self,
        marker: &str,
        from: usize,
        limit: Duration,
    ) -> Result<Line, String> {
        let deadline = Instant::now() + limit;
        let mut looked_at = from;
        let (lock, changed) = &*self.said;
        let mut said = lock.lock().unwrap();
        loop {
            while let Some(line) = said.lines.get(looked_at) {
                looked_at += 1;
                let Some(at) = line.text.find(PREFIX) else {
                    if line.text.contains("Kernel panic") {
                        return Err(format!("the guest's kernel: {}", line.text));
                    }
                    continue;
                };
                let text = &line.text[at + PREFIX.len()..];
                if text.starts_with(marker) {
                    return Ok(Line { at: line.at, text: text.to_owned() });
                }
                if text.starts_with("done failed") {
                    return Err(format!("the guest: {text}"));
                }
            }
            if said.ended {
                return Err("the console has ended".into());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(format!("not within {limit:?}"));
            }
            said = changed.wait_timeout(said, left).unwrap().0;
        }
    }

    /// The last `count` lines.
    pub(crate) fn tail(&self, count: usize) -> String {
        let said = self.said.0.lock().unwrap();
        let first = said.lines.len().saturating_sub(count);
        said.lines[first..].iter().map(|line| format!("  | {}\n", line.text)).collect()
    }

    /// Whether some line has `text` in it.
    pub(crate) fn has(&self, text: &str) -> bool {
        self.said.0.lock().unwrap().lines.iter().any(|line| line.text.contains(text))
    }
}
