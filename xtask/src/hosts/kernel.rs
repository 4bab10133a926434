//! The kernels of hosts, from the distributions' packages.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use zerosweep_lab::image::read_module;

use super::arch::Arch;
use super::packages::{Packages, remove, unpack};

/// What hosts need: KVM, the network's part of the kernel, and file systems of other machines. A
/// kernel that has one of them built in, or not at all, does without the module.
const MODULES: [&str; 8] =
    ["irqbypass", "kvm", "kvm_amd", "tun", "vhost_net", "9pnet_virtio", "9p", "virtio_pci"];

/// Series of kernels that releases of Debian have.
const SERIES: [&str; 9] = ["6.12", "6.16", "6.17", "6.18", "6.19", "7.0", "7.1", "7.2", "7.3"];
/// The oldest that zerosweep allows. Ubuntu 24.04 has it, and this mirror has it for x86-64.
const OLDEST: &str = "6.8";

/// All series that there are.
pub(crate) fn all(arch: Arch) -> Vec<String> {
    let oldest = (arch == Arch::X86_64).then_some(OLDEST);
    oldest.into_iter().chain(SERIES).map(str::to_owned).collect()
}

/// A kernel of a host.
#[derive(Clone, Debug)]
pub(crate) struct HostKernel {
    /// What the kernel calls itself: `6.18.15+deb13-cloud-amd64`.
    pub(crate) version: String,
    /// The file that QEMU boots.
    pub(crate) image: PathBuf,
    modules: PathBuf,
}

impl HostKernel {
    /// The newest kernel of a series (`6.18`), downloaded and unpacked.
    ///
    /// # Errors
    /// When no release has one, or it cannot be fetched.
    pub(crate) fn get(packages: &Packages, series: &str, arch: Arch) -> Result<Self> {
        let name = newest(&packages.names("linux-")?, series, arch)
            .with_context(|| format!("no release has a kernel {series} for {}", arch.debian()))?;
        let version = version_of(&name).to_owned();
        let directory = packages.at("kernels").join(&version);
        if !directory.is_dir() {
            let partial = directory.with_extension("partial");
            remove(&partial)?;
            fs::create_dir_all(&partial)?;
            let suffix = arch.suffix();
            unpack(&packages.download(&format!("{name}{suffix}"))?, &partial)?;
            if modules_in(&partial, &version).is_none() {
                let modules = format!("linux-modules-{version}");
                unpack(&packages.download_like(&modules, Some(&name))?, &partial)?;
            }
            fs::rename(&partial, &directory)?;
        }
        let modules = modules_in(&directory, &version)
            .with_context(|| format!("no modules in {}", directory.display()))?;
        // Newer packages have the kernel beside its modules.
        let places = [directory.join(format!("boot/vmlinuz-{version}")), modules.join("vmlinuz")];
        let image = places.into_iter().find(|path| path.is_file());
        let image = image.with_context(|| format!("no kernel in {}", directory.display()))?;
        Ok(Self { version, image, modules })
    }

    /// The modules that a host needs, unpacked, each after those that it needs itself.
    pub(crate) fn modules(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let mut files = BTreeMap::new();
        find_modules(&self.modules.join("kernel"), &mut files)?;
        let mut ordered = Vec::new();
        for name in MODULES {
            add_module(name, &files, &mut ordered)?;
        }
        Ok(ordered)
    }
}

/// The directory of a kernel's modules.
fn modules_in(directory: &Path, version: &str) -> Option<PathBuf> {
    let below = |lib: &str| directory.join(lib).join("modules").join(version);
    ["usr/lib", "lib"].map(below).into_iter().find(|path| path.join("kernel").is_dir())
}

/// Adds a module behind those that it needs, if there is such a file and it is not there yet.
fn add_module(
    name: &str,
    files: &BTreeMap<String, PathBuf>,
    ordered: &mut Vec<(String, Vec<u8>)>,
) -> Result<()> {
    let Some(file) = files.get(name) else { return Ok(()) };
    if ordered.iter().any(|(other, _)| other == name) {
        return Ok(());
    }
    let module = read_module(file)?;
    for needed in dependencies(&module) {
        add_module(&needed, files, ordered)?;
    }
    ordered.push((name.to_owned(), module));
    Ok(())
}

/// The modules that a module says that it needs: `depends=kvm,ccp` in its `.modinfo`.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = module[at + KEY.len()..].split(|&byte| byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(value);
    let names = names.split(',').filter(|name| !name.is_empty());
    names.map(|name| name.replace('-', "_")).collect()
}

/// Finds all modules below a directory, by name.
fn find_modules(directory: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let reading = || format!("reading {}", directory.display());
    for entry in fs::read_dir(directory).with_context(reading)? {
        let path = entry.with_context(reading)?.path();
        if path.is_dir() {
            find_modules(&path, files)?;
        } else if let Some(name) = path.file_name().and_then(|name| name.to_str())
            && let Some((name, _)) = name.split_once(".ko")
        {
            files.insert(name.replace('-', "_"), path);
        }
    }
    Ok(())
}

