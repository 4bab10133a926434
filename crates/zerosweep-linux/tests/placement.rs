//! On which NUMA nodes guest and pool lie, and what a host does to memory without a huge zero page.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::sync::Arc;

use zerosweep_linux::{GuestMemory, MainLoop, Options, PAGE_BYTES, Placement, Region};

const MIB: u64 = 1 << 20;

fn memory(max_mib: u64) -> Arc<GuestMemory> {
    let options = Options { main_loop: MainLoop::None, ..Options::new(16 * MIB) };
    GuestMemory::new(Region::new(max_mib * MIB).unwrap(), &options).unwrap()
}

/// The policies of this process' big mappings that the kernel reports in `/proc/self/numa_maps`.
fn policies(at_least_pages: u64) -> Vec<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let numa = std::fs::read_to_string("/proc/self/numa_maps").unwrap();
    let big = maps.lines().filter_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let bytes = u64::from_str_radix(end, 16).ok()? - u64::from_str_radix(start, 16).ok()?;
        (rest.starts_with("rw-p") && bytes >= at_least_pages * PAGE_BYTES).then_some(start)
    });
    let policy = |start: &str| {
        let number = start.trim_start_matches('0');
        let line = numa.lines().find(|line| line.trim_start_matches('0').starts_with(number));
        line.unwrap().split_ascii_whitespace().nth(1).unwrap().to_owned()
    };
    big.map(policy).collect()
}

/// Automatic NUMA balancing leaves mappings alone that have a policy of their own.
#[test]
#[ignore = "needs userfaultfd in kernel mode"]
fn guest_and_pool_have_a_policy_of_their_own_and_follow_another() {
    if !std::path::Path::new("/proc/self/numa_maps").exists() {
        eprintln!("skipped: a kernel without NUMA");
        return;
    }
    // Nothing else in this process is as big: the guest, and the pool of twice its size.
    let memory = memory(2048);
    let pages = 2048 * MIB / PAGE_BYTES;
    assert_eq!(policies(pages), ["local", "local"]);
    memory.guest().store_word(0, 7).unwrap();
    let mut nodes = [0; 16];
    nodes[0] = 1;
    const BIND: u32 = 2;
    memory.set_placement(&Placement::new(BIND, nodes)).unwrap();
    assert_eq!(policies(pages), ["bind:0", "bind:0"]);
    // What was got ready is got ready again, and the guest goes on.
    for at in (0..8 * MIB).step_by(PAGE_BYTES as usize).skip(1) {
        memory.guest().store_word(at, at).unwrap();
    }
    assert_eq!(memory.guest().load_word(0), Ok(7));
    nodes[0] = 1 << 63;
    let refused = memory.set_placement(&Placement::new(BIND, nodes)).unwrap_err();
    assert!(refused.is(libc::EINVAL), "{refused}");
    memory.audit().unwrap();
    assert_eq!(memory.machine().whole_superpages(), Ok(memory.snapshot().superpages_in_guest));
    memory.stop();
}

const USE_ZERO_PAGE: &str = "/sys/kernel/mm/transparent_hugepage/use_zero_page";

/// Puts the host's setting back.
struct Setting(String);

impl Drop for Setting {
    fn drop(&mut self) {
        std::fs::write(USE_ZERO_PAGE, &self.0).unwrap();
    }
}

/// Without the huge zero page a read of all of the guest's memory takes real huge pages: all of
/// max-mem at once.
#[test]
#[ignore = "needs userfaultfd in kernel mode, root"]
fn a_host_without_the_huge_zero_page_gives_no_more_than_the_target() {
    let before = Setting(std::fs::read_to_string(USE_ZERO_PAGE).unwrap().trim().to_owned());
    std::fs::write(USE_ZERO_PAGE, "0").unwrap();
    let memory = memory(256);
    let resident = memory.machine().resident_pages().unwrap() * PAGE_BYTES / MIB;
    println!("resident after adoption: {resident} MiB of 256, target 16");
    assert!(resident <= 16, "{resident} MiB");
    let other = Arc::clone(&memory);
    let guest = std::thread::spawn(move || {
        other.add_vcpu(zerosweep_linux::thread_id());
        for at in (0..256 * MIB).step_by(PAGE_BYTES as usize) {
            other.guest().store_word(at, 0).unwrap();
        }
        for at in (0..8 * MIB).step_by(PAGE_BYTES as usize) {
            other.guest().store_word(at, at | 1).unwrap();
        }
        (0..8 * MIB).step_by(4096).all(|at| other.guest().load_word(at) == Ok(at | 1))
    });
    assert!(guest.join().unwrap());
    memory.audit().unwrap();
    let snapshot = memory.snapshot();
    assert!(snapshot.statistics.peak_total * PAGE_BYTES <= 16 * MIB, "{snapshot:?}");
    assert_eq!(memory.machine().whole_superpages(), Ok(snapshot.superpages_in_guest));
    assert!(memory.machine().resident_pages().unwrap() * PAGE_BYTES <= 16 * MIB);
    memory.stop();
    drop(before);
}
