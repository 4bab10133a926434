//! The report: one HTML file with a table and plots, which needs nothing from the network.
//!
//! Plots are SVG with colours from the page's style sheet, so that one file does for light and
//! dark. `maud` escapes every text.

mod bars;
mod draw;
mod heatmap;
mod lines;
mod page;
mod table;
mod trace;

pub use page::html;
pub use trace::{TraceReport, trace_html};

use crate::result::{Run, TimeKind};

/// A size in few characters.
fn size(bytes: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units.iter().find(|(shift, _)| bytes >> shift > 0) {
        Some((shift, unit)) => {
            let value = bytes as f64 / (1_u64 << shift) as f64;
            let text = format!("{value:.1}");
            format!("{} {unit}", text.strip_suffix(".0").unwrap_or(&text))
        }
        None => format!("{bytes} B"),
    }
}

/// How times are called.
fn kind(run: &Run) -> &'static str {
    match run.time_kind {
        TimeKind::Measured => "measured",
        TimeKind::Modelled => "modelled",
    }
}

/// Runs of one guest on one machine with the same sizes.
struct Group<'a> {
    runs: Vec<&'a Run>,
}

impl<'a> Group<'a> {
    fn of(runs: &'a [Run]) -> Vec<Self> {
        let key = |run: &'a Run| {
            (&run.guest, &run.machine, run.max_mem_bytes, run.target_bytes, run.vcpus)
        };
        let mut groups: Vec<Self> = Vec::new();
        for run in runs {
            match groups.iter_mut().find(|group| key(group.runs[0]) == key(run)) {
                Some(group) => group.runs.push(run),
                None => groups.push(Self { runs: vec![run] }),
            }
        }
        groups
    }

    /// The runs of each policy, in order.
    fn policies(&self) -> Vec<(&'a str, Vec<&'a Run>)> {
        let mut policies: Vec<(&str, Vec<&Run>)> = Vec::new();
        for &run in &self.runs {
            match policies.iter_mut().find(|(policy, _)| *policy == run.policy) {
                Some((_, runs)) => runs.push(run),
                None => policies.push((&run.policy, vec![run])),
            }
        }
        policies
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::HostFacts;
    use crate::result::Report;

    #[test]
    fn text_from_outside_cannot_become_markup() {
        let evil = "<script>alert('\"')</script>";
        let host = HostFacts { kernel: evil.to_owned(), ..HostFacts::default() };
        let page = html(&Report { schema: 1, host, runs: Vec::new() });
        assert!(!page.contains("<script"), "{page}");
        let plot = bars::svg(evil, &[], None).into_string();
        assert!(!plot.contains("<script") && plot.contains("&lt;script"), "{plot}");
        assert!(!plot.contains("alert('\""), "it would end the attribute: {plot}");
    }

    #[test]
    fn sizes_are_short() {
        assert_eq!(size(1 << 30), "1 GiB");
        assert_eq!(size(1536 << 20), "1.5 GiB");
        assert_eq!(size(100), "100 B");
    }
}
