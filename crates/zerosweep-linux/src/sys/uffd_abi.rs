//! The kernel's side of userfaultfd: numbers and structures of `include/uapi/linux/userfaultfd.h`
//! (Linux 6.8 and newer), with the sizes, offsets and request numbers pinned.

use core::mem::{offset_of, size_of};

/// `UFFD_API`.
pub(super) const API: u64 = 0xaa;
/// `_IO(0xaa, 0)`: on /dev/userfaultfd, a new userfaultfd.
pub(super) const IOC_NEW: u32 = 0xaa00;

pub(super) const FEATURE_PAGEFAULT_FLAG_WP: u64 = 1 << 0;
pub(super) const FEATURE_THREAD_ID: u64 = 1 << 8;
pub(super) const FEATURE_EXACT_ADDRESS: u64 = 1 << 11;
pub(super) const FEATURE_MOVE: u64 = 1 << 16;

pub(super) const REGISTER_MODE_MISSING: u64 = 1 << 0;
pub(super) const REGISTER_MODE_WP: u64 = 1 << 1;
pub(super) const WRITEPROTECT_MODE_WP: u64 = 1 << 0;
pub(super) const MOVE_MODE_DONTWAKE: u64 = 1 << 0;
pub(super) const MOVE_MODE_ALLOW_SRC_HOLES: u64 = 1 << 1;
pub(super) const ZEROPAGE_MODE_DONTWAKE: u64 = 1 << 0;

pub(super) const EVENT_PAGEFAULT: u8 = 0x12;
pub(super) const PAGEFAULT_FLAG_WRITE: u64 = 1 << 0;
pub(super) const PAGEFAULT_FLAG_WP: u64 = 1 << 1;
pub(super) const PAGEFAULT_FLAG_MINOR: u64 = 1 << 2;

/// Bit of [`UffdioRegister::ioctls`] and [`UffdioApi::ioctls`] for `UFFDIO_MOVE`.
pub(super) const IOCTL_BIT_MOVE: u64 = 1 << 5;

#[repr(C)]
pub(super) struct UffdioApi {
    pub(super) api: u64,
    pub(super) features: u64,
    pub(super) ioctls: u64,
}

#[repr(C)]
pub(super) struct UffdioRange {
    pub(super) start: u64,
    pub(super) len: u64,
}

#[repr(C)]
pub(super) struct UffdioRegister {
    pub(super) range: UffdioRange,
    pub(super) mode: u64,
    pub(super) ioctls: u64,
}

#[repr(C)]
pub(super) struct UffdioWriteprotect {
    pub(super) range: UffdioRange,
    pub(super) mode: u64,
}

#[repr(C)]
pub(super) struct UffdioZeropage {
    pub(super) range: UffdioRange,
    pub(super) mode: u64,
    pub(super) zeropage: i64,
}

#[repr(C)]
pub(super) struct UffdioMove {
    pub(super) dst: u64,
    pub(super) src: u64,
    pub(super) len: u64,
    pub(super) mode: u64,
    pub(super) moved: i64,
}

/// `struct uffd_msg` with its page-fault arm; other events are never asked for.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct UffdMsg {
    pub(super) event: u8,
    pub(super) reserved: [u8; 7],
    pub(super) flags: u64,
    pub(super) address: u64,
    pub(super) thread_id: u32,
    pub(super) padding: u32,
}

/// `_IOC(direction, 0xaa, number, size)`; direction: 1 the kernel reads, 2 it writes, 3 both.
const fn request(direction: u32, number: u32, size: usize) -> u32 {
    direction << 30 | (size as u32) << 16 | 0xaa << 8 | number
}

pub(super) const UFFDIO_API: u32 = request(3, 0x3f, size_of::<UffdioApi>());
pub(super) const UFFDIO_REGISTER: u32 = request(3, 0x00, size_of::<UffdioRegister>());
pub(super) const UFFDIO_UNREGISTER: u32 = request(2, 0x01, size_of::<UffdioRange>());
pub(super) const UFFDIO_WAKE: u32 = request(2, 0x02, size_of::<UffdioRange>());
pub(super) const UFFDIO_ZEROPAGE: u32 = request(3, 0x04, size_of::<UffdioZeropage>());
pub(super) const UFFDIO_MOVE: u32 = request(3, 0x05, size_of::<UffdioMove>());
pub(super) const UFFDIO_WRITEPROTECT: u32 = request(3, 0x06, size_of::<UffdioWriteprotect>());

const _: () = {
    assert!(size_of::<UffdioApi>() == 24);
    assert!(size_of::<UffdioRange>() == 16);
    assert!(size_of::<UffdioRegister>() == 32);
    assert!(size_of::<UffdioWriteprotect>() == 24);
    assert!(size_of::<UffdioZeropage>() == 32);
    assert!(size_of::<UffdioMove>() == 40);
    assert!(size_of::<UffdMsg>() == 32);
    assert!(offset_of!(UffdioMove, moved) == 32);
    assert!(offset_of!(UffdMsg, flags) == 8);
    assert!(offset_of!(UffdMsg, address) == 16);
    assert!(offset_of!(UffdMsg, thread_id) == 24);
    // The values that the C header gives on x86-64 and arm64.
    assert!(UFFDIO_API == 3_222_841_919);
    assert!(UFFDIO_REGISTER == 3_223_366_144);
    assert!(UFFDIO_UNREGISTER == 2_148_575_745);
    assert!(UFFDIO_WAKE == 2_148_575_746);
    assert!(UFFDIO_ZEROPAGE == 3_223_366_148);
    assert!(UFFDIO_WRITEPROTECT == 3_222_841_862);
    assert!(UFFDIO_MOVE == 0xc028_aa05);
};
