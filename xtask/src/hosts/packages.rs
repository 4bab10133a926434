//! Packages of Debian's and Ubuntu's releases: found, downloaded and unpacked, never installed.
//!
//! An apt of our own does this: it has its own sources and lists in the cache directory, and leaves
//! the system's alone. It checks signatures as the system's does.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use zerosweep_lab::image::cache_dir;

use crate::{apt, machine};

/// Debian's releases, and where each has its packages.
const DEBIAN: [(&str, &str); 5] = [
    ("bookworm", "http://deb.debian.org/debian"),
    ("bookworm-backports", "http://deb.debian.org/debian"),
    ("trixie", "http://deb.debian.org/debian"),
    ("trixie-backports", "http://deb.debian.org/debian"),
    ("trixie-security", "http://deb.debian.org/debian-security"),
];
const DEBIAN_KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Ubuntu 24.04 has Linux 6.8, which no release of Debian has.
const UBUNTU: [&str; 2] = ["noble", "noble-updates"];
const UBUNTU_MIRROR: &str = "http://archive.ubuntu.com/ubuntu";
const UBUNTU_KEYS: &str = "usr/share/keyrings/ubuntu-archive-keyring.gpg";
/// Lists are fetched again when they are older than this.
const FRESH: Duration = Duration::from_secs(24 * 3600);
/// Documents and translations, which no host needs.
const EXCLUDED: [&str; 4] =
    ["/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/man/*", "/usr/share/perl*"];

/// Where the packages come from, and where they are kept.
pub(crate) struct Packages {
    directory: PathBuf,
}

