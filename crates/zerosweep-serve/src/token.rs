//! The token that allows changes.

use std::fmt::{self, Write as _};
use std::path::Path;

use rustix::rand::{GetRandomFlags, getrandom};
use subtle::ConstantTimeEq as _;
use zerosweep_client::error::Failure;
use zerosweep_client::own_file::{OwnFile, Refusal};

/// Random bytes of a token that is made here.
const MADE_BYTES: usize = 16;
/// Shortest token in a file.
const LEAST_CHARS: usize = 16;
/// Longest token in a file.
const MOST_CHARS: usize = 256;
/// Longest file with a token.
const MOST_FILE_BYTES: u64 = 4096;

/// A secret; it is not shown by `{:?}`.
pub(crate) struct Token(String);

impl Token {
    /// A new one, from the kernel's random numbers.
    pub(crate) fn make() -> Result<Self, Failure> {
        let mut bytes = [0_u8; MADE_BYTES];
        let got = getrandom(&mut bytes, GetRandomFlags::empty())
            .map_err(|error| Failure::work(format!("no random numbers for a token: {error}")))?;
        if got != MADE_BYTES {
            return Err(Failure::work("no random numbers for a token"));
        }
        let mut text = String::new();
        for byte in bytes {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        Ok(Self(text))
    }

    /// The one in `file`, which nobody else may read.
    pub(crate) fn read(file: &Path) -> Result<Self, Failure> {
        let shown = file.display();
        let cannot = |error: Refusal| {
            Failure::work(format!(
                "cannot read the token: {shown}: {error}. To make one: (umask 077; head -c 16 \
                 /dev/urandom | od -An -tx1 | tr -d ' \\n' > {shown})"
            ))
        };
        let token = OwnFile::open(file).map_err(cannot)?;
        if token.mode() & 0o077 != 0 {
            return Err(Failure::work(format!(
                "other users may read or write the token in {shown}; chmod 600 {shown}"
            )));
        }
        let text = token.text(MOST_FILE_BYTES).map_err(cannot)?;
        let text = text.trim();
        let fits = (LEAST_CHARS..=MOST_CHARS).contains(&text.len());
        if !fits || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Failure::work(format!(
                "{shown} holds no token: one line of {LEAST_CHARS} to {MOST_CHARS} letters, digits \
                 or signs"
            )));
        }
        Ok(Self(text.to_owned()))
    }

    /// Its text, for the user who starts the server.
    pub(crate) fn shown(&self) -> &str {
        &self.0
    }

    /// Whether `given` is the token, compared in constant time.
    pub(crate) fn is(&self, given: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(given).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn each_is_new_and_only_itself() {
        let (one, other) = (Token::make().unwrap(), Token::make().unwrap());
        assert_eq!(one.shown().len(), 32);
        assert!(one.is(one.shown().as_bytes()));
        assert!(!one.is(other.shown().as_bytes()));
        assert!(!one.is(b"") && !one.is(&one.shown().as_bytes()[..31]));
        assert!(!format!("{one:?}").contains(one.shown()));
    }

    #[test]
    fn from_a_file_of_the_users_own() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("token");
        let error = |file| Token::read(file).unwrap_err().to_string();
        assert!(error(&file).contains("umask 077"), "{}", error(&file));
        std::fs::write(&file, "0123456789abcdef\n").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(error(&file).contains("chmod 600"), "{}", error(&file));
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(Token::read(&file).unwrap().is(b"0123456789abcdef"));
        let pipe = directory.path().join("pipe");
        let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR);
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, kind, mode, 0).unwrap();
        assert!(error(&pipe).contains("is not a file"), "{}", error(&pipe));
        std::fs::write(&file, vec![b'x'; 5000]).unwrap();
        assert!(error(&file).contains("has more than 4K"), "{}", error(&file));
        for text in ["", "short", "0123456789 abcdef", "0123456789abcdeü"] {
            std::fs::write(&file, text).unwrap();
            assert!(error(&file).contains("holds no token"), "{text}");
        }
    }
}
