//! Finds the library that is loaded into the VMM.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::error::Failure;

/// The environment variable that names the library.
const VARIABLE: &str = "ZEROSWEEP_AGENT";
const FILE_NAME: &str = "libzerosweep_agent.so";

/// The agent's absolute path.
///
/// # Errors
/// Says where it was looked for and how to get it.
pub(crate) fn find() -> Result<PathBuf, Failure> {
    let program = std::env::current_exe().unwrap_or_default();
    find_for(std::env::var_os(VARIABLE), &program)
}

fn find_for(variable: Option<OsString>, program: &Path) -> Result<PathBuf, Failure> {
    let candidates = match variable {
        Some(path) if !path.is_empty() => vec![PathBuf::from(path)],
        _ => {
            let directory = program.parent().unwrap_or(Path::new("/"));
            // Cargo leaves what it built together with the program in `deps`; what lies beside it
            // there may be older.
            ["deps", "", "../lib/zerosweep"]
                .map(|place| directory.join(place).join(FILE_NAME))
                .to_vec()
        }
    };
    let found = candidates.iter().find(|path| path.is_file());
    let Some(path) = found.and_then(|path| path.canonicalize().ok()) else {
        let places: Vec<_> = candidates.iter().map(|path| path.display().to_string()).collect();
        return Err(Failure::work(format!(
            "the agent library is not there; looked for {}. Build it with `cargo build --release \
             -p zerosweep-agent`, or name it in {VARIABLE}",
            places.join(", ")
        )));
    };
    // The loader splits LD_PRELOAD at colons and white space and expands `$`; nothing quotes them.
    let text = path.to_string_lossy();
    if text.contains([':', '$']) || text.contains(char::is_whitespace) {
        return Err(Failure::work(format!(
            "the agent library's path {text:?} has white space, ':' or '$' in it, which LD_PRELOAD \
             cannot carry; put it elsewhere and name it in {VARIABLE}"
        )));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_beside_the_program_in_deps_and_in_lib() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        let program = root.join("bin/zerosweep");
        let error = find_for(None, &program).unwrap_err().to_string();
        for part in ["bin/libz", "bin/deps/libz", "../lib/zerosweep/libz", "cargo build"] {
            assert!(error.contains(part), "{part}: {error}");
        }
        for place in ["lib/zerosweep", "bin", "bin/deps"] {
            std::fs::create_dir_all(root.join("bin")).unwrap();
            std::fs::create_dir_all(root.join(place)).unwrap();
            let library = root.join(place).join(FILE_NAME);
            std::fs::write(&library, "").unwrap();
            assert_eq!(find_for(None, &program).unwrap(), library);
        }
    }

    #[test]
    fn the_variable_decides() {
        let root = tempfile::tempdir().unwrap();
        let library = root.path().canonicalize().unwrap().join("agent.so");
        let find = |path: &Path| find_for(Some(path.into()), Path::new("/nowhere/zerosweep"));
        assert!(find(&library).unwrap_err().to_string().contains("agent.so"));
        std::fs::write(&library, "").unwrap();
        assert_eq!(find(&library).unwrap(), library);
        let awkward = root.path().join("a b.so");
        std::fs::write(&awkward, "").unwrap();
        assert!(find(&awkward).unwrap_err().to_string().contains("LD_PRELOAD"));
    }
}
