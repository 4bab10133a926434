//! Takes a trace apart, record by record.

use std::io::{self, Read};
use std::path::Path;

use zerosweep_events::record::{CPU_CHANGE, LOST_RECORDS};

use super::Source;

/// Bytes that are read at a time.
const CHUNK: usize = 1 << 20;
/// The longest record: header, time stamp, seven words.
pub(super) const LONGEST: usize = 4 + 8 + 7 * 4;
/// Valid records in a row that cannot be an accident.
pub(super) const CONVINCING: usize = 8;
/// More CPUs than any machine has: a number above it is no number of a CPU.
const CPUS: usize = 1 << 16;

/// Opens a trace, packed or not; [`Source`] for one that is read several times.
///
/// # Errors
/// When the file cannot be read.
pub fn open(path: &Path) -> io::Result<Reader<Box<dyn Read>>> {
    Source::open(path)?.reader()
}

/// A record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Where it begins, in bytes from the start of the unpacked trace.
    pub offset: u64,
    /// The CPU that it is of.
    pub cpu: u32,
    /// Time stamp counter, of this record or of the CPU's last one that had it.
    pub tsc: u64,
    /// Event number.
    pub event: u32,
    /// Its own words, four bytes each.
    pub extra: &'a [u8],
}

/// Where a trace cannot be read on.
#[derive(Debug, thiserror::Error)]
#[error("byte {offset}: {reason}")]
pub struct Broken {
    /// In bytes from the start of the unpacked trace.
    pub offset: u64,
    /// What is wrong there.
    #[source]
    pub reason: Reason,
}

/// Classes of Xen's events (`public/trace.h`): bits 27:16 of an event's number, of which one is
/// set.
const CLASSES: u32 = 0x08ff;

/// What is wrong with a trace.
#[derive(Debug, thiserror::Error)]
pub enum Reason {
    /// It ends within a record.
    #[error("the file ends within a record: {missing} bytes are missing")]
    Truncated {
        /// At least how many.
        missing: u64,
    },
    /// A record is longer than what is left of its CPU's window.
    #[error("a record of {record} bytes, but only {left} are left of its CPU's window")]
    BeyondWindow {
        /// Length of the record.
        record: u64,
        /// What is left.
        left: u64,
    },
    /// A window begins before the one of before is over.
    #[error("the next CPU's window begins, but {missing} bytes of this one's are missing")]
    WindowCut {
        /// What the window should still have.
        missing: u64,
    },
    /// The window is over, and something else than a CPU change follows.
    #[error("a CPU change must follow here, not event {event:#x}")]
    NoCpuChange {
        /// What follows.
        event: u32,
    },
    /// A CPU change without its two words, or with an impossible number of a CPU.
    #[error("invalid CPU change: it needs two words, and a CPU below 65536")]
    BadCpuChange,
    /// The file cannot be read, or unpacked.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// An invalid record of populate on demand.
    #[error(transparent)]
    Event(#[from] super::EventError),
}

/// Reads a trace in constant memory.
pub struct Reader<R> {
    source: R,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    offset: u64,
    records: u64,
    lost: u64,
    cpu: u32,
    /// What is left of the CPU's window; `None` before the first CPU change.
    window: Option<u64>,
    tscs: Vec<u64>,
}

impl<R: Read> Reader<R> {
    /// Reads the unpacked trace that comes from `source`.
    pub fn new(source: R) -> Self {
        Self {
            source,
            buffer: vec![0; CHUNK].into_boxed_slice(),
            start: 0,
            end: 0,
            offset: 0,
            records: 0,
            lost: 0,
            cpu: 0,
            window: None,
            tscs: Vec::new(),
        }
    }

    /// Records so far, of all kinds.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Bytes so far, unpacked.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Records that Xen had to drop, by its own word, so far.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// CPUs that had a window so far.
    pub fn cpus(&self) -> usize {
        self.tscs.iter().filter(|&&tsc| tsc > 0).count()
    }

    /// The next record but for CPU changes; `None` at the end.
    ///
    /// # Errors
    /// Where it cannot be read on; there is nothing more to come then.
    pub fn next_record(&mut self) -> Result<Option<Record<'_>>, Broken> {
        loop {
            if self.end - self.start < LONGEST {
                self.refill()?;
            }
            let left = &self.buffer[self.start..self.end];
            if left.is_empty() {
                return Ok(None);
            }
            let Some(header) = word(left, 0) else {
                return Err(self.truncated(4));
            };
            let Header { event, stamped, payload, length } = Header::new(header);
            if left.len() < length {
                return Err(self.truncated(length));
            }
            if event == CPU_CHANGE {
                self.change_cpu(length, payload)?;
                continue;
            }
            match &mut self.window {
                Some(0) => return Err(self.broken(Reason::NoCpuChange { event })),
                Some(window) if *window < length as u64 => {
                    let (record, left) = (length as u64, *window);
                    return Err(self.broken(Reason::BeyondWindow { record, left }));
                }
                Some(window) => *window -= length as u64,
                None => {}
            }
            if stamped {
                let tsc = long(left, 4);
                self.stamp(tsc);
            }
            let at = self.start;
            let offset = self.offset;
            self.advance(length);
            let extra = &self.buffer[at + payload..at + length];
            if event == LOST_RECORDS {
                self.lost += u64::from(word(extra, 0).unwrap_or(0));
            }
            let tsc = self.tscs.get(self.cpu as usize).copied().unwrap_or(0);
            return Ok(Some(Record { offset, cpu: self.cpu, tsc, event, extra }));
        }
    }

