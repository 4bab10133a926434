//! Disks whose I/O reaches guest pages in a way that a move does not see, or that pins them.
//!
//! Direct I/O (`cache=none` and the like) has the kernel read and write guest pages themselves.
//! Local file systems pin them meanwhile, which a move sees; some others only keep references
//! ([`zerosweep_linux::references`]). Images that an image is based on are opened in the same way,
//! so qcow2 files are asked for theirs.
//!
//! Known holes: disks that are plugged in later through QMP are not seen, nor are further files
//! that only the image itself names (extents of VMDK, a data file of qcow2).

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::refusal::Refusal;
use crate::vmm::host::Host;
use crate::vmm::options::{Properties, VmmOption, split_protocol};

/// The longest chain of images that is followed.
const MOST_IMAGES: usize = 64;
/// The longest name of a file that a qcow2 image has.
const LONGEST_NAME: u32 = 1023;

/// Files that the tool at QEMU's monitor has opened: `-add-fd fd=24,set=3` makes descriptor 24 the
/// file `/dev/fdset/3`.
#[derive(Default)]
pub(super) struct Drives {
    sets: Vec<(String, String)>,
    disks: Vec<Disk>,
}

struct Disk {
    option: String,
    names: Names,
    tree: Value,
}

/// What a string is that stands for a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Names {
    /// `-drive`: `file` is a path, `PROTOCOL:…` or `json:{…}`.
    Drive,
    /// `-blockdev`: `filename` is a path, and `file` another node, which has an option of its own.
    Node,
}

impl Drives {
    pub(super) fn read(&mut self, option: &VmmOption) {
        let value = option.value();
        match option.name.as_str() {
            "add-fd" => {
                let properties = Properties::parse(value, "");
                if let (Some(fd), Some(set)) = (properties.get("fd"), properties.get("set")) {
                    self.sets.push((set.to_owned(), fd.to_owned()));
                }
            }
            "drive" => self.disk(option, Names::Drive, Properties::tree(value, "file")),
            "blockdev" => self.disk(option, Names::Node, Properties::tree(value, "driver")),
            "hda" | "hdb" | "hdc" | "hdd" | "cdrom" | "fda" | "fdb" | "pflash" | "sd"
            | "mtdblock" => {
                let file = Map::from_iter([("file".to_owned(), Value::from(value))]);
                self.disk(option, Names::Drive, Value::Object(file));
            }
            _ => {}
        }
    }

    fn disk(&mut self, option: &VmmOption, names: Names, tree: Value) {
        let option = format!("-{} {}", option.name, option.value());
        self.disks.push(Disk { option, names, tree });
    }

    /// Returns the reasons against a guest. Each disk is reported once.
    pub(super) fn finish(&self, host: &Host) -> Vec<Refusal> {
        let look = |disk: &Disk| {
            let search = Search { drives: self, host, option: &disk.option, names: disk.names };
            search.node(&disk.tree, false)
        };
        self.disks.iter().filter_map(look).collect()
    }
}

/// Looks through one option.
struct Search<'a> {
    drives: &'a Drives,
    host: &'a Host,
    option: &'a str,
    names: Names,
}

impl Search<'_> {
    /// A node and those below it; `direct` is what its parent does.
    fn node(&self, node: &Value, direct: bool) -> Option<Refusal> {
        let Value::Object(members) = node else { return None };
        let text = |key: &str| members.get(key).and_then(Value::as_str);
        if let Some(refusal) = self.driver(text("driver")) {
            return Some(refusal);
        }
        let direct = is_direct(members).unwrap_or(direct);
        for (key, value) in members {
            let found = match value {
                Value::Object(_) => self.node(value, direct),
                Value::String(path) if key == "filename" && self.names == Names::Node => {
                    self.path(Path::new(path), direct)
                }
                Value::String(name) if key == "filename" || key == "file" => match self.names {
                    Names::Drive => self.named(name, direct),
                    Names::Node => None,
                },
                _ => None,
            };
            if found.is_some() {
                return found;
            }
        }
        None
    }

    fn driver(&self, driver: Option<&str>) -> Option<Refusal> {
        match driver? {
            "nvme" | "virtio-blk-vfio-pci" | "virtio-blk-vhost-vdpa" => {
                Some(Refusal::Pins(self.option.to_owned()))
            }
            "virtio-blk-vhost-user" => Some(Refusal::VhostUser(self.option.to_owned())),
            _ => None,
        }
    }

    /// A file as `-drive` and images name it: a path, `PROTOCOL:…`, or `json:{…}`.
    fn named(&self, name: &str, direct: bool) -> Option<Refusal> {
        match split_protocol(name) {
            Some(("json", text)) => self.node(&serde_json::from_str(text).ok()?, direct),
            Some(("file" | "host_device", path)) => self.path(Path::new(path), direct),
            Some(("nvme", _)) => self.driver(Some("nvme")),
            Some(_) => None,
            None => self.path(Path::new(name), direct),
        }
    }

    fn path(&self, path: &Path, direct: bool) -> Option<Refusal> {
        if !direct {
            return None;
        }
        let mut path = path.to_owned();
        for _ in 0..MOST_IMAGES {
            let file = self.drives.opened(&path);
            if let Some(file_system) = (self.host.shared_by_reference)(&file) {
                let (option, file) = (self.option.to_owned(), path.display().to_string());
                return Some(Refusal::DirectIo { option, file, file_system });
            }
            let base = base_of(&file)?;
            match split_protocol(&base) {
                Some(("file", base)) => path = beside(&path, base),
                Some(_) => return self.named(&base, direct),
                None => path = beside(&path, &base),
            }
        }
        None
    }
}

