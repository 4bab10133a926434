//! The runtime directory: who holds a guest's name, and what dead guests left there.
//!
//! | file | made by | goes |
//! | --- | --- | --- |
//! | `NAME.lock` | `zerosweep run`, locked for its whole life | with `run`; if that was killed, with the next `run` or `ps` |
//! | `NAME.sock` | the agent | with the VMM |
//! | `NAME.qmp` | QEMU | with the VMM |
//!
//! A guest is alive when its socket can be connected to; the lock alone says nothing, because a
//! guest outlives a `zerosweep run` that was killed.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags};
use zerosweep_wire::{MAX_LINE_BYTES, runtime as wire};

use crate::agent::Client;
use crate::error::Failure;
use crate::lines::LineStream;
use crate::trust;

/// Bytes in a Unix socket's path, without its end (`sun_path`).
const MAX_SOCKET_PATH_BYTES: usize = 107;
/// How long a guest may take to say who it is.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(2);

/// The mode of sockets.
const OWNER_ONLY: Mode = Mode::RUSR.union(Mode::WUSR);

const LOCK_ATTEMPTS: u32 = 10;
const LOCK_INTERVAL: Duration = Duration::from_millis(20);

/// The files of one guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestFiles {
    /// The agent's socket.
    pub socket: PathBuf,
    /// QEMU's socket.
    pub qmp: PathBuf,
    lock: PathBuf,
}

impl GuestFiles {
    /// The files of the guest `name`.
    ///
    /// # Errors
    /// Wrong usage if `name` cannot be a guest's.
    pub fn new(directory: &Path, name: &str) -> Result<Self, Failure> {
        wire::check_name(name).map_err(Failure::usage)?;
        let socket = wire::control_socket(directory, name);
        let length = socket.as_os_str().len();
        if length > MAX_SOCKET_PATH_BYTES {
            return Err(Failure::usage(format!(
                "{} has {length} bytes; a socket's path has at most {MAX_SOCKET_PATH_BYTES}. Use \
                 a shorter name or XDG_RUNTIME_DIR",
                socket.display()
            )));
        }
        let lock = directory.join(format!("{name}.lock"));
        Ok(Self { socket, qmp: wire::qmp_socket(directory, name), lock })
    }

    /// Lets nobody but their owner connect to the sockets: QEMU makes its own with the umask.
    /// Returns whether both are there.
    pub fn make_private(&self) -> bool {
        [&self.socket, &self.qmp].map(|file| rustix::fs::chmod(file, OWNER_ONLY).is_ok())
            == [true; 2]
    }

    /// Removes the sockets that a VMM left.
    pub fn remove_sockets(&self) {
        for file in [&self.socket, &self.qmp] {
            let _ = std::fs::remove_file(file);
        }
    }
}

/// Where a tool finds the guest `name`: where its socket is, this user's own directory first.
///
/// # Errors
/// Wrong usage if `name` cannot be a guest's.
pub fn find(name: &str) -> Result<GuestFiles, Failure> {
    find_in(&wire::directories(), name)
}

/// As [`find`], in other directories.
///
/// # Errors
/// As [`find`].
pub fn find_in(directories: &[PathBuf], name: &str) -> Result<GuestFiles, Failure> {
    let own = GuestFiles::new(&directories[0], name)?;
    if own.socket.exists() {
        return Ok(own);
    }
    let mut others =
        directories[1..].iter().filter_map(|directory| GuestFiles::new(directory, name).ok());
    Ok(others.find(|files| files.socket.exists()).unwrap_or(own))
}

/// The files of every guest that has a socket where a tool looks; another user's
/// directory is left out.
///
/// # Errors
/// When this user's own directory cannot be read.
pub fn every_guest() -> Result<Vec<(String, GuestFiles)>, Failure> {
    every_guest_in(&wire::directories())
}

