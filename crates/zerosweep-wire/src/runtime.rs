//! Where control sockets live, and what a guest may be called.

use std::path::{Path, PathBuf};

/// Longest name of a guest, in bytes: a socket's path has 107 bytes in all.
pub const MAX_NAME_BYTES: usize = 48;

/// Why a guest cannot have a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// It is empty, or too long.
    #[error("guest name {0:?} has {len} bytes; 1 to {MAX_NAME_BYTES} are allowed", len = .0.len())]
    Length(String),
    /// It has a character that does not belong into a file name.
    #[error(
        "guest name {0:?} has {1:?} in it; letters, digits, '.', '_' and '-' are allowed, and a letter or digit comes first"
    )]
    Character(String, char),
}

/// The directory of all control sockets of this user: `$XDG_RUNTIME_DIR/zerosweep`, or
/// `/run/zerosweep` where that variable is unset or empty.
#[must_use]
pub fn directory() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(dir) if !dir.is_empty() => Path::new(&dir).join("zerosweep"),
        _ => PathBuf::from("/run/zerosweep"),
    }
}

/// The directory of the control sockets of guests that a service started (`zerosweep-qemu` under
/// libvirt): it belongs to the user that QEMU runs as.
pub const SERVICE_DIRECTORY: &str = "/run/zerosweep-qemu";

/// The directories in which a tool looks for a guest: this user's own first.
#[must_use]
pub fn directories() -> Vec<PathBuf> {
    vec![directory(), PathBuf::from(SERVICE_DIRECTORY)]
}

/// Path of the control socket of the guest `name` in `directory`.
#[must_use]
pub fn control_socket(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.sock"))
}

/// Path of the QMP socket that `zerosweep run` adds for the guest `name` in `directory`.
#[must_use]
pub fn qmp_socket(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.qmp"))
}

/// Checks that `name` can name a guest.
///
/// # Errors
/// Says which rule it breaks.
pub fn check_name(name: &str) -> Result<(), NameError> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(NameError::Length(name.to_owned()));
    }
    let allowed = |(i, c): (usize, char)| {
        c.is_ascii_alphanumeric() || (i > 0 && matches!(c, '.' | '_' | '-'))
    };
    match name.char_indices().find(|&at| !allowed(at)) {
        Some((_, c)) => Err(NameError::Character(name.to_owned(), c)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert!(check_name("vm-1.a_b").is_ok());
        assert!(matches!(check_name(""), Err(NameError::Length(_))));
        assert!(matches!(check_name(&"x".repeat(49)), Err(NameError::Length(_))));
        assert!(matches!(check_name("../x"), Err(NameError::Character(_, '.'))));
        assert!(matches!(check_name("a/b"), Err(NameError::Character(_, '/'))));
    }
}
