//! Kernel modules from `/modules`, where the image builder put them unpacked.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::io::Errno;

use crate::failure::Failure;

/// What the balloon's bus needs, in the order in which they can be loaded. Every VMM has one of the
/// two buses; the driver of the other finds no device.
pub(crate) const BUS: [&str; 6] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "virtio_mmio",
];

/// The network driver, and what it needs on some kernels.
pub(crate) const NET: [&str; 3] = ["failover", "net_failover", "virtio_net"];

/// The balloon driver.
pub(crate) const BALLOON: &str = "virtio_balloon";

/// Whether a module was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loaded {
    /// It is in the kernel now.
    Yes,
    /// The image has no such file: it is built into the kernel, or that kernel has no need of it.
    Absent,
}

/// Loads `/modules/NAME.ko`.
pub(crate) fn load(name: &str) -> Result<Loaded, Failure> {
    let path = Path::new("/modules").join(format!("{name}.ko"));
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Loaded::Absent),
        Err(e) => return Err(Failure::new("modules", format_args!("{}: {e}", path.display()))),
    };
    match rustix::system::finit_module(&file, c"", 0) {
        Ok(()) | Err(Errno::EXIST) => Ok(Loaded::Yes),
        Err(e) => Err(Failure::new("modules", format_args!("{}: {e}", path.display()))),
    }
}