/// As [`every_guest`], in other directories.
///
/// # Errors
/// As [`every_guest`].
pub fn every_guest_in(directories: &[PathBuf]) -> Result<Vec<(String, GuestFiles)>, Failure> {
    let mut guests: Vec<(String, GuestFiles)> = Vec::new();
    for (at, directory) in directories.iter().enumerate() {
        let found = match names(directory) {
            Err(_) if at > 0 => continue,
            found => found?,
        };
        for name in found {
            // What another directory has of the same name is hidden by this user's own guest.
            if !guests.iter().any(|(known, _)| *known == name)
                && let Ok(files) = GuestFiles::new(directory, &name)
            {
                guests.push((name, files));
            }
        }
    }
    guests.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(guests)
}

/// Makes the runtime directory, for its owner only, and checks that it is that.
///
/// # Errors
/// When it cannot be made, or is another user's.
pub fn create_directory(directory: &Path) -> Result<(), Failure> {
    let cannot = |error: io::Error| {
        let how = how_to_make(directory);
        Failure::work(format!(
            "cannot make the runtime directory {}: {error}{how}",
            directory.display()
        ))
    };
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(cannot)?;
    let data = std::fs::symlink_metadata(directory).map_err(cannot)?;
    if !data.is_dir() || data.uid() != rustix::process::geteuid().as_raw() {
        return Err(Failure::work(format!(
            "{} is not a directory of this user; the control sockets would not be safe in it{}",
            directory.display(),
            how_to_make(directory)
        )));
    }
    if data.mode() & 0o077 != 0 {
        rustix::fs::chmod(directory, Mode::RWXU).map_err(|errno| cannot(errno.into()))?;
    }
    Ok(())
}

/// The command for an administrator, for the directory that an ordinary user cannot make.
fn how_to_make(directory: &Path) -> String {
    if directory != Path::new(wire::SERVICE_DIRECTORY) {
        return String::new();
    }
    let uid = rustix::process::geteuid().as_raw();
    format!(
        ". As root: install -d -m 0700 -o {uid} {} (docs/libvirt.md has the line for \
         /etc/tmpfiles.d that makes it at each boot)",
        directory.display()
    )
}

/// A guest's name, held for as long as this lives; dropping it removes the guest's files.
#[derive(Debug)]
pub struct Claim {
    files: GuestFiles,
    _lock: File,
}

impl Claim {
    /// Takes the name. `removed` is called for each file of a dead guest that was removed.
    ///
    /// # Errors
    /// Wrong usage if a guest of that name is alive or being started.
    pub fn take(
        name: &str,
        files: GuestFiles,
        mut removed: impl FnMut(&Path),
    ) -> Result<Self, Failure> {
        let held = wait_for_lock(&files.lock).map_err(|error| {
            Failure::work(format!("cannot lock {}: {error}", files.lock.display()))
        })?;
        let alive = listener(&files.socket);
        let lock = match (held, alive) {
            (Some(lock), None) => lock,
            (None, None) => return Err(Failure::usage(being_started(name, &files))),
            (held, Some(pid)) => {
                if held.is_some() {
                    // The lock of a guest whose `run` is gone; nobody else wants it.
                    let _ = std::fs::remove_file(&files.lock);
                }
                let pid = pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
                let message = format!("a guest named {name} is running already{pid}");
                return Err(Failure::usage(message));
            }
        };
        for file in [&files.socket, &files.qmp] {
            if std::fs::remove_file(file).is_ok() {
                removed(file);
            }
        }
        let _ = writeln!(&lock, "{}", std::process::id());
        Ok(Self { files, _lock: lock })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // The lock last, while it is still held: a new `run` must not lose its own sockets.
        self.files.remove_sockets();
        let _ = std::fs::remove_file(&self.files.lock);
    }
}

