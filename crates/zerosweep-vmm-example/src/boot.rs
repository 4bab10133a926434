//! Loads the kernel as the 64-bit boot protocol asks
//! ([boot.rst](https://www.kernel.org/doc/html/latest/arch/x86/boot.html)).
//!
//! Each write is a first touch by a thread that is no virtual CPU: zerosweep takes a frame for it,
//! and would borrow one if the target were used up.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::bzimage::BzImage;
use linux_loader::loader::{Cmdline, KernelLoader as _, load_cmdline};
use vm_memory::{
    Address as _, Bytes as _, GuestAddress, GuestMemoryBackend, GuestMemoryRegion as _,
};

use crate::layout;

/// The 64-bit entry is this far behind the beginning of the loaded kernel.
const ENTRY: u64 = 0x200;
/// The kernel has one (`XLF_KERNEL_64` in `xloadflags`).
const HAS_64_BIT_ENTRY: u16 = 1;
/// "A boot loader without a number".
const LOADER: u8 = 0xff;

/// E820's kinds of ranges.
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

/// A flat code segment of 64 bits and a flat data segment, where the boot protocol wants them.
const GDT: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

/// `mov al, 0xfe; out 0x64, al; hlt`. On a hardware-reduced machine Linux asks the EFI to restart
/// it, and without an EFI it jumps to the BIOS.
const BIOS: [u8; 5] = [0xb0, layout::RESET_VALUE, 0xe6, layout::RESET as u8, 0xf4];

/// Page table entries: present, writable, a page of 2 MiB.
const PRESENT: u64 = 1 | 1 << 1;
const HUGE: u64 = 1 << 7;

/// What to boot.
#[derive(Debug)]
pub(crate) struct Boot<'a> {
    /// A `bzImage` (`vmlinuz`).
    pub(crate) kernel: &'a Path,
    /// An initramfs.
    pub(crate) initrd: Option<&'a Path>,
    /// The kernel's command line.
    pub(crate) command_line: &'a str,
}

impl Boot<'_> {
    /// Loads everything into `memory`. Returns where the first virtual CPU begins.
    ///
    /// # Errors
    /// A file cannot be read, is no kernel, or does not fit.
    pub(crate) fn load(&self, memory: &impl GuestMemoryBackend) -> Result<GuestAddress> {
        let in_kernel = || format!("kernel {}", self.kernel.display());
        let mut file = File::open(self.kernel).with_context(in_kernel)?;
        let high = GuestAddress(layout::HIGH_RAM);
        let loaded = BzImage::load(memory, Some(high), &mut file, None).with_context(in_kernel)?;
        let mut header = loaded.setup_header.unwrap_or_default();
        ensure!(
            header.xloadflags & HAS_64_BIT_ENTRY != 0,
            "kernel {} has no 64-bit entry: give a bzImage for x86-64, 3.8 or newer",
            self.kernel.display()
        );

        let line = Cmdline::try_from(self.command_line, layout::COMMAND_LINE_BYTES)
            .context("the command line is too long, or not ASCII")?;
        load_cmdline(memory, GuestAddress(layout::COMMAND_LINE), &line)?;
        header.cmd_line_ptr = layout::COMMAND_LINE as u32;
        header.type_of_loader = LOADER;

        // The kernel unpacks itself behind the place where it was loaded.
        let room = header.pref_address.max(layout::HIGH_RAM) + u64::from(header.init_size);
        if let Some(initrd) = self.initrd {
            let kernel_end = room.max(loaded.kernel_end);
            let (start, bytes) = load_initrd(memory, initrd, kernel_end, &header)
                .with_context(|| format!("initramfs {}", initrd.display()))?;
            (header.ramdisk_image, header.ramdisk_size) = (start, bytes);
        }
        memory.write_obj(parameters(memory, header), GuestAddress(layout::BOOT_PARAMETERS))?;
        write_tables(memory)?;
        Ok(loaded.kernel_load.unchecked_add(ENTRY))
    }
}

/// Loads the initramfs at the end of low memory. Returns its address and length.
fn load_initrd(
    memory: &impl GuestMemoryBackend,
    path: &Path,
    kernel_end: u64,
    header: &setup_header,
) -> Result<(u32, u32)> {
    let mut file = File::open(path)?;
    let bytes = file.metadata()?.size();
    let low = memory.iter().next().context("no memory")?.len();
    let limit = low.min(u64::from(header.initrd_addr_max) + 1);
    let start = limit.checked_sub(bytes).map(|start| start & !0xfff);
    let start = start
        .filter(|&start| start >= kernel_end)
        .with_context(|| format!("{bytes} bytes do not fit behind the kernel: raise --max-mem"))?;
    memory.read_exact_volatile_from(GuestAddress(start), &mut file, bytes as usize)?;
    Ok((start as u32, bytes as u32))
}