impl Drives {
    /// Where a path leads that stands for a descriptor.
    fn opened(&self, path: &Path) -> PathBuf {
        let set = path.strip_prefix("/dev/fdset").ok().and_then(Path::to_str);
        let fd = set.and_then(|set| self.sets.iter().find(|(known, _)| known == set));
        fd.map_or_else(|| path.to_owned(), |(_, fd)| Path::new("/proc/self/fd").join(fd))
    }
}

/// What a node says of direct I/O itself.
fn is_direct(members: &Map<String, Value>) -> Option<bool> {
    let is_on = |value: &Value| matches!(value.as_str(), Some("on" | "yes" | "true" | "y"));
    // `aio=native` needs direct I/O; QEMU refuses it otherwise.
    if members.get("aio").and_then(Value::as_str) == Some("native") {
        return Some(true);
    }
    match members.get("cache")? {
        Value::String(mode) => Some(matches!(mode.as_str(), "none" | "off" | "directsync")),
        Value::Object(cache) => {
            cache.get("direct").map(|value| value == &Value::Bool(true) || is_on(value))
        }
        _ => None,
    }
}

/// A name in an image is relative to the image.
fn beside(image: &Path, name: &str) -> PathBuf {
    image.parent().unwrap_or(Path::new("")).join(name)
}

