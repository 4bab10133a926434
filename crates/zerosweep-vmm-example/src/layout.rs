//! Where things are in the guest's physical addresses.
//!
//! ```text
//! 0x500 GDT, 0x7000 boot parameters, 0x8000 stack, 0x9000 page tables, 0x20000 command line
//! 0xe0000 ACPI tables, and in the last 16 bytes before 1 MiB what restarts the machine
//! 0x100000 kernel … initramfs at the end of low memory
//! 3 GiB    a hole for devices: the balloon's registers, the interrupt controllers, KVM's pages
//! 4 GiB    the rest of the memory
//! ```

/// The descriptors of the boot protocol's segments.
pub(crate) const GDT: u64 = 0x500;
/// The "zero page", `struct boot_params`.
pub(crate) const BOOT_PARAMETERS: u64 = 0x7000;
/// The top of the first stack.
pub(crate) const STACK: u64 = 0x8ff0;
/// Three tables of 4 KiB that map the first GiB to itself.
pub(crate) const PAGE_TABLES: u64 = 0x9000;
/// The kernel's command line.
pub(crate) const COMMAND_LINE: u64 = 0x2_0000;
/// The longest command line, its zero included.
pub(crate) const COMMAND_LINE_BYTES: usize = 0x1_0000;
/// The end of conventional memory.
pub(crate) const LOW_RAM_END: u64 = 0xa_0000;
/// Linux looks for the root of the ACPI tables from here to 1 MiB.
pub(crate) const ACPI: u64 = 0xe_0000;
/// Where a CPU in real mode begins after a reset, and where Linux jumps to restart the machine.
pub(crate) const RESET_VECTOR: u64 = 0xf_fff0;
/// Where the kernel is loaded.
pub(crate) const HIGH_RAM: u64 = 0x10_0000;

/// Where the hole begins. A multiple of 2 MiB, and so is its end: superpages of the guest are
/// superpages of the memory behind it.
pub(crate) const HOLE: u64 = 3 << 30;
/// Where it ends.
pub(crate) const HOLE_END: u64 = 4 << 30;

/// The balloon's registers.
pub(crate) const BALLOON: u64 = 0xd000_0000;
/// The bytes they take.
pub(crate) const BALLOON_BYTES: u64 = 0x1000;
/// The local APIC of each virtual CPU.
pub(crate) const LOCAL_APIC: u64 = 0xfee0_0000;
/// The I/O APIC.
pub(crate) const IO_APIC: u64 = 0xfec0_0000;
/// Four pages that KVM uses on Intel's CPUs, behind one for its page table.
pub(crate) const KVM_TSS: u64 = 0xfffb_d000;
/// That page.
pub(crate) const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;

/// The first serial port.
pub(crate) const SERIAL: u16 = 0x3f8;
/// The keyboard controller's command port, whose command 0xfe resets the machine.
pub(crate) const RESET: u16 = 0x64;
/// That command.
pub(crate) const RESET_VALUE: u8 = 0xfe;
/// ACPI's sleep control register; the next port is its status.
pub(crate) const SLEEP: u16 = 0x600;
/// What the guest writes there to power off: sleep type 5, and the bit that makes it so.
pub(crate) const SLEEP_OFF: u8 = 5 << 2 | 1 << 5;

/// The serial port's interrupt.
pub(crate) const SERIAL_GSI: u32 = 4;
/// The balloon's interrupt.
pub(crate) const BALLOON_GSI: u32 = 5;

/// A range of the guest's physical addresses with memory behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// The first guest physical address.
    pub(crate) start: u64,
    /// Where it begins in the memory, in bytes.
    pub(crate) offset: u64,
    /// Its length in bytes.
    pub(crate) bytes: u64,
}

/// The parts of a memory of `bytes` bytes: one below the hole, and what does not fit there above.
pub(crate) fn parts(bytes: u64) -> Vec<Part> {
    let low = bytes.min(HOLE);
    let mut parts = vec![Part { start: 0, offset: 0, bytes: low }];
    if bytes > low {
        parts.push(Part { start: HOLE_END, offset: low, bytes: bytes - low });
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_goes_around_the_hole() {
        let low = |bytes| Part { start: 0, offset: 0, bytes };
        assert_eq!(parts(512 << 20), [low(512 << 20)]);
        assert_eq!(parts(HOLE), [low(HOLE)]);
        let high = Part { start: 4 << 30, offset: 3 << 30, bytes: 2 << 20 };
        assert_eq!(parts(HOLE + (2 << 20)), [low(HOLE), high]);
    }

    #[test]
    fn what_is_written_before_the_start_does_not_overlap() {
        let mut ranges = [
            (GDT, 32),
            (BOOT_PARAMETERS, 4096),
            (STACK - 0xff0, 0xff0),
            (PAGE_TABLES, 3 * 4096),
            (COMMAND_LINE, COMMAND_LINE_BYTES as u64),
            (ACPI, RESET_VECTOR - ACPI),
            (RESET_VECTOR, HIGH_RAM - RESET_VECTOR),
        ];
        ranges.sort_unstable();
        assert!(ranges.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "{ranges:x?}");
    }
}
