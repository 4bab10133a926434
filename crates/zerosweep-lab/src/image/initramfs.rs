//! The initramfs: a cpio archive (newc, not compressed).

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context, Result, bail};
use cpio::NewcBuilder;

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;
const LINK: u32 = 0o120_777;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// A module's name, without suffix, and its contents.
pub(super) type Module = (&'static str, Vec<u8>);

/// Packs a guest's archive, with `/init` and `/modules`; the same input gives the same bytes.
pub(super) fn pack(init: &[u8], modules: &[Module]) -> Result<Vec<u8>> {
    let mut archive = Archive::new(Vec::new());
    archive.directory("dev")?;
    archive.console()?;
    archive.program("init", init)?;
    archive.directory("modules")?;
    for (name, contents) in modules {
        archive.file(&format!("modules/{name}.ko"), contents)?;
    }
    archive.finish()
}

/// An initramfs that is being written. Names are paths without a leading `/`; a directory comes
/// before what is in it. The kernel unpacks several archives that follow each other in one file.
#[derive(Debug)]
pub struct Archive<W> {
    writer: W,
    entries: u32,
}

impl<W: Write> Archive<W> {
    /// An empty archive.
    pub fn new(writer: W) -> Self {
        Self { writer, entries: 0 }
    }

    /// Adds a directory.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn directory(&mut self, name: &str) -> Result<()> {
        self.add(name, DIRECTORY, &[])
    }

    /// Adds a file that is executable.
    ///
    /// # Errors
    /// When it cannot be written, or has 4 GiB or more.
    pub fn program(&mut self, name: &str, contents: &[u8]) -> Result<()> {
        self.add(name, PROGRAM, contents)
    }

    /// Adds a file.
    ///
    /// # Errors
    /// When it cannot be written, or has 4 GiB or more.
    pub fn file(&mut self, name: &str, contents: &[u8]) -> Result<()> {
        self.add(name, FILE, contents)
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn link(&mut self, name: &str, to: &str) -> Result<()> {
        self.add(name, LINK, to.as_bytes())
    }

    /// Adds `/dev/console`: the kernel opens it for process 1 before anything is mounted.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn console(&mut self) -> Result<()> {
        let node = NewcBuilder::new("dev/console").mode(CHARACTER_DEVICE);
        self.write(node.rdev_major(5).rdev_minor(1), &[])
    }

    /// Adds all that is below a directory: directories, files and links. Leaves out those for whose
    /// names, below `root`, `is_wanted` is false, and devices, sockets and pipes.
    ///
    /// # Errors
    /// When something cannot be read or written.
    pub fn tree(&mut self, root: &Path, is_wanted: &dyn Fn(&str) -> bool) -> Result<()> {
        self.below(root, "", is_wanted)
    }

    fn below(&mut self, root: &Path, at: &str, is_wanted: &dyn Fn(&str) -> bool) -> Result<()> {
        let directory = root.join(at);
        let reading = || format!("reading {}", directory.display());
        let entries = fs::read_dir(&directory).with_context(reading)?;
        let mut names = entries
            .map(|entry| Ok(entry?.file_name()))
            .collect::<std::io::Result<Vec<_>>>()
            .with_context(reading)?;
        names.sort();
        for name in names {
            let Some(name) = name.to_str() else {
                bail!("a name that is not UTF-8 in {}", directory.display());
            };
            let inside = if at.is_empty() { name.to_owned() } else { format!("{at}/{name}") };
            if !is_wanted(&inside) {
                continue;
            }
            let path = root.join(&inside);
            let reading = || format!("reading {}", path.display());
            let metadata = path.symlink_metadata().with_context(reading)?;
            if metadata.is_dir() {
                self.add(&inside, metadata.mode(), &[])?;
                self.below(root, &inside, is_wanted)?;
            } else if metadata.is_symlink() {
                let to = fs::read_link(&path).with_context(reading)?;
                self.link(&inside, &to.to_string_lossy())?;
            } else if metadata.is_file() {
                let contents = fs::read(&path).with_context(reading)?;
                let mode = metadata.mode();
                self.add(&inside, mode, &contents)?;
            }
        }
        Ok(())
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(self) -> Result<W> {
        cpio::newc::trailer(self.writer).context("packing the initramfs")
    }

    fn add(&mut self, name: &str, mode: u32, contents: &[u8]) -> Result<()> {
        self.write(NewcBuilder::new(name).mode(mode), contents)
            .with_context(|| format!("packing {name} into the initramfs"))
    }

    fn write(&mut self, entry: NewcBuilder, contents: &[u8]) -> Result<()> {
        self.entries += 1;
        let length = u32::try_from(contents.len()).context("a file of 4 GiB or more")?;
        let mut writer = entry.ino(self.entries).nlink(1).write(&mut self.writer, length);
        writer.write_all(contents)?;
        writer.finish()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt as _;

    use cpio::NewcReader;

    use super::*;

    /// Name, mode and contents of each entry.
    fn entries(archive: &[u8]) -> Vec<(String, u32, String)> {
        let mut rest = archive;
        let mut found = Vec::new();
        loop {
            let mut reader = NewcReader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                return found;
            }
            let mut contents = String::new();
            reader.read_to_string(&mut contents).unwrap();
            found.push((reader.entry().name().to_owned(), reader.entry().mode(), contents));
            rest = reader.finish().unwrap();
        }
    }

    fn entry(name: &str, mode: u32, contents: &str) -> (String, u32, String) {
        (name.to_owned(), mode, contents.to_owned())
    }

    #[test]
    fn what_is_packed_can_be_read_back() {
        let archive = pack(b"program", &[("virtio", b"module".to_vec())]).unwrap();
        assert_eq!(
            entries(&archive),
            [
                entry("dev", 0o040_755, ""),
                entry("dev/console", 0o020_600, ""),
                entry("init", 0o100_755, "program"),
                entry("modules", 0o040_755, ""),
                entry("modules/virtio.ko", 0o100_644, "module"),
            ]
        );
    }

    #[test]
    fn a_tree_is_packed_with_links_and_modes() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        fs::create_dir_all(at("bin/doc")).unwrap();
        fs::write(at("bin/a"), "program").unwrap();
        fs::set_permissions(at("bin/a"), fs::Permissions::from_mode(0o750)).unwrap();
        fs::write(at("bin/doc/x"), "text").unwrap();
        std::os::unix::fs::symlink("a", at("bin/b")).unwrap();
        fs::set_permissions(at("bin"), fs::Permissions::from_mode(0o755)).unwrap();
        let mut archive = Archive::new(Vec::new());
        archive.tree(root.path(), &|name| name != "bin/doc").unwrap();
        assert_eq!(
            entries(&archive.finish().unwrap()),
            [
                entry("bin", 0o040_755, ""),
                entry("bin/a", 0o100_750, "program"),
                entry("bin/b", 0o120_777, "a"),
            ]
        );
    }
}
