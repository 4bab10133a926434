//! ACPI tables: how the guest finds its CPUs, its interrupt controllers, the serial port and the
//! balloon, and how it powers off.
//!
//! Debian's kernel does not read `virtio_mmio.device=` (`CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES`), but
//! every kernel reads these. The machine is "hardware-reduced": of ACPI's own hardware it has one
//! register, which the guest writes to when it powers off.

use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, Path, ResourceTemplate, Scope,
    ZERO,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use anyhow::{Result, ensure};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend};

use crate::layout;

const OEM: [u8; 6] = *b"ZSWEEP";
const TABLE: [u8; 8] = *b"ZSWEEPVM";

/// No VGA, and no clock in CMOS; that there is no keyboard controller is said by a bit that is not
/// set.
const NO_VGA: u16 = 1 << 2;
const NO_CMOS_CLOCK: u16 = 1 << 5;

/// Writes the tables of a machine with `vcpus` virtual CPUs.
pub(crate) fn write(memory: &impl GuestMemoryBackend, vcpus: u8) -> Result<()> {
    // The root comes first, and its length does not depend on what it says.
    let mut tables = Tables { bytes: vec![0; Rsdp::len().next_multiple_of(16)] };
    let dsdt = tables.add(&dsdt());
    let fadt = tables.add(&fadt(dsdt));
    let madt = tables.add(&madt(vcpus));
    let mut xsdt = XSDT::new(OEM, TABLE, 1);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = tables.add(&xsdt);
    let mut root = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut root);
    tables.bytes[..root.len()].copy_from_slice(&root);
    ensure!(
        tables.bytes.len() as u64 <= layout::RESET_VECTOR - layout::ACPI,
        "too many virtual CPUs"
    );
    memory.write_slice(&tables.bytes, GuestAddress(layout::ACPI))?;
    Ok(())
}

struct Tables {
    bytes: Vec<u8>,
}

impl Tables {
    /// Adds a table, and returns its address.
    fn add(&mut self, table: &dyn Aml) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(16), 0);
        let address = layout::ACPI + self.bytes.len() as u64;
        table.to_aml_bytes(&mut self.bytes);
        address
    }
}

/// The devices, and the sleep type that means "off".
fn dsdt() -> Sdt {
    let off = Name::new(path("_S5_"), &Package::new(vec![&5_u8]));

    let serial_id = Name::new(path("_HID"), &EISAName::new("PNP0501"));
    let unique = Name::new(path("_UID"), &ZERO);
    let ports = IO::new(layout::SERIAL, layout::SERIAL, 1, 8);
    let serial_interrupt = Interrupt::new(true, true, false, false, layout::SERIAL_GSI);
    let serial_resources =
        Name::new(path("_CRS"), &ResourceTemplate::new(vec![&ports, &serial_interrupt]));
    let serial = Device::new(path("COM1"), vec![&serial_id, &unique, &serial_resources]);

    let balloon_id = Name::new(path("_HID"), &"LNRO0005");
    let registers = Memory32Fixed::new(true, layout::BALLOON as u32, layout::BALLOON_BYTES as u32);
    let balloon_interrupt = Interrupt::new(true, true, false, false, layout::BALLOON_GSI);
    let balloon_resources =
        Name::new(path("_CRS"), &ResourceTemplate::new(vec![&registers, &balloon_interrupt]));
    let balloon = Device::new(path("BALL"), vec![&balloon_id, &unique, &balloon_resources]);

    let mut aml = Vec::new();
    off.to_aml_bytes(&mut aml);
    Scope::new(path("_SB_"), vec![&serial, &balloon]).to_aml_bytes(&mut aml);
    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM, TABLE, 1);
    dsdt.append_slice(&aml);
    dsdt
}

/// The fixed part: where the other table is, how to power off and how to reset.
fn fadt(dsdt: u64) -> impl Aml {
    let port =
        |port: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(port));
    let mut fadt = FADTBuilder::new(OEM, TABLE, 1)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    fadt.iapc_boot_arch = (NO_VGA | NO_CMOS_CLOCK).into();
    fadt.reset_reg = port(layout::RESET);
    fadt.reset_value = layout::RESET_VALUE;
    fadt.sleep_control_reg = port(layout::SLEEP);
    fadt.sleep_status_reg = port(layout::SLEEP + 1);
    fadt.finalize()
}

/// The CPUs and the interrupt controllers.
fn madt(vcpus: u8) -> MADT {
    let local = LocalInterruptController::Address(layout::LOCAL_APIC as u32);
    let mut madt = MADT::new(OEM, TABLE, 1, local);
    for id in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(vcpus, layout::IO_APIC as u32, 0));
    madt
}

fn path(name: &str) -> Path {
    Path::new(name)
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestMemoryMmap;

    use super::*;

    fn table(memory: &GuestMemoryMmap, address: u64) -> Vec<u8> {
        let bytes: u32 = memory.read_obj(GuestAddress(address + 4)).unwrap();
        let mut table = vec![0; bytes as usize];
        memory.read_slice(&mut table, GuestAddress(address)).unwrap();
        assert_eq!(table.iter().fold(0, |sum: u8, &byte| sum.wrapping_add(byte)), 0, "checksum");
        table
    }

    fn address(table: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(table[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn each_table_is_found_from_the_root() {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
        write(&memory, 3).unwrap();
        let mut root = vec![0; 36];
        memory.read_slice(&mut root, GuestAddress(layout::ACPI)).unwrap();
        assert_eq!(&root[..8], b"RSD PTR ");

        let xsdt = table(&memory, address(&root, 24));
        let (fadt, madt) = (address(&xsdt, 36), address(&xsdt, 44));
        assert_eq!((&xsdt[..4], xsdt.len()), (&b"XSDT"[..], 52));
        let (fadt, madt) = (table(&memory, fadt), table(&memory, madt));
        assert_eq!((&fadt[..4], &madt[..4]), (&b"FACP"[..], &b"APIC"[..]));
        // A local APIC for each CPU, of 8 bytes, and the I/O APIC, of 12.
        assert_eq!(madt.len(), 44 + 3 * 8 + 12);
        let dsdt = table(&memory, address(&fadt, 140));
        assert_eq!(&dsdt[..4], b"DSDT");
        for name in [&b"LNRO0005"[..], b"COM1", b"_S5_"] {
            assert!(dsdt.windows(name.len()).any(|window| window == name), "{name:?}");
        }
    }

    #[test]
    fn as_many_virtual_cpus_as_a_machine_can_have_fit() {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
        write(&memory, u8::MAX).unwrap();
    }
}
