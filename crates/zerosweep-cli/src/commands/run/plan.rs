//! What will be run, or why not.
//!
//! Nothing in here changes anything: a plan that is refused leaves no trace.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use zerosweep_client::error::Failure;
use zerosweep_client::runtime::GuestFiles;
use zerosweep_client::size::{PAGE_BYTES, Size};
use zerosweep_wire::{
    AgentConfig, BeforeStart, CONFIG_VARIABLE, EventDetail, Follow, OnExhaustion, PROTOCOL,
    ReturnMode,
};

use crate::agent;
use crate::cli::RunArguments;
use crate::console::Terminal;
use crate::vmm::args::{self, Analysis, DEFAULT_RAM_BYTES, RAM_ALIGNMENT_BYTES, Ram};
use crate::vmm::host::Host;
use crate::vmm::options::{self, Help, Line};
use crate::vmm::{elf, monitors, program, queries};

/// VMMs whose command line is another one.
const OTHER_VMMS: [&str; 5] = ["cloud-hypervisor", "crosvm", "firecracker", "kvmtool", "lkvm"];

/// The target until the other tool sets it: enough for what the firmware writes before the guest
/// runs, and no more. A target is easily raised, but it is lowered only as the guest gives pages
/// back.
const FIRST_TARGET: Size = Size(64 << 20);

/// A Linux guest describes each page of 4 KiB with 64 bytes, from the moment on that it boots.
const DESCRIBED_BY_ONE: u64 = 64;
/// What a distribution's kernel and its initramfs take besides.
const KERNEL_BYTES: u64 = 60 << 20;

/// The id of the balloon device that is added.
pub(super) const BALLOON: &str = "zerosweep-balloon";

/// What is to be run, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    /// The guest's name; else the VMM's own.
    pub(crate) name: Option<&'a str>,
    /// What the guest may hold; `None` where the requests of the tool at these monitors say it.
    pub(crate) target: Option<Size>,
    /// What the guest is told that it has; else the VMM's own.
    pub(crate) max_mem: Option<Size>,
    pub(crate) policy: &'a str,
    pub(crate) on_exhaustion: OnExhaustion,
    pub(crate) return_mode: ReturnMode,
    /// The file that events are recorded in.
    pub(crate) events: Option<&'a Path>,
    pub(crate) event_detail: EventDetail,
    /// The VMM and its arguments.
    pub(crate) vmm: &'a [OsString],
    /// Whether another tool manages the VMM and asks its balloon.
    pub(crate) managed_by: ManagedBy,
}

/// Which program asks the guest's balloon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ManagedBy {
    /// Only zerosweep.
    Us,
    /// Another tool with a QMP socket of its own, such as libvirt.
    AnotherTool,
}

impl<'a> From<&'a RunArguments> for Wanted<'a> {
    fn from(arguments: &'a RunArguments) -> Self {
        Self {
            name: arguments.name.as_deref(),
            target: Some(arguments.target),
            max_mem: arguments.max_mem,
            policy: &arguments.policy,
            on_exhaustion: arguments.on_exhaustion.0,
            return_mode: arguments.return_mode.0,
            events: arguments.record.as_deref().or(arguments.events.as_deref()),
            event_detail: match &arguments.record {
                Some(_) => EventDetail::Guest,
                None => EventDetail::Xen,
            },
            vmm: &arguments.vmm,
            managed_by: ManagedBy::Us,
        }
    }
}

/// A VMM that can be started.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The program file.
    pub(crate) program: PathBuf,
    /// The program as the user named it.
    pub(crate) program_name: OsString,
    /// The user's arguments and ours.
    pub(crate) arguments: Vec<OsString>,
    /// Whether QEMU is only asked what it can do.
    pub(crate) only_asks: bool,
    /// The library to preload.
    pub(crate) agent: PathBuf,
    /// The agent's configuration.
    pub(crate) config: AgentConfig,
    /// The guest's files.
    pub(crate) files: GuestFiles,
    /// What else writes to the terminal.
    pub(crate) terminal: Terminal,
    /// What a person should know before the VMM is started.
    pub(crate) notes: Vec<String>,
}

