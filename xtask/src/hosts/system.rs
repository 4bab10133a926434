//! A host's files: an initramfs with QEMU and all that it needs, the programs, and the tests.
//!
//! It is written in parts, since the kernel unpacks archives that follow each other: what is the same
//! for all kernels, a kernel's modules, and the steps of a scenario.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufWriter, Seek as _, SeekFrom, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use zerosweep_lab::image::{Archive, GuestImage};

use super::arch::Arch;
use super::kernel::HostKernel;
use super::packages::Packages;

/// Process 1.
const INIT: &str = include_str!("init.sh");
/// Where programs and tests are in a host.
pub(crate) const PROGRAMS: &str = "zs";
/// What QEMU's packages have for machines that no host emulates.
const UNUSED: [&str; 13] = [
    ".dtb",
    ".lid",
    ".img",
    ".elf",
    "slof.bin",
    "vof.bin",
    "npcm7xx_bootrom.bin",
    "npcm8xx_bootrom.bin",
    "openbios-ppc",
    "openbios-sparc32",
    "openbios-sparc64",
    "trace-events-all",
    "palcode-clipper",
];
/// Directories of a root that no host needs.
const LEFT_OUT: [&str; 9] = [
    "dev",
    "proc",
    "sys",
    "tmp",
    "run",
    "var/cache",
    "var/lib/apt",
    "var/lib/dpkg",
    "usr/share/zoneinfo",
];
/// A version of QEMU, and where it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Qemu {
    pub(crate) version: &'static str,
    suites: &'static [&'static str],
}

/// Debian 12, its backports, Debian 13's backports.
const QEMUS: [Qemu; 3] = [
    Qemu { version: "7.2", suites: &["bookworm"] },
    Qemu { version: "10.0", suites: &["bookworm", "bookworm-backports"] },
    Qemu { version: "11.1", suites: &["trixie", "trixie-backports"] },
];

impl Qemu {
    /// The QEMU of that version.
    ///
    /// # Errors
    /// When there is no such version.
    pub(crate) fn named(version: &str) -> Result<Self> {
        let found = QEMUS.into_iter().find(|qemu| qemu.version == version);
        found.with_context(|| format!("no QEMU {version}: there are {}", versions().join(", ")))
    }

    /// Its root: QEMU, what it needs, and busybox.
    pub(crate) fn root(&self, packages: &Packages, arch: Arch) -> Result<PathBuf> {
        let name = format!("qemu-{}-{}", self.version, arch.debian());
        let package = arch.qemu_package();
        let mut wanted = vec![package, "qemu-system-common", "qemu-system-data"];
        wanted.extend(["busybox-static", "coreutils", "dash", "libgcc-s1", "mount", "util-linux"]);
        if arch == Arch::X86_64 {
            wanted.push("seabios");
        }
        packages.root(&name, arch.debian(), self.suites, &wanted)
    }
}

/// The versions that there are.
pub(crate) fn versions() -> [&'static str; 3] {
    QEMUS.map(|qemu| qemu.version)
}

/// What is the same in all hosts with one QEMU.
pub(crate) struct System {
    /// A file without a name: several runs may be under way.
    base: File,
    directory: PathBuf,
}

impl System {
    /// Packs QEMU's root, `programs`, each with its name in the host, and a guest's image.
    pub(crate) fn pack(
        packages: &Packages,
        qemu: Qemu,
        arch: Arch,
        programs: &[(String, PathBuf)],
        image: Option<&GuestImage>,
    ) -> Result<Self> {
        let directory = packages.at("systems");
        fs::create_dir_all(&directory)?;
        let root = qemu.root(packages, arch)?;
        let base = unnamed_in(&directory)?;
        let mut archive = Archive::new(BufWriter::new(base.try_clone()?));
        archive.directory("dev")?;
        archive.console()?;
        archive.tree(&root, &is_wanted)?;
        archive.program("init", INIT.as_bytes())?;
        archive.directory(PROGRAMS)?;
        for (name, path) in programs {
            archive.program(&format!("{PROGRAMS}/{name}"), &stripped(path, arch)?)?;
        }
        if let Some(image) = image {
            add_image(&mut archive, image)?;
        }
        archive.finish()?.flush()?;
        Ok(Self { base, directory })
    }

