//! What tests on real guests need: QEMU, a guest kernel, the guest image.

use std::fmt;

use anyhow::{Context, Result, bail};
use zerosweep_lab::image::{GuestImage, Image, Kernel, cache_dir, find_init};

use crate::{apt, machine};

/// The VMM that the tests start.
const QEMU: &str = "qemu-system-x86_64";

/// Something that is missing, and how to get it.
pub(crate) struct Missing {
    what: String,
    how: &'static str,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.what, self.how)
    }
}

/// What is missing.
pub(crate) fn missing() -> Vec<Missing> {
    let mut missing = Vec::new();
    if machine::program(QEMU).is_none() {
        missing.push(Missing {
            what: format!("{QEMU} is not on the PATH"),
            how: "Debian, Ubuntu: `apt-get install qemu-system-x86 seabios`; Fedora: \
                  `dnf install qemu-system-x86-core`; Arch: `pacman -S qemu-system-x86`",
        });
    }
    if let Err(e) = GuestImage::find() {
        missing.push(Missing {
            what: format!("no guest image ({e:#})"),
            how: "root on Debian or Ubuntu: `cargo xtask setup`; elsewhere download a kernel \
                  package such as Debian's linux-image-6.1.0-…-amd64 and give it to \
                  `zerosweep guest-image`",
        });
    }
    missing
}

/// Says what is missing; whether nothing is.
pub(crate) fn check() -> bool {
    let missing = missing();
    for missing in &missing {
        println!("missing: {missing}");
    }
    if missing.is_empty() {
        println!("everything is there");
    }
    missing.is_empty()
}

/// Whether [`run`] can install and download: it is root where apt is.
pub(crate) fn can_install() -> bool {
    machine::is_root() && machine::has_apt()
}

/// Gets what is missing.
///
/// # Errors
/// When something is still missing at the end.
pub(crate) fn run() -> Result<()> {
    let apt_works = can_install();
    if machine::program(QEMU).is_none() && apt_works {
        apt::install(&["qemu-system-x86", "seabios"])?;
    }
    if GuestImage::find().is_err()
        && let Some(kernel) = kernel(apt_works)?
    {
        Image::build(&kernel, &find_init()?, &GuestImage::default_dir())?;
    }
    let missing = missing();
    if !missing.is_empty() {
        let lines: Vec<_> = missing.iter().map(|missing| format!("\n  {missing}")).collect();
        bail!("still missing:{}", lines.concat());
    }
    let image = GuestImage::find()?;
    println!("guest kernel {}: {}", image.version, image.kernel.display());
    println!("guest image: {}", image.initrd.display());
    Ok(())
}

/// The packages with libvirt's daemon, its driver for QEMU, and `virsh`.
const LIBVIRT: [&str; 3] =
    ["libvirt-daemon-system", "libvirt-daemon-driver-qemu", "libvirt-clients"];

/// Gets libvirt, which tests run in a mount namespace of their own.
///
/// # Errors
/// When it is not there, with the command that gets it.
pub(crate) fn libvirt() -> Result<()> {
    let is_there =
        || ["libvirtd", "virtlogd", "virsh"].iter().all(|name| machine::program(name).is_some());
    if !is_there() && can_install() {
        apt::install(&LIBVIRT)?;
    }
    if !is_there() {
        bail!(
            "libvirtd, virtlogd and virsh are not all on the PATH: `apt-get install \
             --no-install-recommends {}`",
            LIBVIRT.join(" ")
        );
    }
    if !machine::is_root() {
        bail!("libvirtd in a mount namespace of its own needs root");
    }
    Ok(())
}

/// The packages with what the tests of the C interface need, and a program of each.
const C_TOOLS: [(&str, &str); 2] = [("g++", "c++"), ("valgrind", "valgrind")];

/// Gets a C++ compiler and valgrind.
///
/// # Errors
/// As [`find_c_tools`].
pub(crate) fn c_tools() -> Result<()> {
    if find_c_tools().is_err() && can_install() {
        apt::install(&C_TOOLS.map(|(package, _)| package))?;
    }
    find_c_tools()
}

/// Looks for a C++ compiler and valgrind.
///
/// # Errors
/// When one of them is not there, with the command that gets it.
pub(crate) fn find_c_tools() -> Result<()> {
    for (package, program) in C_TOOLS {
        if machine::program(program).is_none() {
            bail!("{program} is not on the PATH: `apt-get install {package}`");
        }
    }
    Ok(())
}

/// The installed kernel if it can be a guest, else one from the distribution's packages; nothing
/// where neither is to be had.
fn kernel(apt_works: bool) -> Result<Option<Kernel>> {
    if let Ok(kernel) = Kernel::installed()
        && kernel.has_balloon()
    {
        return Ok(Some(kernel));
    }
    if !apt_works {
        return Ok(None);
    }
    let packages = apt::download_kernel(&cache_dir().join("packages"))?;
    Ok(Some(Kernel::from_debs(&packages).context("the downloaded kernel")?))
}
