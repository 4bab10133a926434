//! Reads from QEMU's command line whether the guest's memory can be managed.
//!
//! Guest RAM must be one private anonymous mapping that nothing pins, shares or fills before the
//! guest runs: moves of pages work on nothing else (docs/hosts.md). Everything else is refused
//! before the VMM is started, and the error names all options that are the reason.
//!
//! | module | what |
//! | --- | --- |
//! | `refusal` | each reason |
//! | `memory` | guest RAM, and which block it is |
//! | `drives` | disks whose I/O a move would damage |
//! | `cpu` | guests of the guest, asynchronous page faults |
//!
//! Options in a file (`-readconfig`) count like all others. Known hole: devices that are plugged in
//! later through QMP are not seen.

mod cpu;
mod drives;
mod memory;
mod refusal;

use serde_json::Value;

use self::cpu::Cpu;
use self::drives::Drives;
use self::memory::Memory;
pub(crate) use self::refusal::{Refusal, Refusals};
use super::host::Host;
use super::options::{Line, Properties, Unread, VmmOption};

/// The memory of a guest without `-m` (on the machines that matter here).
pub(crate) const DEFAULT_RAM_BYTES: u64 = 128 << 20;
/// QEMU rounds guest RAM up to this.
pub(crate) const RAM_ALIGNMENT_BYTES: u64 = 8192;

const MEBIBYTE: u64 = 1 << 20;

/// A command line that can be managed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Analysis {
    /// Size of guest RAM.
    pub(crate) ram: Ram,
    /// The guest's name, by `-name`.
    pub(crate) name: Option<String>,
    /// The balloon device that has to be added; none when there is one, or no place for it.
    pub(crate) missing_balloon: Option<&'static str>,
    /// The machine without a bus for a balloon device, if it is one.
    pub(crate) without_bus: Option<&'static str>,
    /// Further words for QEMU about the virtual CPU.
    pub(crate) cpu_options: Vec<String>,
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
/// All reasons against it.
pub(crate) fn analyse(program: &str, line: &Line, host: &Host) -> Result<Analysis, Refusals> {
    let mut reader = Reader {
        machine: program.contains("s390x").then_some(Machine::S390),
        cpu: Cpu::of(program),
        ..Reader::default()
    };
    for option in &line.options {
        if let Err(refusal) = reader.read(option) {
            reader.refusals.push(refusal);
        }
    }
    let unread = |Unread { origin, why }| Refusal::Unread { origin, why };
    reader.refusals.extend(line.unread.iter().cloned().map(unread));
    reader.finish(program, host)
}

/// The guest's name by `-name`, also on a command line that cannot be managed.
pub(crate) fn name(line: &Line) -> Option<String> {
    let mut options = line.options.iter().rev();
    options.find_map(|option| (option.name == "name").then(|| guest_in(option.value()))?)
}

