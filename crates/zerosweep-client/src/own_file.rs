//! Files that decide what is run, or who may do what. Their owner is checked before they are read.
//!
//! Links are followed: the file itself counts. A pipe is refused without waiting, and reading has a
//! limit.

use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::size::Size;

/// Why a file is not read.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It cannot be opened or read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It is a directory, a pipe or a device.
    #[error("{} is not a file (a directory, a pipe or a device)", .0.display())]
    NotAFile(PathBuf),
    /// It belongs to neither root nor this user.
    #[error("{} belongs to user {owner}: chown root {}", .path.display(), .path.display())]
    OtherUser {
        /// The file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// Others can write to it.
    #[error(
        "others can write to {} (mode {mode:04o}): chmod go-w {}",
        .path.display(), .path.display()
    )]
    Writable {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It is longer than such a file can be.
    #[error("{} has more than {}", .path.display(), Size(*.most_bytes))]
    TooLong {
        /// The file.
        path: PathBuf,
        /// The limit.
        most_bytes: u64,
    },
}

/// A file that belongs to root or to this user.
#[derive(Debug)]
pub struct OwnFile {
    path: PathBuf,
    file: File,
    data: Metadata,
}

impl OwnFile {
    /// Opens it.
    ///
    /// # Errors
    /// When it cannot be opened, is no file, or is neither this user's nor root's.
    pub fn open(path: &Path) -> Result<Self, Refusal> {
        let how = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::open(path, how, Mode::empty()).map_err(io::Error::from)?);
        let (path, data) = (path.to_owned(), file.metadata()?);
        if !data.is_file() {
            return Err(Refusal::NotAFile(path));
        }
        let owner = data.uid();
        if owner != 0 && owner != rustix::process::geteuid().as_raw() {
            return Err(Refusal::OtherUser { path, owner });
        }
        Ok(Self { path, file, data })
    }

    /// Its mode bits.
    pub fn mode(&self) -> u32 {
        self.data.mode() & 0o7777
    }

    /// Refuses it if others can write to it.
    ///
    /// # Errors
    /// When others can write to it.
    pub fn written_by_its_owner_alone(self) -> Result<Self, Refusal> {
        let mode = self.mode();
        match mode & 0o022 {
            0 => Ok(self),
            _ => Err(Refusal::Writable { path: self.path, mode }),
        }
    }

    /// Its text.
    ///
    /// # Errors
    /// When it is longer than `most_bytes`, is not text, or cannot be read.
    pub fn text(self, most_bytes: u64) -> Result<String, Refusal> {
        let mut text = String::new();
        // It may grow while it is read.
        self.file.take(most_bytes + 1).read_to_string(&mut text)?;
        if text.len() as u64 > most_bytes {
            Err(Refusal::TooLong { path: self.path, most_bytes })
        } else {
            Ok(text)
        }
    }
}
