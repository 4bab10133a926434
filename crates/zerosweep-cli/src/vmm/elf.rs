//! Whether a program file lets itself be preloaded into.
//!
//! `LD_PRELOAD` is the dynamic loader's work: a statically linked program has no loader, one that
//! gains privileges makes the loader ignore the variable, and one for another processor cannot
//! load a library for this one. All three would silently leave the guest unmanaged.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use object::elf::{self, FileHeader64};
use object::read::elf::{FileHeader as _, ProgramHeader as _};
use object::read::{ReadCache, ReadRef};
use object::{Endianness, FileKind};

const SET_ID_BITS: u32 = 0o6000;

/// Why the agent cannot be loaded into a program.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PreloadError {
    /// Cannot even be read.
    #[error("cannot read the VMM's program file: {0}")]
    Read(#[source] std::io::Error),
    /// Something else altogether.
    #[error("it is neither an ELF program nor a script")]
    NotAProgram,
    /// Not as the format says.
    #[error("it is a broken ELF file: {0}")]
    Broken(object::Error),
    /// No dynamic loader.
    #[error(
        "it is statically linked: the agent is loaded with LD_PRELOAD, which needs a \
             dynamically linked VMM (your distribution's qemu-system packages are)"
    )]
    Static,
    /// Another processor.
    #[error("it is a program for another processor or word size than this zerosweep")]
    OtherMachine,
    /// Gains the owner's rights.
    #[error(
        "it is setuid or setgid: the loader ignores LD_PRELOAD then; use a copy without \
             these mode bits"
    )]
    SetId,
    /// Gains capabilities.
    #[error(
        "it has file capabilities: the loader ignores LD_PRELOAD then; use a copy without \
             them, or remove them with `setcap -r`"
    )]
    Capabilities,
}

/// Why the agent's library cannot be loaded; goes on after its name.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LibraryError {
    /// Cannot even be read.
    #[error("cannot be read: {0}")]
    Read(#[source] std::io::Error),
    /// Something else altogether.
    #[error("is no shared library")]
    NotALibrary,
    /// Not as the format says.
    #[error("is cut off or broken: {0}")]
    Broken(object::Error),
    /// Its end is missing. The loader maps it all the same, and a process that touches the missing
    /// part dies of SIGBUS.
    #[error("is cut off: it has {length} bytes, and its headers need {needed}")]
    Cut {
        /// As long as it is.
        length: u64,
        /// As long as it was.
        needed: u64,
    },
    /// Another processor.
    #[error("is for another processor or word size than this zerosweep")]
    OtherMachine,
}

/// What is wrong with a header.
enum HeaderError {
    NotElf,
    Broken(object::Error),
    OtherMachine,
}

impl From<HeaderError> for PreloadError {
    fn from(error: HeaderError) -> Self {
        match error {
            HeaderError::NotElf => Self::NotAProgram,
            HeaderError::Broken(error) => Self::Broken(error),
            HeaderError::OtherMachine => Self::OtherMachine,
        }
    }
}

impl From<HeaderError> for LibraryError {
    fn from(error: HeaderError) -> Self {
        match error {
            HeaderError::NotElf => Self::NotALibrary,
            HeaderError::Broken(error) => Self::Broken(error),
            HeaderError::OtherMachine => Self::OtherMachine,
        }
    }
}

/// Checks that a library is all there and for this machine.
pub(crate) fn check_library(path: &Path) -> Result<(), LibraryError> {
    let file = File::open(path).map_err(LibraryError::Read)?;
    let length = file.metadata().map_err(LibraryError::Read)?.len();
    let cache = ReadCache::new(file);
    let data = &cache;
    let (header, endian) = header(data)?;
    if header.e_type(endian) != elf::ET_DYN {
        return Err(LibraryError::NotALibrary);
    }
    let segments = header.program_headers(endian, data).map_err(LibraryError::Broken)?;
    let ends = segments.iter().filter(|segment| segment.p_type(endian) == elf::PT_LOAD);
    let needed = ends
        .map(|segment| segment.p_offset(endian).saturating_add(segment.p_filesz(endian)))
        .max()
        .unwrap_or(0);
    if needed > length { Err(LibraryError::Cut { length, needed }) } else { Ok(()) }
}

