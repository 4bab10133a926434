//! The page of one domain in a trace: what its pages were, what happened, and the superpage map.

use maud::{Markup, html};
use zerosweep::PAGE_BYTES;

use super::draw::{points, strokes};
use super::page::{document, key};
use super::size;
use crate::xentrace::{Column, Course, DomainSummary, Extent, Layout};

/// What a page is made of.
pub struct TraceReport<'a> {
    /// The trace, as it was named.
    pub file: &'a str,
    /// Whose memory.
    pub domain: u32,
    /// How its records are laid out.
    pub layout: Layout,
    /// How long it took, in s, if the rate of the time stamps is known.
    pub seconds: Option<f64>,
    /// Records that Xen had to drop.
    pub lost: u64,
    /// Where the trace could not be read on.
    pub broken: Option<&'a str>,
    /// Counts.
    pub summary: &'a DomainSummary,
    /// From when to when, and where.
    pub extent: &'a Extent,
    /// How it went.
    pub course: &'a Course,
}

/// Pages at the end of a column, and pages that something was done to in it.
type Read = fn(&Column) -> u64;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 200.0;

const STATES: [(&str, &str, Read); 3] = [
    ("entries", "entries (promised, no frame)", |column| column.pages.pod),
    ("populated", "ram", |column| column.pages.ram),
    ("total", "given back", |column| column.pages.invalid),
];

const RATES: [(&str, &str, Read); 3] = [
    ("populated", "populated", |column| column.populated),
    ("entries", "reclaimed", |column| column.reclaimed),
    ("total", "given back", |column| column.decreased),
];

/// Letters of a map, and the classes of their colours. What was given back is the background.
const MAP: [(u8, &str, &str); 5] = [
    (b'W', "whole", "whole: one entry with a frame"),
    (b'b', "broken", "broken: every page has a frame of its own"),
    (b'm', "retained", "mixed: some pages have a frame"),
    (b'p', "pod", "promised: no page has one"),
    (b'.', "out", "given back"),
];

/// The page as one HTML document.
#[must_use]
pub fn trace_html(report: &TraceReport<'_>) -> String {
    let name = format!("domain {} of {}", report.domain, report.file);
    let body = html! {
        (facts(report))
        @if report.course.columns.is_empty() { p.note { "There is nothing to draw." } }
        @else { (plots(report)) }
    };
    document(&format!("zerosweep: {name}"), &format!("Populate on demand: {name}"), &body)
}

fn plots(report: &TraceReport<'_>) -> Markup {
    let columns = &report.course.columns;
    let time = match report.seconds {
        Some(seconds) => format!("{seconds:.2} s from left to right"),
        None => "left to right: time, by the processor's counter".to_owned(),
    };
    let most_pages = most(columns, &STATES);
    let most_done = most(columns, &RATES);
    let per = match report.seconds {
        Some(seconds) => {
            let per_second = most_done as f64 * columns.len() as f64 / seconds.max(1e-9);
            format!("up to {} a second", size((per_second * PAGE_BYTES as f64) as u64))
        }
        None => format!("up to {} in 1/{} of it", size(most_done * PAGE_BYTES), columns.len()),
    };
    let up_to = format!("up to {}", size(most_pages * PAGE_BYTES));
    html! {
        (figure("What its pages are", &format!("{time}; {up_to}"), columns, &STATES, most_pages))
        (figure("What is done to them", &format!("{time}; {per}"), columns, &RATES, most_done))
        (superpages(report, &time))
    }
}

fn facts(report: &TraceReport<'_>) -> Markup {
    let layout = match report.layout {
        Layout::Words => "Xen 4.18 and newer",
        Layout::Halves => "before Xen 4.18",
    };
    let counts = report.summary;
    html! {
        p.dim {
            (counts.populates.of(9)) " populates of 2 MiB, " (counts.populates.of(0)) " of 4 KiB; "
            (counts.reclaims.of(9)) " and " (counts.reclaims.of(0)) " reclaims; "
            (counts.splinters) " splinters; " (counts.decreases.pages()) " pages given back; \
            layout of " (layout) "."
        }
        @if let Some(broken) = report.broken {
            p.note { b { "Cut or damaged." } " " (broken) ". The part before is shown." }
        }
        @if report.lost > 0 {
            p.note {
                b { (report.lost) " records are missing" }
                ", as the trace reports: the counts and pages are too low."
            }
        }
        @if report.extent.overflowed { p.note { "Only the first TiB is drawn." } }
    }
}

fn figure(
    title: &str,
    about: &str,
    columns: &[Column],
    lines: &[(&str, &str, Read)],
    most: u64,
) -> Markup {
    let items: Vec<_> = lines.iter().map(|&(class, what, _)| (class, what)).collect();
    html! {
        h2 { (title) }
        (key(&items))
        figure.wide { figcaption { (about) } (self::lines(title, columns, lines, most)) }
    }
}

fn most(columns: &[Column], lines: &[(&str, &str, Read)]) -> u64 {
    let all = columns.iter().flat_map(|column| lines.iter().map(|(_, _, read)| read(column)));
    all.max().unwrap_or(0)
}

fn lines(title: &str, columns: &[Column], lines: &[(&str, &str, Read)], most: u64) -> Markup {
    let step = WIDTH / columns.len() as f64;
    let line = |read: &Read| {
        points(columns.iter().enumerate().map(|(n, column)| {
            let x = step * (n as f64 + 0.5);
            (x, HEIGHT - HEIGHT * read(column) as f64 / most.max(1) as f64)
        }))
    };
    html! {
        svg.plot viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) preserveAspectRatio="none" role="img"
            aria-label=(title) {
            path.axis d=(format!("M0 0V{HEIGHT}H{WIDTH}")) {}
            @for (class, _, read) in lines {
                polyline class={ "line " (class) } points=(line(read)) {}
            }
        }
    }
}

fn superpages(report: &TraceReport<'_>, time: &str) -> Markup {
    let columns = &report.course.columns;
    let cells = columns.iter().map(|column| column.map.len()).max().unwrap_or(0).max(1);
    let items: Vec<_> = MAP.iter().map(|&(_, class, what)| (class, what)).collect();
    let per_cell = match report.extent.superpages_per_cell() {
        1 => "a superpage of 2 MiB".to_owned(),
        n => format!("{n} superpages of 2 MiB, the most mixed of them"),
    };
    html! {
        h2 { "Its superpages" }
        (key(&items))
        figure.wide {
            figcaption {
                (time) "; the first page is at the top; a cell is " (per_cell) "; "
                (report.extent.superpages()) " in all"
            }
            svg class="plot map" viewBox=(format!("0 0 {} {cells}", columns.len()))
                preserveAspectRatio="none" role="img" aria-label="Superpage map over time" {
                g {
                    @for (letter, class, _) in MAP {
                        path class={ "cell-" (class) } d=(strokes(letter, columns.iter().map(|column| column.map.as_str()))) {}
                    }
                }
            }
        }
    }
}
