//! How a run went: quantities and the superpage map at some moments.

use serde::{Deserialize, Serialize};
use zerosweep::{PAGE_BYTES, Quantities};

/// Cells of a map at most; a cell stands for one superpage or for several.
const CELLS: usize = 128;
/// Moments at most; when there are more, every second one is dropped.
const MOMENTS: usize = 96;

/// One moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Since the start of the boot; modelled on the software machine.
    pub seconds: f64,
    /// Whether the guest has begun to give pages back.
    pub ballooning: bool,
    /// Held: populated, cached and retained.
    pub total_bytes: u64,
    /// With a frame.
    pub populated_bytes: u64,
    /// In the cache.
    pub cache_bytes: u64,
    /// Promised without a frame.
    pub entries_bytes: u64,
    /// A letter a cell: `W` whole, `r` whole with pages that were given back, `b` broken, `p`
    /// promised, `.` given back; the worst of those that the cell stands for.
    pub map: String,
}

/// Collects moments.
pub(crate) struct Recorder {
    samples: Option<Vec<Sample>>,
}

impl Recorder {
    /// Keeps what it is told, or nothing.
    pub(crate) fn new(wanted: bool) -> Self {
        Self { samples: wanted.then(Vec::new) }
    }

    pub(crate) fn add(
        &mut self,
        seconds: f64,
        ballooning: bool,
        quantities: &Quantities,
        letters: &[u8],
    ) {
        let Some(samples) = &mut self.samples else { return };
        if samples.len() >= MOMENTS {
            let mut n = 0;
            samples.retain(|_| {
                n += 1;
                n % 2 == 1
            });
        }
        let bytes = |pages: u64| pages * PAGE_BYTES;
        samples.push(Sample {
            seconds,
            ballooning,
            total_bytes: bytes(quantities.total()),
            populated_bytes: bytes(quantities.populated),
            cache_bytes: bytes(quantities.cache),
            entries_bytes: bytes(quantities.entries),
            map: squeeze(letters),
        });
    }

    pub(crate) fn finish(self) -> Option<Vec<Sample>> {
        self.samples
    }
}

/// A map of at most [`CELLS`] letters.
fn squeeze(letters: &[u8]) -> String {
    let per_cell = letters.len().div_ceil(CELLS).max(1);
    let worst = |cell: &[u8]| {
        let has = |letter| cell.contains(letter);
        *b"brWp".iter().find(|letter| has(letter)).unwrap_or(&b'.') as char
    };
    letters.chunks(per_cell).map(worst).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_shows_the_worst() {
        assert_eq!(squeeze(b"Wbp.r"), "Wbp.r");
        let mut letters = vec![b'.'; 2048];
        (letters[0], letters[17]) = (b'W', b'b');
        assert_eq!(squeeze(&letters)[..4], *"Wb..");
        assert_eq!(squeeze(&letters).len(), 128);
    }

    #[test]
    fn there_are_never_too_many_moments() {
        let mut recorder = Recorder::new(true);
        for n in 0..1000 {
            recorder.add(f64::from(n), false, &Quantities::default(), b"p");
        }
        let samples = recorder.finish().unwrap();
        assert!((40..=MOMENTS).contains(&samples.len()), "{}", samples.len());
        assert!(samples[0].seconds.abs() < 1e-9, "the first is kept");
    }
}
