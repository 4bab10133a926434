//! Finds the VMM's program file as `execvp` would.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::Access;

/// Why there is nothing to run.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ProgramError {
    /// Nowhere on the search path.
    #[error("{0:?} is not found in PATH; give the VMM's path, or install it")]
    NotFound(OsString),
    /// No such file.
    #[error("{0}: no such file")]
    Missing(PathBuf),
    /// There, but not to be run.
    #[error("{0} is not an executable file")]
    NotExecutable(PathBuf),
}

/// The search path where the variable is unset, as in the C library.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// The file that `execvp(name)` would run; `path` is the value of `PATH`.
pub(crate) fn find(name: &OsStr, path: Option<&OsStr>) -> Result<PathBuf, ProgramError> {
    if name.as_bytes().contains(&b'/') {
        let file = PathBuf::from(name);
        return match check(&file) {
            Found::Program => Ok(file),
            Found::Other => Err(ProgramError::NotExecutable(file)),
            Found::Nothing => Err(ProgramError::Missing(file)),
        };
    }
    let mut in_the_way = None;
    // An empty element is the working directory: "" joined with a name is the name.
    for directory in std::env::split_paths(path.unwrap_or(OsStr::new(DEFAULT_PATH))) {
        let file = if directory.as_os_str().is_empty() {
            Path::new(".").join(name)
        } else {
            directory.join(name)
        };
        match check(&file) {
            Found::Program => return Ok(file),
            Found::Other => in_the_way = in_the_way.or(Some(file)),
            Found::Nothing => {}
        }
    }
    Err(in_the_way.map_or(ProgramError::NotFound(name.to_owned()), ProgramError::NotExecutable))
}

enum Found {
    Program,
    Other,
    Nothing,
}

fn check(file: &Path) -> Found {
    match std::fs::metadata(file) {
        Err(_) => Found::Nothing,
        Ok(data) if data.is_file() && rustix::fs::access(file, Access::EXEC_OK).is_ok() => {
            Found::Program
        }
        Ok(_) => Found::Other,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn file(directory: &Path, name: &str, mode: u32) -> PathBuf {
        let path = directory.join(name);
        std::fs::write(&path, "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn searches_like_execvp() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let path = std::env::join_paths([first.path(), second.path()]).unwrap();
        let find = |name: &str| find(OsStr::new(name), Some(&path));
        file(first.path(), "vmm", 0o644);
        assert_eq!(find("vmm"), Err(ProgramError::NotExecutable(first.path().join("vmm"))));
        let program = file(second.path(), "vmm", 0o755);
        assert_eq!(find("vmm"), Ok(program));
        assert_eq!(find("nothing"), Err(ProgramError::NotFound("nothing".into())));
    }

    #[test]
    fn a_path_is_taken_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let find = |path: &Path| find(path.as_os_str(), None);
        let program = file(directory.path(), "vmm", 0o755);
        assert_eq!(find(&program), Ok(program));
        let plain = file(directory.path(), "plain", 0o644);
        assert_eq!(find(&plain), Err(ProgramError::NotExecutable(plain)));
        let missing = directory.path().join("missing");
        assert_eq!(find(&missing), Err(ProgramError::Missing(missing)));
        let itself = directory.path().to_owned();
        assert_eq!(find(&itself), Err(ProgramError::NotExecutable(itself)));
    }

    #[test]
    fn without_a_path_the_system_is_searched() {
        assert_eq!(find(OsStr::new("sh"), None), Ok("/bin/sh".into()));
    }
}