    /// The initramfs of one host: a file without a name, which ends with this process.
    pub(crate) fn initramfs(
        &self,
        kernel: &HostKernel,
        settings: &str,
        steps: &str,
    ) -> Result<Initramfs> {
        let mut file = unnamed_in(&self.directory)?;
        let mut base = &self.base;
        base.seek(SeekFrom::Start(0))?;
        io::copy(&mut base, &mut file).context("writing an initramfs")?;
        let mut archive = Archive::new(Vec::new());
        archive.directory("modules")?;
        for (number, (name, module)) in kernel.modules()?.iter().enumerate() {
            archive.file(&format!("modules/{number:02}-{name}.ko"), module)?;
        }
        archive.file("settings", settings.as_bytes())?;
        archive.file("steps", steps.as_bytes())?;
        file.write_all(&archive.finish()?)?;
        Ok(Initramfs(file))
    }
}

fn unnamed_in(directory: &Path) -> Result<File> {
    tempfile::tempfile_in(directory).with_context(|| format!("a file in {}", directory.display()))
}

/// An initramfs, as long as this lives.
pub(crate) struct Initramfs(File);

impl Initramfs {
    /// Its name for other processes.
    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
    }
}

/// The image lies where the test programs look for it: in the cache directory, with the names that
/// its description has.
fn add_image(archive: &mut Archive<BufWriter<File>>, image: &GuestImage) -> Result<()> {
    let description = GuestImage::default_dir().join("image.json");
    let mut made = Vec::<PathBuf>::new();
    for path in [&description, &image.kernel, &image.initrd] {
        let inside = path.strip_prefix("/").context("a path that is not absolute")?;
        let mut above: Vec<_> = inside.ancestors().skip(1).collect();
        above.reverse();
        for directory in above.into_iter().filter(|directory| *directory != Path::new("")) {
            if !made.iter().any(|other| other == directory) {
                archive.directory(&directory.to_string_lossy())?;
                made.push(directory.to_owned());
            }
        }
        let contents = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        archive.file(&inside.to_string_lossy(), &contents)?;
    }
    Ok(())
}

fn is_wanted(name: &str) -> bool {
    let is_unused =
        name.starts_with("usr/share/qemu") && UNUSED.iter().any(|end| name.ends_with(end));
    !is_unused && !LEFT_OUT.contains(&name)
}

/// A program without its symbols, which would be most of it.
fn stripped(path: &Path, arch: Arch) -> Result<Vec<u8>> {
    let file = tempfile::NamedTempFile::new()?;
    let status = Command::new(arch.strip())
        .args([OsStr::new("-o"), file.path().as_os_str(), path.as_os_str()])
        .status()
        .with_context(|| format!("starting {}", arch.strip()))?;
    ensure!(status.success(), "{} {}: {status}", arch.strip(), path.display());
    fs::read(file.path()).with_context(|| format!("reading what is left of {}", path.display()))
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn firmware_of_other_machines_is_left_out() {
        assert!(is_wanted("usr/share/qemu/bios-256k.bin"));
        assert!(is_wanted("usr/share/qemu/linuxboot_dma.bin"));
        assert!(!is_wanted("usr/share/qemu/openbios-ppc"));
        assert!(!is_wanted("dev") && is_wanted("usr/lib"));
    }

    #[test]
    fn unknown_versions_are_named() {
        let error = Qemu::named("8.0").unwrap_err().to_string();
        assert_eq!(error, "no QEMU 8.0: there are 7.2, 10.0, 11.1");
    }
}
