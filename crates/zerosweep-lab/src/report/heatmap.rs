//! The superpage map over time: a column a moment, guest memory from top to bottom.

use std::fmt::Write as _;

use maud::{Markup, html};
use zerosweep::SuperpageState;

use super::lines::{WIDTH, balloon_x};
use crate::result::Run;
use crate::timeline::Sample;

const HEIGHT: f64 = 160.0;

/// States on the map, and the classes of their colours. What was given back is the background.
const STATES: [(SuperpageState, &str); 4] = [
    (SuperpageState::Whole, "whole"),
    (SuperpageState::Retaining, "retained"),
    (SuperpageState::Broken, "broken"),
    (SuperpageState::Promised, "pod"),
];

/// The map as SVG: one path a state, a vertical stroke for each run of equal cells.
pub(super) fn svg(run: &Run, samples: &[Sample]) -> Markup {
    let columns = samples.len().max(1);
    let cells = samples.iter().map(|sample| sample.map.len()).max().unwrap_or(0).max(1);
    let (wide, high) = (WIDTH / columns as f64, HEIGHT / cells as f64);
    html! {
        svg class="plot map" viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img"
            aria-label={ "Superpage map of " (run.guest) " under " (run.policy) } {
            rect.out width=(WIDTH) height=(HEIGHT) {}
            g transform=(format!("scale({wide:.5} {high:.5})")) {
                @for (state, class) in STATES {
                    path class=(class) d=(path(state.letter(), samples)) {}
                }
            }
            @if let Some(x) = balloon_x(samples) { path.phase d=(format!("M{x:.1} 0V{HEIGHT}")) {} }
        }
    }
}

fn path(letter: u8, samples: &[Sample]) -> String {
    let mut path = String::new();
    for (column, sample) in samples.iter().enumerate() {
        let mut at = 0;
        for run in sample.map.as_bytes().chunk_by(|a, b| a == b) {
            if run[0] == letter {
                // Writing to a string cannot fail.
                let _ = write!(path, "M{column}.5 {at}v{}", run.len());
            }
            at += run.len();
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_cells_are_one_stroke() {
        let sample = |map: &str| Sample {
            seconds: 0.0,
            ballooning: false,
            total_bytes: 0,
            populated_bytes: 0,
            cache_bytes: 0,
            entries_bytes: 0,
            map: map.to_owned(),
        };
        let samples = [sample("WWpb"), sample("ppWW")];
        assert_eq!(path(b'W', &samples), "M0.5 0v2M1.5 2v2");
        assert_eq!(path(b'.', &samples), "");
    }
}
