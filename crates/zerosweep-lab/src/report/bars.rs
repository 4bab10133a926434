//! Horizontal bars: one a policy, with an optional mark for the limit.

use std::fmt::Write as _;

use super::escape;

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
pub(super) fn svg(title: &str, bars: &[Bar<'_>], limit: Option<f64>) -> String {
    let values = bars.iter().filter_map(|bar| bar.range.map(|(_, most)| most).or(bar.value));
    let most = values.chain(limit).fold(0.0, f64::max);
    let scale = if most > 0.0 { (WIDTH - LABELS - TEXTS) / most } else { 0.0 };
    let height = ROW * bars.len() as f64 + 8.0;
    let mut svg = format!(
        "<svg class=plot viewBox=\"0 0 {WIDTH} {height}\" role=img aria-label=\"{}\">",
        escape(title)
    );
    if let Some(limit) = limit {
        let x = LABELS + limit * scale;
        let _ = write!(svg, "<path class=limit d=\"M{x:.1} 0V{height}\"/>");
    }
    for (n, bar) in bars.iter().enumerate() {
        let y = ROW * n as f64 + 4.0;
        let middle = y + THICK / 2.0;
        // Writing to a string cannot fail.
        let _ = write!(
            svg,
            "<text x={:.0} y={:.1} class=label>{}</text>",
            LABELS - 8.0,
            middle + 4.5,
            escape(bar.label)
        );
        let length = bar.value.unwrap_or(0.0) * scale;
        if bar.value.is_some() {
            let ours = if bar.label == "zerosweep" { "bar ours" } else { "bar" };
            let _ = write!(
                svg,
                "<rect x={LABELS} y={y:.1} width={:.1} height={THICK} rx=2 class=\"{ours}\"/>",
                length.max(1.0)
            );
        }
        if let Some((least, most)) = bar.range {
            let (from, to) = (LABELS + least * scale, LABELS + most * scale);
            let _ = write!(svg, "<path class=range d=\"M{from:.1} {middle:.1}H{to:.1}\"/>");
        }
        let end = bar.range.map_or(length, |(_, most)| most * scale).max(length);
        let class = if bar.value.is_some() { "value" } else { "value none" };
        let _ = write!(
            svg,
            "<text x={:.1} y={:.1} class=\"{class}\">{}</text>",
            LABELS + end + 6.0,
            middle + 4.5,
            escape(&bar.text)
        );
    }
    svg + "</svg>"
}