    fn change_cpu(&mut self, length: usize, payload: usize) -> Result<(), Broken> {
        let extra = &self.buffer[self.start + payload..self.start + length];
        let (Some(cpu), Some(bytes)) = (word(extra, 0), word(extra, 4)) else {
            return Err(self.broken(Reason::BadCpuChange));
        };
        if cpu as usize >= CPUS {
            return Err(self.broken(Reason::BadCpuChange));
        }
        if let Some(missing) = self.window.filter(|&left| left > 0) {
            return Err(self.broken(Reason::WindowCut { missing }));
        }
        self.cpu = cpu;
        self.window = Some(u64::from(bytes));
        self.advance(length);
        Ok(())
    }

    fn stamp(&mut self, tsc: u64) {
        let cpu = self.cpu as usize;
        if cpu >= self.tscs.len() {
            self.tscs.resize(cpu + 1, 0);
        }
        self.tscs[cpu] = tsc;
    }

    fn advance(&mut self, length: usize) {
        self.start += length;
        self.offset += length as u64;
        self.records += 1;
    }

    /// Reads on until there is a whole record, or nothing more.
    fn refill(&mut self) -> Result<(), Broken> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        while self.end < LONGEST {
            match self.source.read(&mut self.buffer[self.end..]) {
                Ok(0) => return Ok(()),
                Ok(bytes) => self.end += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.broken(Reason::Io(error))),
            }
        }
        Ok(())
    }

    fn truncated(&self, length: usize) -> Broken {
        let missing = (length - (self.end - self.start)) as u64;
        self.broken(Reason::Truncated { missing })
    }

    fn broken(&self, reason: Reason) -> Broken {
        Broken { offset: self.offset, reason }
    }
}

/// What the first word of a record says.
struct Header {
    event: u32,
    stamped: bool,
    /// Bytes before its own words, and of all of it.
    payload: usize,
    length: usize,
}

impl Header {
    fn new(word: u32) -> Self {
        let stamped = word >> 31 == 1;
        let payload = if stamped { 12 } else { 4 };
        let length = payload + (word >> 28 & 7) as usize * 4;
        Self { event: word & 0x0fff_ffff, stamped, payload, length }
    }

    /// Whether its event is of one of Xen's classes.
    fn is_of_xen(&self) -> bool {
        let class = self.event >> 16;
        class.is_power_of_two() && class & CLASSES == class
    }
}

/// Whether these bytes can be the beginning of a trace, of which as much as a record may be
/// missing.
pub(super) fn may_begin_a_trace(bytes: &[u8]) -> bool {
    bytes.len() < 4 || (0..=LONGEST).step_by(4).any(|start| has_records(bytes, start))
}

/// Whether records follow each other from `start` on: as many as convince, or all that there are.
fn has_records(bytes: &[u8], start: usize) -> bool {
    let (mut at, mut records) = (start, 0);
    while records < CONVINCING
        && let Some(word) = word(bytes, at)
    {
        let header = Header::new(word);
        if !header.is_of_xen() {
            return false;
        }
        at += header.length;
        records += 1;
    }
    records > 0
}

/// The word at `at` bytes.
pub(super) fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

