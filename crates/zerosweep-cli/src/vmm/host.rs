//! What the machine says that decides whether a command line can be managed.

use std::fmt;
use std::fs;
use std::path::Path;

use zerosweep_linux::probe::KernelVersion;

/// The machine, as far as command lines need it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Host {
    /// The file system that a file lies on, if direct I/O there is a danger.
    pub(crate) shared_by_reference: fn(&Path) -> Option<FileSystem>,
    /// The kernel; `None` where its name cannot be read.
    pub(crate) kernel: Option<KernelVersion>,
    /// The CPU feature with which guests may run guests of their own; `None` where KVM does not let
    /// them.
    pub(crate) nested: Option<&'static str>,
    /// Whether vhost-net sends guest pages without copying them.
    pub(crate) vhost_sends_by_reference: bool,
}

/// File systems whose direct I/O keeps references to pages that a move of the page does not see:
/// they get the pages without pinning them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileSystem {
    Nfs,
    CephFs,
    NineP,
}

impl fmt::Display for FileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nfs => "NFS",
            Self::CephFs => "CephFS",
            Self::NineP => "9p",
        })
    }
}

impl FileSystem {
    /// By `statfs`.
    fn of(path: &Path) -> Option<Self> {
        Self::by_number(rustix::fs::statfs(path).ok()?.f_type.cast_unsigned())
    }

    /// By the kernel's number (`linux/magic.h`).
    fn by_number(number: u64) -> Option<Self> {
        match number {
            0x6969 => Some(Self::Nfs),
            0x00c3_6400 => Some(Self::CephFs),
            0x0102_1997 => Some(Self::NineP),
            _ => None,
        }
    }
}

/// The first kernel that pins the pages of a nested guest (`kvm_vcpu_map`), so that a move sees it.
const PINS_NESTED: KernelVersion = KernelVersion::new(6, 13);

impl Host {
    /// The CPU feature that lets a guest run guests, and the kernel, if that only keeps references to
    /// such a guest's pages.
    pub(crate) fn nested_by_reference(&self) -> Option<(&'static str, KernelVersion)> {
        Some((self.nested?, self.kernel.filter(|&kernel| kernel < PINS_NESTED)?))
    }

    /// This machine.
    pub(crate) fn this() -> Self {
        let is_on = |module: &str, parameter: &str| {
            let file = format!("/sys/module/{module}/parameters/{parameter}");
            fs::read_to_string(file).is_ok_and(|value| matches!(value.trim(), "1" | "Y"))
        };
        let nested = [("kvm_intel", "vmx"), ("kvm_amd", "svm")]
            .into_iter()
            .find_map(|(module, feature)| is_on(module, "nested").then_some(feature));
        Self {
            shared_by_reference: FileSystem::of,
            kernel: KernelVersion::running(),
            nested,
            vhost_sends_by_reference: is_on("vhost_net", "experimental_zcopytx"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_systems_are_told_by_the_kernels_numbers() {
        assert_eq!(FileSystem::by_number(0x6969), Some(FileSystem::Nfs));
        assert_eq!(FileSystem::by_number(0x00c3_6400), Some(FileSystem::CephFs));
        assert_eq!(FileSystem::by_number(0x0102_1997), Some(FileSystem::NineP));
        let proc = rustix::fs::statfs("/proc").unwrap().f_type.cast_unsigned();
        assert_eq!(proc, 0x9fa0, "PROC_SUPER_MAGIC: the field is the right one");
        assert_eq!(FileSystem::of(Path::new("/proc")), None);
        assert_eq!(FileSystem::of(Path::new("/no/such/file")), None);
    }
}
