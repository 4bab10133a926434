//! Why an agent does not answer, as far as the kernel shows it from outside.
//!
//! The agent listens once it has found guest RAM. Until then only `/proc` says whether it is in the
//! VMM at all, and what the VMM has marked as memory of a guest (`MADV_DONTFORK`, which QEMU gives
//! to each RAM block).

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use procfs::process::{MMapPath, MemoryMap, MemoryMaps, Process, VmFlags};
use zerosweep_client::size::Size;

/// Processes that are looked at: a VMM that a script started is a child of the script.
const MOST_PROCESSES: usize = 64;
/// Blocks that are named.
const MOST_SIZES: usize = 8;
/// Smaller blocks are firmware.
const SMALLEST: u64 = 1 << 20;

/// What was found in the VMM's processes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Absence {
    /// None of them has the agent in it, or they cannot be looked at.
    NotLoaded,
    /// The agent is in the process, and waits for guest RAM.
    NoRam {
        /// The process.
        pid: u32,
        /// Bytes of the private mappings that are marked as a guest's.
        marked: BTreeSet<u64>,
    },
}

impl Absence {
    /// Looks at the process `pid` and its children, for the library `agent`.
    pub(super) fn look(pid: u32, agent: &Path) -> Self {
        let loaded = family(pid).into_iter().filter_map(|pid| {
            let maps = process(pid)?.smaps().ok()?;
            let is_agent =
                |map: &MemoryMap| matches!(&map.pathname, MMapPath::Path(path) if path == agent);
            maps.iter().any(is_agent).then(|| (pid, marked(&maps)))
        });
        // Of a script and its VMM, both of which have it, the VMM marks memory.
        let found = loaded.max_by_key(|(_, marked)| marked.len());
        found.map_or(Self::NotLoaded, |(pid, marked)| Self::NoRam { pid, marked })
    }

    /// What a person should know: `wanted` is the size of the guest's memory.
    pub(super) fn explain(&self, wanted: Size, waited: std::time::Duration) -> String {
        let (pid, marked) = match self {
            Self::NotLoaded => {
                return format!(
                    "the agent inside the VMM did not answer within {waited:?}. LD_PRELOAD was \
                     probably ignored: by a wrapper that clears the environment, a statically \
                     linked or privileged VMM behind a script, or another C library"
                );
            }
            Self::NoRam { pid, marked } => (pid, marked),
        };
        let mut text = format!(
            "the agent is in the VMM (pid {pid}), but the VMM has not allocated one block of {wanted} \
             for its guest within {waited:?}"
        );
        // Writing to a string cannot fail.
        let _ = if marked.is_empty() {
            write!(
                text,
                "; it has marked no memory as a guest's. It may still be opening disks \
                 (--wait-agent gives it longer), or is no VMM"
            )
        } else {
            let sizes: Vec<String> = marked
                .iter()
                .rev()
                .take(MOST_SIZES)
                .map(|&bytes| Size(bytes).to_string())
                .collect();
            let sizes = sizes.join(", ");
            write!(
                text,
                ". The blocks that it marked as a guest's: {sizes}. Does the VMM, or a script around \
                 it, use another memory size than -m or --max-mem says?"
            )
        };
        text
    }
}

/// A process and those that it started, the first ones of them.
pub(super) fn family(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let mut next = 0;
    while let Some(&pid) = all.get(next)
        && all.len() < MOST_PROCESSES
    {
        next += 1;
        let Some(threads) = process(pid).and_then(|process| process.tasks().ok()) else { continue };
        all.extend(threads.filter_map(|thread| thread.ok()?.children().ok()).flatten());
    }
    all
}

fn process(pid: u32) -> Option<Process> {
    Process::new(pid.try_into().ok()?).ok()
}

/// The sizes of the blocks that are not copied at a fork.
fn marked(maps: &MemoryMaps) -> BTreeSet<u64> {
    let marked = maps.iter().filter(|map| map.extension.vm_flags.contains(VmFlags::DC));
    marked.map(|map| map.address.1 - map.address.0).filter(|&bytes| bytes >= SMALLEST).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use procfs::FromRead as _;

    use super::*;

    fn maps() -> MemoryMaps {
        MemoryMaps::from_read(MAPS.as_bytes()).unwrap()
    }

    const MAPS: &str = "\
7f0000000000-7f0008000000 rw-p 00000000 00:00 0 \nSize:             131072 kB\nRss: 4 kB\n\
VmFlags: rd wr mr mw me dc ac sd hg mg \n\
7f0010000000-7f0010001000 rw-p 00000000 00:00 0 \nSize:                  4 kB\nVmFlags: rd dc \n\
7f0020000000-7f0060000000 rw-p 00000000 00:00 0 \nSize:            1048576 kB\nVmFlags: rd wr dd \n\
7f0070000000-7f0071000000 rw-p 00000000 00:00 0 [x]\nSize:              16384 kB\nVmFlags: dc\n";

    #[test]
    fn marked_blocks_are_those_that_are_not_copied_at_a_fork() {
        assert_eq!(marked(&maps()).into_iter().collect::<Vec<_>>(), [16 << 20, 128 << 20]);
        let none = MemoryMaps::from_read(&b""[..]).unwrap();
        assert!(marked(&none).is_empty());
    }

    #[test]
    fn what_was_seen_is_told() {
        let wanted = Size(512 << 20);
        let explain = |absence: Absence| absence.explain(wanted, Duration::from_secs(30));
        let ram = explain(Absence::NoRam { pid: 7, marked: marked(&maps()) });
        assert!(ram.contains("pid 7") && ram.contains("one block of 512M"), "{ram}");
        assert!(ram.contains("marked as a guest's: 128M, 16M."), "{ram}");
        assert!(!ram.contains("LD_PRELOAD"), "{ram}");
        let nothing = explain(Absence::NoRam { pid: 7, marked: BTreeSet::new() });
        assert!(nothing.contains("no memory") && nothing.contains("--wait-agent"), "{nothing}");
        assert!(explain(Absence::NotLoaded).contains("LD_PRELOAD"));
    }

    #[test]
    fn a_process_and_its_children_are_looked_at() {
        let mut child = std::process::Command::new("sleep").arg("30").spawn().unwrap();
        let family = family(std::process::id());
        let (first, has_child) = (family[0], family.contains(&child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(first, std::process::id());
        assert!(has_child, "{family:?}");
        let look = |agent: &str| Absence::look(std::process::id(), Path::new(agent));
        assert_eq!(look("/no/such/agent.so"), Absence::NotLoaded);
    }
}
