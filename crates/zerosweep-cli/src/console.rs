//! Standard error: what a person sees while work goes on.
//!
//! A live line is drawn only on a terminal that nobody else writes to: the guest's serial console
//! is often on the same terminal (`-nographic`), and a live line would garble it. A pipe gets
//! single lines. Nothing here fails: a guest must not end because nobody reads its log.

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use zerosweep_client::output::eprint_line;
use zerosweep_client::printable::printable;

const WAITING: &str = "{spinner} {msg} ({elapsed})";
const MOVING: &str = "{spinner} {msg} [{wide_bar}] {percent}% ({elapsed})";

/// What else writes to the terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Terminal {
    /// Nothing: live lines may be drawn.
    Ours,
    /// The guest's console or the VMM's monitor: only warnings are written.
    Shared,
}

/// How much is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verbosity {
    /// What a person needs to know.
    Normal,
    /// Every step too (`--verbose`).
    Verbose,
}

/// Lines and a live line on standard error; shared by the threads of one piece of work.
#[derive(Debug)]
pub(crate) struct Console {
    verbosity: Verbosity,
    terminal: Terminal,
    is_terminal: bool,
    live: Mutex<Live>,
}

#[derive(Debug)]
struct Live {
    bar: Option<ProgressBar>,
    closed: bool,
}

impl Live {
    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Console {
    /// A console on standard error.
    pub(crate) fn new(verbosity: Verbosity, terminal: Terminal) -> Self {
        let live = Mutex::new(Live { bar: None, closed: false });
        Self { verbosity, terminal, is_terminal: io::stderr().is_terminal(), live }
    }

    /// Something that went as it should. Left out where the guest's console is on the terminal.
    pub(crate) fn note(&self, line: &str) {
        if !(self.is_terminal && self.terminal == Terminal::Shared) {
            self.line(line);
        }
    }

    /// A step, for those who asked for every step.
    pub(crate) fn verbose(&self, line: &str) {
        if self.verbosity == Verbosity::Verbose {
            self.line(line);
        }
    }

    /// Something that a person should know or do something about.
    pub(crate) fn warn(&self, line: &str) {
        self.line(&format!("warning: {line}"));
    }

    /// A live line without an end in sight.
    pub(crate) fn waiting(&self, message: &str) {
        self.draw(WAITING, message, None);
    }

    /// A live line with `done` of `all`.
    pub(crate) fn moving(&self, message: &str, done: u64, all: u64) {
        self.draw(MOVING, message, Some((done, all)));
    }

    /// Takes the live line away.
    pub(crate) fn clear(&self) {
        self.lock().clear();
    }

    /// Takes the live line away and says nothing more.
    pub(crate) fn close(&self) {
        let mut live = self.lock();
        live.clear();
        live.closed = true;
    }

    fn line(&self, line: &str) {
        let live = self.lock();
        if self.is_terminal && self.terminal == Terminal::Shared && !live.closed {
            // The guest's cursor is anywhere in its line.
            let _ = io::stderr().write_all(b"\r\n");
        }
        match &live.bar {
            _ if live.closed => {}
            Some(bar) => bar.suspend(|| eprint_line(line)),
            None => eprint_line(line),
        }
    }

    fn draw(&self, template: &str, message: &str, progress: Option<(u64, u64)>) {
        let mut live = self.lock();
        if live.closed || !self.is_terminal || self.terminal == Terminal::Shared {
            return;
        }
        let bar = live.bar.get_or_insert_with(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(printable(message).into_owned());
        if let Some((done, all)) = progress {
            bar.set_length(all);
            bar.set_position(done);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