/// The names of all guests that have a socket in `directory`, in order.
///
/// # Errors
/// When it cannot be read, or its sockets are not trusted.
pub fn names(directory: &Path) -> Result<Vec<String>, Failure> {
    match trust::directory(directory) {
        Err(distrust) if distrust.is_missing() => return Ok(Vec::new()),
        Err(distrust) => return Err(Failure::work(distrust)),
        Ok(_) => {}
    }
    let cannot = |error| Failure::work(format!("cannot read {}: {error}", directory.display()));
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(cannot)? {
        let file = entry.map_err(cannot)?.file_name();
        if let Some(name) = file.to_str().and_then(|file| file.strip_suffix(".sock"))
            && wire::check_name(name).is_ok()
        {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Removes the files of a guest whose socket nobody listens on, unless its `run` still has them. In
/// another user's directory nothing is removed, nor locked: it may have become another directory.
pub fn remove_stale(files: &GuestFiles) {
    if files.lock.parent().is_some_and(trust::is_own_directory)
        && let Ok(Some(lock)) = lock(&files.lock, Missing::Create)
    {
        // Checked again under the lock: a new guest may have come up meanwhile.
        if listener(&files.socket).is_none() {
            drop(Claim { files: files.clone(), _lock: lock });
        } else {
            let _ = std::fs::remove_file(&files.lock);
        }
    }
}

/// Removes lock files that nobody holds: left by a `run` that was killed, or by one whose guest
/// is still alive and needs none.
pub fn remove_free_locks(directory: &Path) {
    if !trust::is_own_directory(directory) {
        return;
    }
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        if path.extension().is_some_and(|extension| extension == "lock")
            && let Ok(Some(_held)) = lock(&path, Missing::Leave)
        {
            let _ = std::fs::remove_file(&path);
        }
    }
}

/// What happens to a lock file that is not there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Create,
    Leave,
}

/// Locks the file at `path` for this process alone; none if another has it.
fn lock(path: &Path, missing: Missing) -> io::Result<Option<File>> {
    loop {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(missing == Missing::Create)
            .truncate(false)
            .mode(0o600)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            locked => locked?,
        }
        // Its last holder may have removed it between open and lock: then it locks nothing.
        let ours = file.metadata()?;
        match std::fs::symlink_metadata(path) {
            Ok(there) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => {
                file.set_len(0)?;
                return Ok(Some(file));
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ if missing == Missing::Leave => return Ok(None),
            _ => {}
        }
    }
}

/// Like [`lock`], but waits for a `ps` that holds the lock for a moment.
fn wait_for_lock(path: &Path) -> io::Result<Option<File>> {
    for _ in 0..LOCK_ATTEMPTS {
        if let Some(file) = lock(path, Missing::Create)? {
            return Ok(Some(file));
        }
        std::thread::sleep(LOCK_INTERVAL);
    }
    lock(path, Missing::Create)
}

/// The process that listens on `socket`, if any does: as its hello says, or else the kernel.
fn listener(socket: &Path) -> Option<Option<u32>> {
    match Client::connect(socket, HELLO_TIMEOUT) {
        Ok(client) => Some(Some(client.hello().pid)),
        Err(error) if error.is_nobody_there() => None,
        Err(_) => {
            let deadline = Instant::now() + HELLO_TIMEOUT;
            let lines = LineStream::connect(socket, MAX_LINE_BYTES, deadline);
            Some(lines.ok().and_then(|lines| lines.peer_pid()))
        }
    }
}

/// Says that the name is locked, and by which process.
fn being_started(name: &str, files: &GuestFiles) -> String {
    let mut text = String::new();
    let _ = File::open(&files.lock).and_then(|mut file| file.read_to_string(&mut text));
    let pid = match text.trim().parse::<u32>() {
        Err(_) => String::new(),
        Ok(pid) => format!(" (zerosweep pid {pid})"),
    };
    format!("a guest named {name} is being started{pid}")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn files(directory: &Path) -> GuestFiles {
        GuestFiles::new(directory, "vm").unwrap()
    }

    fn listing(directory: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(directory).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn the_directory_is_for_its_owner_only() {
        let base = tempfile::tempdir().unwrap();
        let directory = base.path().join("zerosweep");
        create_directory(&directory).unwrap();
        let mode = || directory.metadata().unwrap().mode() & 0o777;
        assert_eq!(mode(), 0o700);
        std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o755)).unwrap();
        create_directory(&directory).unwrap();
        assert_eq!(mode(), 0o700);
        let file = base.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(create_directory(&file).is_err());
        let link = base.path().join("link");
        std::os::unix::fs::symlink(&directory, &link).unwrap();
        assert!(create_directory(&link).is_err(), "a link may lead anywhere tomorrow");
    }

    #[test]
    fn a_claim_keeps_others_out_and_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let claim = Claim::take("vm", files(directory.path()), |_| ()).unwrap();
        let error = Claim::take("vm", files(directory.path()), |_| ()).unwrap_err();
        let expect =
            format!("a guest named vm is being started (zerosweep pid {})", std::process::id());
        assert_eq!(error.to_string(), expect);
        std::fs::write(&claim.files.qmp, "").unwrap();
        drop(claim);
        assert!(listing(directory.path()).is_empty());
    }

    #[test]
    fn a_living_guest_is_named_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let files = files(directory.path());
        let _listener = UnixListener::bind(&files.socket).unwrap();
        let error = Claim::take("vm", files.clone(), |_| ()).unwrap_err().to_string();
        // It says no hello, so the kernel says who it is: this process.
        assert!(error.contains(&format!("(pid {})", std::process::id())), "{error}");
        remove_stale(&files);
        assert_eq!(listing(directory.path()), ["vm.sock"]);
    }

    #[test]
    fn what_the_dead_left_is_removed_and_told() {
        let directory = tempfile::tempdir().unwrap();
        let files = files(directory.path());
        drop(UnixListener::bind(&files.socket).unwrap());
        std::fs::write(&files.lock, "1\n").unwrap();
        let mut removed = Vec::new();
        let claim = Claim::take("vm", files.clone(), |path| removed.push(path.to_owned())).unwrap();
        assert_eq!(removed, std::slice::from_ref(&files.socket));
        assert_eq!(
            std::fs::read_to_string(&files.lock).unwrap().trim(),
            std::process::id().to_string()
        );
        drop(claim);
        drop(UnixListener::bind(&files.socket).unwrap());
        std::fs::write(&files.qmp, "").unwrap();
        assert_eq!(names(directory.path()).unwrap(), ["vm"]);
        remove_stale(&files);
        assert!(listing(directory.path()).is_empty());
    }

    #[test]
    fn a_starting_guest_is_not_stale() {
        let directory = tempfile::tempdir().unwrap();
        let files = files(directory.path());
        let claim = Claim::take("vm", files.clone(), |_| ()).unwrap();
        drop(UnixListener::bind(&files.socket).unwrap());
        remove_stale(&files);
        remove_free_locks(directory.path());
        assert_eq!(listing(directory.path()), ["vm.lock", "vm.sock"]);
        drop(claim);
        std::fs::write(directory.path().join("gone.lock"), "1\n").unwrap();
        remove_free_locks(directory.path());
        assert!(listing(directory.path()).is_empty());
    }

    #[test]
    fn a_path_that_no_socket_can_have_is_refused() {
        let directory = PathBuf::from(format!("/{}", "x".repeat(100)));
        let error = GuestFiles::new(&directory, "vm-123").unwrap_err().to_string();
        assert!(error.contains("XDG_RUNTIME_DIR"), "{error}");
        assert!(GuestFiles::new(Path::new("/run"), "../x").is_err());
    }

    #[test]
    fn a_guest_is_found_where_its_socket_is() {
        let (own, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let directories = [own.path().to_owned(), other.path().to_owned()];
        let find = || find_in(&directories, "vm").unwrap().socket;
        let (in_own, in_other) = (files(own.path()).socket, files(other.path()).socket);
        assert_eq!(find(), in_own, "where it would be");
        let _other = UnixListener::bind(&in_other).unwrap();
        assert_eq!(find(), in_other);
        let _own = UnixListener::bind(&in_own).unwrap();
        assert_eq!(find(), in_own);
        assert!(find_in(&directories, "../x").is_err());
    }

    #[test]
    fn no_directory_no_guests() {
        assert!(names(Path::new("/nowhere/at/all")).unwrap().is_empty());
    }
}
