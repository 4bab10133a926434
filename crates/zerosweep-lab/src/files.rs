//! Files that a user names for writing.
//!
//! | | followed | who may read | what is no file |
//! | --- | --- | --- | --- |
//! | [`create_private`]: recordings, traces | links of this user and of root | this user | refused |
//! | [`Destination`]: reports, documents | the same | as the umask says | written to, unless nobody reads |
//!
//! In a directory that others can write to, such as `/tmp`, a name may be another's link to a file
//! of this user's, or another's file: neither is written to. Nothing here waits for a pipe's other
//! end. A user who can write to a directory further up can replace the one below: this is not
//! noticed.

use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// The most links that are followed one after the other.
const MOST_LINKS: usize = 16;
/// Who may read and write a recording.
const PRIVATE: Mode = Mode::RUSR.union(Mode::WUSR);
/// What the umask takes from.
const FOR_ALL: Mode = Mode::from_raw_mode(0o666);

/// An empty file for this user alone, to be written to; what was in it is gone.
///
/// # Errors
/// The kernel's; and where the name is another user's link or file, a file with another name, or no
/// file: a pipe or a device.
pub fn create_private(path: &Path) -> io::Result<File> {
    let (file, _) = open(path, Some(PRIVATE))?;
    let file = File::from(file);
    let data = file.metadata()?;
    if !data.is_file() {
        return refuse(format!("it is {}, and this must be a file", kind(&data)));
    }
    if data.uid() != this_user() {
        return refuse(format!(
            "it belongs to user {}: remove it, or name another file",
            data.uid()
        ));
    }
    if data.nlink() > 1 {
        return refuse("the file has another name (a hard link): remove it, or name another file");
    }
    file.set_permissions(Permissions::from_mode(PRIVATE.as_raw_mode()))?;
    file.set_len(0)?;
    Ok(file)
}

/// A file for a report, known to be writable before there is one.
#[derive(Debug)]
pub struct Destination {
    /// Where links led to.
    path: PathBuf,
    is_file: bool,
}

impl Destination {
    /// Checks that the file can be written, and leaves it as it is.
    ///
    /// # Errors
    /// The kernel's; and where the name is another user's link, or a pipe that nobody reads.
    pub fn new(path: &Path) -> io::Result<Self> {
        match open(path, None) {
            Ok((file, path)) => {
                let is_file = File::from(file).metadata()?.is_file();
                Ok(Self { path, is_file })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let (_, path) = open(path, Some(FOR_ALL))?;
                // Nothing is left behind by work that fails before there is something to write.
                std::fs::remove_file(&path)?;
                Ok(Self { path, is_file: true })
            }
            Err(error) => Err(error),
        }
    }

    /// Replaces the content in one step: a reader sees the old one or the new one. Nothing is left
    /// of what could not be written.
    ///
    /// # Errors
    /// The kernel's.
    pub fn write(&self, content: &[u8]) -> io::Result<()> {
        if self.is_file {
            return replace(&self.path, content);
        }
        // A pipe or a device cannot be replaced.
        let (file, _) = open(&self.path, None)?;
        rustix::fs::fcntl_setfl(&file, OFlags::empty())?;
        File::from(file).write_all(content)
    }
}

/// Writes a file so that a reader sees the old one or the new one, and nothing in between.
///
/// # Errors
/// The kernel's; nothing is left of what could not be written.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = beside(directory_of(path))?;
    file.write_all(content)?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// Checks that files can be made in a directory.
///
/// # Errors
/// The kernel's.
pub fn check_directory(path: &Path) -> io::Result<()> {
    beside(path).map(drop)
}