/// Checks the VMM's program file.
///
/// A script is allowed: the variable passes through its interpreter to the VMM it starts.
pub(crate) fn check(path: &Path) -> Result<(), PreloadError> {
    let mut file = File::open(path).map_err(PreloadError::Read)?;
    let mode = file.metadata().map_err(PreloadError::Read)?.mode();
    if mode & SET_ID_BITS != 0 {
        return Err(PreloadError::SetId);
    }
    // Any answer but "no such attribute" or "not supported here" means that it is there.
    if rustix::fs::fgetxattr(&file, "security.capability", &mut [0_u8; 64][..]).is_ok() {
        return Err(PreloadError::Capabilities);
    }
    let mut start = [0; 2];
    match file.read_exact(&mut start) {
        Ok(()) if start == *b"#!" => return Ok(()),
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            return Err(PreloadError::NotAProgram);
        }
        Err(error) => return Err(PreloadError::Read(error)),
    }
    // Only the headers are read: programs have tens of megabytes.
    check_elf(&ReadCache::new(file))
}

/// Whether a file is a script: what it starts is not known then.
pub(crate) fn is_script(path: &Path) -> bool {
    let mut start = [0; 2];
    File::open(path).and_then(|mut file| file.read_exact(&mut start)).is_ok() && start == *b"#!"
}

fn check_elf<'data>(data: impl ReadRef<'data>) -> Result<(), PreloadError> {
    let (header, endian) = header(data)?;
    if !matches!(header.e_type(endian), elf::ET_EXEC | elf::ET_DYN) {
        return Err(PreloadError::NotAProgram);
    }
    let segments = header.program_headers(endian, data).map_err(PreloadError::Broken)?;
    // A static-pie program has a dynamic section, but nobody to interpret it.
    if segments.iter().any(|segment| segment.p_type(endian) == elf::PT_INTERP) {
        Ok(())
    } else {
        Err(PreloadError::Static)
    }
}

/// The header of a 64-bit file for this machine.
fn header<'data>(
    data: impl ReadRef<'data>,
) -> Result<(&'data FileHeader64<Endianness>, Endianness), HeaderError> {
    match FileKind::parse(data) {
        Ok(FileKind::Elf64) => {}
        Ok(FileKind::Elf32) => return Err(HeaderError::OtherMachine),
        _ => return Err(HeaderError::NotElf),
    }
    let header = FileHeader64::<Endianness>::parse(data).map_err(HeaderError::Broken)?;
    let endian = header.endian().map_err(HeaderError::Broken)?;
    if this_machine().is_some_and(|machine| header.e_machine(endian) != machine) {
        Err(HeaderError::OtherMachine)
    } else {
        Ok((header, endian))
    }
}