impl Packages {
    /// Fetches the lists of packages, unless they are fresh.
    pub(crate) fn open() -> Result<Self> {
        let directory = cache_dir().join("hosts");
        let packages = Self { directory };
        for name in ["lists/partial", "archives/partial", "packages"] {
            let path = packages.at(name);
            fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
        }
        fs::write(packages.at("status"), "")?;
        let updated = packages.at("updated");
        let is_fresh = fs::metadata(&updated)
            .and_then(|metadata| metadata.modified())
            .is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age < FRESH));
        packages.write_settings()?;
        if !is_fresh {
            packages.apt("apt-get", &["update"])?;
            if !packages.at(UBUNTU_KEYS).exists() {
                // Debian has, and signs, Ubuntu's keys.
                let keys = packages.download("ubuntu-keyring")?;
                unpack(&keys, &packages.directory)?;
                packages.write_settings()?;
                packages.apt("apt-get", &["update"])?;
            }
            fs::write(&updated, "")?;
        }
        Ok(packages)
    }

    /// A place below the directory in which everything is kept.
    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn write_settings(&self) -> Result<()> {
        let mut sources = String::new();
        let mut add = |keys: &Path, mirror: &str, suite: &str| {
            let keys = keys.display();
            sources += &format!("deb [signed-by={keys} arch=amd64,arm64] {mirror} {suite} main\n");
        };
        for (suite, mirror) in DEBIAN {
            add(Path::new(DEBIAN_KEYS), mirror, suite);
        }
        let ubuntu = self.at(UBUNTU_KEYS);
        if ubuntu.exists() {
            for suite in UBUNTU {
                add(&ubuntu, UBUNTU_MIRROR, suite);
            }
            // The mirror has one of the two architectures.
            sources = sources.replace(
                &format!("arch=amd64,arm64] {UBUNTU_MIRROR}"),
                &format!("arch=amd64] {UBUNTU_MIRROR}"),
            );
        }
        fs::write(self.at("sources.list"), sources)?;
        let at = |name: &str| self.at(name).display().to_string();
        let settings = format!(
            "Dir::Etc::SourceList \"{}\";\nDir::Etc::SourceParts \"-\";\n\
             Dir::State::Lists \"{}\";\nDir::State::status \"{}\";\n\
             Dir::Cache::archives \"{}\";\nDir::Cache::pkgcache \"\";\n\
             Dir::Cache::srcpkgcache \"\";\n\
             APT::Architecture \"amd64\";\nAPT::Architectures {{ \"amd64\"; \"arm64\"; }};\n\
             APT::Sandbox::User \"root\";\nAcquire::Retries \"3\";\n",
            at("sources.list"),
            at("lists"),
            at("status"),
            at("archives"),
        );
        fs::write(self.at("apt.conf"), settings).context("writing the settings of apt")
    }

    /// The names of all packages that begin with `prefix`.
    pub(crate) fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let said = self.apt("apt-cache", &["pkgnames", prefix])?;
        Ok(said.lines().map(str::to_owned).collect())
    }

    /// Downloads a package, unless it is there; where it is.
    ///
    /// A package that is in no list any more, but belongs to another one that is, is looked for
    /// where that one is: `like` names it.
    pub(crate) fn download(&self, package: &str) -> Result<PathBuf> {
        self.download_like(package, None)
    }

    /// [`Packages::download`], for a package that may be in no list.
    pub(crate) fn download_like(&self, package: &str, like: Option<&str>) -> Result<PathBuf> {
        let address = match (self.address(package), like) {
            (Ok(address), _) => address,
            (Err(error), None) => return Err(error),
            (Err(_), Some(like)) => {
                // The mirror keeps packages a while longer than its lists do; signed kernels and
                // their modules are built from two sources.
                address_beside(&self.address(like)?, like, package)?
            }
        };
        let name = address.rsplit('/').next().context("an address without a name")?;
        let path = self.at("packages").join(name);
        if !path.exists() {
            eprintln!("downloading {name}");
            let partial = path.with_extension("partial");
            let to = partial.to_str().context("the cache directory's name is not UTF-8")?;
            self.apt("/usr/lib/apt/apt-helper", &["download-file", &address, to])?;
            fs::rename(&partial, &path)?;
        }
        Ok(path)
    }

    /// Where a package is to be fetched from.
    fn address(&self, package: &str) -> Result<String> {
        let said = self.apt("apt-get", &["download", "--print-uris", package])?;
        let address = said.lines().find_map(|line| line.strip_prefix('\'')?.split('\'').next());
        Ok(address.with_context(|| format!("apt knows no package {package}"))?.to_owned())
    }

    /// Unpacks packages and all that they depend on to `root`, unless they are there: enough to run
    /// their programs in it. `suites` are Debian's; packages come from the last that has them.
    pub(crate) fn root(
        &self,
        root: &str,
        arch: &str,
        suites: &[&str],
        packages: &[&str],
    ) -> Result<PathBuf> {
        let path = self.at("roots").join(root);
        let contents = packages.join("\n");
        if fs::read_to_string(path.join(CONTENTS)).is_ok_and(|there| there == contents) {
            return Ok(path);
        }
        if machine::program("mmdebstrap").is_none() {
            apt::install(&["mmdebstrap"])?;
        }
        let mut sources = String::new();
        for suite in suites {
            let (_, mirror) =
                DEBIAN.iter().find(|(name, _)| name == suite).context("an unknown release")?;
            sources += &format!("deb [signed-by={DEBIAN_KEYS}] {mirror} {suite} main\n");
        }
        let (first, last) = (suites[0], suites[suites.len() - 1]);
        let list = tempfile::Builder::new().suffix(".list").tempfile()?;
        fs::write(list.path(), sources)?;
        let wanted: Vec<_> = packages
            .iter()
            .map(|package| match package.starts_with("qemu-") || *package == "seabios" {
                true => format!("{package}/{last}"),
                false => (*package).to_owned(),
            })
            .collect();
        let partial = path.with_extension("partial");
        remove(&partial)?;
        fs::create_dir_all(&partial)?;
        eprintln!("unpacking {} of {last} and what they need", packages.join(", "));
        let mut command = Command::new("mmdebstrap");
        command.args(["--mode=root", "--variant=extract", "--quiet"]);
        command.arg(format!("--architectures={arch}"));
        command.arg("--aptopt=APT::Install-Recommends \"false\"");
        command.args(EXCLUDED.map(|path| format!("--dpkgopt=path-exclude={path}")));
        command.arg(format!("--include={}", wanted.join(",")));
        command.arg(first).arg(&partial).arg(list.path());
        let output = command.stdin(Stdio::null()).output().context("starting mmdebstrap")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "mmdebstrap failed:\n{}", said.trim_end());
        complete(&partial)?;
        fs::write(partial.join(CONTENTS), contents)?;
        remove(&path)?;
        fs::rename(&partial, &path)?;
        Ok(path)
    }

    fn apt(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let output = Command::new(program)
            .args(arguments)
            .env("APT_CONFIG", self.at("apt.conf"))
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("starting {program}"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("{program} {}: {}", arguments.join(" "), said.trim_end());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// The address of a package beside another one, whose address is known.
fn address_beside(address: &str, other: &str, package: &str) -> Result<String> {
    // As apt writes names in addresses.
    let encoded = |name: &str| name.replace('+', "%2b");
    let at = address.replace(&encoded(other), &encoded(package));
    ensure!(at != address, "{address} does not have the name of {other}");
    Ok(at.replace("/linux-signed-amd64/", "/linux/").replace("/linux-signed-arm64/", "/linux/"))
}

/// The file of a root that names the packages that were wanted there.
const CONTENTS: &str = ".packages";

/// Adds what the scripts of packages would have made: the directories that newer releases have
/// below `usr` only, a shell, and users.
fn complete(root: &Path) -> Result<()> {
    for name in ["bin", "sbin", "lib", "lib64"] {
        if !root.join(name).exists() {
            symlink(format!("usr/{name}"), root.join(name))?;
        }
    }
    for name in ["proc", "sys", "dev", "run", "tmp"] {
        fs::create_dir_all(root.join(name))?;
    }
    if !root.join("bin/sh").exists() {
        symlink("busybox", root.join("bin/sh"))?;
    }
    let users = "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/nonexistent:/bin/false\n";
    fs::write(root.join("etc/passwd"), users)?;
    fs::write(root.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n")?;
    Ok(())
}

/// Unpacks a package.
pub(crate) fn unpack(package: &Path, to: &Path) -> Result<()> {
    let status = Command::new("dpkg-deb").arg("-x").arg(package).arg(to).status();
    let status = status.context("starting dpkg-deb")?;
    if !status.success() {
        // It may have been cut off while it was downloaded.
        let _ = fs::remove_file(package);
        bail!("{} cannot be unpacked; it was removed: try again", package.display());
    }
    Ok(())
}

/// Removes a directory, if it is there.
pub(crate) fn remove(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("removing {}", directory.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn modules_lie_beside_their_kernel() {
        let kernel = "http://m/l/linux-signed-amd64/linux-binary-7.1%2bd-amd64_7.1-1%7eb_amd64.deb";
        let modules = "http://m/l/linux/linux-modules-7.1%2bd-amd64_7.1-1%7eb_amd64.deb";
        let (binary, package) = ("linux-binary-7.1+d-amd64", "linux-modules-7.1+d-amd64");
        assert_eq!(address_beside(kernel, binary, package).unwrap(), modules);
        assert!(address_beside(kernel, "linux-binary-7.2+d-amd64", package).is_err());
    }
}
