//! Files packed by gzip, xz or zstd, unpacked as they are read.

use std::io::{self, BufRead as _, BufReader, Read};

use flate2::read::MultiGzDecoder;
use lzma_rust2::XzReader;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

/// Length of the longest mark that a packed file begins with.
pub(crate) const MAGIC_BYTES: u64 = 6;
/// Limit of the memory that unpacking may take, in KiB.
const MOST_MEMORY_KIB: u32 = 1 << 20;

pub(crate) type Input = Box<dyn Read>;
pub(crate) type Unpack = fn(Input) -> Input;

/// Each packing, by its first bytes.
const PACKINGS: [(&[u8], Unpack); 3] = [
    (b"\x1f\x8b", |source| Box::new(MultiGzDecoder::new(source))),
    (b"\xfd7zXZ\0", |source| Box::new(XzReader::new_mem_limit(source, true, MOST_MEMORY_KIB))),
    (b"\x28\xb5\x2f\xfd", |source| Box::new(Frames::new(source))),
];

/// What unpacks a file that begins with `begin`; `None` for a file that is not packed, or packed in
/// another way.
pub(crate) fn by_beginning(begin: &[u8]) -> Option<Unpack> {
    PACKINGS.iter().find(|(magic, _)| begin.starts_with(magic)).map(|&(_, unpack)| unpack)
}

/// The frames of a file that `zstd` has packed, one after the other.
struct Frames {
    source: BufReader<Input>,
    decoder: FrameDecoder,
    /// Whether the decoder is within a frame.
    within: bool,
}

impl Frames {
    fn new(source: Input) -> Self {
        Self { source: BufReader::new(source), decoder: FrameDecoder::new(), within: false }
    }

    /// Goes to the next frame that has data; false at the end of the file.
    fn begin(&mut self) -> io::Result<bool> {
        while !self.source.fill_buf()?.is_empty() {
            match self.decoder.reset(&mut self.source) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    io::copy(&mut self.source.by_ref().take(length.into()), &mut io::sink())?;
                }
                Err(error) => return Err(damaged(error)),
            }
        }
        Ok(false)
    }
}

impl Read for Frames {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            self.within = self.within || self.begin()?;
            if !self.within {
                return Ok(0);
            }
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                self.decoder
                    .decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBlocks(1))
                    .map_err(damaged)?;
            }
            let bytes = self.decoder.read(buffer)?;
            if bytes > 0 || buffer.is_empty() {
                return Ok(bytes);
            }
            let promised = self.decoder.get_checksum_from_data();
            if promised.is_some() && promised != self.decoder.get_calculated_checksum() {
                return Err(damaged("the checksum is another one"));
            }
            self.within = false;
        }
    }
}

fn damaged(error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("zstd: {error}"))
}