/// The two words at `at` bytes; 0 where they are not.
pub(super) fn long(bytes: &[u8], at: usize) -> u64 {
    let (low, high) = (word(bytes, at).unwrap_or(0), word(bytes, at + 4).unwrap_or(0));
    u64::from(high) << 32 | u64::from(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(event: u32, tsc: Option<u64>, extra: &[u32]) -> Vec<u8> {
        let stamped = u32::from(tsc.is_some());
        let header = event | (extra.len() as u32) << 28 | stamped << 31;
        let stamp = tsc.map(|tsc| [tsc as u32, (tsc >> 32) as u32]).into_iter().flatten();
        [header]
            .into_iter()
            .chain(stamp)
            .chain(extra.iter().copied())
            .flat_map(u32::to_le_bytes)
            .collect()
    }

    fn window(cpu: u32, records: &[Vec<u8>]) -> Vec<u8> {
        let bytes: Vec<u8> = records.concat();
        [record(CPU_CHANGE, None, &[cpu, bytes.len() as u32]), bytes].concat()
    }

    /// CPU, time, event and bytes of each record; and where it broke.
    type Read = (Vec<(u32, u64, u32, usize)>, Option<String>);

    fn read(trace: &[u8]) -> Read {
        let mut reader = Reader::new(trace);
        let mut records = Vec::new();
        loop {
            match reader.next_record() {
                Ok(Some(r)) => records.push((r.cpu, r.tsc, r.event, r.extra.len())),
                Ok(None) => return (records, None),
                Err(broken) => return (records, Some(broken.to_string())),
            }
        }
    }

    #[test]
    fn records_have_their_cpus_last_time() {
        let trace = [
            window(3, &[record(1, Some(1 << 40), &[7]), record(2, None, &[1, 2, 3])]),
            window(0, &[record(2, None, &[]), record(1, Some(5), &[])]),
            window(3, &[record(4, None, &[0; 7])]),
        ];
        let expected = vec![
            (3, 1 << 40, 1, 4),
            (3, 1 << 40, 2, 12),
            (0, 0, 2, 0),
            (0, 5, 1, 0),
            (3, 1 << 40, 4, 28),
        ];
        assert_eq!(read(&trace.concat()), (expected, None));
    }

    #[test]
    fn lost_records_are_counted() {
        let lost = record(LOST_RECORDS, Some(9), &[17, 0, 1, 0]);
        let trace = window(0, &[lost.clone(), lost]);
        let mut reader = Reader::new(trace.as_slice());
        while reader.next_record().unwrap().is_some() {}
        assert_eq!((reader.lost(), reader.records(), reader.cpus()), (34, 3, 1));
    }

    #[test]
    fn every_cut_is_told_and_what_comes_before_is_read() {
        let trace = window(1, &[record(1, Some(1), &[1]), record(2, None, &[1, 2])]);
        let whole = [12, 28, trace.len()];
        for cut in 0..trace.len() {
            let (records, broken) = read(&trace[..cut]);
            let complete = whole.iter().filter(|&&end| end <= cut).count();
            assert_eq!(records.len(), complete.saturating_sub(1), "cut at {cut}");
            let is_between = cut == 0 || whole.contains(&cut);
            assert_eq!(broken.is_none(), is_between, "cut at {cut}: {broken:?}");
        }
        let (_, broken) = read(&trace[..trace.len() - 1]);
        assert_eq!(broken.unwrap(), "byte 28: the file ends within a record: 1 bytes are missing");
    }

    #[test]
    fn what_begins_with_no_record_of_xens_is_no_trace() {
        for event in [0, 1, 0xf001, 0x0003_f003, 0x0100_f001, 0x0700_0001, 0x0fff_ffff] {
            let records = record(event, Some(7), &[1, 2]).repeat(9);
            assert!(!may_begin_a_trace(&records), "{event:#x}");
        }
        for event in [0x0001_f001, 0x0010_f010, 0x0080_1001, 0x0800_f201] {
            let records = record(event, Some(7), &[1, 2, 3, 4, 5, 6, 7]).repeat(9);
            // Half a word off, the same record over and over may look like another.
            for cut in (0..LONGEST).filter(|cut| cut % 4 != 2) {
                let expect = cut % 4 == 0;
                assert_eq!(may_begin_a_trace(&records[cut..]), expect, "{event:#x} cut at {cut}");
            }
            assert!(may_begin_a_trace(&records[..5]), "one record that is cut");
        }
        assert!(!may_begin_a_trace(b"# A file of text\n, and more of it"));
        assert!(may_begin_a_trace(b""));
    }

    #[test]
    fn windows_are_held_to() {
        let mut trace = window(1, &[record(1, Some(1), &[1])]);
        trace.extend(record(5, None, &[]));
        let (records, broken) = read(&trace);
        assert_eq!(records.len(), 1);
        assert_eq!(broken.unwrap(), "byte 28: a CPU change must follow here, not event 0x5");
        let mut short = window(1, &[record(1, None, &[1])]);
        short[8] = 6;
        assert!(read(&short).1.unwrap().contains("a record of 8 bytes, but only 6 are left"));
        let mut early = window(1, &[record(1, None, &[1])]);
        early[8] = 99;
        early.extend(record(CPU_CHANGE, None, &[0, 0]));
        let cut = "byte 20: the next CPU's window begins, but 91 bytes of this one's are missing";
        assert_eq!(read(&early).1.unwrap(), cut);
        let far = record(CPU_CHANGE, None, &[u32::MAX, 0]);
        assert!(read(&far).1.unwrap().contains("invalid CPU change: it needs two words"));
    }
}
