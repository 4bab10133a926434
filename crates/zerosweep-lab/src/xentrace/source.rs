//! Where a trace comes from: a file or a pipe, packed or not.
//!
//! A trace is read several times. Data from a pipe is therefore kept, still packed, in a file
//! without a name in the directory for temporary files (`TMPDIR`).

use std::fs::File;
use std::io::{self, Cursor, Read, Seek as _, SeekFrom};
use std::os::fd::AsFd as _;
use std::path::Path;

use super::Reader;
use super::reader::{CONVINCING, LONGEST, may_begin_a_trace};
use crate::unpack::{self, Input, MAGIC_BYTES};

/// Standard input's name.
const STANDARD_INPUT: &str = "-";
/// The most packings, one inside the other; more are a trap.
const MOST_LAYERS: usize = 4;
/// How many bytes tell a trace from other files.
const SAMPLE: u64 = ((CONVINCING + 1) * LONGEST) as u64;
/// How many packed bytes hold at least that much of a trace.
const FIRST: u64 = 64 << 10;

/// Packings that are not read, and the command that unpacks each.
const NAMED: [(&[u8], &str, &str); 6] = [
    (b"BZh", "bzip2", "bzip2 -dc FILE"),
    (b"PK\x03\x04", "zip", "unzip -p FILE"),
    (b"7z\xbc\xaf\x27\x1c", "7z", "7z x -so FILE"),
    (b"\x04\x22\x4d\x18", "lz4", "lz4 -dc FILE"),
    (b"LZIP", "lzip", "lzip -dc FILE"),
    (b"\x89LZO", "lzop", "lzop -dc FILE"),
];

/// A trace that can be read from its beginning again and again, one reader at a time.
#[derive(Debug)]
pub struct Source {
    file: File,
}

impl Source {
    /// Opens the file at `path`; `-` is standard input.
    ///
    /// # Errors
    /// When it cannot be read, or what comes through a pipe cannot be kept.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = match path.to_str() {
            Some(STANDARD_INPUT) => File::from(io::stdin().as_fd().try_clone_to_owned()?),
            _ => File::open(path)?,
        };
        let data = file.metadata()?;
        if data.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        if data.is_file() { Ok(Self { file }) } else { Self::keep(file) }
    }

    /// Keeps all that comes, if it begins as a trace.
    fn keep(mut pipe: File) -> io::Result<Self> {
        let mut kept = Self { file: tempfile::tempfile().map_err(not_kept)? };
        io::copy(&mut pipe.by_ref().take(FIRST), &mut kept.file).map_err(not_kept)?;
        kept.reader()?;
        kept.file.seek(SeekFrom::End(0))?;
        io::copy(&mut pipe, &mut kept.file).map_err(not_kept)?;
        Ok(kept)
    }

    /// Reads from the beginning, unpacked. Another reader of this source loses its place.
    ///
    /// # Errors
    /// When the file cannot be read, or is packed in a way that is not.
    pub fn reader(&self) -> io::Result<Reader<Box<dyn Read>>> {
        let mut file = self.file.try_clone()?;
        file.seek(SeekFrom::Start(0))?;
        let mut source = unpacked(Box::new(file))?;
        let mut begin = Vec::new();
        let read = source.by_ref().take(SAMPLE).read_to_end(&mut begin);
        if read.is_ok() && !may_begin_a_trace(&begin) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "it is no xentrace file, or its beginning is missing: it does not begin with \
                 records of Xen's",
            ));
        }
        Ok(Reader::new(put_back(begin, read, source)))
    }
}

fn not_kept(error: io::Error) -> io::Error {
    let place = std::env::temp_dir();
    let message =
        format!("what comes through a pipe cannot be kept in {}: {error}", place.display());
    io::Error::new(error.kind(), message)
}

/// Takes off one packing after the other.
fn unpacked(mut source: Input) -> io::Result<Input> {
    for _ in 0..MOST_LAYERS {
        let mut begin = Vec::new();
        let read = source.by_ref().take(MAGIC_BYTES).read_to_end(&mut begin);
        let begins = |magic: &[u8]| begin.starts_with(magic);
        if let Some((_, packer, command)) = NAMED.iter().find(|(magic, ..)| begins(magic)) {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!(
                    "it is packed by {packer}, which is not read; use {command} | zerosweep trace … -"
                ),
            ));
        }
        let unpack = unpack::by_beginning(&begin);
        let rest = put_back(begin, read, source);
        let Some(unpack) = unpack else { return Ok(rest) };
        source = unpack(rest);
    }
    Err(io::Error::new(io::ErrorKind::Unsupported, "it is packed many times over"))
}

/// The source as it was before its beginning was read. An error in the beginning is reported when
/// it is read again.
fn put_back(begin: Vec<u8>, read: io::Result<usize>, rest: Input) -> Input {
    match read {
        Ok(_) => Box::new(Cursor::new(begin).chain(rest)),
        Err(error) => Box::new(Cursor::new(begin).chain(Failing(Some(error)))),
    }
}

/// Fails once.
struct Failing(Option<io::Error>);

impl Read for Failing {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        self.0.take().map_or(Ok(0), Err)
    }
}
