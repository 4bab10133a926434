//! The host runs out of memory below the cap. The kernel ends the process, as it would end any VMM;
//! nothing is left behind. A guest whose target fits lives, however much it touches.
//!
//! The guest runs in a child, in a memory cgroup of its own.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use zerosweep::Policy;
use zerosweep_linux::{GuestMemory, MainLoop, OnExhaustion, Options, PAGE_BYTES, Parking, Region};

const MIB: u64 = 1 << 20;
const LIMIT_MIB: u64 = 96;
/// Set in the child: the target in MiB, and the file through which it enters the group.
const CHILD: &str = "ZEROSWEEP_TEST_OUT_OF_MEMORY";
const WAIT: Duration = Duration::from_secs(60);

/// A memory cgroup with a limit; removed when dropped.
struct Group(PathBuf);

impl Group {
    /// `None` where none can be made.
    fn new(name: &str) -> Option<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let v1 = Path::new("/sys/fs/cgroup/memory");
        let (root, controller) = match v1.is_dir() {
            true => (v1, "memory"),
            false => (Path::new("/sys/fs/cgroup"), ""),
        };
        let below = own.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let is_it = parts.next()?.split(',').any(|name| name == controller);
            is_it.then_some(parts.next()?)
        })?;
        let start = root.join(below.trim_start_matches('/'));
        let parents = start.ancestors().take_while(|parent| parent.starts_with(root));
        parents.map(|parent| parent.join(format!("{name}-{}", std::process::id()))).find_map(
            |path| {
                fs::create_dir(&path).ok()?;
                let group = Self(path);
                let limit = ["memory.limit_in_bytes", "memory.max"]
                    .map(|file| fs::write(group.0.join(file), (LIMIT_MIB * MIB).to_string()));
                limit.iter().any(Result::is_ok).then_some(group)
            },
        )
    }

    /// How often the kernel ended a process of it.
    fn kills(&self) -> u64 {
        let text = ["memory.oom_control", "memory.events"]
            .iter()
            .find_map(|file| fs::read_to_string(self.0.join(file)).ok())
            .unwrap();
        text.lines()
            .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
            .expect("the kernel counts kills")
    }

    /// Removes it: it is empty.
    fn remove(self) {
        let end = Instant::now() + WAIT;
        while let Err(error) = fs::remove_dir(&self.0) {
            assert!(Instant::now() < end, "something is left in the group: {error}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// Runs this program's test `name` in the group, with that target.
fn run_in(group: &Group, name: &str, target_mib: u64) -> ExitStatus {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--include-ignored", "--nocapture", "--test-threads", "1"])
        .env(CHILD, format!("{target_mib} {}", group.0.join("cgroup.procs").display()))
        .spawn()
        .unwrap();
    let end = Instant::now() + WAIT;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > end {
            let stuck = fs::read_to_string(format!("/proc/{}/status", child.id()));
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("the child neither ends nor is ended: {stuck:?}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// In the child: a guest of 256 MiB scrubs all of its memory, then writes to some of it.
fn be_the_guest(told: &str) {
    let (target_mib, procs) = told.split_once(' ').unwrap();
    fs::write(procs, std::process::id().to_string()).unwrap();
    let target = target_mib.parse::<u64>().unwrap() * MIB;
    let options = Options {
        target_bytes: target,
        policy: Policy::Zerosweep,
        on_exhaustion: OnExhaustion::Stall,
        parking: Parking::Lazy,
        fault_threads: Options::DEFAULT_FAULT_THREADS,
        main_loop: MainLoop::None,
    };
    let memory = GuestMemory::new(Region::new(256 * MIB).unwrap(), &options).unwrap();
    let guest = memory.guest();
    for page in 0..256 * MIB / PAGE_BYTES {
        guest.store_word(page * PAGE_BYTES, 0).unwrap();
    }
    let live = target / PAGE_BYTES * 3 / 4;
    for page in 0..live {
        guest.store_word(page * PAGE_BYTES, page + 1).unwrap();
    }
    for page in 0..live {
        assert_eq!(guest.load_word(page * PAGE_BYTES), Ok(page + 1));
    }
    memory.audit().unwrap();
    assert_eq!(memory.snapshot().lifted, None);
    memory.stop();
}

fn ends(name: &str, target_mib: u64, check: impl FnOnce(&Group, ExitStatus)) {
    if let Ok(told) = std::env::var(CHILD) {
        return be_the_guest(&told);
    }
    let group = Group::new(name).expect("a memory cgroup can be made");
    let began = Instant::now();
    let status = run_in(&group, name, target_mib);
    println!("{target_mib} MiB in {LIMIT_MIB}: {status} after {:?}", began.elapsed());
    check(&group, status);
    let processes = fs::read_to_string(group.0.join("cgroup.procs")).unwrap();
    assert_eq!(processes, "", "nobody is left");
    group.remove();
}

#[test]
#[ignore = "needs userfaultfd, a memory cgroup"]
fn a_target_above_what_the_host_has_is_ended_by_the_kernel() {
    let name = "a_target_above_what_the_host_has_is_ended_by_the_kernel";
    ends(name, 224, |group, status| {
        assert_eq!(status.signal(), Some(libc::SIGKILL));
        assert!(group.kills() >= 1);
    });
}

#[test]
#[ignore = "needs userfaultfd, a memory cgroup"]
fn a_target_below_what_the_host_has_keeps_the_guest_alive() {
    let name = "a_target_below_what_the_host_has_keeps_the_guest_alive";
    ends(name, 64, |group, status| {
        assert!(status.success(), "{status}");
        assert_eq!(group.kills(), 0);
    });
}
