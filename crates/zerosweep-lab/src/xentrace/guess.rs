//! Which layout a trace's records have.

use std::io::Read;

use super::event::{is_laid_out, owner_words};
use super::reader::{Broken, Reader};
use super::{Layout, MAX_ORDER};

/// How many records are looked at, at most.
const MOST: u64 = 65_536;
/// Domains are numbered below this.
const DOMAINS: u32 = 0x7ff0;

/// A layout, and why it must be this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guess {
    /// The layout.
    pub layout: Layout,
    /// Why, for people.
    pub reason: String,
}

/// Looks at the first 65,536 records that have one of the two layouts.
///
/// # Errors
/// Where the trace cannot be read on, if it told nothing until there.
pub fn guess<R: Read>(reader: &mut Reader<R>) -> Result<Guess, Broken> {
    let (mut looked, mut small) = (0, 0);
    while looked < MOST {
        let record = match reader.next_record() {
            Ok(Some(record)) => record,
            Ok(None) => break,
            // What was read until here may tell; the reading itself will say where it broke.
            Err(_) if looked > 0 => break,
            Err(broken) => return Err(broken),
        };
        let Some((first, second)) = is_laid_out(&record).then(|| owner_words(&record)).flatten()
        else {
            continue;
        };
        looked += 1;
        let at = record.offset;
        if first >= DOMAINS {
            let reason = format!("byte {at}: {first:#x} is no domain, but two halves of a word");
            return Ok(Guess { layout: Layout::Halves, reason });
        }
        if second > MAX_ORDER {
            let reason =
                format!("byte {at}: {second:#x} is no order, but rubbish behind two halves");
            return Ok(Guess { layout: Layout::Halves, reason });
        }
        small += u64::from(second > 0);
    }
    let layout = Layout::Words;
    let reason = match (looked, small) {
        (0, _) => "there is no record that could tell".to_owned(),
        (_, 0) => format!("{looked} records of order 0, which both layouts write alike"),
        _ => format!("{looked} records have an order of at most {MAX_ORDER} in a word of its own"),
    };
    Ok(Guess { layout, reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(records: &[[u32; 6]]) -> Vec<u8> {
        let record = |words: &[u32; 6]| [&[0x6010_f010][..], words].concat();
        records.iter().flat_map(record).flat_map(u32::to_le_bytes).collect()
    }

    fn guessed(records: &[[u32; 6]]) -> Guess {
        guess(&mut Reader::new(trace(records).as_slice())).unwrap()
    }

    #[test]
    fn an_order_in_the_upper_half_and_rubbish_tell_the_old_layout() {
        let words = guessed(&[[5, 0, 7, 0, 1, 0], [512, 0, 7, 0, 1, 9]]);
        assert_eq!(words.layout, Layout::Words);
        assert!(words.reason.starts_with("2 records have an order"), "{}", words.reason);
        let halves = guessed(&[[5, 0, 7, 0, 1, 0], [512, 0, 7, 0, 9 << 16 | 1, 0]]);
        assert_eq!(halves.layout, Layout::Halves);
        assert!(halves.reason.contains("byte 28: 0x90001 is no domain"), "{}", halves.reason);
        let rubbish = guessed(&[[5, 0, 7, 0, 1, 0xffff_8000]]);
        assert_eq!(rubbish.layout, Layout::Halves);
        assert!(guessed(&[]).reason.starts_with("there is no record"));
        assert!(guessed(&[[5, 0, 7, 0, 1, 0]]).reason.contains("both layouts write alike"));
    }
}