/// What the kernel is told: its own header with our answers, and which addresses are memory.
fn parameters(memory: &impl GuestMemoryBackend, header: setup_header) -> boot_params {
    let mut parameters = boot_params { hdr: header, ..boot_params::default() };
    parameters.acpi_rsdp_addr = layout::ACPI;
    let mut ranges = vec![
        (0, layout::LOW_RAM_END, E820_RAM),
        (layout::ACPI, layout::HIGH_RAM - layout::ACPI, E820_RESERVED),
    ];
    for part in memory.iter() {
        let start = part.start_addr().0.max(layout::HIGH_RAM);
        ranges.push((start, part.start_addr().0 + part.len() - start, E820_RAM));
    }
    parameters.e820_entries = ranges.len() as u8;
    for (entry, (addr, size, kind)) in parameters.e820_table.iter_mut().zip(ranges) {
        *entry = boot_e820_entry { addr, size, r#type: kind };
    }
    parameters
}

/// Writes descriptors, page tables that map the first GiB to itself, and all of our BIOS.
fn write_tables(memory: &impl GuestMemoryBackend) -> Result<()> {
    memory.write_obj(BIOS, GuestAddress(layout::RESET_VECTOR))?;
    memory.write_obj(GDT, GuestAddress(layout::GDT))?;
    let [top, upper, lower] = [0, 1, 2].map(|n| layout::PAGE_TABLES + n * 0x1000);
    memory.write_obj(upper | PRESENT, GuestAddress(top))?;
    memory.write_obj(lower | PRESENT, GuestAddress(upper))?;
    for n in 0..512 {
        memory.write_obj(n << 21 | PRESENT | HUGE, GuestAddress(lower + n * 8))?;
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{env, fs};

    use vm_memory::GuestMemoryMmap;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// The smallest file that passes for a kernel: a sector with the header, four of set-up, and
    /// `code` at the 64-bit entry.
    pub(crate) fn kernel(code: &[u8]) -> Vec<u8> {
        let mut header = setup_header {
            header: 0x5372_6448,
            version: 0x020f,
            loadflags: 1,
            code32_start: layout::HIGH_RAM as u32,
            initrd_addr_max: 0x7fff_ffff,
            xloadflags: HAS_64_BIT_ENTRY,
            pref_address: 2 * MIB,
            init_size: MIB as u32,
            setup_sects: 4,
            ..setup_header::default()
        };
        let mut file = vec![0; 5 * 512];
        let header = vm_memory::ByteValued::as_mut_slice(&mut header);
        file[0x1f1..0x1f1 + header.len()].copy_from_slice(header);
        file.extend([0xc3; ENTRY as usize]);
        file.extend(code);
        file
    }

    /// A kernel and an initramfs in a directory of their own.
    pub(crate) struct Files(std::path::PathBuf);

    impl Files {
        pub(crate) fn new(name: &str, kernel: &[u8], initrd: &[u8]) -> Self {
            let name = format!("zerosweep-vmm-{name}-{}", std::process::id());
            let directory = env::temp_dir().join(name);
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join("kernel"), kernel).unwrap();
            fs::write(directory.join("initrd"), initrd).unwrap();
            Self(directory)
        }

        pub(crate) fn boot<R>(&self, boot: impl FnOnce(&Boot<'_>) -> R) -> R {
            let (kernel, initrd) = (self.0.join("kernel"), self.0.join("initrd"));
            boot(&Boot { kernel: &kernel, initrd: Some(&initrd), command_line: "quiet a=1" })
        }

        fn load(&self, memory: &GuestMemoryMmap) -> Result<GuestAddress> {
            self.boot(|boot| boot.load(memory))
        }
    }

    impl Drop for Files {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn memory() -> GuestMemoryMmap {
        let low = (GuestAddress(0), 8 * MIB as usize);
        let high = (GuestAddress(layout::HOLE_END), 2 * MIB as usize);
        GuestMemoryMmap::from_ranges(&[low, high]).unwrap()
    }

    #[test]
    fn a_kernel_finds_everything() {
        let memory = memory();
        let files = Files::new("all", &kernel(&[]), &[0x77; 5000]);
        let entry = files.load(&memory).unwrap();
        assert_eq!(entry, GuestAddress(layout::HIGH_RAM + ENTRY));
        let code: u64 = memory.read_obj(GuestAddress(layout::HIGH_RAM)).unwrap();
        assert_eq!(code, 0xc3c3_c3c3_c3c3_c3c3);

        let parameters: boot_params =
            memory.read_obj(GuestAddress(layout::BOOT_PARAMETERS)).unwrap();
        let header = parameters.hdr;
        let (start, bytes) = (header.ramdisk_image, header.ramdisk_size);
        assert_eq!((u64::from(start), bytes), (8 * MIB - 0x2000, 5000));
        assert_eq!(memory.read_obj::<u8>(GuestAddress(u64::from(start) + 4999)).unwrap(), 0x77);
        let mut line = [0; 10];
        memory.read_slice(&mut line, GuestAddress(header.cmd_line_ptr.into())).unwrap();
        assert_eq!(&line, b"quiet a=1\0");
        let ranges = parameters.e820_table.map(|entry| (entry.addr, entry.size, entry.r#type));
        assert_eq!(parameters.e820_entries, 4);
        assert_eq!(
            ranges[..4],
            [
                (0, layout::LOW_RAM_END, E820_RAM),
                (layout::ACPI, 0x2_0000, E820_RESERVED),
                (MIB, 7 * MIB, E820_RAM),
                (layout::HOLE_END, 2 * MIB, E820_RAM),
            ]
        );
        // The page tables lead from any address of the first GiB to itself.
        let entry = |table: u64, n: u64| -> u64 {
            memory.read_obj(GuestAddress((table & !0xfff) + n * 8)).unwrap()
        };
        let lower = entry(entry(layout::PAGE_TABLES, 0), 0);
        assert_eq!(entry(lower, 511), 511 << 21 | PRESENT | HUGE);
    }

    #[test]
    fn what_cannot_be_booted_is_said() {
        let memory = memory();
        let mut old = kernel(&[]);
        old[0x236] = 0;
        for (name, kernel, initrd, why) in [
            ("text", b"no kernel".to_vec(), 10, "kernel"),
            ("old", old, 10, "no 64-bit entry"),
            ("big", kernel(&[]), 6 * MIB as usize, "raise --max-mem"),
            ("bigger", kernel(&[]), 9 * MIB as usize, "raise --max-mem"),
        ] {
            let files = Files::new(name, &kernel, &vec![0; initrd]);
            let error = format!("{:#}", files.load(&memory).unwrap_err());
            assert!(error.contains(why), "{name}: {error}");
        }
    }
}
