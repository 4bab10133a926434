//! Debian's packages.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Installs packages; fetches the lists of packages first if there are none, or if it fails without.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    arguments.extend(packages);
    with_fresh_lists(|| apt_get(&arguments, Path::new("/")))
}

/// Downloads the kernel package behind Debian's or Ubuntu's meta package into `directory`, and the
/// packages of its modules where they are separate. Nothing is installed.
pub(crate) fn download_kernel(directory: &Path) -> Result<Vec<PathBuf>> {
    fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    let mut files = Vec::new();
    with_fresh_lists(|| {
        let packages = kernel_packages()?;
        eprintln!("downloading {}", packages.join(", "));
        files = packages.iter().map(|p| download(p, directory)).collect::<Result<_>>()?;
        Ok(())
    })?;
    Ok(files)
}

fn download(package: &str, directory: &Path) -> Result<PathBuf> {
    let find = || {
        let entries = fs::read_dir(directory).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
        let name = |path: &Path| path.file_name()?.to_str().map(str::to_owned);
        let prefix = format!("{package}_");
        entries
            .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .find(|path| name(path).is_some_and(|name| name.starts_with(&prefix)))
    };
    if let Some(path) = find() {
        return Ok(path);
    }
    apt_get(&["download", package], directory)?;
    find().with_context(|| format!("apt-get download {package} left no package"))
}

/// The names of the packages that hold the newest kernel and its modules.
fn kernel_packages() -> Result<Vec<String>> {
    let architecture = output("dpkg", &["--print-architecture"])?;
    let metas = [
        format!("linux-image-{}", architecture.trim()),
        "linux-image-virtual".to_owned(),
        "linux-image-generic".to_owned(),
    ];
    for meta in &metas {
        let Some(image) = numbered(&dependencies(meta), &["linux-image-"]).pop() else {
            continue;
        };
        let mut packages = vec![image];
        packages
            .extend(numbered(&dependencies(&packages[0]), &["linux-modules-", "linux-binary-"]));
        return Ok(packages);
    }
    bail!("apt knows none of {}", metas.join(", "))
}

/// What a package depends on; nothing if apt does not know it.
fn dependencies(package: &str) -> Vec<String> {
    let text = output("apt-cache", &["depends", package]).unwrap_or_default();
    let names = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    names.map(str::to_owned).collect()
}

/// Those names that are one of `prefixes` and a version number.
fn numbered(names: &[String], prefixes: &[&str]) -> Vec<String> {
    let is_numbered = |name: &&String| {
        prefixes.iter().any(|prefix| {
            let version = name.strip_prefix(prefix).unwrap_or_default();
            version.starts_with(|c: char| c.is_ascii_digit())
        })
    };
    names.iter().filter(is_numbered).cloned().collect()
}

/// Does `work`; if it fails, fetches the lists of packages and does it again.
fn with_fresh_lists(mut work: impl FnMut() -> Result<()>) -> Result<()> {
    if has_lists() && work().is_ok() {
        return Ok(());
    }
    apt_get(&["update"], Path::new("/"))?;
    work()
}

fn has_lists() -> bool {
    let Ok(entries) = fs::read_dir("/var/lib/apt/lists") else { return false };
    entries.flatten().any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
}

fn apt_get(arguments: &[&str], directory: &Path) -> Result<()> {
    eprintln!("=== apt-get {}", arguments.join(" "));
    let output = Command::new("apt-get")
        // The unprivileged download user cannot write to a cache in root's home.
        .args(["--quiet", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3"])
        // Somebody else's apt may be at work.
        .args(["-o", "DPkg::Lock::Timeout=300"])
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .current_dir(directory)
        .stdin(Stdio::null())
        .output()
        .context("starting apt-get")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim_end().replace('\n', "\n  ");
        bail!("apt-get {} failed ({}):\n  {said}", arguments.join(" "), output.status);
    }
    Ok(())
}

fn output(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .with_context(|| format!("starting {program}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod unit_tests {
    use super::numbered;

    #[test]
    fn the_kernel_behind_a_meta_package_is_the_one_with_a_number() {
        let names = ["linux-base", "linux-image-generic", "linux-image-6.1.0-56-amd64", "kmod"];
        let names = names.map(str::to_owned);
        assert_eq!(numbered(&names, &["linux-image-"]), ["linux-image-6.1.0-56-amd64"]);
        assert!(numbered(&names, &["linux-modules-"]).is_empty());
    }
}
