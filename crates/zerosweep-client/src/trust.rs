//! Whom a client trusts: the owner of a runtime directory, and who listens on a socket in it.
//!
//! | this user | trusts sockets in a directory of | if the listener is |
//! | --- | --- | --- |
//! | root | any user | root, and the directory's owner |
//! | another | its own, root | itself, root |
//!
//! A directory that others can write to is not trusted: anybody can make a socket of any name
//! there. Text from a trusted socket is still escaped before it is shown
//! ([`printable`](crate::printable)).

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// Root's number.
const ROOT: u32 = 0;

/// Why a directory or a socket is not trusted.
#[derive(Debug, thiserror::Error)]
pub enum Distrust {
    /// It is a link or no directory.
    #[error("{} is not a directory (or is a link to one): its sockets are not used", .0.display())]
    NotDirectory(PathBuf),
    /// It belongs to another user.
    #[error(
        "the runtime directory {} belongs to user {owner}, and this is user {user}: its sockets are \
         not used. Guests are seen by the user who started them, and by root",
        .path.display()
    )]
    OtherUser {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// This user.
        user: u32,
    },
    /// Others can write to it.
    #[error(
        "others can write to the runtime directory {} (mode {mode:04o}): its sockets are not used. \
         To mend it: chmod 700 {}",
        .path.display(), .path.display()
    )]
    Writable {
        /// The directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// A user listens there to whom the directory does not belong.
    #[error(
        "user {peer} listens on the socket {}, and its directory belongs to user {owner}: it is not \
         used",
        .path.display()
    )]
    Peer {
        /// The socket.
        path: PathBuf,
        /// Who listens.
        peer: u32,
        /// The directory's owner.
        owner: u32,
    },
    /// Its owner cannot be determined.
    #[error("{}: {error}", .path.display())]
    Unknown {
        /// The directory or socket.
        path: PathBuf,
        /// What the kernel says.
        error: io::Error,
    },
}

impl Distrust {
    /// Whether there is no such directory.
    pub(crate) fn is_missing(&self) -> bool {
        matches!(self, Self::Unknown { error, .. } if error.kind() == io::ErrorKind::NotFound)
    }
}

/// The owner of a runtime directory whose sockets may be used.
pub(crate) fn directory(path: &Path) -> Result<u32, Distrust> {
    let data = std::fs::symlink_metadata(path)
        .map_err(|error| Distrust::Unknown { path: path.to_owned(), error })?;
    if !data.is_dir() {
        return Err(Distrust::NotDirectory(path.to_owned()));
    }
    let (owner, user) = (data.uid(), this_user());
    if user != ROOT && owner != user && owner != ROOT {
        return Err(Distrust::OtherUser { path: path.to_owned(), owner, user });
    }
    if data.mode() & 0o022 != 0 {
        return Err(Distrust::Writable { path: path.to_owned(), mode: data.mode() & 0o7777 });
    }
    Ok(owner)
}

/// Whether the directory is this user's own: what is left over in another user's directory is for
/// that user to clear up.
pub(crate) fn is_own_directory(path: &Path) -> bool {
    directory(path).is_ok_and(|owner| owner == this_user())
}

/// The user who listens at the other end of `stream`, a connection to the socket at `path`.
pub(crate) fn peer(stream: &UnixStream, path: &Path, owner: u32) -> Result<u32, Distrust> {
    let credentials = rustix::net::sockopt::socket_peercred(stream)
        .map_err(|errno| Distrust::Unknown { path: path.to_owned(), error: errno.into() })?;
    let (peer, user) = (credentials.uid.as_raw(), this_user());
    let may_be = peer == ROOT || peer == user || (user == ROOT && peer == owner);
    if may_be { Ok(peer) } else { Err(Distrust::Peer { path: path.to_owned(), peer, owner }) }
}

/// Whether `user` is neither this user nor root.
pub(crate) fn is_other(user: u32) -> bool {
    user != ROOT && user != this_user()
}

fn this_user() -> u32 {
    rustix::process::geteuid().as_raw()
}
