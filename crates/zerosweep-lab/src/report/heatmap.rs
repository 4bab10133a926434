//! The superpage map over time: a column a moment, guest memory from top to bottom.

use maud::{Markup, html};
use zerosweep::SuperpageState;

use super::draw::strokes;
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
    let maps = || samples.iter().map(|sample| sample.map.as_str());
    html! {
        svg class="plot map" viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img"
            aria-label={ "Superpage map of " (run.guest) " under " (run.policy) } {
            rect.out width=(WIDTH) height=(HEIGHT) {}
            g transform=(format!("scale({wide:.5} {high:.5})")) {
                @for (state, class) in STATES {
                    path class=(class) d=(strokes(state.letter(), maps())) {}
                }
            }
            @if let Some(x) = balloon_x(samples) { path.phase d=(format!("M{x:.1} 0V{HEIGHT}")) {} }
        }
    }
}