/// A new file with a name that nobody knew before.
fn beside(directory: &Path) -> io::Result<tempfile::NamedTempFile> {
    tempfile::Builder::new()
        .prefix(".zerosweep-")
        .permissions(Permissions::from_mode(FOR_ALL.as_raw_mode()))
        .tempfile_in(directory)
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// Opens for writing, without waiting and without another's links; also says where links led to.
/// What is not there is made if `missing` says with which mode.
fn open(path: &Path, missing: Option<Mode>) -> io::Result<(OwnedFd, PathBuf)> {
    let how = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        // The links of /proc lead to what is open, not to a name; no user can make one there.
        let follow = if path.starts_with("/proc") { OFlags::empty() } else { OFlags::NOFOLLOW };
        match (rustix::fs::open(&path, how | follow, Mode::empty()), missing) {
            (Ok(file), _) => return Ok((file, path)),
            (Err(Errno::LOOP), _) => path = target(&path)?,
            (Err(Errno::NXIO), _) => return refuse("it is a pipe or a socket that nobody reads"),
            (Err(Errno::NOENT), Some(mode)) => {
                // Never on what is there: Linux has rules of its own for that (fs.protected_*),
                // whose refusals do not say why.
                match rustix::fs::open(&path, how | OFlags::CREATE | OFlags::EXCL, mode) {
                    Ok(file) => return Ok((file, path)),
                    Err(Errno::EXIST) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            (Err(errno), _) => return Err(errno.into()),
        }
    }
    Err(Errno::LOOP.into())
}

/// Where a link leads to, if it is a link of this user's or root's.
fn target(path: &Path) -> io::Result<PathBuf> {
    // Held open, it stays what it is while its owner is looked at.
    let how = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let link = File::from(rustix::fs::open(path, how, Mode::empty())?);
    let owner = link.metadata()?.uid();
    if owner != this_user() && owner != 0 {
        return refuse(format!("it is a link of user {owner}: name the file that is meant"));
    }
    let text = rustix::fs::readlinkat(&link, "", Vec::new())?;
    Ok(directory_of(path).join(OsStr::from_bytes(text.as_bytes())))
}

fn kind(data: &std::fs::Metadata) -> &'static str {
    let kind = data.file_type();
    if kind.is_fifo() {
        "a pipe"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

fn this_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn refuse<T>(why: impl Into<String>) -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::PermissionDenied, why.into()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn a_recording_is_for_its_user_alone_also_where_an_old_one_was_not() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("new.bin");
        create_private(&path).unwrap().write_all(b"new").unwrap();
        assert_eq!((mode(&path), fs::read(&path).unwrap()), (0o600, b"new".to_vec()));
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let link = place.path().join("link");
        symlink("new.bin", &link).unwrap();
        drop(create_private(&link).unwrap());
        assert_eq!((mode(&path), fs::read(&path).unwrap()), (0o600, Vec::new()));
    }

    #[test]
    fn what_is_no_file_is_no_recording_and_not_waited_for() {
        let place = tempfile::tempdir().unwrap();
        let pipe = place.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, PRIVATE, 0)
            .unwrap();
        let refusal = |path: &Path| create_private(path).unwrap_err().to_string();
        assert_eq!(refusal(&pipe), "it is a pipe or a socket that nobody reads");
        assert_eq!(
            Destination::new(&pipe).unwrap_err().to_string(),
            "it is a pipe or a socket that nobody reads"
        );
        let how = OFlags::RDONLY | OFlags::NONBLOCK;
        let reader = rustix::fs::open(&pipe, how, Mode::empty()).unwrap();
        assert_eq!(refusal(&pipe), "it is a pipe, and this must be a file");
        assert_eq!(refusal(Path::new("/dev/null")), "it is a device, and this must be a file");
        // A report may go to a program that reads it.
        Destination::new(&pipe).unwrap().write(b"report").unwrap();
        let mut said = [0; 6];
        rustix::io::read(&reader, &mut said).unwrap();
        assert_eq!(&said, b"report");
        let named = place.path().join("named");
        fs::write(&named, "old").unwrap();
        fs::hard_link(&named, place.path().join("other name")).unwrap();
        assert!(refusal(&named).contains("hard link"), "{}", refusal(&named));
        assert_eq!(fs::read(&named).unwrap(), b"old");
    }

    #[test]
    fn a_report_replaces_what_a_link_of_ones_own_leads_to() {
        let place = tempfile::tempdir().unwrap();
        let (file, link) = (place.path().join("file"), place.path().join("link"));
        symlink("file", &link).unwrap();
        let report = Destination::new(&link).unwrap();
        assert!(!file.exists(), "nothing is written yet");
        report.write(b"report").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"report");
        assert!(link.is_symlink());
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 2);
    }

    #[test]
    fn links_that_lead_round_are_not_followed_for_ever() {
        let place = tempfile::tempdir().unwrap();
        let link = place.path().join("link");
        symlink("link", &link).unwrap();
        assert!(create_private(&link).is_err());
    }
}
