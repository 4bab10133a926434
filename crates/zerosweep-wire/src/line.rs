//! A message on a line of its own.

use std::io::{self, BufRead, Read};

use crate::MAX_LINE_BYTES;

/// Reads the next line, and takes its end off.
///
/// `None` when there is no further one: the other side has closed, maybe in the middle of a line,
/// or the line is longer than [`MAX_LINE_BYTES`].
///
/// # Errors
/// Those of the reader.
pub fn read_line(reader: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    reader.by_ref().take(MAX_LINE_BYTES as u64 + 1).read_until(b'\n', &mut line)?;
    Ok(line.pop_if(|last| *last == b'\n').map(|_| line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_up_to_the_longest_are_read() {
        for (bytes, fits) in [(0, true), (MAX_LINE_BYTES, true), (MAX_LINE_BYTES + 1, false)] {
            let mut input = vec![b'x'; bytes];
            input.extend_from_slice(b"\nnext");
            let line = read_line(&mut input.as_slice()).unwrap();
            assert_eq!(line.map(|line| line.len()), fits.then_some(bytes));
        }
        assert_eq!(read_line(&mut b"unfinished".as_slice()).unwrap(), None);
    }
}
