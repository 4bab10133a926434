//! Where one VMM's socket and wrapper are.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A directory for this user only, removed with what is in it.
pub(super) struct Directory {
    path: PathBuf,
    number: u32,
}

impl Directory {
    /// Makes one that was not there.
    pub(super) fn new() -> io::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        loop {
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let name = format!("zerosweep-experiment-{}-{number}", std::process::id());
            let path = std::env::temp_dir().join(name);
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self { path, number }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The socket of QEMU's monitor.
    pub(super) fn monitor(&self) -> PathBuf {
        self.path.join("monitor")
    }

    /// A name for the guest that no other has.
    pub(super) fn guest_name(&self) -> String {
        format!("experiment-{}-{}", std::process::id(), self.number)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}
