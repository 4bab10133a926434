//! What lines and maps are drawn with.

use std::fmt::Write as _;

/// The points of a polyline.
pub(super) fn points(points: impl Iterator<Item = (f64, f64)>) -> String {
    let mut text = String::new();
    for (x, y) in points {
        let gap = if text.is_empty() { "" } else { " " };
        // Writing to a string cannot fail.
        let _ = write!(text, "{gap}{x:.1},{y:.1}");
    }
    text
}

/// A vertical stroke for each run of cells that have this letter: a column a map.
pub(super) fn strokes<'a>(letter: u8, maps: impl Iterator<Item = &'a str>) -> String {
    let mut path = String::new();
    for (column, map) in maps.enumerate() {
        let mut at = 0;
        for run in map.as_bytes().chunk_by(|a, b| a == b) {
            if run[0] == letter {
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
        let maps = ["WWpb", "ppWW"];
        assert_eq!(strokes(b'W', maps.into_iter()), "M0.5 0v2M1.5 2v2");
        assert_eq!(strokes(b'.', maps.into_iter()), "");
    }

    #[test]
    fn points_are_apart() {
        assert_eq!(points([(0.0, 1.25), (2.0, 3.0)].into_iter()), "0.0,1.2 2.0,3.0");
        assert_eq!(points([].into_iter()), "");
    }
}
