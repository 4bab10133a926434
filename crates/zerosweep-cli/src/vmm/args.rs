//! What QEMU's command line says of the guest's memory, and whether it can be managed.
//!
//! Guest RAM must be one private anonymous mapping that nobody pins, shares or fills ahead: moves
//! of pages work on nothing else (DESIGN.md, section 5). Everything else is refused before the
//! VMM is started, with the option that stands in the way.
//!
//! Known holes: options in a file (`-readconfig`) are not read, so they are refused too; devices
//! that are plugged in later through QMP are not seen.

use std::ffi::OsString;

use super::options::{Properties, VmmOption, parse_size, split};

/// What QEMU gives a guest without `-m` (on the machines that matter here).
pub(crate) const DEFAULT_RAM_BYTES: u64 = 128 << 20;
/// QEMU rounds guest RAM up to this.
pub(crate) const RAM_ALIGNMENT_BYTES: u64 = 8192;

const MEBIBYTE: u64 = 1 << 20;

/// Why guest memory cannot be managed with this command line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// RAM backed by a file, a memfd or shared with another process.
    #[error(
        "{0}: guest RAM must be private anonymous memory; pages of files, memfds, huge page \
             files and shared memory cannot be moved. Leave the option out"
    )]
    NotAnonymous(String),
    /// RAM filled before the guest starts.
    #[error(
        "{0} fills guest RAM before the guest runs, which is what populate-on-demand is to \
             avoid. Leave the option out"
    )]
    Preallocated(String),
    /// RAM locked in memory.
    #[error("{0} locks guest RAM; locked pages cannot be moved. Leave the option out")]
    Locked(String),
    /// A migration's destination.
    #[error(
        "-incoming: the destination of a migration is not managed yet; start the guest here, \
             or run it without zerosweep"
    )]
    Incoming,
    /// DMA from a device that pins all of guest RAM.
    #[error(
        "{0} pins all of guest RAM; pinned pages cannot be moved. Use an emulated or virtio \
             device"
    )]
    Pins(String),
    /// Another process maps guest RAM.
    #[error(
        "{0} shares guest RAM with another process; pages that two processes map cannot be \
             moved. Use a device of QEMU itself"
    )]
    VhostUser(String),
    /// The host cannot see the guest's pages.
    #[error(
        "{0}: the memory of a confidential guest is encrypted and cannot be checked for \
             zeros or moved"
    )]
    Confidential(String),
    /// Hotplug, NUMA with several backends, DIMMs.
    #[error("{0}: guest RAM in one block only, for now")]
    SeveralBlocks(String),
    /// The VMM leaves the terminal and its parent.
    #[error(
        "-daemonize: zerosweep waits for the VMM and passes its exit status on; use a service \
             manager, or `zerosweep run … &`"
    )]
    Daemonize,
    /// Options that are not on the command line.
    #[error(
        "-readconfig: options in a file are not read by zerosweep; write them on the command \
             line"
    )]
    ReadConfig,
    /// Something that QEMU would not understand either.
    #[error("{option} {value:?}: not a size of memory")]
    BadSize {
        /// `-m` or the object.
        option: &'static str,
        /// What stands there.
        value: String,
    },
    /// `-machine memory-backend=` names nothing.
    #[error("-machine memory-backend={0}: no -object memory-backend-ram with that id")]
    NoBackend(String),
    /// `-m` and the backend differ.
    #[error("-m gives {ram}, the memory backend {backend} bytes; they must be equal")]
    BackendSize {
        /// By `-m`.
        ram: u64,
        /// By the object.
        backend: u64,
    },
}

/// What a command line says that can be managed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Analysis {
    /// Size of guest RAM.
    pub(crate) ram: Ram,
    /// The guest's name, by `-name`.
    pub(crate) name: Option<String>,
    /// The balloon device that has to be added; none when there is one.
    pub(crate) missing_balloon: Option<&'static str>,
    /// Whether the guest's console or a monitor is on the terminal.
    pub(crate) uses_terminal: bool,
}

/// Size of guest RAM in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ram {
    /// The command line says it.
    Given(u64),
    /// It does not: QEMU's own default.
    Default,
}

/// Reads the command line of `program`.
///
/// # Errors
/// The first thing in the way.
pub(crate) fn analyse(program: &str, arguments: &[OsString]) -> Result<Analysis, Refusal> {
    let mut reader =
        Reader { machine: program.contains("s390x").then_some(Machine::S390), ..Reader::default() };
    for option in split(arguments) {
        reader.read(&option)?;
    }
    reader.finish()
}

