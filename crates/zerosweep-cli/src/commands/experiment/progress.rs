//! How far the runs are: a bar on a terminal, nothing in a pipe.

use indicatif::{ProgressBar, ProgressStyle};
use zerosweep_lab::result::Run;

/// The bar on standard error; gone when it is dropped.
pub(super) struct Progress(ProgressBar);

impl Progress {
    /// A bar for this number of runs. Nothing is drawn where standard error is no terminal.
    pub(super) fn new(runs: usize) -> Self {
        let bar = ProgressBar::new(runs as u64);
        let style = "{bar:30} {pos}/{len} runs, {eta} left  {msg}";
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        bar.enable_steady_tick(std::time::Duration::from_millis(250));
        Self(bar)
    }

    /// One more is done.
    pub(super) fn finished(&self, run: &Run) {
        self.0.set_message(format!("{} {}", run.guest, run.policy));
        self.0.inc(1);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
