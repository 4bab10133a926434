//! What a guest, or a program, says: each line with the time at which it came.

use std::io::{BufRead as _, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What stands before each marker of the guest.
const PREFIX: &str = "zerosweep-guest: ";

/// One line, or one marker without its prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// When it came.
    pub at: Instant,
    /// What it says, without the line's end.
    pub text: String,
}

impl Line {
    /// The marker in it, without its prefix.
    #[must_use]
    pub fn marker(&self) -> Option<&str> {
        self.text.find(PREFIX).map(|at| &self.text[at + PREFIX.len()..])
    }

    /// The value of `KEY=NUMBER` in it.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<f64> {
        let mut words = self.text.split(' ');
        words.find_map(|word| word.strip_prefix(key)?.strip_prefix('='))?.parse().ok()
    }

    /// Whether the guest's kernel has given up.
    #[must_use]
    pub fn is_panic(&self) -> bool {
        self.marker().is_none() && self.text.contains("Kernel panic")
    }
}

#[derive(Debug, Default)]
struct Said {
    lines: Vec<Line>,
    ended: bool,
}

/// A stream that a thread reads to its end.
#[derive(Clone, Debug)]
pub struct Console {
    said: Arc<(Mutex<Said>, Condvar)>,
}

impl Console {
    /// Starts reading.
    pub fn read(stream: impl Read + Send + 'static) -> Self {
        let said: Arc<(Mutex<Said>, Condvar)> = Arc::default();
        let kept = Arc::clone(&said);
        std::thread::spawn(move || {
            let mut stream = BufReader::new(stream);
            loop {
                let mut bytes = Vec::new();
                let read = stream.read_until(b'\n', &mut bytes);
                let at = Instant::now();
                let mut said = kept.0.lock().unwrap_or_else(PoisonError::into_inner);
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

    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many lines there are.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a number of lines, not a collection")]
    pub fn len(&self) -> usize {
        self.said().lines.len()
    }

    /// The lines from line `from` on.
    #[must_use]
    pub fn lines(&self, from: usize) -> Vec<Line> {
        self.said().lines.get(from..).unwrap_or_default().to_vec()
    }

    /// Whether the stream has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.said().ended
    }

    /// The first marker that starts with `marker`, from line `from` on.
    ///
    /// # Errors
    /// Not in time, or never any more: the stream ended, or the guest failed.
    pub fn marker(&self, marker: &str, from: usize, limit: Duration) -> Result<Line, String> {
        let deadline = Instant::now() + limit;
        let mut looked_at = from;
        let mut said = self.said();
        loop {
            while let Some(line) = said.lines.get(looked_at) {
                looked_at += 1;
                let Some(text) = line.marker() else {
                    if line.is_panic() {
                        return Err(format!("the guest's kernel: {}", line.text));
                    }
                    continue;
                };
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
            said = match self.said.1.wait_timeout(said, left) {
                Ok((said, _)) => said,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    /// The last `count` lines.
    #[must_use]
    pub fn tail(&self, count: usize) -> String {
        let said = self.said();
        let first = said.lines.len().saturating_sub(count);
        said.lines[first..].iter().map(|line| format!("  | {}\n", line.text)).collect()
    }

    /// Whether some line has `text` in it.
    #[must_use]
    pub fn has(&self, text: &str) -> bool {
        self.said().lines.iter().any(|line| line.text.contains(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_are_found_with_their_values() {
        let text = "[0.1] noise\r\nzerosweep-guest: boot uptime=1.5 cpus=2\r\nmore";
        let console = Console::read(text.as_bytes());
        let boot = console.marker("boot ", 0, Duration::from_secs(5)).unwrap();
        assert_eq!(boot.text, "boot uptime=1.5 cpus=2");
        assert_eq!((boot.value("uptime"), boot.value("x")), (Some(1.5), None));
        let error = console.marker("filled ", 0, Duration::from_secs(5)).unwrap_err();
        assert_eq!(error, "the console has ended");
        assert_eq!(console.lines(2)[0].text, "more");
        assert!(console.lines(4).is_empty() && console.has("noise"));
    }

    #[test]
    fn a_failed_guest_is_not_waited_for() {
        let said = |text: &'static str| {
            Console::read(text.as_bytes()).marker("filled ", 0, Duration::from_secs(5)).unwrap_err()
        };
        assert!(said("zerosweep-guest: done failed reason=churn\n").contains("reason=churn"));
        assert!(said("[1.0] Kernel panic - not syncing\n").contains("Kernel panic"));
    }
}