/// The guest's name by `-name`, also on a command line that cannot be managed.
pub(crate) fn name(arguments: &[OsString]) -> Option<String> {
    let options = split(arguments).into_iter().rev();
    { options }.find_map(|option| (option.name == "name").then(|| guest_in(option.value()))?)
}

/// The name in the argument of `-name`.
fn guest_in(value: &str) -> Option<String> {
    Properties::parse(value, "guest").get("guest").map(str::to_owned)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Machine {
    Microvm,
    S390,
}

/// What has been read so far.
#[derive(Default)]
struct Reader {
    ram_bytes: Option<u64>,
    name: Option<String>,
    machine: Option<Machine>,
    machine_backend: Option<String>,
    numa_backends: Vec<String>,
    backends: Vec<Backend>,
    has_balloon: bool,
    uses_terminal: bool,
}

struct Backend {
    id: String,
    size_bytes: u64,
}

impl Reader {
    fn read(&mut self, option: &VmmOption) -> Result<(), Refusal> {
        let value = option.value();
        match option.name.as_str() {
            "m" => self.memory(value)?,
            "name" => self.name = guest_in(value).or(self.name.take()),
            "M" | "machine" => self.machine(&Properties::parse(value, "type"))?,
            "object" => self.object(&Properties::parse(value, "qom-type"))?,
            "device" => self.device(&Properties::parse(value, "driver"))?,
            "numa" => {
                let properties = Properties::parse(value, "type");
                self.numa_backends.extend(properties.get("memdev").map(str::to_owned));
            }
            "netdev" | "nic" | "net" => network(&option.name, &Properties::parse(value, "type"))?,
            "mem-path" => return Err(Refusal::NotAnonymous(format!("-mem-path {value}"))),
            "mem-prealloc" => return Err(Refusal::Preallocated("-mem-prealloc".into())),
            "overcommit" => locked(option, "mem-lock")?,
            "realtime" => locked(option, "mlock")?,
            "incoming" => return Err(Refusal::Incoming),
            "daemonize" => return Err(Refusal::Daemonize),
            "readconfig" => return Err(Refusal::ReadConfig),
            "nographic" | "curses" => self.uses_terminal = true,
            "display" => self.uses_terminal |= value.starts_with("curses"),
            "serial" | "monitor" | "parallel" | "debugcon" | "qmp" | "qmp-pretty"
            | "virtioconsole" | "chardev" | "gdb" => self.uses_terminal |= is_terminal(value),
            _ => {}
        }
        Ok(())
    }

    fn memory(&mut self, value: &str) -> Result<(), Refusal> {
        let properties = Properties::parse(value, "size");
        for key in ["maxmem", "slots"] {
            if let Some(given) = properties.get(key) {
                return Err(Refusal::SeveralBlocks(format!("-m {key}={given} (memory hotplug)")));
            }
        }
        if let Some(size) = properties.get("size") {
            let bytes = parse_size(size, MEBIBYTE)
                .and_then(|bytes| bytes.checked_next_multiple_of(RAM_ALIGNMENT_BYTES))
                .ok_or_else(|| Refusal::BadSize { option: "-m", value: size.to_owned() })?;
            // QEMU takes 0 for its default.
            self.ram_bytes = Some(if bytes == 0 { DEFAULT_RAM_BYTES } else { bytes });
        }
        Ok(())
    }

    fn machine(&mut self, properties: &Properties) -> Result<(), Refusal> {
        for key in ["confidential-guest-support", "memory-encryption"] {
            if let Some(value) = properties.get(key) {
                return Err(Refusal::Confidential(format!("-machine {key}={value}")));
            }
        }
        match properties.get("type") {
            Some(name) if name.starts_with("microvm") => self.machine = Some(Machine::Microvm),
            Some(name) if name.starts_with("s390") => self.machine = Some(Machine::S390),
            _ => {}
        }
        let backend = properties.get("memory-backend").map(str::to_owned);
        self.machine_backend = backend.or(self.machine_backend.take());
        Ok(())
    }

    fn object(&mut self, properties: &Properties) -> Result<(), Refusal> {
        let kind = properties.get("qom-type").unwrap_or_default();
        if matches!(
            kind,
            "sev-guest" | "sev-snp-guest" | "tdx-guest" | "s390-pv-guest" | "pef-guest"
        ) {
            return Err(Refusal::Confidential(format!("-object {kind}")));
        }
        if !kind.starts_with("memory-backend-") {
            return Ok(());
        }
        let object = |detail: &str| format!("-object {kind}{detail}");
        if properties.is_on("hugetlb") {
            return Err(Refusal::NotAnonymous(object(",hugetlb=on")));
        }
        if kind != "memory-backend-ram" {
            return Err(Refusal::NotAnonymous(object("")));
        }
        if properties.is_on("share") {
            return Err(Refusal::NotAnonymous(object(",share=on")));
        }
        if properties.is_on("prealloc") {
            return Err(Refusal::Preallocated(object(",prealloc=on")));
        }
        let size = properties.get("size").unwrap_or_default();
        let size_bytes = parse_size(size, 1)
            .ok_or_else(|| Refusal::BadSize { option: "-object …,size=", value: size.into() })?;
        let id = properties.get("id").unwrap_or_default().to_owned();
        self.backends.push(Backend { id, size_bytes });
        Ok(())
    }

    fn device(&mut self, properties: &Properties) -> Result<(), Refusal> {
        let driver = properties.get("driver").unwrap_or_default();
        let device = || format!("-device {driver}");
        if driver.starts_with("vfio-") || driver.starts_with("vhost-vdpa-") {
            return Err(Refusal::Pins(device()));
        }
        if driver.starts_with("vhost-user-") {
            return Err(Refusal::VhostUser(device()));
        }
        if matches!(driver, "pc-dimm" | "nvdimm") || driver.starts_with("virtio-mem") {
            return Err(Refusal::SeveralBlocks(device()));
        }
        self.has_balloon |= driver.starts_with("virtio-balloon");
        Ok(())
    }

    fn finish(self) -> Result<Analysis, Refusal> {
        let missing_balloon = match (self.has_balloon, self.machine) {
            (true, _) => None,
            (false, None) => Some("virtio-balloon-pci"),
            (false, Some(Machine::Microvm)) => Some("virtio-balloon-device"),
            (false, Some(Machine::S390)) => Some("virtio-balloon-ccw"),
        };
        let ram = match self.ram_bytes_with_backend()? {
            Some(bytes) => Ram::Given(bytes),
            None => Ram::Default,
        };
        let uses_terminal = self.uses_terminal;
        Ok(Analysis { ram, name: self.name, missing_balloon, uses_terminal })
    }

    /// Guest RAM in bytes, where `-m` or the backend says it.
    fn ram_bytes_with_backend(&self) -> Result<Option<u64>, Refusal> {
        if let Some(id) = &self.machine_backend
            && !self.backends.iter().any(|backend| backend.id == *id)
        {
            return Err(Refusal::NoBackend(id.clone()));
        }
        let backend = match self.backends.as_slice() {
            [] => return Ok(self.ram_bytes),
            [backend] => backend,
            [.., last] => {
                let what = format!("-object memory-backend-ram,id={} is a further block", last.id);
                return Err(Refusal::SeveralBlocks(what));
            }
        };
        let by_machine = self.machine_backend.is_some();
        if !by_machine && !self.numa_backends.contains(&backend.id) {
            let what =
                format!("-object memory-backend-ram,id={} is not the guest's RAM", backend.id);
            return Err(Refusal::SeveralBlocks(what));
        }
        // With `-machine memory-backend=` and no `-m`, QEMU takes the backend's size.
        let ram = match self.ram_bytes {
            None if by_machine => backend.size_bytes,
            None => DEFAULT_RAM_BYTES,
            Some(bytes) => bytes,
        };
        if ram != backend.size_bytes {
            return Err(Refusal::BackendSize { ram, backend: backend.size_bytes });
        }
        Ok(Some(ram))
    }
}

fn network(option: &str, properties: &Properties) -> Result<(), Refusal> {
    match properties.get("type") {
        Some("vhost-user") => Err(Refusal::VhostUser(format!("-{option} vhost-user"))),
        Some("vhost-vdpa") => Err(Refusal::Pins(format!("-{option} vhost-vdpa"))),
        _ => Ok(()),
    }
}

fn locked(option: &VmmOption, key: &str) -> Result<(), Refusal> {
    match Properties::parse(option.value(), "").get(key) {
        None | Some("off" | "no" | "false" | "n") => Ok(()),
        Some(value) => Err(Refusal::Locked(format!("-{} {key}={value}", option.name))),
    }
}

/// Whether a character device is the terminal that zerosweep runs on.
fn is_terminal(device: &str) -> bool {
    let device = device.strip_prefix("mon:").unwrap_or(device);
    let properties = Properties::parse(device, "backend");
    properties.get("backend") == Some("stdio")
        || ["/dev/stdout", "/dev/stderr", "/dev/tty"]
            .iter()
            .any(|path| properties.get("path") == Some(path) || device == format!("file:{path}"))
        || device == "/dev/tty"
}

#[cfg(test)]
mod tests;
