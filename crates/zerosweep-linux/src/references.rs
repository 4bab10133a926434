//! Who holds pages of the guest's without saying so.
//!
//! A page that the kernel uses for I/O is *pinned*, and the kernel refuses to move it; so no byte of
//! it is lost. Some parts of the kernel only take an ordinary reference instead. Such a page moves,
//! is copied and is cleared while the disk or the network still reads or writes it, and nothing in
//! user space can see that. These are refused: at adoption, and later by lifting the cap.
//!
//! - direct I/O (`O_DIRECT`) to files on NFS, CephFS and 9p;
//! - `vhost-scsi`, which has a device of its own.
//!
//! Others are seen elsewhere: `MSG_ZEROCOPY` where it is asked for, nested guests on Linux before
//! 6.13 on the VMM's command line.

use core::fmt;
use std::os::fd::RawFd;

use crate::sys::raw;

/// File systems whose direct I/O keeps ordinary references to pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    /// NFS, any version.
    Nfs,
    /// The kernel's client of Ceph's file system.
    CephFs,
    /// Plan 9's, also of virtio.
    NineP,
}

impl FileSystem {
    /// By the kernel's number (`f_type` of `statfs(2)`, `linux/magic.h`).
    #[must_use]
    pub const fn by_number(number: u64) -> Option<Self> {
        match number {
            0x6969 => Some(Self::Nfs),
            0x00c3_6400 => Some(Self::CephFs),
            0x0102_1997 => Some(Self::NineP),
            _ => None,
        }
    }
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

/// A file that this process has open through which pages are held by ordinary references.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// It is open for direct I/O.
    DirectIo {
        /// The file.
        path: String,
        /// What it lies on.
        on: FileSystem,
    },
    /// It is the device of `vhost-scsi`.
    VhostScsi,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DirectIo { path, on } => write!(
                f,
                "the VMM has {path} open for direct I/O, on {on}: the kernel would not say which \
                 guest pages are in use, and data would be damaged when they move; use \
                 cache=writeback or cache=writethrough for this disk (libvirt: <driver \
                 cache='writeback'/>)"
            ),
            Self::VhostScsi => f.write_str(
                "the VMM uses vhost-scsi: the kernel would not say which guest pages are in use, \
                 and data would be damaged when they move; use virtio-scsi without vhost",
            ),
        }
    }
}

/// What a descriptor of this process is, if pages are held through it.
#[must_use]
pub fn holder(fd: RawFd) -> Option<Holder> {
    // Flags first: most files are not open for direct I/O, and need no second call.
    let flags = raw::file_flags(fd).ok()?;
    let is_direct = flags & libc::O_DIRECT != 0;
    let file_system = if is_direct { raw::file_system(fd).ok() } else { None };
    classify(is_direct, file_system.unwrap_or(0), || path_of(fd))
}

fn classify(is_direct: bool, file_system: u64, path: impl FnOnce() -> String) -> Option<Holder> {
    if is_direct {
        let on = FileSystem::by_number(file_system)?;
        return Some(Holder::DirectIo { path: path(), on });
    }
    (path() == "/dev/vhost-scsi").then_some(Holder::VhostScsi)
}

fn path_of(fd: RawFd) -> String {
    let link = std::fs::read_link(format!("/proc/self/fd/{fd}"));
    link.map_or_else(|_| format!("descriptor {fd}"), |path| path.to_string_lossy().into_owned())
}

/// The first file that this process has open through which pages are held. `None` too where /proc
/// cannot be read.
#[must_use]
pub fn find() -> Option<Holder> {
    let open = std::fs::read_dir("/proc/self/fd").ok()?;
    let numbers = open.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    numbers.into_iter().find_map(holder)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::OpenOptionsExt;

    use super::*;

    #[test]
    fn direct_io_on_file_systems_that_do_not_pin_is_found() {
        let path = || "/mnt/disk.img".to_owned();
        for (number, on) in [
            (0x6969, FileSystem::Nfs),
            (0x00c3_6400, FileSystem::CephFs),
            (0x0102_1997, FileSystem::NineP),
        ] {
            let found = classify(true, number, path);
            assert_eq!(found, Some(Holder::DirectIo { path: path(), on }));
            let text = found.unwrap().to_string();
            assert!(text.contains("/mnt/disk.img") && text.contains("cache=writeback"), "{text}");
            assert_eq!(classify(false, number, path), None, "through the page cache");
        }
        // ext4, XFS, tmpfs.
        for number in [0xef53, 0x5846_5342, 0x0102_1994] {
            assert_eq!(classify(true, number, path), None);
        }
        let scsi = classify(false, 0, || "/dev/vhost-scsi".to_owned());
        assert_eq!(scsi, Some(Holder::VhostScsi));
        assert_eq!(classify(false, 0, || "/dev/vhost-net".to_owned()), None);
    }

    #[test]
    fn flags_and_file_systems_of_descriptors_are_read() {
        let file = std::env::temp_dir().join(format!("zerosweep-direct-{}", std::process::id()));
        let plain = std::fs::File::create(&file).unwrap();
        assert_eq!(raw::file_flags(plain.as_raw_fd()).unwrap() & libc::O_DIRECT, 0);
        let direct = std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECT)
            .open(&file)
            .inspect(|direct| {
                let flags = raw::file_flags(direct.as_raw_fd()).unwrap();
                assert_eq!(flags & libc::O_DIRECT, libc::O_DIRECT);
            });
        println!("direct I/O in the temporary directory: {direct:?}");
        let proc = std::fs::File::open("/proc/self/status").unwrap();
        assert_eq!(raw::file_system(proc.as_raw_fd()), Ok(0x9fa0), "PROC_SUPER_MAGIC");
        assert_eq!(path_of(plain.as_raw_fd()), file.to_string_lossy());
        assert_eq!(find(), None);
        std::fs::remove_file(&file).unwrap();
    }
}