impl Plan {
    /// Understands the command line.
    ///
    /// # Errors
    /// Wrong usage, with the reason; a missing agent is a failure of the work.
    pub(crate) fn new(wanted: &Wanted<'_>, directory: &Path) -> Result<Self, Failure> {
        let [program_name, vmm_arguments @ ..] = wanted.vmm else {
            return Err(Failure::usage("no VMM given: zerosweep run … -- VMM ARGS"));
        };
        let name = program_name.to_string_lossy();
        let file_name = Path::new(program_name).file_name().unwrap_or_default();
        if OTHER_VMMS.iter().any(|other| file_name == *other) {
            let message = format!("{name}: only QEMU's command line is understood, for now");
            return Err(Failure::usage(message));
        }
        let path = std::env::var_os("PATH");
        let program = program::find(program_name, path.as_deref());
        let line = Line::read(vmm_arguments, || Help::of(program.as_deref().ok()?));
        let mut analysis = args::analyse(&name, &line, &Host::this())
            .map_err(|refusals| Failure::usage(format!("cannot manage this guest: {refusals}")))?;
        let max_mem = max_mem(wanted.max_mem, analysis.ram)?;
        let follow = follow(wanted, &line, &analysis);
        let target = match (wanted.target, &follow) {
            (Some(target), _) => target,
            (None, Some(_)) => FIRST_TARGET.min(max_mem),
            (None, None) => max_mem,
        };
        check_target(target, max_mem)?;

        let program = program.map_err(Failure::usage)?;
        elf::check(&program)
            .map_err(|error| Failure::usage(format!("{}: {error}", program.display())))?;
        analysis.cpu_options = known_options(analysis.cpu_options, &program);
        let guest = guest_name(wanted.name, &analysis);
        let files = GuestFiles::new(directory, &guest)?;
        let agent = agent::find()?;

        let config = AgentConfig {
            protocol: PROTOCOL,
            name: guest,
            max_mem_bytes: max_mem.0,
            target_bytes: target.0,
            policy: wanted.policy.to_owned(),
            on_exhaustion: wanted.on_exhaustion,
            return_mode: wanted.return_mode,
            socket: files.socket.clone(),
            unlink_at_exit: vec![files.socket.clone(), files.qmp.clone()],
            follow,
            // The VMM may be somewhere else when it is opened.
            events: wanted.events.map(std::path::absolute).transpose().map_err(|error| {
                Failure::work(format!("cannot find the current directory: {error}"))
            })?,
            event_detail: wanted.event_detail,
        };
        let mut all = vmm_arguments.to_vec();
        all.extend(additions(&analysis, max_mem, &files));
        let terminal = if analysis.uses_terminal { Terminal::Shared } else { Terminal::Ours };
        let program_name = program_name.clone();
        let without_bus = analysis.without_bus.map(|machine| {
            format!(
                "the machine {machine} has no bus for a balloon device: the guest is not asked to \
                 give memory back, and has what zero pages it leaves"
            )
        });
        let too_little = wanted.target.and_then(|target| too_little_to_boot(target, max_mem));
        let notes = without_bus.into_iter().chain(too_little).collect();
        Ok(Self {
            program,
            program_name,
            arguments: all,
            only_asks: queries::only_asks(&line),
            agent,
            config,
            files,
            terminal,
            notes,
        })
    }

    /// The same without the balloon device that was added; `None` if none was.
    pub(super) fn without_balloon(mut self) -> Option<Self> {
        let own = format!(",id={BALLOON}");
        let at = self.arguments.iter().position(|word| word.to_string_lossy().ends_with(&own))?;
        self.arguments.drain(at.checked_sub(1)?..=at);
        Some(self)
    }

