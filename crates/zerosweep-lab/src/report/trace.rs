//! The page of one domain in a trace: what its pages were, what happened, and the superpage map.

use std::fmt::Write as _;

use zerosweep::PAGE_BYTES;

use super::page::{STYLE, key};
use super::{escape, size};
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
const MAP: [(char, &str, &str); 5] = [
    ('W', "whole", "whole: one entry with a frame"),
    ('b', "broken", "broken: every page has a frame of its own"),
    ('m', "retained", "mixed: some pages have a frame"),
    ('p', "pod", "promised: no page has one"),
    ('.', "out", "given back"),
];

/// The page as one HTML document.
#[must_use]
pub fn trace_html(report: &TraceReport<'_>) -> String {
    let mut page = format!(
        "<!doctype html><html lang=en><head><meta charset=utf-8>\
         <meta name=viewport content=\"width=device-width,initial-scale=1\">\
         <meta name=color-scheme content=\"light dark\">\
         <title>zerosweep: domain {0} of {1}</title><style>{STYLE}</style></head><body>\
         <h1>Populate on demand: domain {0} of {1}</h1>",
        report.domain,
        escape(report.file)
    );
    facts(&mut page, report);
    let columns = &report.course.columns;
    if columns.is_empty() {
        page.push_str("<p class=note>There is nothing to draw.</p>");
        return page + "</body></html>\n";
    }
    let time = match report.seconds {
        Some(seconds) => format!("{seconds:.2} s from left to right"),
        None => "left to right: time, by the processor's counter".to_owned(),
    };
    let most = most(columns, &STATES);
    let title = "What its pages are";
    figure(&mut page, title, &format!("{time}; up to {}", size(most * PAGE_BYTES)), &STATES);
    page.push_str(&lines(title, columns, &STATES, most));
    page.push_str("</figure>");
    let most = self::most(columns, &RATES);
    let per = match report.seconds {
        Some(seconds) => {
            let per_second = most as f64 * columns.len() as f64 / seconds.max(1e-9);
            format!("up to {} a second", size((per_second * PAGE_BYTES as f64) as u64))
        }
        None => format!("up to {} in 1/{} of it", size(most * PAGE_BYTES), columns.len()),
    };
    let title = "What is done to them";
    figure(&mut page, title, &format!("{time}; {per}"), &RATES);
    page.push_str(&lines(title, columns, &RATES, most));
    page.push_str("</figure>");
    superpages(&mut page, report, &time);
    page + "</body></html>\n"
}

fn facts(page: &mut String, report: &TraceReport<'_>) {
    let layout = match report.layout {
        Layout::Words => "Xen 4.18 and newer",
        Layout::Halves => "before Xen 4.18",
    };
    // Writing to a string cannot fail.
    let _ = write!(
        page,
        "<p class=dim>{} populates of 2 MiB, {} of 4 KiB; {} and {} reclaims; {} splinters; {} \
         pages given back; layout of {layout}.</p>",
        report.summary.populates.of(9),
        report.summary.populates.of(0),
        report.summary.reclaims.of(9),
        report.summary.reclaims.of(0),
        report.summary.splinters,
        report.summary.decreases.pages(),
    );
    if let Some(broken) = report.broken {
        let _ = write!(
            page,
            "<p class=note><b>Cut or damaged.</b> {}. The part before is shown.</p>",
            escape(broken)
        );
    }
    if report.lost > 0 {
        let _ = write!(
            page,
            "<p class=note><b>{} records are missing</b>, as the trace reports: the counts and \
             pages are too low.</p>",
            report.lost
        );
    }
    if report.extent.overflowed {
        page.push_str("<p class=note>Only the first TiB is drawn.</p>");
    }
}

fn figure(page: &mut String, title: &str, about: &str, lines: &[(&str, &str, Read)]) {
    let items: Vec<_> = lines.iter().map(|&(class, what, _)| (class, what)).collect();
    let _ = write!(
        page,
        "<h2>{title}</h2>{}<figure class=wide><figcaption>{about}</figcaption>",
        key(&items)
    );
}

fn most(columns: &[Column], lines: &[(&str, &str, Read)]) -> u64 {
    let all = columns.iter().flat_map(|column| lines.iter().map(|(_, _, read)| read(column)));
    all.max().unwrap_or(0)
}

fn lines(title: &str, columns: &[Column], lines: &[(&str, &str, Read)], most: u64) -> String {
    let mut svg = format!(
        "<svg class=plot viewBox=\"0 0 {WIDTH} {HEIGHT}\" preserveAspectRatio=none role=img \
         aria-label=\"{title}\"><path class=axis d=\"M0 0V{HEIGHT}H{WIDTH}\"/>"
    );
    let step = WIDTH / columns.len() as f64;
    for (class, _, read) in lines {
        let mut points = String::new();
        for (n, column) in columns.iter().enumerate() {
            let x = step * (n as f64 + 0.5);
            let y = HEIGHT - HEIGHT * read(column) as f64 / most.max(1) as f64;
            let _ = write!(points, "{x:.1},{y:.1} ");
        }
        let _ = write!(svg, "<polyline class=\"line {class}\" points=\"{}\"/>", points.trim_end());
    }
    svg + "</svg>"
}

fn superpages(page: &mut String, report: &TraceReport<'_>, time: &str) {
    let columns = &report.course.columns;
    let cells = columns.iter().map(|column| column.map.len()).max().unwrap_or(0).max(1);
    let items: Vec<_> = MAP.iter().map(|&(_, class, what)| (class, what)).collect();
    let per_cell = match report.extent.superpages_per_cell() {
        1 => "a superpage of 2 MiB".to_owned(),
        n => format!("{n} superpages of 2 MiB, the most mixed of them"),
    };
    let _ = write!(
        page,
        "<h2>Its superpages</h2>{}<figure class=wide><figcaption>{time}; the first page is at the \
         top; a cell is {per_cell}; {} in all</figcaption><svg class=\"plot map\" \
         viewBox=\"0 0 {} {cells}\" preserveAspectRatio=none role=img \
         aria-label=\"Superpage map over time\">",
        key(&items),
        report.extent.superpages(),
        columns.len(),
    );
    page.push_str("<g>");
    for (letter, class, _) in MAP {
        let _ = write!(page, "<path class=\"cell-{class}\" d=\"{}\"/>", path(letter, columns));
    }
    page.push_str("</g></svg></figure>");
}

/// A vertical stroke for each run of equal cells.
fn path(letter: char, columns: &[Column]) -> String {
    let mut path = String::new();
    for (n, column) in columns.iter().enumerate() {
        let mut at = 0;
        for run in column.map.as_bytes().chunk_by(|a, b| a == b) {
            if char::from(run[0]) == letter {
                let _ = write!(path, "M{n}.5 {at}v{}", run.len());
            }
            at += run.len();
        }
    }
    path
}
