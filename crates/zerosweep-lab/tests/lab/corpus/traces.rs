//! A trace out of whatever bytes: read as a whole and in drops, and by a reader that knows the
//! format and nothing of buffers.

use std::io::{self, Read};

use zerosweep::Policy;
use zerosweep_lab::xentrace::{
    Event, Layout, PageKind, Reader, Reason, Recording, Summary, Unknown, guess,
};

const CPU_CHANGE: u32 = 0x001_f003;
/// A guest of at most this number of pages is replayed.
const SMALL: u64 = 4 * 512;

/// A record, and what is known of it without its neighbours.
#[derive(Debug, PartialEq)]
struct Plain {
    offset: u64,
    cpu: u32,
    tsc: u64,
    event: u32,
    extra: Vec<u8>,
}

/// Gives a few bytes at a time.
struct Drops<'a>(&'a [u8], usize);

impl Read for Drops<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.1 = self.1 % 13 + 1;
        let count = self.1.min(self.0.len()).min(buffer.len());
        let (now, later) = self.0.split_at(count);
        buffer[..count].copy_from_slice(now);
        self.0 = later;
        Ok(count)
    }
}

/// All records, and where it broke.
fn read(source: impl Read) -> (Vec<Plain>, Option<u64>) {
    let mut reader = Reader::new(source);
    let mut records = Vec::new();
    loop {
        match reader.next_record() {
            Ok(Some(r)) => {
                let (offset, cpu, tsc, event, extra) = (r.offset, r.cpu, r.tsc, r.event, r.extra);
                records.push(Plain { offset, cpu, tsc, event, extra: extra.to_vec() });
            }
            Ok(None) => return (records, None),
            Err(broken) => {
                assert!(!matches!(broken.reason, Reason::Io(_)), "{broken}");
                return (records, Some(broken.offset));
            }
        }
    }
}

/// The same, from the description of the format.
fn read_plainly(input: &[u8]) -> (Vec<Plain>, Option<u64>) {
    let mut stamps = std::collections::HashMap::new();
    let (mut records, mut at, mut cpu, mut window) = (Vec::new(), 0, 0, None);
    let word = |at: usize| {
        Some(u32::from_le_bytes(input.get(at..at + 4)?.try_into().expect("four bytes")))
    };
    while at < input.len() {
        let broken = Some(at as u64);
        let Some(header) = word(at) else { return (records, broken) };
        let stamp = if header >> 31 == 1 { 8 } else { 0 };
        let (first, end) = (at + 4 + stamp, at + 4 + stamp + (header >> 28 & 7) as usize * 4);
        let Some(extra) = input.get(first..end) else { return (records, broken) };
        if header & 0x0fff_ffff == CPU_CHANGE {
            let sound = extra.len() >= 8 && word(first).is_some_and(|cpu| cpu < 1 << 16);
            if !sound || window.is_some_and(|left| left > 0) {
                return (records, broken);
            }
            (cpu, window) = (word(first).unwrap_or(0), word(first + 4));
            at = end;
            continue;
        }
        if let Some(left) = &mut window {
            let Some(rest) = left.checked_sub((end - at) as u32) else { return (records, broken) };
            *left = rest;
        }
        if stamp > 0 {
            let halves = [word(at + 4), word(at + 8)].map(|half| u64::from(half.unwrap_or(0)));
            stamps.insert(cpu, halves[0] | halves[1] << 32);
        }
        records.push(Plain {
            offset: at as u64,
            cpu,
            tsc: stamps.get(&cpu).copied().unwrap_or(0),
            event: header & 0x0fff_ffff,
            extra: extra.to_vec(),
        });
        at = end;
    }
    (records, None)
}

/// Reads it in every way there is.
pub(crate) fn check(input: &[u8]) {
    let outcome = read(input);
    assert_eq!(outcome, read_plainly(input));
    assert_eq!(outcome, read(Drops(input, input.len())));
    let _ = guess(&mut Reader::new(input));
    for layout in [Layout::Words, Layout::Halves] {
        let (summary, counted) = Summary::read(&mut Reader::new(input), layout);
        assert!(counted.is_err() || (outcome.1.is_none() && summary.bytes == input.len() as u64));
        let mut largest = [0; 2];
        for record in records(input, layout) {
            if let (Event::SetEntry { gfn, kind: PageKind::Pod, order, .. }, domain @ 0..2) =
                (record, record.domain())
            {
                let end = gfn.saturating_add(1 << order);
                largest[domain as usize] = end.max(largest[domain as usize]);
            }
        }
        for (domain, pages) in (0..).zip(largest) {
            if (1..=SMALL).contains(&pages) {
                replay(input, layout, domain);
            }
        }
    }
}

fn records(input: &[u8], layout: Layout) -> Vec<Event> {
    let mut reader = Reader::new(input);
    let mut events = Vec::new();
    while let Ok(Some(record)) = reader.next_record() {
        events.extend(Event::decode(&record, layout).ok().flatten());
    }
    events
}

/// Replays a domain's side. A step that cannot be done is an error, and nothing panics.
fn replay(input: &[u8], layout: Layout, domain: u32) {
    let recording = Recording::read(&mut Reader::new(input), layout, domain, Unknown::Data);
    let Ok(recording) = recording else { return };
    assert!(recording.max_pages <= SMALL);
    for policy in [Policy::Zerosweep, Policy::Xen2016] {
        if let Ok(replay) = recording.replay(policy, recording.max_pages / 2) {
            assert!(replay.total <= recording.max_pages, "{replay:?}");
        }
    }
}
