//! Where a guest's kernel and its virtio modules come from.

use std::ffi::OsStr;
use std::fs;
use std::io::{Cursor, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::cache_dir;
use super::initramfs::Module;
use crate::unpack;

/// The modules that a guest needs for its balloon, which is on PCI (QEMU) or has registers of its own
/// (`virtio_mmio`: small VMMs), and for a network.
pub(super) const MODULES: [&str; 10] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "virtio_mmio",
    "virtio_balloon",
    "failover",
    "net_failover",
    "virtio_net",
];

/// Where a kernel has them.
const DIRECTORIES: [&str; 3] = ["drivers/virtio", "drivers/net", "net/core"];

/// Without these there is no balloon; the others are parts that some kernels do not have.
const NEEDED: [&str; 2] = ["virtio_pci", "virtio_balloon"];

/// A kernel file and the directory of its modules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    image: PathBuf,
    modules: PathBuf,
    version: String,
}

impl Kernel {
    /// A kernel package that was unpacked into `directory`: `boot/vmlinuz-VERSION` and
    /// `lib/modules/VERSION` (or `usr/lib/…`).
    ///
    /// # Errors
    /// When there is no kernel in it, or more than one.
    pub fn from_directory(directory: &Path) -> Result<Self> {
        let boot = directory.join("boot");
        let mut versions = fs::read_dir(&boot)
            .with_context(|| format!("no kernel package unpacked: {}", boot.display()))?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter_map(|name| name.strip_prefix("vmlinuz-").map(str::to_owned))
            .collect::<Vec<_>>();
        let (Some(version), None) = (versions.pop(), versions.pop()) else {
            bail!("expected one vmlinuz-VERSION in {}", boot.display());
        };
        Self::in_tree(directory, version)
    }

    /// A Debian kernel package, unpacked into the cache directory unless it is there already.
    ///
    /// # Errors
    /// When it cannot be unpacked or holds no kernel.
    pub fn from_deb(package: &Path) -> Result<Self> {
        Self::from_debs(&[package])
    }

    /// The same for a kernel in several packages: Ubuntu has `linux-image-…` and
    /// `linux-modules-…`.
    ///
    /// # Errors
    /// When one cannot be unpacked, or there is no kernel in them.
    pub fn from_debs(packages: &[impl AsRef<Path>]) -> Result<Self> {
        let first = packages.first().context("no kernel package given")?.as_ref();
        let name = first.file_stem().and_then(OsStr::to_str).context("a package without a name")?;
        let kept = kept(name);
        if kept.is_dir() {
            return Self::from_directory(&kept);
        }
        let partial = kept.with_file_name(format!("{name}.{}.partial", std::process::id()));
        fs::create_dir_all(&partial).with_context(|| format!("creating {}", partial.display()))?;
        let unpacked = packages
            .iter()
            .try_for_each(|package| unpack(package.as_ref(), &partial))
            .and_then(|()| Self::from_directory(&partial))
            .and_then(|kernel| kernel.modules());
        if let Err(e) = unpacked {
            let _ = fs::remove_dir_all(&partial);
            return Err(e.context(format!("no usable kernel in {}", first.display())));
        }
        // Another process that unpacked the same package meanwhile has won.
        if let Err(e) = fs::rename(&partial, &kept) {
            let _ = fs::remove_dir_all(&partial);
            if !kept.is_dir() {
                return Err(e).with_context(|| format!("creating {}", kept.display()));
            }
        }
        Self::from_directory(&kept)
    }

    /// The kernel that this machine runs: `/boot/vmlinuz-VERSION` and `/lib/modules/VERSION`.
    ///
    /// # Errors
    /// When its file is not there or not readable (Ubuntu keeps it from all but root).
    pub fn installed() -> Result<Self> {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease")
            .context("/proc/sys/kernel/osrelease")?;
        let kernel = Self::in_tree(Path::new("/"), release.trim().to_owned())?;
        fs::File::open(&kernel.image).with_context(|| {
            format!("{}: make it readable, or give a kernel package", kernel.image.display())
        })?;
        Ok(kernel)
    }

    fn in_tree(root: &Path, version: String) -> Result<Self> {
        let image = root.join("boot").join(format!("vmlinuz-{version}"));
        let in_modules = |lib: &str| root.join(lib).join("modules").join(&version);
        // Some distributions keep the kernel with its modules.
        let beside = in_modules("usr/lib").join("vmlinuz");
        let image = [image, beside].into_iter().find(|path| path.exists()).with_context(|| {
            format!(
                "no boot/vmlinuz-{version} under {}: give a kernel package, such as Debian's \
                 linux-image-6.1.0-…-amd64 (`cargo xtask setup` downloads one)",
                root.display()
            )
        })?;
        let modules = ["lib", "usr/lib"].map(in_modules).into_iter().find(|path| path.is_dir());
        let modules =
            modules.with_context(|| format!("no lib/modules/{version} in {}", root.display()))?;
        Ok(Self { image, modules, version })
    }

    /// A kernel whose parts were found before.
    pub(super) fn from_parts(image: PathBuf, modules: PathBuf, version: String) -> Self {
        Self { image, modules, version }
    }

    /// The kernel file.
    pub fn image(&self) -> &Path {
        &self.image
    }

    /// The kernel's version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Whether this kernel can be a guest with a balloon.
    pub fn has_balloon(&self) -> bool {
        self.modules().is_ok()
    }

    pub(super) fn module_dir(&self) -> &Path {
        &self.modules
    }