/// What this program itself runs on; none where it is not known here.
fn this_machine() -> Option<u16> {
    match std::env::consts::ARCH {
        "x86_64" => Some(elf::EM_X86_64),
        "aarch64" => Some(elf::EM_AARCH64),
        "s390x" => Some(elf::EM_S390),
        "riscv64" => Some(elf::EM_RISCV),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::PathBuf;

    use super::*;

    /// A 64-bit little-endian ELF header for this machine with one segment of `segment_type`.
    fn elf_with(segment_type: u32, machine: u16) -> Vec<u8> {
        let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
        bytes.resize(16, 0);
        bytes.extend(elf::ET_EXEC.to_le_bytes());
        bytes.extend(machine.to_le_bytes());
        bytes.extend(1_u32.to_le_bytes()); // version
        bytes.extend(0_u64.to_le_bytes()); // entry
        bytes.extend(64_u64.to_le_bytes()); // program headers right behind
        bytes.extend(0_u64.to_le_bytes()); // no section headers
        bytes.extend(0_u32.to_le_bytes()); // flags
        for half in [64_u16, 56, 1, 64, 0, 0] {
            bytes.extend(half.to_le_bytes());
        }
        bytes.extend(segment_type.to_le_bytes());
        bytes.resize(64 + 56, 0);
        bytes
    }

    fn written(directory: &tempfile::TempDir, name: &str, bytes: &[u8]) -> PathBuf {
        let path = directory.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    #[test]
    fn this_very_program_can_be_preloaded_into() {
        check(Path::new("/proc/self/exe")).unwrap();
    }

    #[test]
    fn a_library_is_all_there_or_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let whole = std::fs::read("/proc/self/exe").unwrap();
        // A position-independent program is laid out as a library is.
        check_library(&written(&directory, "whole", &whole)).unwrap();
        let length = 4096_u64.min(whole.len() as u64 / 2);
        let cut = written(&directory, "cut", &whole[..length as usize]);
        let error = check_library(&cut).unwrap_err();
        assert!(matches!(error, LibraryError::Cut { length: is, .. } if is == length), "{error}");
        let headers = written(&directory, "headers", &whole[..70]);
        assert!(matches!(check_library(&headers), Err(LibraryError::Broken(_))));
        let text = written(&directory, "text", b"/* GNU ld script */");
        assert!(matches!(check_library(&text), Err(LibraryError::NotALibrary)));
        let other = written(&directory, "other", &elf_with(elf::PT_LOAD, elf::EM_SPARC));
        assert!(matches!(check_library(&other), Err(LibraryError::OtherMachine)));
    }

    #[test]
    fn linking_decides() {
        let directory = tempfile::tempdir().unwrap();
        let here = this_machine().unwrap();
        let dynamic = written(&directory, "dynamic", &elf_with(elf::PT_INTERP, here));
        check(&dynamic).unwrap();
        let fixed = written(&directory, "static", &elf_with(elf::PT_LOAD, here));
        assert!(matches!(check(&fixed), Err(PreloadError::Static)));
        let pie = written(&directory, "static-pie", &elf_with(elf::PT_DYNAMIC, here));
        assert!(matches!(check(&pie), Err(PreloadError::Static)));
        let other = written(&directory, "other", &elf_with(elf::PT_INTERP, elf::EM_SPARC));
        assert!(matches!(check(&other), Err(PreloadError::OtherMachine)));
    }

    #[test]
    fn scripts_are_allowed_and_other_files_are_not() {
        let directory = tempfile::tempdir().unwrap();
        check(&written(&directory, "script", b"#!/bin/sh\nexec qemu\n")).unwrap();
        for (name, bytes) in [("empty", &b""[..]), ("text", b"exec qemu\n"), ("cut", b"\x7fELF")] {
            let error = check(&written(&directory, name, bytes)).unwrap_err();
            assert!(matches!(error, PreloadError::NotAProgram), "{name}: {error:?}");
        }
        let broken = written(&directory, "broken", &elf_with(elf::PT_INTERP, elf::EM_X86_64)[..70]);
        assert!(check(&broken).is_err());
    }

    #[test]
    fn set_id_programs_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = written(&directory, "setuid", b"#!/bin/sh\n");
        for mode in [0o4755, 0o2755] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert!(matches!(check(&path), Err(PreloadError::SetId)), "{mode:o}");
        }
    }

    #[test]
    fn file_capabilities_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = written(&directory, "capable", b"#!/bin/sh\n");
        // Revision 2, CAP_NET_RAW permitted; setting it takes root and a file system that can.
        let mut value = [0_u8; 20];
        value[..8].copy_from_slice(&[1, 0, 0, 2, 0, 32, 0, 0]);
        let flags = rustix::fs::XattrFlags::empty();
        if let Err(error) = rustix::fs::setxattr(&path, "security.capability", &value, flags) {
            eprintln!("not tested: cannot set file capabilities here: {error}");
            return;
        }
        assert!(matches!(check(&path), Err(PreloadError::Capabilities)));
    }
}
