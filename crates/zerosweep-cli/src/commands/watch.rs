//! `zerosweep watch NAME`: a guest's superpage map and figures, every second.
//!
//! On a terminal the screen is drawn over and over, and is as it was when the watching ends. In a
//! pipe there is a line for each poll, and with `--json` a document.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use zerosweep_client::agent::{ClientError, Link};
use zerosweep_client::error::Failure;
use zerosweep_client::poll::{AGENT_TIMEOUT, Detail, Sample, poll};
use zerosweep_client::size::{Size, pages, signed_pages};
use zerosweep_client::{output, runtime};

use super::status::state_word;
use crate::cli::WatchArguments;
use crate::map::{self, LEGEND};

/// The terminal that everything must fit on, where none can be asked.
const SMALL: (usize, usize) = (80, 24);
/// Lines of the screen that are not the map.
const OTHER_LINES: usize = 10;
/// Looks that the line of what was held goes back.
const HISTORY: usize = 64;
/// Lines below one heading.
const PAGE: u64 = 20;
/// How often a wait looks whether it was interrupted.
const NAP: Duration = Duration::from_millis(50);

/// Watches until the guest ends, or the user has seen enough.
pub(super) fn execute(arguments: &WatchArguments) -> Result<ExitCode, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    super::stop_on_signals(&stop)?;
    let client = super::connect(&arguments.name)?;
    let socket = runtime::find(&arguments.name)?.socket;
    let mut link = Link::with(client, socket, AGENT_TIMEOUT);
    let mut view = View::new(arguments);
    let mut last = None;
    let mut looks = 0;
    while !stop.load(Ordering::SeqCst) {
        let began = Instant::now();
        let look = match Look::take(&mut link, last.as_ref(), view.detail()) {
            Ok(look) => look,
            // The guest has ended, as guests do.
            Err(error) if error.is_gone() => {
                drop(view);
                eprintln!("guest {} has ended", arguments.name);
                return Ok(ExitCode::SUCCESS);
            }
            Err(error) => return Err(Failure::work(format!("guest {}: {error}", arguments.name))),
        };
        view.show(&look)?;
        last = Some(look);
        looks += 1;
        if arguments.count.is_some_and(|count| looks >= count) {
            break;
        }
        while began.elapsed() < arguments.interval && !stop.load(Ordering::SeqCst) {
            std::thread::sleep(NAP.min(arguments.interval.saturating_sub(began.elapsed())));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What one look at the guest says.
struct Look {
    at: Instant,
    sample: Sample,
    faults_per_second: f64,
}

impl Look {
    fn take(link: &mut Link, last: Option<&Self>, detail: Detail) -> Result<Self, ClientError> {
        let at = Instant::now();
        let sample = poll(link, detail)?;
        let faults = |sample: &Sample| sample.status.counters.faults;
        let rate = |last: &Self| {
            let new = faults(&sample).saturating_sub(faults(&last.sample));
            new as f64 / at.duration_since(last.at).as_secs_f64().max(1e-3)
        };
        let faults_per_second = last.map_or(0.0, rate);
        Ok(Self { at, sample, faults_per_second })
    }
}

/// Where looks are shown.
enum View {
    Screen(Screen),
    Lines(u64),
    Json,
}

impl View {
    fn new(arguments: &WatchArguments) -> Self {
        if arguments.json {
            Self::Json
        } else if io::stdout().is_terminal() {
            Self::Screen(Screen::new(arguments.interval))
        } else {
            Self::Lines(0)
        }
    }

    fn detail(&self) -> Detail {
        match self {
            Self::Screen(_) => Detail::Map,
            Self::Lines(_) | Self::Json => Detail::Figures,
        }
    }

    fn show(&mut self, look: &Look) -> Result<(), Failure> {
        match self {
            Self::Screen(screen) => screen.show(look),
            Self::Lines(shown) => {
                let heading = if *shown % PAGE == 0 { HEADING } else { "" };
                *shown += 1;
                output::text(&format!("{heading}{}", line(look)))
            }
            Self::Json => output::json_line(&look.sample.status),
        }
    }
}

const HEADING: &str =
    " TARGET   HELD   INUSE   CACHE RETAIN  PROMIS    OWED WHOLE BROKEN FAULT/s STALL\n";

/// A look on a line of 80 columns.
fn line(look: &Look) -> String {
    let Look { sample: Sample { status, .. }, faults_per_second, .. } = look;
    let figures = &status.pages;
    format!(
        "{:>7}{:>7}{:>8}{:>8}{:>7}{:>8}{:>8}{:>6}{:>7}{faults_per_second:>8.0}{:>6}\n",
        Size(status.target_bytes).rounded(),
        pages(figures.total),
        pages(figures.populated),
        pages(figures.cache),
        pages(figures.retained),
        pages(figures.entries),
        signed_pages(figures.owed),
        status.superpages.in_guest,
        status.superpages.broken,
        status.stalled_threads,
    )
}

/// The whole terminal, until dropped.
struct Screen(Picture);

/// What is drawn on it.
struct Picture {
    interval: Duration,
    colours: bool,
    held: VecDeque<u64>,
}

/// Another screen, without a cursor; and the one of before.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

impl Screen {
    fn new(interval: Duration) -> Self {
        // A terminal that is gone takes nothing.
        let _ = io::stdout().write_all(ENTER.as_bytes());
        Self(Picture { interval, colours: map::wants_colours(), held: VecDeque::new() })
    }

    fn show(&mut self, look: &Look) -> Result<(), Failure> {
        let (columns, rows) = rustix::termios::tcgetwinsize(io::stdout())
            .map_or(SMALL, |size| known_size(size.ws_col, size.ws_row));
        self.0.note(look);
        let mut text = String::from("\x1b[H");
        for line in self.0.lines(look, columns, rows).iter().take(rows) {
            let _ = write!(text, "{line}\x1b[K\r\n");
        }
        // What is left of a longer picture goes; the last line ends without a new one.
        let end = text.trim_end_matches("\r\n").len();
        text.truncate(end);
        text.push_str("\x1b[J");
        output::text(&text)
    }
}

/// Columns and rows; a terminal says 0 for what it does not know.
fn known_size(columns: u16, rows: u16) -> (usize, usize) {
    let or = |told: u16, small| if told > 0 { told.into() } else { small };
    (or(columns, SMALL.0), or(rows, SMALL.1))
}

impl Picture {
    fn note(&mut self, look: &Look) {
        if self.held.len() == HISTORY {
            self.held.pop_front();
        }
        self.held.push_back(look.sample.status.pages.total);
    }

    /// Lines that fit.
    fn lines(&self, look: &Look, columns: usize, rows: usize) -> Vec<String> {
        let status = &look.sample.status;
        let plain = |line: String| line.chars().take(columns).collect::<String>();
        let mut lines: Vec<_> = self.figures(look).into_iter().map(plain).collect();
        let cells = [128, 64, 32].into_iter().find(|&cells| cells + 2 <= columns).unwrap_or(16);
        let most = rows.saturating_sub(OTHER_LINES).max(1);
        let letters = look.sample.letters.as_deref().unwrap_or_default().as_bytes();
        let map = map::rows(letters, cells, most, self.colours);
        lines.extend(map.into_iter().map(|row| format!("  {row}")));
        lines.push(plain(format!("  {LEGEND}")));
        let max = status.pages.max.max(1);
        lines.push(plain(format!("held      {}", sparks(&self.held, max))));
        lines.push(plain(format!("every {:?}; Ctrl-C ends the watching", self.interval)));
        lines
    }

    fn figures(&self, look: &Look) -> Vec<String> {
        let status = &look.sample.status;
        let figures = &status.pages;
        let latency = &status.fault_latency;
        let time = |ns| format!("{:.1?}", Duration::from_nanos(ns));
        let state = match &status.reason {
            Some(reason) => format!("{}: {reason}", state_word(status.state)),
            None => state_word(status.state).to_owned(),
        };
        let superpages = &status.superpages;
        let by_kernel = superpages.in_guest_by_kernel;
        vec![
            format!("{}  pid {}  policy {}  {state}", status.name, status.pid, status.policy),
            format!(
                "memory    target {} of {}; held {}: {} in use, {} cache, {} retained",
                Size(status.target_bytes).rounded(),
                Size(status.max_mem_bytes).rounded(),
                pages(figures.total),
                pages(figures.populated),
                pages(figures.cache),
                pages(figures.retained),
            ),
            format!(
                "promised  {}; can touch {}, {} more by sweeping; {} short",
                pages(figures.entries),
                pages(figures.can_touch),
                pages(figures.likely),
                pages(figures.short),
            ),
            format!(
                "balloon   {} given back, {} owed",
                pages(figures.ballooned_out),
                signed_pages(figures.owed)
            ),
            format!(
                "2M pages  {} in the guest{}, {} in the cache, {} broken",
                superpages.in_guest,
                by_kernel.map_or(String::new(), |count| format!(" ({count} by the kernel)")),
                superpages.in_cache,
                superpages.broken,
            ),
            format!(
                "faults    {:.0}/s; median {}, 99 % {}, longest {}",
                look.faults_per_second,
                time(latency.p50_ns),
                time(latency.p99_ns),
                time(latency.max_ns),
            ),
            format!(
                "waiting   {} threads stall, {} borrowed",
                status.stalled_threads,
                pages(status.borrowed_pages)
            ),
        ]
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let mut stdout = io::stdout();
        let _ = stdout.write_all(LEAVE.as_bytes()).and_then(|()| stdout.flush());
    }
}

/// A block for each value, as high as its part of `max`.
fn sparks(values: &VecDeque<u64>, max: u64) -> String {
    const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let block = |&value: &u64| {
        let eighth = u128::from(value) * 8 / u128::from(max);
        BLOCKS[(eighth as usize).min(BLOCKS.len() - 1)]
    };
    values.iter().map(block).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerosweep_client::test_support::sample_status;

    fn look(superpages: usize) -> Look {
        let mut status = sample_status("a-guest-with-a-name");
        status.superpages.in_guest_by_kernel = Some(288);
        let letters: String = "Wrbp.".chars().cycle().take(superpages).collect();
        let sample = Sample { at_ms: 0, status, letters: Some(letters.into()), agent_uid: None };
        Look { at: Instant::now(), sample, faults_per_second: 12_345.6 }
    }

    fn picture() -> Picture {
        let held = (0..HISTORY as u64).map(|n| n * 8192).collect();
        Picture { interval: Duration::from_secs(1), colours: false, held }
    }

    #[test]
    fn the_picture_fits_on_a_small_terminal() {
        for superpages in [1, 1024, 32_768] {
            let lines = picture().lines(&look(superpages), SMALL.0, SMALL.1);
            assert!(lines.len() <= SMALL.1, "{} lines", lines.len());
            for line in &lines {
                assert!(line.chars().count() <= SMALL.0, "{line}");
            }
            assert!(lines[1].contains("target 768M of 2G; held 765.6M"), "{}", lines[1]);
        }
    }

    #[test]
    fn lines_in_a_pipe_are_as_wide_as_their_heading() {
        let line = line(&look(0));
        assert_eq!((line.len(), HEADING.len()), (81, 81), "{HEADING}{line}");
    }

    #[test]
    fn sparks_rise_with_the_value() {
        assert_eq!(sparks(&VecDeque::from([0, 500, 1000]), 1000), "▁▅█");
    }
}
