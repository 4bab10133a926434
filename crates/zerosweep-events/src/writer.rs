//! Writes a trace in the layout of Xen 4.18 and newer.
//!
//! CPU 0 runs the one virtual CPU of domain [`Writer::DOMAIN`] from the first record to the last,
//! because `xenalyze` counts an event only if it knows whose it is. A time stamp is a time in ns,
//! as of a counter that runs at 1 GHz. In a packed file it is rounded. Records of the same time
//! share one time stamp.

use std::io::{self, Write};
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;

use zerosweep::Order;

use crate::note::{Kind, Note, What};
use crate::record as number;

/// A window is written when it has this number of bytes.
const WINDOW_BYTES: usize = 64 << 10;
/// Times in a packed file are multiples of this (65 µs), or 1.
const PACKED_TICK_NS: u64 = 1 << 16;
/// Bits of a record's first word.
const STAMPED: u32 = 1 << 31;
/// What Xen writes where there is no frame.
const NO_FRAME: u64 = u64::MAX;

/// How windows are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Packing {
    /// As they are.
    #[default]
    Plain,
    /// Each as a member of a gzip file: the part before a cut can always be unpacked.
    Gzip,
}

impl Packing {
    /// Returns the packing that a file's name asks for.
    #[must_use]
    pub fn of(path: &Path) -> Self {
        if path.extension().is_some_and(|end| end == "gz") { Self::Gzip } else { Self::Plain }
    }
}

/// Writes records in windows. The output ends with a whole window, unless writing failed.
pub struct Writer<W> {
    out: W,
    packing: Packing,
    window: Vec<u8>,
    packed: Vec<u8>,
    time_ns: Option<u64>,
    written: u64,
    records: u64,
}

impl<W: Write> Writer<W> {
    /// The number of the guest's domain.
    pub const DOMAIN: u16 = 1;
    /// The virtual CPU that runs, as [`number::RUNNABLE_TO_RUNNING`] has it.
    const VCPU: u32 = (Self::DOMAIN as u32) << 16;

    /// Begins a trace of a guest all of whose `max_pages` are promised.
    pub fn begin(out: W, time_ns: u64, max_pages: u64) -> Self {
        Self::begin_packed(out, Packing::Plain, time_ns, max_pages)
    }

    /// As [`Writer::begin`], packed.
    pub fn begin_packed(out: W, packing: Packing, time_ns: u64, max_pages: u64) -> Self {
        let window = Vec::with_capacity(WINDOW_BYTES + 256);
        let packed = Vec::new();
        let mut writer =
            Self { out, packing, window, packed, time_ns: None, written: 0, records: 0 };
        writer.record(time_ns, number::RUNNABLE_TO_RUNNING, &[Self::VCPU]);
        for (gfn, order) in Order::runs(max_pages) {
            writer.put(time_ns, &Note { what: What::Set(Kind::Pod), gfn, mfn: None, order });
        }
        writer
    }

    /// Writes a note.
    ///
    /// # Errors
    /// When a window is full and cannot be written. The window is lost, and a part of it may be in
    /// the file; [`Writer::written`] returns the length of the file before it.
    pub fn note(&mut self, time_ns: u64, note: &Note) -> io::Result<()> {
        self.put(time_ns, note);
        if self.window.len() >= WINDOW_BYTES { self.flush() } else { Ok(()) }
    }

    /// Writes that `count` records are missing here, the first one of `since_ns`.
    pub fn lost(&mut self, time_ns: u64, count: u64, since_ns: u64) {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        // Which virtual CPU ran is forgotten with what was lost, and has to be said again.
        let [low, high] = halves(since_ns);
        self.record(time_ns, number::LOST_RECORDS, &[count, Self::VCPU >> 16, low, high]);
        self.record(time_ns, number::RUNNABLE_TO_RUNNING, &[Self::VCPU]);
    }

