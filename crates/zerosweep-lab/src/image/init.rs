//! The guest's `/init`: the program `zerosweep-guest`, linked statically.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use object::LittleEndian;
use object::elf::{FileHeader64, PT_INTERP, ProgramHeader64};
use object::read::elf::{FileHeader as _, ProgramHeader as _};

/// Names a built `zerosweep-guest`.
const VARIABLE: &str = "ZEROSWEEP_GUEST_INIT";

/// The static `zerosweep-guest`: the one that `ZEROSWEEP_GUEST_INIT` names, else the one beside the
/// running program, else, where the source tree exists, built there (which takes no time when it is
/// up to date).
///
/// # Errors
/// When there is none, or the build fails.
pub fn find_init() -> Result<PathBuf> {
    locate()?.with_context(|| {
        format!("no static zerosweep-guest beside this program; set {VARIABLE} to one")
    })
}

/// [`find_init`], where nothing found is no error.
pub(super) fn locate() -> Result<Option<PathBuf>> {
    if let Some(path) = env::var_os(VARIABLE).map(PathBuf::from) {
        let program =
            fs::read(&path).with_context(|| format!("{VARIABLE} names {}", path.display()))?;
        require_static(&path, &program)?;
        return Ok(Some(path));
    }
    let beside = env::current_exe().ok().map(|program| program.with_file_name("zerosweep-guest"));
    if let Some(beside) = beside
        // A plain `cargo build` leaves one there that needs a dynamic linker.
        && fs::read(&beside).is_ok_and(|program| is_static(&program))
    {
        return Ok(Some(beside));
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    if workspace.join("crates/zerosweep-guest/Cargo.toml").is_file() {
        return build(&workspace.canonicalize()?);
    }
    Ok(None)
}

/// Builds the init in its own target directory: its flags differ from everyone else's, and a build
/// under way there must not wait for one that it is part of. Nothing where there is no cargo.
fn build(workspace: &Path) -> Result<Option<PathBuf>> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let Some(host) = host_triple()? else {
        return Ok(None);
    };
    let target_dir = workspace.join("target/guest");
    let output = Command::new(cargo)
        .current_dir(workspace)
        .args(["build", "--quiet", "--release", "--package", "zerosweep-guest"])
        .args(["--config", "profile.release.strip=\"symbols\"", "--target", &host, "--target-dir"])
        .arg(&target_dir)
        .env_remove("RUSTFLAGS")
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static")
        .stdin(Stdio::null())
        .output()
        .context("starting cargo to build zerosweep-guest")?;
    if !output.status.success() {
        bail!(
            "building zerosweep-guest failed ({}); it needs a static C library (libc6-dev):\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    Ok(Some(target_dir.join(host).join("release/zerosweep-guest")))
}

/// What `rustc` builds for; nothing where there is no `rustc`.
fn host_triple() -> Result<Option<String>> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = match Command::new(rustc).arg("-vV").stdin(Stdio::null()).output() {
        Ok(output) => output,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).context("starting rustc -vV"),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(Some(host.context("rustc -vV names no host")?.to_owned()))
}

/// Refuses a program that needs a dynamic linker: the guest has none.
pub(super) fn require_static(path: &Path, program: &[u8]) -> Result<()> {
    if !is_static(program) {
        bail!(
            "{} is not a static 64-bit ELF program; build it with \
             RUSTFLAGS=\"-C target-feature=+crt-static\" and --target",
            path.display()
        );
    }
    Ok(())
}

/// Whether this is a little-endian 64-bit ELF file without a program interpreter.
fn is_static(program: &[u8]) -> bool {
    let segments = || {
        let header = FileHeader64::<LittleEndian>::parse(program)?;
        header.program_headers(header.endian()?, program)
    };
    let is_interpreter =
        |segment: &ProgramHeader64<LittleEndian>| segment.p_type(LittleEndian) == PT_INTERP;
    segments().is_ok_and(|segments| !segments.iter().any(is_interpreter))
}

/// A hash of the contents (FNV-1a): tells one build of the init from the next.
pub(super) fn hash(program: &[u8]) -> u64 {
    program.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_elf_without_interpreter_is_static() {
        assert!(!is_static(b""));
        assert!(!is_static(b"#!/bin/sh\n"));
        assert!(!is_static(b"\x7fELF\x02\x01"));
        let mut program = vec![0; 64 + 56];
        program[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        (program[32], program[54], program[56]) = (64, 56, 1);
        program[64] = 1;
        assert!(is_static(&program));
        program[64] = 3;
        assert!(!is_static(&program));
        (program[64], program[5]) = (1, 2);
        assert!(!is_static(&program), "the other order of bytes");
        program[5] = 1;
        program[64] = 1;
        program[56] = 2;
        assert!(!is_static(&program), "a table that ends early");
        program[32..40].fill(0xff);
        assert!(!is_static(&program), "a table beyond the end");
    }

    #[test]
    fn the_hash_is_fnv_1a() {
        assert_eq!(hash(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(hash(b"a"), 0xaf63_dc4c_8601_ec8c);
    }
}
