//! The superpage map of a guest, drawn in the terminal.
//!
//! A cell stands for one superpage, or for several when there are more than fit: then it shows the
//! worst of them, because a single broken superpage should not vanish. Colours where the terminal
//! has them and `NO_COLOR` is not set; the letters say the same without.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use zerosweep::SuperpageState;

/// Cells in a row: 80 columns with a margin.
const COLUMNS: usize = 64;
/// Rows at most.
const ROWS: usize = 12;

/// What the letters mean, for a line below.
pub(crate) const LEGEND: &str =
    "# whole  + whole, parts given back  x broken  - promised  . given back";

/// Draws maps over each other on standard error, if that is a terminal; else it draws nothing.
pub(crate) struct LiveMap {
    terminal: bool,
    colours: bool,
    drawn: usize,
}

impl LiveMap {
    /// A map that was not drawn yet.
    pub(crate) fn new(quiet: bool) -> Self {
        let terminal = !quiet && std::io::stderr().is_terminal();
        Self { terminal, colours: wants_colours(), drawn: 0 }
    }

    /// Draws `letters` (`W` whole, `b` broken, `p` promised, `.` out), with a line above.
    pub(crate) fn draw(&mut self, title: &str, letters: &[u8]) {
        if !self.terminal {
            return;
        }
        let mut text = String::new();
        if self.drawn > 0 {
            let _ = write!(text, "\x1b[{}A", self.drawn);
        }
        let _ = writeln!(text, "\x1b[2K{title}");
        let rows = rows(letters, COLUMNS, ROWS, self.colours);
        for row in &rows {
            let _ = writeln!(text, "\x1b[2K  {row}");
        }
        let _ = writeln!(text, "\x1b[2K  {LEGEND}");
        self.drawn = rows.len() + 2;
        // A terminal that is gone takes nothing; the work goes on.
        let _ = std::io::stderr().write_all(text.as_bytes());
    }

    /// The next map is drawn below, not over the last one.
    pub(crate) fn keep(&mut self) {
        self.drawn = 0;
    }
}

/// Whether the user wants colours: see <https://no-color.org>.
pub(crate) fn wants_colours() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// The map in at most `most` rows of `columns` symbols.
pub(crate) fn rows(letters: &[u8], columns: usize, most: usize, colours: bool) -> Vec<String> {
    let per_cell = letters.len().div_ceil((columns * most).max(1)).max(1);
    let cells: Vec<char> = letters.chunks(per_cell).map(symbol).collect();
    let row = |cells: &[char]| cells.iter().collect::<String>();
    let rows = cells.chunks(columns.max(1)).map(row);
    if colours { rows.map(|row| coloured(&row)).collect() } else { rows.collect() }
}

/// The symbol of several superpages: that of the greatest state among them.
fn symbol(letters: &[u8]) -> char {
    let states = letters.iter().filter_map(|&letter| SuperpageState::from_letter(letter));
    match states.max() {
        Some(SuperpageState::Broken) => 'x',
        Some(SuperpageState::Retaining) => '+',
        Some(SuperpageState::Whole) => '#',
        Some(SuperpageState::Promised) => '-',
        Some(SuperpageState::Empty) | None => '.',
    }
}

fn coloured(row: &str) -> String {
    let colour = |symbol| match symbol {
        '#' => "\x1b[32m",
        '+' => "\x1b[33m",
        'x' => "\x1b[31m",
        '-' => "\x1b[34m",
        _ => "\x1b[2m",
    };
    let mut text = String::new();
    let mut last = ' ';
    for symbol in row.chars() {
        if symbol != last {
            text.push_str("\x1b[0m");
            text.push_str(colour(symbol));
        }
        text.push(symbol);
        last = symbol;
    }
    text.push_str("\x1b[0m");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_guest_has_a_cell_for_each_superpage() {
        let rows = rows(&[b"WWbp".as_slice(), &[b'.'; 124]].concat(), COLUMNS, ROWS, false);
        assert_eq!(rows.len(), 2);
        assert!(rows[0].starts_with("##x-...."));
        assert!(rows.iter().all(|row| row.len() == 64));
    }

    #[test]
    fn a_large_guest_is_squeezed_and_shows_the_worst() {
        let mut letters = vec![b'W'; 32768];
        letters[5] = b'b';
        let rows = rows(&letters, COLUMNS, ROWS, false);
        assert!(rows.len() <= ROWS);
        assert!(rows[0].starts_with("x#"));
    }

    #[test]
    fn colours_change_only_where_the_symbol_does() {
        assert_eq!(coloured("##-"), "\x1b[0m\x1b[32m##\x1b[0m\x1b[34m-\x1b[0m");
    }
}