    /// Writes the records that were not written yet as a window.
    ///
    /// # Errors
    /// See [`Writer::note`].
    pub fn flush(&mut self) -> io::Result<()> {
        if self.window.is_empty() {
            return Ok(());
        }
        let bytes = self.window.len() as u32;
        let header = [number::CPU_CHANGE | 2 << 28, 0, bytes].map(u32::to_le_bytes);
        let parts = [header.as_flattened(), &self.window];
        let length = match self.packing {
            Packing::Plain => {
                let done = parts.iter().try_for_each(|part| self.out.write_all(part));
                done.map(|()| parts.iter().map(|part| part.len()).sum::<usize>())
            }
            Packing::Gzip => {
                self.packed.clear();
                pack(&parts, &mut self.packed)
                    .and_then(|()| self.out.write_all(&self.packed))
                    .map(|()| self.packed.len())
            }
        };
        self.window.clear();
        let length = length.and_then(|length| self.out.flush().map(|()| length))?;
        self.written += length as u64;
        Ok(())
    }

    /// Ends the trace.
    ///
    /// # Errors
    /// See [`Writer::note`].
    pub fn finish(&mut self, time_ns: u64) -> io::Result<()> {
        self.record(time_ns, number::RUNNING_TO_BLOCKED, &[Self::VCPU]);
        self.flush()
    }

    /// Returns how many bytes were written in whole windows.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Returns the number of records, including those whose window is not full yet.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Returns the output.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.out
    }

    fn put(&mut self, time_ns: u64, note: &Note) {
        let [gfn, gfn_high] = halves(note.gfn.raw());
        let [mfn, mfn_high] = halves(note.mfn.map_or(NO_FRAME, |mfn| mfn.raw()));
        let (domain, order) = (u32::from(Self::DOMAIN), u32::from(note.order.raw()));
        let ranges = |event| (event, [gfn, gfn_high, domain, order, 0, 0], 4);
        let frames = |event| (event, [gfn, gfn_high, mfn, mfn_high, domain, order], 6);
        let (event, words, count) = match note.what {
            What::Set(kind) => {
                let kind = match kind {
                    Kind::Ram => number::TYPE_RAM,
                    Kind::Invalid => number::TYPE_INVALID,
                    Kind::Pod => number::TYPE_POD,
                };
                let owner = order << 16 | domain;
                (number::SET_P2M_ENTRY, [gfn, gfn_high, mfn, mfn_high, kind, owner], 6)
            }
            What::Decrease => ranges(number::DECREASE_RESERVATION),
            What::Splinter => ranges(number::POD_SUPERPAGE_SPLINTER),
            What::Populate => frames(number::POD_POPULATE),
            What::Reclaim => frames(number::POD_ZERO_RECLAIM),
            What::Look { looked, live } => {
                let ([looked, looked_high], [live, live_high]) = (halves(looked), halves(live));
                let words = [gfn, gfn_high, looked, looked_high, live, live_high, domain];
                return self.record(time_ns, number::LOOK, &words);
            }
        };
        self.record(time_ns, event, &words[..count]);
    }

    fn record(&mut self, time_ns: u64, event: u32, words: &[u32]) {
        // Times are what can be packed least.
        let time_ns = match self.packing {
            Packing::Plain => time_ns,
            Packing::Gzip => (time_ns & !(PACKED_TICK_NS - 1)).max(1),
        };
        let stamp = (self.time_ns != Some(time_ns)).then(|| halves(time_ns));
        self.time_ns = Some(time_ns);
        let flag = if stamp.is_some() { STAMPED } else { 0 };
        let header = event | (words.len() as u32) << 28 | flag;
        let all =
            [header].into_iter().chain(stamp.into_iter().flatten()).chain(words.iter().copied());
        self.window.extend(all.flat_map(u32::to_le_bytes));
        self.records += 1;
    }
}

/// Packs a window as a member of a gzip file.
fn pack(parts: &[&[u8]], packed: &mut Vec<u8>) -> io::Result<()> {
    let mut encoder = GzEncoder::new(packed, Compression::default());
    parts.iter().try_for_each(|part| encoder.write_all(part))?;
    encoder.finish().map(|_| ())
}

fn halves(long: u64) -> [u32; 2] {
    [long as u32, (long >> 32) as u32]
}