    /// The VMM's command, with the agent preloaded.
    ///
    /// # Errors
    /// When the agent's settings cannot be written.
    pub(crate) fn command(&self) -> Result<Command, Failure> {
        let config = serde_json::to_string(&self.config).map_err(|error| {
            Failure::work(format!("cannot write the agent's settings: {error}"))
        })?;
        let mut preload = std::env::var_os("LD_PRELOAD").unwrap_or_default();
        if !preload.is_empty() {
            preload.push(":");
        }
        preload.push(&self.agent);
        let mut command = Command::new(&self.program);
        command
            .arg0(&self.program_name)
            .args(&self.arguments)
            .env("LD_PRELOAD", preload)
            .env(CONFIG_VARIABLE, config);
        Ok(command)
    }

    /// The command line for people.
    pub(super) fn shown(&self) -> String {
        let words = std::iter::once(self.program.as_os_str())
            .chain(self.arguments.iter().map(OsString::as_os_str));
        words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
    }
}

/// Returns the tool whose requests the target follows. The other tool must have given the VMM a
/// balloon and a monitor; without them it sends no request that could be followed.
fn follow(wanted: &Wanted<'_>, line: &Line, analysis: &Analysis) -> Option<Follow> {
    let has_no_balloon = analysis.missing_balloon.is_some() || analysis.without_bus.is_some();
    if wanted.managed_by == ManagedBy::Us || has_no_balloon {
        return None;
    }
    let monitors = monitors::paths(line);
    let before_start = match wanted.target {
        Some(_) => BeforeStart::Nothing,
        None => BeforeStart::Target,
    };
    (!monitors.is_empty()).then_some(Follow { monitors, before_start })
}

/// Size of guest RAM: the VMM's own, which `--max-mem` may repeat or stand in for.
fn max_mem(given: Option<Size>, ram: Ram) -> Result<Size, Failure> {
    match (given, ram) {
        (None, Ram::Given(bytes)) => Ok(Size(bytes)),
        (None, Ram::Default) => Ok(Size(DEFAULT_RAM_BYTES)),
        (Some(given), Ram::Given(bytes)) if given.0 == bytes => Ok(given),
        (Some(given), Ram::Given(bytes)) => Err(Failure::usage(format!(
            "--max-mem {given} and the VMM's own memory size ({}) must be equal; leave one of \
             them out",
            Size(bytes)
        ))),
        (Some(Size(0)), Ram::Default) => Err(Failure::usage("--max-mem 0: a guest needs memory")),
        (Some(given), Ram::Default) if !given.0.is_multiple_of(RAM_ALIGNMENT_BYTES) => {
            Err(Failure::usage(format!(
                "--max-mem {given}: must be a multiple of {} for QEMU",
                Size(RAM_ALIGNMENT_BYTES)
            )))
        }
        (Some(given), Ram::Default) => Ok(given),
    }
}

/// [R2]: 0 < T ≤ M, in whole pages.
///
/// [R2]: zerosweep::rules#r2
fn check_target(target: Size, max_mem: Size) -> Result<(), Failure> {
    let refuse = |why: String| Err(Failure::usage(format!("--target {target}: {why}")));
    if target.0 == 0 {
        return refuse("a guest needs memory; the target must be above 0".into());
    }
    if !target.is_whole_pages() {
        return refuse(format!("not a multiple of {} (a page)", Size(PAGE_BYTES)));
    }
    if target > max_mem {
        return refuse(format!("above the guest's memory size ({max_mem})"));
    }
    Ok(())
}

/// What to tell of a target in which a Linux guest does not boot.
fn too_little_to_boot(target: Size, max_mem: Size) -> Option<String> {
    let descriptors = max_mem.0 / DESCRIBED_BY_ONE;
    let needed = Size((descriptors + KERNEL_BYTES).next_multiple_of(1 << 20));
    (target < needed && target < max_mem).then(|| {
        format!(
            "--target {target} may be too little to boot in: a Linux guest of {max_mem} needs \
             some {needed}, {} of it to describe its pages. If it waits for memory, raise its \
             target",
            Size(descriptors)
        )
    })
}

