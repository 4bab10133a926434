//! Users of guest pages that the kernel does not report.
//!
//! A page that the kernel uses for I/O is *pinned*, and the kernel refuses to move it: no byte is
//! lost. Some parts of the kernel take an ordinary reference only. Such a page moves, is copied and
//! is cleared while the disk or the network still reads or writes it, and nothing in user space can
//! see that. These are refused at adoption, and lift the cap later.
//!
//! - direct I/O (`O_DIRECT`) to files on NFS, CephFS and 9p;
//! - `vhost-scsi`, which has a device of its own.
//!
//! Others are seen elsewhere: `MSG_ZEROCOPY` where it is asked for, nested guests on Linux before
//! 6.13 on the VMM's command line.

use core::fmt;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

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
    /// Returns that of an open file.
    ///
    /// The type of the mount decides (`/proc/self/mountinfo`): the number that `statfs(2)` returns
    /// is the server's for 9p. Without /proc, the number decides.
    #[must_use]
    pub fn of(file: BorrowedFd<'_>) -> Option<Self> {
        Self::of_number(file.as_raw_fd())
    }

    fn of_number(fd: RawFd) -> Option<Self> {
        let by_mount = mount_type(fd).as_deref().and_then(Self::by_name);
        by_mount.or_else(|| Self::by_number(raw::file_system(fd).ok()?))
    }

    /// By the name under which it is mounted.
    fn by_name(name: &str) -> Option<Self> {
        match name {
            "nfs" | "nfs4" => Some(Self::Nfs),
            "ceph" => Some(Self::CephFs),
            "9p" => Some(Self::NineP),
            _ => None,
        }
    }

    /// By the kernel's number (`linux/magic.h`).
    const fn by_number(number: u64) -> Option<Self> {
        match number {
            0x6969 => Some(Self::Nfs),
            0x00c3_6400 => Some(Self::CephFs),
            0x0102_1997 => Some(Self::NineP),
            _ => None,
        }
    }
}

/// Returns the type of the mount through which a descriptor's file was opened.
fn mount_type(fd: RawFd) -> Option<String> {
    let about = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
    let mount = about.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim();
    type_of_mount(&std::fs::read_to_string("/proc/self/mountinfo").ok()?, mount)
}

/// Returns the type of the mount with a number, from the text of `/proc/self/mountinfo`.
fn type_of_mount(mounts: &str, number: &str) -> Option<String> {
    let line = mounts.lines().find(|line| line.split(' ').next() == Some(number))?;
    Some(line.split_once(" - ")?.1.split(' ').next()?.to_owned())
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

/// Returns what a descriptor of this process is, if pages are held through it.
#[must_use]
pub fn holder(fd: RawFd) -> Option<Holder> {
    // Flags first: most files are not open for direct I/O, and need no second call.
    let flags = raw::file_flags(fd).ok()?;
    let path = path_of(fd);
    if flags & libc::O_DIRECT != 0 {
        let on = FileSystem::of_number(fd)?;
        return Some(Holder::DirectIo { path, on });
    }
    (path == "/dev/vhost-scsi").then_some(Holder::VhostScsi)
}

fn path_of(fd: RawFd) -> String {
    let link = std::fs::read_link(format!("/proc/self/fd/{fd}"));
    link.map_or_else(|_| format!("descriptor {fd}"), |path| path.to_string_lossy().into_owned())
}

/// Returns the first open file of this process through which pages are held. Returns `None` also if
/// /proc cannot be read.
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
    fn file_systems_that_do_not_pin_are_known_by_mount_and_by_number() {
        let mounts = "28 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
                      41 28 0:45 / /srv/nfs rw,relatime shared:9 master:1 - nfs4 host:/ rw\n\
                      42 28 0:46 / /mnt rw,relatime - 9p host0 rw,trans=virtio\n\
                      43 28 0:47 /a /srv/c rw - ceph :/ rw\n\
                      4 28 0:48 / /dev/shm rw - tmpfs tmpfs rw\n";
        let on = |number| type_of_mount(mounts, number).as_deref().and_then(FileSystem::by_name);
        assert_eq!(on("41"), Some(FileSystem::Nfs));
        assert_eq!(on("42"), Some(FileSystem::NineP));
        assert_eq!(on("43"), Some(FileSystem::CephFs));
        assert_eq!([on("28"), on("4"), on("44")], [None; 3]);
        assert_eq!(type_of_mount(mounts, "4").as_deref(), Some("tmpfs"));
        assert_eq!(FileSystem::by_number(0x6969), Some(FileSystem::Nfs));
        assert_eq!(FileSystem::by_number(0x00c3_6400), Some(FileSystem::CephFs));
        assert_eq!(FileSystem::by_number(0x0102_1997), Some(FileSystem::NineP));
        // ext4, XFS, tmpfs.
        assert_eq!([0xef53, 0x5846_5342, 0x0102_1994].map(FileSystem::by_number), [None; 3]);
        let proc = std::fs::File::open("/proc/self/status").unwrap();
        assert_eq!(mount_type(proc.as_raw_fd()).as_deref(), Some("proc"));
    }

    #[test]
    fn what_is_found_is_told_with_the_way_out() {
        let path = "/mnt/disk.img".to_owned();
        let text = Holder::DirectIo { path, on: FileSystem::NineP }.to_string();
        assert!(text.contains("/mnt/disk.img") && text.contains("on 9p"), "{text}");
        assert!(text.contains("cache=writeback"), "{text}");
        assert!(Holder::VhostScsi.to_string().contains("virtio-scsi without vhost"));
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
