//! Memory that cannot be managed is recognised, from real mappings.
#![expect(unsafe_code, reason = "maps memory of the wrong kinds")]

use zerosweep_linux::sys::raw;
use zerosweep_linux::sys::uffd::Watch;
use zerosweep_linux::vma::check;
use zerosweep_linux::{HostAddr, Region, SUPERPAGE_BYTES, Uffd, Unsuitable};

const BYTES: usize = SUPERPAGE_BYTES as usize;
const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;

fn verdict(protection: i32, flags: i32, fd: i32) -> Unsuitable {
    // SAFETY: a new mapping.
    let start = unsafe { raw::mmap(0, BYTES, protection, flags, fd, 0) }.unwrap();
    let verdict = check(HostAddr::new(start), SUPERPAGE_BYTES).unwrap_err();
    // SAFETY: nothing refers to it.
    unsafe { raw::munmap(start, BYTES) }.unwrap();
    verdict
}

#[test]
fn memfd_and_shared_memory_are_refused_with_advice() {
    // SAFETY: a C string; a new descriptor.
    let fd = unsafe { libc::syscall(libc::SYS_memfd_create, c"pc.ram".as_ptr(), 0) } as i32;
    for flags in [libc::MAP_SHARED, libc::MAP_PRIVATE] {
        let memfd = verdict(READ_WRITE, flags, fd);
        assert!(matches!(memfd, Unsuitable::FileBacked { .. }), "{memfd}");
        assert!(memfd.to_string().contains("/memfd:pc.ram"), "{memfd}");
    }
    let shared = verdict(READ_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1);
    assert!(matches!(shared, Unsuitable::Shared { .. }), "{shared}");
    let constant = verdict(libc::PROT_READ, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1);
    assert!(matches!(constant, Unsuitable::NotWritable { .. }), "{constant}");
}

#[test]
fn locked_merged_and_absent_memory_is_refused() {
    let region = Region::new(2 * SUPERPAGE_BYTES).unwrap();
    let advise = |advice| {
        // SAFETY: our own memory; neither advice drops contents.
        unsafe { raw::madvise("madvise", region.start().get(), BYTES, advice) }
    };
    // A kernel without samepage merging has none to refuse.
    if advise(libc::MADV_MERGEABLE).is_ok() {
        let merged = check(region.start(), SUPERPAGE_BYTES).unwrap_err();
        assert!(matches!(merged, Unsuitable::Mergeable { .. }), "{merged}");
        advise(libc::MADV_UNMERGEABLE).unwrap();
    }
    // SAFETY: locks one page of our own.
    if unsafe { libc::syscall(libc::SYS_mlock2, region.start().get(), 4096, 1) } == 0 {
        let locked = check(region.start(), SUPERPAGE_BYTES).unwrap_err();
        assert_eq!(locked, Unsuitable::Locked { at: region.start() });
    }
    let end = region.start().checked_add(SUPERPAGE_BYTES).unwrap();
    assert!(check(end, SUPERPAGE_BYTES).is_ok());
    let absent = check(HostAddr::new(4096), 4096).unwrap_err();
    assert_eq!(absent, Unsuitable::NotMapped { at: HostAddr::new(4096) });
}

#[test]
#[ignore = "needs userfaultfd in kernel mode: root, CAP_SYS_PTRACE or /dev/userfaultfd"]
fn memory_of_another_userfaultfd_is_refused() {
    let region = Region::new(SUPERPAGE_BYTES).unwrap();
    let uffd = Uffd::open().unwrap();
    uffd.register(region.all(), Watch::Missing).unwrap();
    let watched = check(region.start(), region.bytes()).unwrap_err();
    assert_eq!(watched, Unsuitable::Watched { at: region.start() });
}
