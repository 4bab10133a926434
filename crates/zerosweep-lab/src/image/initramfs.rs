//! The initramfs: a cpio archive (newc, not compressed) with `/init` and `/modules`.

use anyhow::{Context, Result};
use cpio::NewcBuilder;

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// A module's name, without suffix, and its contents.
pub(super) type Module = (&'static str, Vec<u8>);

/// Packs the archive; the same input gives the same bytes.
pub(super) fn pack(init: &[u8], modules: &[Module]) -> Result<Vec<u8>> {
    let mut archive = Archive { bytes: Vec::new(), entries: 0 };
    archive.add("dev", DIRECTORY, &[])?;
    archive.add_console()?;
    archive.add("init", PROGRAM, init)?;
    archive.add("modules", DIRECTORY, &[])?;
    for (name, contents) in modules {
        archive.add(&format!("modules/{name}.ko"), FILE, contents)?;
    }
    cpio::newc::trailer(archive.bytes).context("packing the initramfs")
}

struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, contents: &[u8]) -> Result<()> {
        self.write(NewcBuilder::new(name).mode(mode), contents)
            .with_context(|| format!("packing {name} into the initramfs"))
    }

    /// The kernel opens it for process 1 before anything is mounted.
    fn add_console(&mut self) -> Result<()> {
        let node = NewcBuilder::new("dev/console").mode(CHARACTER_DEVICE);
        self.write(node.rdev_major(5).rdev_minor(1), &[])
    }

    fn write(&mut self, entry: NewcBuilder, contents: &[u8]) -> Result<()> {
        self.entries += 1;
        let length = u32::try_from(contents.len()).context("a file of 4 GiB or more")?;
        let mut writer = entry.ino(self.entries).nlink(1).write(&mut self.bytes, length);
        std::io::Write::write_all(&mut writer, contents)?;
        writer.finish()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use cpio::NewcReader;

    use super::*;

    #[test]
    fn what_is_packed_can_be_read_back() {
        let archive = pack(b"program", &[("virtio", b"module".to_vec())]).unwrap();
        let mut rest = archive.as_slice();
        let mut found = Vec::new();
        loop {
            let mut reader = NewcReader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let mut contents = String::new();
            reader.read_to_string(&mut contents).unwrap();
            found.push((reader.entry().name().to_owned(), reader.entry().mode(), contents));
            rest = reader.finish().unwrap();
        }
        let entry = |name: &str, mode, contents: &str| (name.to_owned(), mode, contents.to_owned());
        assert_eq!(
            found,
            [
                entry("dev", 0o040_755, ""),
                entry("dev/console", 0o020_600, ""),
                entry("init", 0o100_755, "program"),
                entry("modules", 0o040_755, ""),
                entry("modules/virtio.ko", 0o100_644, "module"),
            ]
        );
    }
}
