//! The timeline of one run: total, populated, cache and entries.

use maud::{Markup, html};

use super::draw::points;
use super::size;
use crate::result::Run;
use crate::timeline::Sample;

/// Width of a small plot; [`super::heatmap`] has the same.
pub(super) const WIDTH: f64 = 320.0;
const HEIGHT: f64 = 120.0;

/// Reads one quantity.
type Read = fn(&Sample) -> u64;

/// What is drawn: class, and where it is in a sample.
const LINES: [(&str, Read); 4] = [
    ("entries", |sample| sample.entries_bytes),
    ("total", |sample| sample.total_bytes),
    ("populated", |sample| sample.populated_bytes),
    ("cache", |sample| sample.cache_bytes),
];

/// Where a moment lies: moments are equally far apart.
pub(super) fn x(n: usize, samples: &[Sample]) -> f64 {
    WIDTH * n as f64 / (samples.len().max(2) - 1) as f64
}

/// Where the balloon begins.
pub(super) fn balloon_x(samples: &[Sample]) -> Option<f64> {
    samples.iter().position(|sample| sample.ballooning).map(|n| x(n, samples))
}

/// The plot, from 0 to all of the guest's memory.
pub(super) fn svg(run: &Run, samples: &[Sample]) -> Markup {
    let y = |bytes: u64| HEIGHT - HEIGHT * bytes as f64 / run.max_mem_bytes.max(1) as f64;
    let target = y(run.target_bytes);
    let line = |read: Read| {
        points(samples.iter().enumerate().map(|(n, sample)| (x(n, samples), y(read(sample)))))
    };
    html! {
        svg.plot viewBox=(format!("0 -4 {WIDTH} {:.0}", HEIGHT + 8.0)) role="img"
            aria-label={ "Quantities over the run of " (run.guest) " under " (run.policy) } {
            path.axis d=(format!("M0 0V{HEIGHT}H{WIDTH}")) {}
            path.limit d=(format!("M0 {target:.1}H{WIDTH}")) {}
            text.small x=(format!("{:.0}", WIDTH - 2.0)) y=(format!("{:.1}", target - 3.0)) {
                "target " (size(run.target_bytes))
            }
            @if let Some(x) = balloon_x(samples) { path.phase d=(format!("M{x:.1} 0V{HEIGHT}")) {} }
            @for (class, read) in LINES {
                polyline class={ "line " (class) } points=(line(read)) {}
            }
        }
    }
}
