//! Horizontal bars: one a policy, with an optional mark for the limit.

use maud::{Markup, html};

/// One bar.
pub(super) struct Bar<'a> {
    pub(super) label: &'a str,
    /// Nothing where the guest did not get to its end.
    pub(super) value: Option<f64>,
    /// The same as text.
    pub(super) text: String,
    /// The smallest and largest of several runs.
    pub(super) range: Option<(f64, f64)>,
}

const WIDTH: f64 = 440.0;
const LABELS: f64 = 138.0;
const TEXTS: f64 = 70.0;
const ROW: f64 = 26.0;
const THICK: f64 = 16.0;

/// The bars as SVG. `limit` is drawn as a line across all of them.
pub(super) fn svg(title: &str, bars: &[Bar<'_>], limit: Option<f64>) -> Markup {
    let values = bars.iter().filter_map(|bar| bar.range.map(|(_, most)| most).or(bar.value));
    let most = values.chain(limit).fold(0.0, f64::max);
    let scale = if most > 0.0 { (WIDTH - LABELS - TEXTS) / most } else { 0.0 };
    let height = ROW * bars.len() as f64 + 8.0;
    html! {
        svg.plot viewBox=(format!("0 0 {WIDTH} {height}")) role="img" aria-label=(title) {
            @if let Some(limit) = limit {
                path.limit d=(format!("M{:.1} 0V{height}", LABELS + limit * scale)) {}
            }
            @for (n, one) in bars.iter().enumerate() { (bar(one, ROW * n as f64 + 4.0, scale)) }
        }
    }
}

/// One bar, with its name before it and its value behind it.
fn bar(bar: &Bar<'_>, y: f64, scale: f64) -> Markup {
    let middle = y + THICK / 2.0;
    let base_line = format!("{:.1}", middle + 4.5);
    let length = bar.value.unwrap_or(0.0) * scale;
    let end = bar.range.map_or(length, |(_, most)| most * scale).max(length);
    let class = if bar.label == "zerosweep" { "bar ours" } else { "bar" };
    html! {
        text.label x=(format!("{:.0}", LABELS - 8.0)) y=(base_line) { (bar.label) }
        @if bar.value.is_some() {
            rect class=(class) x=(LABELS) y=(format!("{y:.1}"))
                width=(format!("{:.1}", length.max(1.0))) height=(THICK) rx="2" {}
        }
        @if let Some((least, most)) = bar.range {
            @let (from, to) = (LABELS + least * scale, LABELS + most * scale);
            path.range d=(format!("M{from:.1} {middle:.1}H{to:.1}")) {}
        }
        text.value.none[bar.value.is_none()] x=(format!("{:.1}", LABELS + end + 6.0)) y=(base_line) {
            (bar.text)
        }
    }
}
