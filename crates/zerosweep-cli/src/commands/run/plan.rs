//! What will be run, or why not.
//!
//! Nothing in here changes anything: a plan that is refused leaves no trace.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use zerosweep_wire::{AgentConfig, PROTOCOL};

use crate::agent;
use crate::cli::RunArguments;
use crate::console::Terminal;
use crate::error::Failure;
use crate::runtime::GuestFiles;
use crate::size::{PAGE_BYTES, Size};
use crate::vmm::args::{self, Analysis, DEFAULT_RAM_BYTES, RAM_ALIGNMENT_BYTES, Ram};
use crate::vmm::{elf, options, program};

/// VMMs whose command line is another one.
const OTHER_VMMS: [&str; 5] = ["cloud-hypervisor", "crosvm", "firecracker", "kvmtool", "lkvm"];

/// A VMM that can be started.
#[derive(Debug)]
pub(super) struct Plan {
    /// The program file.
    pub(super) program: PathBuf,
    /// The program as the user named it.
    pub(super) program_name: OsString,
    /// The user's arguments and ours.
    pub(super) arguments: Vec<OsString>,
    /// The library to preload.
    pub(super) agent: PathBuf,
    /// What it is told.
    pub(super) config: AgentConfig,
    /// The guest's files.
    pub(super) files: GuestFiles,
    /// Who else writes to the terminal.
    pub(super) terminal: Terminal,
}

impl Plan {
    /// Understands the command line.
    ///
    /// # Errors
    /// Wrong usage, with the reason; a missing agent is a failure of the work.
    pub(super) fn new(arguments: &RunArguments, directory: &Path) -> Result<Self, Failure> {
        let [program_name, vmm_arguments @ ..] = arguments.vmm.as_slice() else {
            return Err(Failure::usage("no VMM given: zerosweep run … -- VMM ARGS"));
        };
        let name = program_name.to_string_lossy();
        let file_name = Path::new(program_name).file_name().unwrap_or_default();
        if OTHER_VMMS.iter().any(|other| file_name == *other) {
            let message = format!("{name}: only QEMU's command line is understood, for now");
            return Err(Failure::usage(message));
        }
        let analysis = args::analyse(&name, vmm_arguments)
            .map_err(|refusal| Failure::usage(format!("cannot manage this guest: {refusal}")))?;
        let max_mem = max_mem(arguments.max_mem, analysis.ram)?;
        check_target(arguments.target, max_mem)?;

        let path = std::env::var_os("PATH");
        let program = program::find(program_name, path.as_deref()).map_err(Failure::usage)?;
        elf::check(&program)
            .map_err(|error| Failure::usage(format!("{}: {error}", program.display())))?;
        let guest = guest_name(arguments.name.as_deref(), &analysis);
        let files = GuestFiles::new(directory, &guest)?;
        let agent = agent::find()?;

        let config = AgentConfig {
            protocol: PROTOCOL,
            name: guest,
            max_mem_bytes: max_mem.0,
            target_bytes: arguments.target.0,
            policy: arguments.policy.clone(),
            on_exhaustion: arguments.on_exhaustion.into(),
            return_mode: arguments.return_mode.into(),
            socket: files.socket.clone(),
            unlink_at_exit: vec![files.socket.clone(), files.qmp.clone()],
        };
        let mut all = vmm_arguments.to_vec();
        all.extend(additions(&analysis, max_mem, &files));
        let terminal = if analysis.uses_terminal { Terminal::Shared } else { Terminal::Ours };
        let program_name = program_name.clone();
        Ok(Self { program, program_name, arguments: all, agent, config, files, terminal })
    }

    /// The command line for people.
    pub(super) fn shown(&self) -> String {
        let words = std::iter::once(self.program.as_os_str())
            .chain(self.arguments.iter().map(OsString::as_os_str));
        words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
    }
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
                "--max-mem {given}: QEMU gives guests multiples of {}",
                Size(RAM_ALIGNMENT_BYTES)
            )))
        }
        (Some(given), Ram::Default) => Ok(given),
    }
}

/// R2: 0 < T ≤ M, in whole pages.
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

fn guest_name(given: Option<&str>, analysis: &Analysis) -> String {
    let valid = |name: &&str| zerosweep_wire::runtime::check_name(name).is_ok();
    given
        .or_else(|| analysis.name.as_deref().filter(valid))
        .map_or_else(|| format!("guest-{}", std::process::id()), str::to_owned)
}

/// What the VMM is told beyond the user's words.
fn additions(analysis: &Analysis, max_mem: Size, files: &GuestFiles) -> Vec<OsString> {
    let mut words = Vec::new();
    if analysis.ram == Ram::Default && max_mem.0 != DEFAULT_RAM_BYTES {
        words.push("-m".to_owned());
        words.push(format!("{}K", max_mem.0 >> 10));
    }
    if let Some(device) = analysis.missing_balloon {
        words.push("-device".to_owned());
        words.push(format!("{device},id=zerosweep-balloon"));
    }
    let mut words: Vec<OsString> = words.into_iter().map(OsString::from).collect();
    let socket = options::escape_commas(&files.qmp.to_string_lossy());
    words.push("-qmp".into());
    words.push(format!("unix:{socket},server=on,wait=off").into());
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn analysis(ram: Ram, name: Option<&str>, missing_balloon: Option<&'static str>) -> Analysis {
        let name = name.map(str::to_owned);
        Analysis { ram, name, missing_balloon, uses_terminal: false }
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
    fn names() {
        let named = analysis(Ram::Default, Some("vm1"), None);
        assert_eq!(guest_name(None, &named), "vm1");
        assert_eq!(guest_name(Some("x"), &named), "x");
        let pid_name = format!("guest-{}", std::process::id());
        assert_eq!(guest_name(None, &analysis(Ram::Default, None, None)), pid_name);
        assert_eq!(guest_name(None, &analysis(Ram::Default, Some("a b"), None)), pid_name);
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
