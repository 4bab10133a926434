//! Files of mixed sizes in tmpfs, of which three quarters are deleted in a seeded order: memory
//! that is in use here and there. Files are deleted one by one, or in clumps of those that were
//! written together, as when directories are removed.

use std::fs;
use std::path::{Path, PathBuf};

use crate::console;
use crate::failure::Failure;
use crate::meminfo::MemInfo;
use crate::memory::PAGE_BYTES;
use crate::pattern::{Generator, PagePattern};

/// Sets the pattern of files apart from that of anonymous memory.
const SEED: u64 = 0x6368_7572_6e00_0000;

/// The files that were kept.
pub(crate) struct Churn {
    directory: PathBuf,
    seed: u64,
    kept: Vec<ChurnFile>,
    /// Bytes written in all.
    pub(crate) bytes: u64,
    /// Files written in all.
    pub(crate) files: usize,
}

struct ChurnFile {
    number: u64,
    pages: u64,
}

impl Churn {
    /// Writes up to `bytes` of files under `directory`, then deletes three quarters of them, in
    /// clumps of at least `clump_bytes`.
    pub(crate) fn new(
        directory: &Path,
        bytes: u64,
        clump_bytes: u64,
        seed: u64,
    ) -> Result<Self, Failure> {
        let spare_bytes = MemInfo::read()?.spare_bytes();
        if bytes > spare_bytes {
            return Err(Failure::new(
                "churn",
                format_args!("asked for {bytes} bytes, the guest has {spare_bytes} to spare"),
            ));
        }
        let mut generator = Generator::new(seed);
        let files = sizes(bytes, &mut generator);
        let mut churn = Self {
            directory: directory.to_owned(),
            seed,
            kept: Vec::new(),
            bytes: 0,
            files: files.len(),
        };
        for file in &files {
            let contents = churn.contents(file);
            churn.bytes += contents.len() as u64;
            let path = churn.path(file);
            fs::write(&path, contents)
                .map_err(|e| Failure::new("churn", format_args!("{}: {e}", path.display())))?;
        }
        let mut clumps = clumps(files, clump_bytes);
        generator.shuffle(&mut clumps);
        churn.kept = clumps.split_off(clumps.len() * 3 / 4).into_iter().flatten().collect();
        for file in clumps.iter().flatten() {
            let path = churn.path(file);
            fs::remove_file(&path)
                .map_err(|e| Failure::new("churn", format_args!("{}: {e}", path.display())))?;
        }
        Ok(churn)
    }

    /// Files that were kept.
    pub(crate) fn kept_count(&self) -> usize {
        self.kept.len()
    }

    /// Reads every kept file again; the number of those that are not as they were.
    pub(crate) fn damaged_count(&self) -> usize {
        self.kept.iter().filter(|file| !self.is_whole(file)).count()
    }

    fn is_whole(&self, file: &ChurnFile) -> bool {
        let path = self.path(file);
        let whole = fs::read(&path).is_ok_and(|found| found == self.contents(file));
        if !whole {
            console::mark(format_args!("damaged file={}", path.display()));
        }
        whole
    }

    fn path(&self, file: &ChurnFile) -> PathBuf {
        self.directory.join(format!("churn-{}", file.number))
    }

    fn contents(&self, file: &ChurnFile) -> Vec<u8> {
        let mut contents = vec![0; (file.pages * PAGE_BYTES) as usize];
        for (page, bytes) in (0..).zip(contents.chunks_exact_mut(PAGE_BYTES as usize)) {
            let pattern = PagePattern::new(self.seed ^ SEED, file.number, page);
            for (index, word) in bytes.chunks_exact_mut(8).enumerate() {
                word.copy_from_slice(&pattern.word(index).to_ne_bytes());
            }
        }
        contents
    }
}

/// Files of 1 to 256 pages, small ones far more often, up to `bytes` together.
fn sizes(bytes: u64, generator: &mut Generator) -> Vec<ChurnFile> {
    let mut left = bytes / PAGE_BYTES;
    let mut files = Vec::new();
    while left > 0 {
        let largest = 1 << generator.below(9);
        let pages = (1 + generator.below(largest)).min(left);
        left -= pages;
        files.push(ChurnFile { number: files.len() as u64, pages });
    }
    files
}

/// Files in the order in which they were written, cut into clumps of at least `clump_bytes`.
fn clumps(files: Vec<ChurnFile>, clump_bytes: u64) -> Vec<Vec<ChurnFile>> {
    let mut clumps = Vec::new();
    let (mut clump, mut pages) = (Vec::new(), 0);
    for file in files {
        pages += file.pages;
        clump.push(file);
        if pages * PAGE_BYTES >= clump_bytes {
            clumps.push(std::mem::take(&mut clump));
            pages = 0;
        }
    }
    if !clump.is_empty() {
        clumps.push(clump);
    }
    clumps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_mixed_and_add_up() {
        let files = sizes(64 << 20, &mut Generator::new(1));
        assert_eq!(files.iter().map(|f| f.pages).sum::<u64>(), 64 << 8);
        assert!(files.iter().any(|f| f.pages == 1));
        assert!(files.iter().any(|f| f.pages > 128));
    }

    #[test]
    fn clumps_are_of_files_that_were_written_together() {
        let clumps = clumps(sizes(64 << 20, &mut Generator::new(3)), 1 << 20);
        assert!(clumps.len() > 50 && clumps.len() <= 64);
        let numbers: Vec<u64> = clumps.iter().flatten().map(|file| file.number).collect();
        assert!(numbers.is_sorted());
    }

    #[test]
    fn a_quarter_stays_and_damage_is_noticed() {
        let directory =
            std::env::temp_dir().join(format!("zerosweep-churn-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let churn = Churn::new(&directory, 4 << 20, 0, 2).unwrap();
        assert_eq!(churn.bytes, 4 << 20);
        assert_eq!(churn.kept_count(), churn.files - churn.files * 3 / 4);
        assert_eq!(fs::read_dir(&directory).unwrap().count(), churn.kept_count());
        assert_eq!(churn.damaged_count(), 0);
        let path = churn.path(&churn.kept[0]);
        let mut contents = fs::read(&path).unwrap();
        contents[8] ^= 1;
        fs::write(&path, contents).unwrap();
        fs::remove_file(churn.path(&churn.kept[1])).unwrap();
        assert_eq!(churn.damaged_count(), 2);
        fs::remove_dir_all(&directory).unwrap();
    }
}
