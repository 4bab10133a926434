//! Finds the library that is loaded into the VMM.
//!
//! A package has it as a file. `cargo install` installs programs alone: then it comes out of this
//! one, into the cache directory.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use zerosweep_client::error::Failure;
use zerosweep_lab::image::cache_dir;

use crate::vmm::elf;

/// The environment variable that names the library.
const VARIABLE: &str = "ZEROSWEEP_AGENT";
const FILE_NAME: &str = "libzerosweep_agent.so";
/// The library that was built together with this program.
static BUILT_IN: &[u8] = include_bytes!(env!("ZEROSWEEP_AGENT_FILE"));

/// The agent's absolute path.
///
/// # Errors
/// Says where it was looked for and how to get it.
pub(crate) fn find() -> Result<PathBuf, Failure> {
    let program = std::env::current_exe().unwrap_or_default();
    let path = find_for(std::env::var_os(VARIABLE), &program, &cache_dir())?;
    // With a broken library the VMM would die in the loader, and nothing would say why.
    elf::check_library(&path).map_err(|error| {
        Failure::work(format!(
            "the agent library {} {error}; unset {VARIABLE} to use the one that came with this \
             program, or install that one again",
            path.display()
        ))
    })?;
    Ok(path)
}

fn find_for(variable: Option<OsString>, program: &Path, cache: &Path) -> Result<PathBuf, Failure> {
    let named = variable.filter(|path| !path.is_empty()).map(PathBuf::from);
    let found = match &named {
        Some(path) => path.is_file().then(|| path.clone()),
        None => Some(beside(program).map_or_else(|| unpack(cache), Ok)?),
    };
    let Some(path) = found.and_then(|path| path.canonicalize().ok()) else {
        let place = named.unwrap_or_else(|| cache.to_owned());
        return Err(Failure::work(format!(
            "the agent library {} is not there; unset {VARIABLE} to use the one that came with \
             this program",
            place.display()
        )));
    };
    // The loader splits LD_PRELOAD at colons and white space and expands `$`; nothing quotes them.
    let text = path.to_string_lossy();
    if text.contains([':', '$']) || text.contains(char::is_whitespace) {
        return Err(Failure::work(format!(
            "the agent library's path {text:?} has white space, ':' or '$' in it, which is not \
             possible in LD_PRELOAD; put it elsewhere and name it in {VARIABLE}"
        )));
    }
    Ok(path)
}

/// The library that was installed, or built, with the program.
fn beside(program: &Path) -> Option<PathBuf> {
    let directory = program.parent()?;
    // Cargo leaves what it built together with the program in `deps`; what lies beside it there may
    // be older.
    let places = ["deps", "", "../lib/zerosweep"];
    places
        .map(|place| directory.join(place).join(FILE_NAME))
        .into_iter()
        .find(|path| path.is_file())
}

/// Writes the built-in library to the cache directory, unless it is there already.
fn unpack(cache: &Path) -> Result<PathBuf, Failure> {
    let directory = cache.join("agent");
    let path = directory.join(FILE_NAME);
    let write = || {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        is_ours(cache)?;
        is_ours(&directory)?;
        match fs::read(&path) {
            Ok(bytes) if bytes == BUILT_IN => Ok(()),
            _ => write_whole(&directory, &path),
        }
    };
    write().map_err(|error| {
        Failure::work(format!(
            "cannot write the agent library to {}: {error}; install it beside this program, or \
             name it in {VARIABLE}",
            path.display()
        ))
    })?;
    Ok(path)
}

/// Refuses a directory of another user: its owner decides what the VMM loads.
fn is_ours(directory: &Path) -> io::Result<()> {
    let owner = fs::symlink_metadata(directory)?.uid();
    if owner == rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    let other = format!("{} belongs to user {owner}", directory.display());
    Err(io::Error::new(io::ErrorKind::PermissionDenied, other))
}

/// A VMM may be loading the old one meanwhile: a new file takes its place.
fn write_whole(directory: &Path, path: &Path) -> io::Result<()> {
    let part = directory.join(format!("{FILE_NAME}.{}", std::process::id()));
    let mut file = fs::File::create(&part)?;
    let written = file.write_all(BUILT_IN).and_then(|()| fs::rename(&part, path));
    if written.is_err() {
        let _ = fs::remove_file(&part);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_beside_the_program_in_deps_and_in_lib() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        let program = root.join("bin/zerosweep");
        for place in ["lib/zerosweep", "bin", "bin/deps"] {
            fs::create_dir_all(root.join("bin")).unwrap();
            fs::create_dir_all(root.join(place)).unwrap();
            let library = root.join(place).join(FILE_NAME);
            fs::write(&library, "").unwrap();
            assert_eq!(find_for(None, &program, Path::new("/nowhere")).unwrap(), library);
        }
    }

    #[test]
    fn a_program_on_its_own_has_it_in_itself() {
        let root = tempfile::tempdir().unwrap();
        let cache = root.path().canonicalize().unwrap();
        let find = || find_for(None, Path::new("/nowhere/zerosweep"), &cache);
        let library = find().unwrap();
        assert_eq!(fs::read(&library).unwrap(), BUILT_IN);
        assert!(BUILT_IN.starts_with(b"\x7fELF"));
        // One of another version, or half of one, is replaced.
        fs::write(&library, &BUILT_IN[..1000]).unwrap();
        assert_eq!(find().unwrap(), library);
        assert_eq!(fs::read(&library).unwrap(), BUILT_IN);
        assert_eq!(fs::read_dir(cache.join("agent")).unwrap().count(), 1);
        let full = find_for(None, Path::new("/nowhere/zerosweep"), Path::new("/dev/null/x"));
        let error = full.unwrap_err().to_string();
        assert!(error.contains("cannot write the agent library"), "{error}");
    }

    #[test]
    fn the_variable_decides() {
        let root = tempfile::tempdir().unwrap();
        let library = root.path().canonicalize().unwrap().join("agent.so");
        let nowhere = Path::new("/nowhere");
        let find = |path: &Path| find_for(Some(path.into()), nowhere, nowhere);
        assert!(find(&library).unwrap_err().to_string().contains("agent.so"));
        fs::write(&library, "").unwrap();
        assert_eq!(find(&library).unwrap(), library);
        let awkward = root.path().join("a b.so");
        fs::write(&awkward, "").unwrap();
        assert!(find(&awkward).unwrap_err().to_string().contains("LD_PRELOAD"));
    }
}
