//! What the machine says that decides whether a command line can be managed.

use std::fs;
use std::os::fd::AsFd as _;
use std::path::Path;

use zerosweep_linux::KernelVersion;
use zerosweep_linux::references::FileSystem;

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

/// The file system that a file lies on, if its direct I/O keeps references to pages that a move of
/// the page does not see.
fn file_system_of(path: &Path) -> Option<FileSystem> {
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, rustix::fs::Mode::empty()).ok()?;
    FileSystem::of(file.as_fd())
}

/// The first kernel that pins the pages of a nested guest (`kvm_vcpu_map`), so that a move sees it.
const PINS_NESTED: KernelVersion = KernelVersion::new(6, 13);

impl Host {
    /// The CPU feature that lets a guest run guests, and the kernel, if that only keeps references
    /// to such a guest's pages.
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
            shared_by_reference: file_system_of,
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
    fn ordinary_file_systems_and_missing_files_are_no_danger() {
        assert_eq!(file_system_of(Path::new("/proc")), None);
        assert_eq!(file_system_of(Path::new("/no/such/file")), None);
    }
}
