//! The QMP sockets on a command line: where the tool that manages the VMM is a client.
//!
//! libvirt makes the socket itself and hands its descriptor over
//! (`-chardev socket,id=charmonitor,fd=30,server=on,wait=off -mon chardev=charmonitor,mode=control`),
//! so its path is asked of the kernel.

use std::fs;
use std::path::{Path, PathBuf};

use super::options::{Line, Properties};

/// The paths of all QMP sockets that QEMU listens on.
pub(crate) fn paths(line: &Line) -> Vec<PathBuf> {
    sockets(line)
        .into_iter()
        .filter_map(|socket| match socket {
            Socket::Path(path) => Some(path),
            Socket::Descriptor(number) => path_of(&number),
        })
        .collect()
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Socket {
    Path(PathBuf),
    Descriptor(String),
}

impl Socket {
    /// A socket that QEMU listens on. As a client it is another program's, such as that of Proxmox
    /// VE's event daemon.
    fn new(properties: &Properties) -> Option<Self> {
        if !properties.is_on("server") {
            return None;
        }
        let path = || Some(Self::Path(properties.get("path")?.into()));
        properties.get("fd").map(|number| Self::Descriptor(number.to_owned())).or_else(path)
    }
}

pub(super) fn sockets(line: &Line) -> Vec<Socket> {
    let values = |name: &'static str| {
        line.options.iter().filter(move |option| option.name == name).map(|option| option.value())
    };
    let chardev = |id: &str| {
        let mut devices = values("chardev").map(|value| Properties::parse(value, "backend"));
        let is_it = |device: &Properties| {
            device.get("backend") == Some("socket") && device.get("id") == Some(id)
        };
        devices.find(is_it).as_ref().and_then(Socket::new)
    };
    let monitors = values("mon").map(|value| Properties::parse(value, "chardev"));
    let control = monitors.filter(|monitor| monitor.get("mode") == Some("control"));
    let mut found: Vec<_> =
        control.filter_map(|monitor| chardev(monitor.get("chardev")?)).collect();
    for value in values("qmp").chain(values("qmp-pretty")) {
        found.extend(match value.strip_prefix("chardev:") {
            Some(id) => chardev(id),
            None => value
                .strip_prefix("unix:")
                .and_then(|socket| Socket::new(&Properties::parse(socket, "path"))),
        });
    }
    found
}

/// The path that the Unix socket at a descriptor of this process is bound to.
fn path_of(descriptor: &str) -> Option<PathBuf> {
    let link = fs::read_link(Path::new("/proc/self/fd").join(descriptor)).ok()?;
    let inode = link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
    bound_path(&fs::read_to_string("/proc/net/unix").ok()?, inode)
}

/// Reads the kernel's table: `Num RefCount Protocol Flags Type St Inode Path`. (The crate
/// `procfs` ends a path at its first blank.)
fn bound_path(table: &str, inode: &str) -> Option<PathBuf> {
    table.lines().find_map(|line| {
        let mut rest = line;
        let mut fields = std::iter::from_fn(|| {
            let (field, after) = rest.trim_start().split_once(' ')?;
            rest = after;
            Some(field)
        });
        let is_it = fields.nth(6)? == inode;
        (is_it && rest.starts_with('/')).then(|| PathBuf::from(rest))
    })
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::os::fd::AsRawFd as _;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn sockets_in(line: &str) -> Vec<Socket> {
        sockets(&Line::by_tables(&line.split(' ').map(OsString::from).collect::<Vec<_>>()))
    }

    #[test]
    fn monitors_as_libvirt_and_people_write_them() {
        let path = |path: &str| Socket::Path(path.into());
        let libvirt = "-chardev socket,id=charmonitor,fd=30,server=on,wait=off -mon \
                       chardev=charmonitor,id=monitor,mode=control -chardev pty,id=charserial0";
        assert_eq!(sockets_in(libvirt), [Socket::Descriptor("30".into())]);
        let older = "-chardev socket,id=m,path=/a/monitor.sock,server,nowait -mon m,mode=control";
        assert_eq!(sockets_in(older), [path("/a/monitor.sock")]);
        assert_eq!(sockets_in("-qmp unix:/x/qmp,server=on,wait=off"), [path("/x/qmp")]);
        assert_eq!(
            sockets_in("-chardev socket,id=q,path=/q,server=on -qmp chardev:q"),
            [path("/q")]
        );
    }

    #[test]
    fn other_sockets_are_no_monitors() {
        for line in [
            "-chardev socket,id=serial,path=/s,server=on -serial chardev:serial",
            "-chardev socket,id=m,path=/m,server=on -mon chardev=m,mode=readline",
            "-monitor unix:/m,server=on",
            "-qmp stdio",
            "-qmp unix:/client",
            "-chardev socket,id=e,path=/client,reconnect=5 -mon chardev=e,mode=control",
            "-chardev socket,id=e,path=/client,server=off -qmp chardev:e",
            "-chardev pty,id=m -mon chardev=m,mode=control",
        ] {
            assert_eq!(sockets_in(line), [], "{line}");
        }
    }

    #[test]
    fn the_path_behind_a_descriptor_is_the_kernels_word() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("monitor of a guest.sock");
        let listener = UnixListener::bind(&path).unwrap();
        assert_eq!(path_of(&listener.as_raw_fd().to_string()), Some(path));
        assert_eq!(path_of("9999"), None);
        let table = "Num       RefCount Protocol Flags    Type St Inode Path\n\
                     0000000000000000: 00000002 00000000 00010000 0001 01 77 /a b\n\
                     0000000000000000: 00000003 00000000 00000000 0001 03 78\n\
                     0000000000000000: 00000003 00000000 00000000 0001 03 79 @abstract\n";
        assert_eq!(bound_path(table, "77"), Some("/a b".into()));
        assert_eq!(bound_path(table, "78"), None);
        assert_eq!(bound_path(table, "79"), None);
    }
}