    /// The virtio modules, not compressed. What is built in is left out.
    ///
    /// # Errors
    /// When the kernel has no balloon driver, or a module cannot be read.
    pub(super) fn modules(&self) -> Result<Vec<Module>> {
        let built_in = fs::read_to_string(self.modules.join("modules.builtin")).unwrap_or_default();
        let mut modules = Vec::new();
        for name in MODULES {
            let file = format!("/{name}.ko");
            if let Some(path) = self.module_file(name) {
                modules.push((name, read_module(&path)?));
            } else if NEEDED.contains(&name) && !built_in.lines().any(|line| line.ends_with(&file))
            {
                bail!(
                    "{}: no module {name}, and it is not built in: this kernel cannot be a guest \
                     with a balloon; give another kernel package",
                    self.modules.display()
                );
            }
        }
        Ok(modules)
    }

    fn module_file(&self, name: &str) -> Option<PathBuf> {
        let kernel = self.modules.join("kernel");
        let suffixes = ["ko", "ko.xz", "ko.zst", "ko.gz"];
        let files = suffixes.map(|suffix| format!("{name}.{suffix}"));
        let directories = DIRECTORIES.map(|directory| kernel.join(directory));
        let paths = directories.iter().flat_map(|below| files.iter().map(|file| below.join(file)));
        paths.into_iter().find(|path| path.is_file())
    }
}

/// Where an unpacked package is kept. Those in `kernel` have no network modules.
fn kept(name: &str) -> PathBuf {
    cache_dir().join("kernels").join(name)
}

/// Unpacks the kernel, the modules of its guests and the list of what is built in.
fn unpack(package: &Path, directory: &Path) -> Result<()> {
    let mut archive = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting dpkg-deb; install dpkg, or unpack the package and give the directory")?;
    let members = archive.stdout.take().context("dpkg-deb has no output")?;
    // A package of several has only some of these, which tar calls a failure: whether all that is
    // needed came out of it is looked at later.
    let tar = Command::new("tar")
        .args(["--extract", "--no-same-owner", "--wildcards", "--directory"])
        .arg(directory)
        .args(["*/vmlinuz-*", "*/modules.builtin", "*/kernel/drivers/virtio/*"])
        .args(["*/drivers/net/virtio_net.*", "*/drivers/net/net_failover.*"])
        .arg("*/net/core/failover.*")
        .stdin(members)
        .stderr(Stdio::null())
        .status()
        .context("starting tar");
    let output = archive.wait_with_output().context("waiting for dpkg-deb")?;
    tar?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        bail!("{}: {}; delete it and try again", package.display(), why.trim_end());
    }
    Ok(())
}

/// A module's file, unpacked if it is packed.
///
/// # Errors
/// When it cannot be read or unpacked.
pub fn read_module(path: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let Some(unpack) = unpack::by_beginning(&bytes) else { return Ok(bytes) };
    let mut module = Vec::new();
    unpack(Box::new(Cursor::new(bytes)))
        .read_to_end(&mut module)
        .with_context(|| format!("unpacking {}", path.display()))?;
    Ok(module)
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn tree(name: &str) -> (PathBuf, PathBuf) {
        let root = env::temp_dir().join(format!("zerosweep-kernel-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        let modules = root.join("lib/modules/6.8.0-1");
        fs::create_dir_all(modules.join("kernel/drivers/virtio")).unwrap();
        fs::create_dir_all(root.join("boot")).unwrap();
        fs::write(root.join("boot/vmlinuz-6.8.0-1"), b"kernel").unwrap();
        (root, modules)
    }

    #[test]
    fn built_in_modules_are_left_out_and_compressed_ones_unpacked() {
        let (root, modules) = tree("builtin");
        let kernel = Kernel::from_directory(&root).unwrap();
        assert_eq!(kernel.version(), "6.8.0-1");
        let error = kernel.modules().unwrap_err();
        assert!(error.to_string().contains("virtio_pci"), "{error:#}");

        fs::write(modules.join("modules.builtin"), "kernel/drivers/virtio/virtio_pci.ko\n")
            .unwrap();
        let module = modules.join("kernel/drivers/virtio/virtio_balloon.ko");
        fs::write(&module, b"balloon").unwrap();
        assert_eq!(kernel.modules().unwrap(), [("virtio_balloon", b"balloon".to_vec())]);

        fs::remove_file(&module).unwrap();
        let packed = fs::File::create(module.with_extension("ko.gz")).unwrap();
        let mut packed = GzEncoder::new(packed, Compression::default());
        packed.write_all(b"balloon").unwrap();
        packed.finish().unwrap();
        assert_eq!(kernel.modules().unwrap(), [("virtio_balloon", b"balloon".to_vec())]);

        fs::write(module.with_extension("ko.gz"), b"\x1f\x8b\x08").unwrap();
        let error = kernel.modules().unwrap_err();
        assert!(error.to_string().contains("virtio_balloon.ko.gz"), "{error:#}");
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn two_kernels_in_one_directory_are_refused() {
        let (root, _) = tree("two");
        fs::write(root.join("boot/vmlinuz-6.8.0-2"), b"kernel").unwrap();
        let error = Kernel::from_directory(&root).unwrap_err();
        assert!(error.to_string().contains("expected one"), "{error:#}");
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn a_package_that_is_none_leaves_nothing_behind() {
        let (root, _) = tree("broken");
        let package = root.join(format!("broken-{}.deb", std::process::id()));
        fs::write(&package, b"no package").unwrap();
        assert!(Kernel::from_deb(&package).is_err());
        let kept = kept(package.file_stem().unwrap().to_str().unwrap());
        assert!(!kept.exists());
        fs::remove_dir_all(&root).unwrap();
    }
}