fn guest_name(given: Option<&str>, analysis: &Analysis) -> String {
    let valid = |name: &&str| zerosweep_wire::runtime::check_name(name).is_ok();
    given
        .or_else(|| analysis.name.as_deref().filter(valid))
        .map_or_else(|| format!("guest-{}", std::process::id()), str::to_owned)
}

/// Those of the options `-global CLASS.PROPERTY=off` whose property this program knows. QEMU does
/// not start with another one. Behind a script there may be any program.
fn known_options(options: Vec<String>, program: &Path) -> Vec<String> {
    if options.is_empty() || elf::is_script(program) {
        return options;
    }
    let Ok(text) = std::fs::read(program) else { return options };
    let is_known = |option: &[String]| {
        let property = option.last().and_then(|word| word.split(['.', '=']).nth(1));
        property.is_some_and(|name| {
            let name = format!("\0{name}\0");
            memchr::memmem::find(&text, name.as_bytes()).is_some()
        })
    };
    options.chunks(2).filter(|option| is_known(option)).flatten().cloned().collect()
}

/// Returns the arguments that are added to those of the user.
fn additions(analysis: &Analysis, max_mem: Size, files: &GuestFiles) -> Vec<OsString> {
    let mut words = Vec::new();
    if analysis.ram == Ram::Default && max_mem.0 != DEFAULT_RAM_BYTES {
        words.push("-m".to_owned());
        words.push(format!("{}K", max_mem.0 >> 10));
    }
    if let Some(device) = analysis.missing_balloon {
        words.push("-device".to_owned());
        words.push(format!("{device},id={BALLOON}"));
    }
    words.extend(analysis.cpu_options.iter().cloned());
    let mut words: Vec<OsString> = words.into_iter().map(OsString::from).collect();
    let socket = options::escape_commas(&files.qmp.to_string_lossy());
    words.push("-qmp".into());
    words.push(format!("unix:{socket},server=on,wait=off").into());
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    #[test]
    fn a_target_in_which_no_linux_boots_is_told() {
        let note = |target: u64, max: u64| too_little_to_boot(Size(target), Size(max));
        let said = note(80 * MIB, 2 * GIB).unwrap();
        assert!(said.contains("--target 80M") && said.contains("a Linux guest of 2G"), "{said}");
        assert!(said.contains("some 92M, 32M of it"), "{said}");
        assert_eq!(note(92 * MIB, 2 * GIB), None);
        // A small guest that has all of its memory is its owner's business.
        assert_eq!(note(32 * MIB, 32 * MIB), None);
    }

    fn analysis(ram: Ram, name: Option<&str>, missing_balloon: Option<&'static str>) -> Analysis {
        let name = name.map(str::to_owned);
        Analysis {
            ram,
            name,
            missing_balloon,
            without_bus: None,
            cpu_options: Vec::new(),
            uses_terminal: false,
        }
    }

    #[test]
    fn max_mem_is_the_vmms_own() {
        assert_eq!(max_mem(None, Ram::Given(GIB)).unwrap(), Size(GIB));
        assert_eq!(max_mem(None, Ram::Default).unwrap(), Size(128 << 20));
        assert_eq!(max_mem(Some(Size(GIB)), Ram::Given(GIB)).unwrap(), Size(GIB));
        assert_eq!(max_mem(Some(Size(GIB)), Ram::Default).unwrap(), Size(GIB));
        let error = max_mem(Some(Size(GIB)), Ram::Given(2 * GIB)).unwrap_err().to_string();
        assert!(error.contains("1G") && error.contains("2G") && error.contains("equal"), "{error}");
        assert!(max_mem(Some(Size(4096)), Ram::Default).is_err());
        assert!(max_mem(Some(Size(0)), Ram::Default).is_err());
    }

    #[test]
    fn the_target_is_whole_pages_within_max_mem() {
        check_target(Size(4096), Size(GIB)).unwrap();
        check_target(Size(GIB), Size(GIB)).unwrap();
        for target in [0, 4095, GIB + 4096] {
            assert!(check_target(Size(target), Size(GIB)).is_err(), "{target}");
        }
    }

    #[test]
    fn requests_are_followed_where_another_tool_can_make_them() {
        let words = "qemu -qmp unix:/m,server=on".split(' ').map(OsString::from);
        let words: Vec<_> = words.collect();
        let wanted = |managed_by, target| Wanted {
            name: None,
            target,
            max_mem: None,
            policy: "zerosweep",
            on_exhaustion: OnExhaustion::Stall,
            return_mode: ReturnMode::Lazy,
            events: None,
            event_detail: EventDetail::Xen,
            vmm: &words,
            managed_by,
        };
        let with_balloon = analysis(Ram::Default, None, None);
        let line = Line::by_tables(&words[1..]);
        let other = wanted(ManagedBy::AnotherTool, None);
        let monitors = vec![PathBuf::from("/m")];
        let expect = |before_start| Some(Follow { monitors: monitors.clone(), before_start });
        assert_eq!(follow(&other, &line, &with_balloon), expect(BeforeStart::Target));
        let given = wanted(ManagedBy::AnotherTool, Some(Size(4096)));
        assert_eq!(follow(&given, &line, &with_balloon), expect(BeforeStart::Nothing));
        assert_eq!(follow(&wanted(ManagedBy::Us, None), &line, &with_balloon), None);
        let without = analysis(Ram::Default, None, Some("virtio-balloon-pci"));
        assert_eq!(follow(&other, &line, &without), None);
    }

    #[test]
    fn names() {
        let named = analysis(Ram::Default, Some("vm1"), None);
        assert_eq!(guest_name(None, &named), "vm1");
        assert_eq!(guest_name(Some("x"), &named), "x");
        let pid_name = format!("guest-{}", std::process::id());
        assert_eq!(guest_name(None, &analysis(Ram::Default, None, None)), pid_name);
        assert_eq!(guest_name(None, &analysis(Ram::Default, Some("a b"), None)), pid_name);
    }

    #[test]
    fn a_property_that_the_program_does_not_know_is_not_set() {
        let options = ["-global", "x86_64-cpu.kvm-asyncpf=off", "-global", "x86_64-cpu.later=off"];
        let options: Vec<String> = options.map(str::to_owned).into();
        let place = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &[u8]| {
            let path = place.path().join(name);
            std::fs::write(&path, text).unwrap();
            known_options(options.clone(), &path)
        };
        assert_eq!(file("qemu", b"\x7fELF\0kvm-asyncpf\0later-one\0"), options[..2]);
        assert_eq!(file("old", b"\x7fELF\0kvm-asyncpf-int\0"), [""; 0]);
        assert_eq!(file("script", b"#!/bin/sh\n"), options);
    }

    #[test]
    fn only_what_is_missing_is_added() {
        let files = GuestFiles::new(Path::new("/run/a,b"), "vm").unwrap();
        let qmp = ["-qmp", "unix:/run/a,,b/vm.qmp,server=on,wait=off"];
        let full = analysis(Ram::Given(GIB), None, None);
        assert_eq!(additions(&full, Size(GIB), &files), qmp);
        let bare = analysis(Ram::Default, None, Some("virtio-balloon-pci"));
        let expect = ["-m", "1048576K", "-device", "virtio-balloon-pci,id=zerosweep-balloon"];
        assert_eq!(additions(&bare, Size(GIB), &files), [expect.as_slice(), &qmp].concat());
        let default = analysis(Ram::Default, None, None);
        assert_eq!(additions(&default, Size(DEFAULT_RAM_BYTES), &files), qmp);
    }
}