/// The file that a qcow2 image (or qcow) is based on: its header has the name's place and length.
fn base_of(image: &Path) -> Option<String> {
    // A FIFO would wait.
    std::fs::metadata(image).ok().filter(std::fs::Metadata::is_file)?;
    let mut file = File::open(image).ok()?;
    let mut header = [0; 20];
    file.read_exact(&mut header).ok()?;
    let (magic, rest) = header.split_at(8);
    let (place, length) = rest.split_at(8);
    let place = u64::from_be_bytes(place.try_into().ok()?);
    let length = u32::from_be_bytes(length.try_into().ok()?);
    if !magic.starts_with(b"QFI\xfb") || place == 0 || length == 0 || length > LONGEST_NAME {
        return None;
    }
    file.seek(SeekFrom::Start(place)).ok()?;
    let mut name = vec![0; length as usize];
    file.read_exact(&mut name).ok()?;
    String::from_utf8(name).ok()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use super::*;
    use crate::vmm::options::Line;
    use zerosweep_linux::references::FileSystem;

    /// Whatever has `nfs` in its path lies on NFS.
    fn nfs(path: &Path) -> Option<FileSystem> {
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        path.to_string_lossy().contains("nfs").then_some(FileSystem::Nfs)
    }

    const HOST: Host = Host {
        shared_by_reference: nfs,
        kernel: None,
        nested: None,
        vhost_sends_by_reference: false,
    };

    fn refusals(words: &[&str]) -> Vec<Refusal> {
        let words: Vec<_> = words.iter().map(std::ffi::OsString::from).collect();
        let mut drives = Drives::default();
        Line::by_tables(&words).options.iter().for_each(|option| drives.read(option));
        drives.finish(&HOST)
    }

    #[track_caller]
    fn refused(option: &str, value: &str) -> String {
        let all = refusals(&[option, value]);
        assert!(matches!(all.as_slice(), [Refusal::DirectIo { .. }]), "{option} {value}: {all:?}");
        all[0].to_string()
    }

    #[test]
    fn direct_io_on_files_of_others_is_refused() {
        for value in [
            "file=/nfs/a.img,cache=none",
            "/nfs/a.img,cache=directsync",
            "file=/nfs/a.img,format=raw,cache.direct=on,if=virtio",
            "file=/nfs/a.img,aio=native",
            "driver=qcow2,file.driver=file,file.filename=/nfs/a,cache.direct=on",
            "driver=qcow2,file.filename=/nfs/a,file.cache.direct=on",
            "file=file:/nfs/a,cache=none",
            "file=/local,backing.file.filename=/nfs/b,cache=none",
            r#"file=json:{"driver":"raw",,"file":{"filename":"/nfs/a"}},cache=none"#,
        ] {
            refused("-drive", value);
        }
        for value in [
            r#"{"driver":"file","node-name":"n","filename":"/nfs/a","cache":{"direct":true}}"#,
            r#"{"driver":"raw","file":{"driver":"file","filename":"/nfs/a"},"cache":{"direct":true}}"#,
            r#"{"driver":"qcow2","file":"n","cache":{"direct":true},"backing":{"driver":"raw",
                "file":{"driver":"file","filename":"/nfs/b"}}}"#,
            "driver=file,node-name=n,filename=/nfs/a,cache.direct=on",
            "driver=host_device,node-name=n,filename=/nfs/a,aio=native,cache.direct=on",
        ] {
            refused("-blockdev", value);
        }
        let said = refused("-drive", "file=/nfs/a.img,cache=none");
        assert!(said.contains("/nfs/a.img, which lies on NFS"), "{said}");
        assert!(said.contains("cache=writeback"), "{said}");
    }

    #[test]
    fn other_disks_are_the_users_own() {
        for words in [
            ["-drive", "file=/nfs/a.img"],
            ["-drive", "file=/nfs/a.img,cache=writeback"],
            ["-drive", "file=/local/a.img,cache=none,aio=native"],
            ["-drive", "file=nfs://server/nfs/a.img,cache=none"],
            ["-drive", "file=/nfs/a.img,cache.direct=off"],
            ["-drive", "file.filename=/nfs/a,file.cache.direct=off,cache.direct=on"],
            ["-blockdev", r#"{"driver":"file","node-name":"n","filename":"/nfs/a"}"#],
            [
                "-blockdev",
                r#"{"driver":"raw","node-name":"n","file":"nfs","cache":{"direct":true}}"#,
            ],
            ["-hda", "/nfs/a.img"],
            ["-device", "nvme,drive=d,serial=nfs"],
        ] {
            assert_eq!(refusals(&words), [], "{words:?}");
        }
    }

    /// An image with a name in its header, and nothing else.
    fn overlay(path: &Path, base: &str) {
        let mut image = b"QFI\xfb\0\0\0\x03".to_vec();
        image.extend(104_u64.to_be_bytes());
        image.extend(u32::try_from(base.len()).unwrap().to_be_bytes());
        image.resize(104, 0);
        image.extend(base.as_bytes());
        std::fs::write(path, image).unwrap();
    }

    #[test]
    fn what_an_image_is_based_on_is_opened_alike() {
        let place = tempfile::tempdir().unwrap();
        let file = |name: &str| place.path().join(name);
        std::fs::create_dir(file("nfs")).unwrap();
        std::fs::write(file("nfs/base"), "x").unwrap();
        overlay(&file("middle"), "nfs/base");
        overlay(&file("top"), "file:middle");
        overlay(&file("json"), r#"json:{"driver":"qcow2","file":{"filename":"TOP"}}"#);
        overlay(&file("round"), "round");
        overlay(&file("url"), "https://host/nfs/base");
        for (name, expect) in
            [("top", 1), ("middle", 1), ("round", 0), ("url", 0), ("nothing", 0), ("nfs", 1)]
        {
            let direct = format!("file={},cache=none", file(name).display());
            assert_eq!(refusals(&["-drive", &direct]).len(), expect, "{name}");
            let cached = format!("file={}", file(name).display());
            assert_eq!(refusals(&["-drive", &cached]), [], "{name}");
        }
    }

    #[test]
    fn a_file_that_was_opened_before_is_looked_at_by_its_descriptor() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("nfs.img");
        std::fs::write(&path, "x").unwrap();
        let file = File::open(&path).unwrap();
        let set = format!("fd={},set=7,opaque=x", file.as_raw_fd());
        let node = r#"{"driver":"file","filename":"/dev/fdset/7","cache":{"direct":true}}"#;
        let all = refusals(&["-add-fd", &set, "-blockdev", node]);
        assert!(matches!(all.as_slice(), [Refusal::DirectIo { .. }]), "{all:?}");
        assert_eq!(refusals(&["-blockdev", node]), []);
    }
}