/// The package with the newest kernel of a series. Debian's come first: their names tell the patch
/// level. Of these, the cloud's kernels do: they are small.
fn newest(names: &[String], series: &str, arch: Arch) -> Option<String> {
    let in_series = |name: &&String| {
        let rest = version_of(name).strip_prefix(series).unwrap_or_default();
        rest.starts_with(['.', '+', '-']) && kind(name, arch).is_some()
    };
    names
        .iter()
        .filter(in_series)
        .max_by_key(|name| (Reverse(kind(name, arch)), numbers(version_of(name))))
        .cloned()
}

/// Which kernel a package holds; the lower, the better.
fn kind(name: &str, arch: Arch) -> Option<u8> {
    let debian = arch.debian();
    let is_image = name.starts_with("linux-image-") || name.starts_with("linux-binary-");
    let version = version_of(name);
    if !is_image || !version.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    // Since 7.0, Debian's linux-image-… only depends on linux-binary-….
    let is_shell = name.starts_with("linux-image-") && numbers(version) >= vec![6, 19];
    let (numbers, flavour) = version.split_once('-')?;
    if flavour == format!("cloud-{debian}") && numbers.contains("+deb") && !is_shell {
        return Some(0);
    }
    // Ubuntu's: 6.8.0-31-generic.
    let (abi, flavour) = flavour.split_once('-')?;
    let is_ubuntu = flavour == "generic" && abi.bytes().all(|byte| byte.is_ascii_digit());
    (is_ubuntu && arch == Arch::X86_64).then_some(1)
}

/// `6.18.15+deb13-cloud-amd64` of `linux-image-6.18.15+deb13-cloud-amd64`.
fn version_of(package: &str) -> &str {
    ["linux-image-", "linux-binary-"]
        .iter()
        .find_map(|prefix| package.strip_prefix(prefix))
        .unwrap_or_default()
}

/// The numbers of a version, for comparing.
pub(crate) fn numbers(version: &str) -> Vec<u32> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

/// A series of kernels, `6.12`, or one kernel of it, `6.12.117`, or the one that runs.
///
/// # Errors
/// When it is neither.
pub(crate) fn series(name: &str) -> Result<String> {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let parts = name.split('.').collect::<Vec<_>>();
    if name == super::THIS {
        return Ok(name.to_owned());
    }
    match matches!(parts.len(), 2 | 3) && parts.iter().all(|part| is_number(part)) {
        true => Ok(name.to_owned()),
        false => bail!("`{name}` is no kernel such as 6.12 or 6.12.117"),
    }
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn the_newest_kernel_of_a_series_is_found() {
        let all = names(&[
            "linux-image-6.18.9+deb13-cloud-amd64",
            "linux-image-6.18.15+deb13-cloud-amd64",
            "linux-image-6.18.15+deb13-amd64",
            "linux-image-6.18.16+deb13-cloud-amd64-unsigned",
            "linux-image-6.18.17+deb13-cloud-arm64",
            "linux-image-6.1.0-50-cloud-amd64",
            "linux-image-7.3.4+deb13-cloud-amd64",
            "linux-binary-7.3.4+deb13-cloud-amd64",
            "linux-image-6.8.0-31-generic",
            "linux-image-6.8.0-101-generic",
            "linux-image-amd64",
        ]);
        let newest = |series| newest(&all, series, Arch::X86_64);
        let some = |name: &str| Some(name.to_owned());
        assert_eq!(newest("6.18"), some("linux-image-6.18.15+deb13-cloud-amd64"));
        assert_eq!(newest("7.3"), some("linux-binary-7.3.4+deb13-cloud-amd64"));
        assert_eq!(newest("6.8"), some("linux-image-6.8.0-101-generic"));
        assert_eq!(newest("6.1"), None, "the name does not tell the patch level");
        assert_eq!(newest("6.9"), None);
        assert_eq!(newest("6.18.9"), some("linux-image-6.18.9+deb13-cloud-amd64"));
    }

    #[test]
    fn a_module_says_what_it_needs() {
        let module = b"\x7fELF..\0license=GPL\0depends=kvm,ccp-x\0intree=Y\0";
        assert_eq!(dependencies(module), ["kvm", "ccp_x"]);
        assert_eq!(dependencies(b"\0depends=\0"), [""; 0]);
    }

    #[test]
    fn a_series_has_two_numbers() {
        assert!(series("6.12").is_ok());
        assert!(series("6.12.117").is_ok());
        for wrong in ["6", "6.12.1.2", "6.", "all", ""] {
            assert!(series(wrong).is_err(), "{wrong}");
        }
    }
}
