//! A memory cgroup for one VMM: the kernel's own account of what stands behind it.
//!
//! A page that was discarded within a huge page is still held, and only the cgroup's usage says so.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

/// How long the removal of the group is tried.
const ENDING: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// What a cgroup is charged, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Charge {
    /// Everything.
    pub usage: u64,
    /// Of this, files' pages.
    pub cache: u64,
    /// Of this, the kernel's own: page tables, stacks, slabs.
    pub kernel: u64,
}

impl Charge {
    /// Anonymous memory, half-freed huge pages included.
    #[must_use]
    pub fn anonymous(self) -> u64 {
        self.usage.saturating_sub(self.cache + self.kernel)
    }
}

/// A cgroup of our own. When it is dropped, what is in it is killed, and it is removed.
#[derive(Debug)]
pub struct MemoryCgroup {
    version: Version,
    path: PathBuf,
}

impl MemoryCgroup {
    /// Makes one below our own, or below the nearest group that may have children with a memory
    /// account.
    ///
    /// # Errors
    /// Why there cannot be one.
    pub fn create() -> Result<Self, String> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let read = |path: &str| fs::read_to_string(path).map_err(|e| format!("{path}: {e}"));
        let (mounts, own) = (read("/proc/self/mounts")?, read("/proc/self/cgroup")?);
        let (version, parents) = parents(&mounts, &own).ok_or("no memory controller is mounted")?;
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("zerosweep-{}-{number}", std::process::id());
        let mut why = "no parent".to_owned();
        for parent in parents {
            let path = parent.join(&name);
            if let Err(error) = fs::create_dir(&path) {
                why = format!("{}: {error}", path.display());
                continue;
            }
            let cgroup = Self { version, path };
            match cgroup.charge() {
                Ok(_) => return Ok(cgroup),
                Err(error) => why = error,
            }
        }
        Err(why)
    }

    /// Writes a program into `directory` that moves itself into the group and becomes `program`.
    /// So only the VMM is in the group, with all that it allocates, and any process may start it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn wrapper(&self, directory: &Path, program: &str) -> io::Result<PathBuf> {
        let procs = self.path.join("cgroup.procs");
        let text = format!(
            "#!/bin/sh\necho $$ > '{}' || exit 99\nexec {program} \"$@\"\n",
            procs.display()
        );
        let path = directory.join("qemu-in-cgroup");
        let mut file = fs::File::create(&path)?;
        file.write_all(text.as_bytes())?;
        file.set_permissions(fs::Permissions::from_mode(0o755))?;
        Ok(path)
    }

    /// The processes in it.
    #[must_use]
    pub fn processes(&self) -> Vec<u32> {
        let text = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// What it is charged now.
    ///
    /// # Errors
    /// The file that cannot be read or understood.
    pub fn charge(&self) -> Result<Charge, String> {
        let read = |name: &str| {
            let path = self.path.join(name);
            fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))
        };
        let number = |name: &str| {
            read(name)?.trim().parse::<u64>().map_err(|error| format!("{name}: {error}"))
        };
        let stat = read("memory.stat")?;
        match self.version {
            Version::V1 => Ok(Charge {
                usage: number("memory.usage_in_bytes")?,
                cache: field(&stat, "cache").ok_or("memory.stat has no cache")?,
                kernel: number("memory.kmem.usage_in_bytes").unwrap_or(0),
            }),
            Version::V2 => Ok(Charge {
                usage: number("memory.current")?,
                cache: field(&stat, "file").ok_or("memory.stat has no file")?,
                kernel: kernel(&stat),
            }),
        }
    }

    /// The highest usage there ever was, by the kernel: without gaps between looks.
    #[must_use]
    pub fn peak(&self) -> Option<u64> {
        let name = match self.version {
            Version::V1 => "memory.max_usage_in_bytes",
            Version::V2 => "memory.peak",
        };
        fs::read_to_string(self.path.join(name)).ok()?.trim().parse().ok()
    }
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        for process in self.processes() {
            if let Some(pid) = i32::try_from(process).ok().and_then(Pid::from_raw) {
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
        // Busy until the last process is gone.
        let deadline = Instant::now() + ENDING;
        while fs::remove_dir(&self.path).is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The number behind a name in `memory.stat`.
fn field(stat: &str, name: &str) -> Option<u64> {
    stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

/// The kernel's own memory; kernels before 5.18 do not add it up.
fn kernel(stat: &str) -> u64 {
    let parts = || ["kernel_stack", "pagetables", "sec_pagetables", "percpu", "slab", "vmalloc"];
    field(stat, "kernel")
        .unwrap_or_else(|| parts().iter().filter_map(|part| field(stat, part)).sum())
}

/// Groups below which one with a memory account may be made, the nearest first.
fn parents(mounts: &str, own: &str) -> Option<(Version, Vec<PathBuf>)> {
    let mounts = || {
        mounts.lines().filter_map(|line| {
            let mut words = line.split(' ').skip(1);
            Some((words.next()?, words.next()?, words.next()?))
        })
    };
    let own_path = |controller: &str| {
        own.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let controllers = parts.next()?;
            let path = parts.next()?;
            controllers.split(',').any(|name| name == controller).then_some(path)
        })
    };
    let upwards = |root: &str, path: Option<&str>| {
        let start = Path::new(root).join(path.unwrap_or("/").trim_start_matches('/'));
        start.ancestors().take_while(|at| at.starts_with(root)).map(PathBuf::from).collect()
    };
    let is_v1 = |options: &str| options.split(',').any(|option| option == "memory");
    if let Some((root, ..)) =
        mounts().find(|(_, kind, options)| *kind == "cgroup" && is_v1(options))
    {
        return Some((Version::V1, upwards(root, own_path("memory"))));
    }
    let (root, ..) = mounts().find(|(_, kind, _)| *kind == "cgroup2")?;
    Some((Version::V2, upwards(root, own_path(""))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_1_is_found_below_its_controller() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
                      cgroup /sys/fs/cgroup/cpu cgroup rw,relatime,cpu 0 0\n\
                      cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let own = "4:memory:/a/b\n1:cpu:/\n0::/\n";
        let (version, parents) = parents(mounts, own).unwrap();
        assert_eq!(version, Version::V1);
        let expected = ["a/b", "a", ""].map(|at| Path::new("/sys/fs/cgroup/memory").join(at));
        assert_eq!(parents, expected);
    }

    #[test]
    fn version_2_has_one_tree() {
        let mounts = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n";
        let (version, parents) = parents(mounts, "0::/user.slice/x\n").unwrap();
        assert_eq!(version, Version::V2);
        assert_eq!(parents[0], Path::new("/sys/fs/cgroup/user.slice/x"));
        assert_eq!(parents.len(), 3);
        assert!(super::parents("proc /proc proc rw 0 0\n", "").is_none());
    }

    #[test]
    fn a_version_2_charge_is_read() {
        let path = std::env::temp_dir().join(format!("zerosweep-charge-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        let write = |name: &str, text: &str| fs::write(path.join(name), text).unwrap();
        write("memory.current", "1000\n");
        write("memory.peak", "1200\n");
        write("memory.stat", "anon 600\nfile 100\nkernel 50\nkernel_stack 16\nfile_mapped 7\n");
        let version = Version::V2;
        let cgroup = std::mem::ManuallyDrop::new(MemoryCgroup { version, path: path.clone() });
        let charge = cgroup.charge().unwrap();
        assert_eq!(charge, Charge { usage: 1000, cache: 100, kernel: 50 });
        assert_eq!(charge.anonymous(), 850);
        assert_eq!(cgroup.peak(), Some(1200));
        assert_eq!(kernel("kernel_stack 16\npagetables 4\nslab 5\nslab_reclaimable 3\n"), 25);
        fs::remove_dir_all(path).unwrap();
    }
}