/// The name in the argument of `-name`.
fn guest_in(value: &str) -> Option<String> {
    Properties::parse(value, "guest").get("guest").map(str::to_owned)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Machine {
    Microvm,
    S390,
    /// Without PCI.
    Isa,
}

/// What has been read so far.
#[derive(Default)]
struct Reader {
    refusals: Vec<Refusal>,
    name: Option<String>,
    machine: Option<Machine>,
    memory: Memory,
    drives: Drives,
    cpu: Cpu,
    has_balloon: bool,
    uses_terminal: bool,
    /// The first network device of vhost-net.
    vhost: Option<String>,
}

impl Reader {
    fn read(&mut self, option: &VmmOption) -> Result<(), Refusal> {
        let value = option.value();
        self.drives.read(option);
        self.cpu.read(option);
        match option.name.as_str() {
            "m" => self.memory.size(&Properties::parse(value, "size"))?,
            "name" => self.name = guest_in(value).or(self.name.take()),
            "M" | "machine" => self.machine(&Properties::parse(value, "type"))?,
            "object" => self.object(Properties::parse(value, "qom-type"))?,
            "device" => self.device(&Properties::parse(value, "driver"))?,
            "balloon" => self.has_balloon |= value.starts_with("virtio"),
            "numa" => self.memory.node(&Properties::parse(value, "type")),
            "global" => global(value)?,
            "netdev" | "nic" | "net" => {
                self.network(option, &Properties::parse(value, "type"))?;
            }
            "mem-path" => return Err(Refusal::NotAnonymous(format!("-mem-path {value}"))),
            "mem-prealloc" => return Err(Refusal::Preallocated("-mem-prealloc".into())),
            "overcommit" => locked(option, "mem-lock")?,
            "realtime" => locked(option, "mlock")?,
            "incoming" if is_rdma(value) => {
                return Err(Refusal::Pins(format!("-incoming {value}")));
            }
            "daemonize" => return Err(Refusal::Daemonize),
            "nographic" | "curses" => self.uses_terminal = true,
            "display" => self.uses_terminal |= value.starts_with("curses"),
            "serial" | "monitor" | "parallel" | "debugcon" | "qmp" | "qmp-pretty"
            | "virtioconsole" | "chardev" | "gdb" => self.uses_terminal |= is_terminal(value),
            _ => {}
        }
        Ok(())
    }

    fn machine(&mut self, properties: &Properties) -> Result<(), Refusal> {
        match properties.get("type") {
            Some(name) if name.starts_with("microvm") => self.machine = Some(Machine::Microvm),
            Some(name) if name.starts_with("s390") => self.machine = Some(Machine::S390),
            Some("isapc") => self.machine = Some(Machine::Isa),
            Some(_) | None => {}
        }
        self.memory.machine(properties);
        for key in ["confidential-guest-support", "memory-encryption"] {
            if let Some(value) = properties.get(key) {
                return Err(Refusal::Confidential(format!("-machine {key}={value}")));
            }
        }
        Ok(())
    }

    fn object(&mut self, properties: Properties) -> Result<(), Refusal> {
        let kind = properties.get("qom-type").unwrap_or_default().to_owned();
        if matches!(
            kind.as_str(),
            "sev-guest" | "sev-snp-guest" | "tdx-guest" | "s390-pv-guest" | "pef-guest"
        ) {
            return Err(Refusal::Confidential(format!("-object {kind}")));
        }
        if kind.starts_with("memory-backend-") {
            self.memory.backend(&kind, properties);
        }
        Ok(())
    }

    fn device(&mut self, properties: &Properties) -> Result<(), Refusal> {
        let driver = properties.get("driver").unwrap_or_default();
        let device = || format!("-device {driver}");
        if driver.starts_with("vfio-") || driver.starts_with("vhost-vdpa-") || driver == "pvrdma" {
            return Err(Refusal::Pins(device()));
        }
        if driver.starts_with("vhost-scsi") {
            return Err(Refusal::References(device()));
        }
        if driver.starts_with("vhost-user-") || driver == "x-pci-proxy-dev" {
            return Err(Refusal::VhostUser(device()));
        }
        if matches!(driver, "pc-dimm" | "nvdimm") || driver.starts_with("virtio-mem") {
            return Err(Refusal::SeveralBlocks(device()));
        }
        self.has_balloon |= driver.starts_with("virtio-balloon");
        Ok(())
    }

    fn network(&mut self, option: &VmmOption, properties: &Properties) -> Result<(), Refusal> {
        let what = |kind: &str| format!("-{} {kind}", option.name);
        match properties.get("type") {
            Some("vhost-user") => return Err(Refusal::VhostUser(what("vhost-user"))),
            Some("vhost-vdpa") => return Err(Refusal::Pins(what("vhost-vdpa"))),
            _ => {}
        }
        let by_kernel = ["vhostfd", "vhostfds"].iter().any(|key| properties.get(key).is_some());
        if properties.is_on("vhost") || properties.is_on("vhostforce") || by_kernel {
            self.vhost.get_or_insert_with(|| what(option.value()));
        }
        Ok(())
    }

    fn finish(self, program: &str, host: &Host) -> Result<Analysis, Refusals> {
        let (bytes, of_memory) = self.memory.finish();
        let mut refusals = self.refusals;
        refusals.extend(of_memory);
        refusals.extend(self.drives.finish(host));
        refusals.extend(self.cpu.nested(host));
        if host.vhost_sends_by_reference {
            refusals.extend(self.vhost.map(Refusal::Vhost));
        }
        if !refusals.is_empty() {
            return Err(Refusals(refusals));
        }
        let (missing_balloon, without_bus) = match (self.has_balloon, self.machine) {
            (true, _) => (None, None),
            (false, None) => (Some("virtio-balloon-pci"), None),
            (false, Some(Machine::Microvm)) => (Some("virtio-balloon-device"), None),
            (false, Some(Machine::S390)) => (Some("virtio-balloon-ccw"), None),
            (false, Some(Machine::Isa)) => (None, Some("isapc")),
        };
        Ok(Analysis {
            ram: bytes.map_or(Ram::Default, Ram::Given),
            name: self.name,
            missing_balloon,
            without_bus,
            cpu_options: self.cpu.without_asynchronous_faults(program),
            uses_terminal: self.uses_terminal,
        })
    }
}

/// `-global migration.zero-copy-send=on`, in both of its forms.
fn global(value: &str) -> Result<(), Refusal> {
    let properties = Properties::parse(value, "");
    let (name, switch) = match (properties.get("driver"), properties.get("property")) {
        (Some(driver), Some(property)) => (format!("{driver}.{property}"), "value"),
        _ => match value.split_once('=') {
            Some((name, _)) => (name.to_owned(), name),
            None => return Ok(()),
        },
    };
    let is_zero_copy =
        name.starts_with("migration.") && name.replace('_', "-").contains("zero-copy-send");
    if is_zero_copy && properties.is_on(switch) {
        Err(Refusal::ZeroCopy(format!("-global {value}")))
    } else {
        Ok(())
    }
}

/// Whether a migration arrives by RDMA, whose device writes to guest RAM: `rdma:HOST:PORT`, or a
/// channel in JSON (QEMU 8.2).
fn is_rdma(source: &str) -> bool {
    let channel: Value = serde_json::from_str(source).unwrap_or_default();
    source.starts_with("rdma:") || channel["addr"]["transport"] == "rdma"
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
