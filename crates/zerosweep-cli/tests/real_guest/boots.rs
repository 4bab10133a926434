//! The main job: a 2 GiB guest boots with 300 MiB, balloons down to it, loses nothing, and never
//! holds more.

use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use zerosweep_lab::real_guest::{Account, Held, MemoryCgroup, Sampler};
use zerosweep_linux::KernelVersion;
use zerosweep_wire::{State, Status};

use super::harness::{
    FEW_PAGES, GUEST_BYTES, Guest, MEBIBYTE, PAGE_BYTES, Place, Spec, TOLERANCE, kernel_agrees,
    mib, stderr, stdout, value, wait_until,
};

const TARGET_BYTES: u64 = 300 << 20;
/// The same on kernels that keep empty page tables (before 6.14). A guest with two CPUs was seen to
/// hold 306.2 MiB there for moments, with a target of 300; why is not known.
const TOLERANCE_BEFORE_TABLE_RECLAIM: f64 = 1.03;

#[test]
#[ignore = "needs QEMU, a guest image, userfaultfd and a memory cgroup"]
fn boots_and_balloons_within_its_target() {
    check("default", 1, "");
}

#[test]
#[ignore = "needs QEMU, a guest image, userfaultfd and a memory cgroup"]
fn boots_and_balloons_within_its_target_init_on_free() {
    check("init_on_free", 1, "init_on_free=1");
}

#[test]
#[ignore = "needs QEMU, a guest image, userfaultfd and a memory cgroup"]
fn boots_and_balloons_within_its_target_two_cpus() {
    check("2 CPUs", 2, "");
}

#[test]
#[ignore = "needs QEMU, a guest image, userfaultfd and a memory cgroup"]
fn boots_and_balloons_within_its_target_two_cpus_scrubbing() {
    check("2 CPUs, init_on_free, scrub", 2, "init_on_free=1 zs.scrub=1");
}

/// Without zerosweep, a guest that scrubs takes all that it is told it has, long before its balloon
/// driver is loaded. The same guest under zerosweep, in the same run.
#[test]
#[ignore = "needs QEMU, a guest image, userfaultfd and a memory cgroup"]
fn without_zerosweep_the_same_guest_takes_everything() {
    let append = "init_on_free=1 zs.fill=64M zs.end=idle";
    println!();
    let mut before_balloon = Vec::new();
    for managed in [false, true] {
        let place = Place::new();
        let account = Arc::new(Account::Cgroup(MemoryCgroup::create().unwrap()));
        let sampler = Sampler::start(&account, GUEST_BYTES);
        let spec = Spec { append, cgroup: account.cgroup(), ..Spec::default() };
        let guest = match managed {
            true => Guest::managed(&place, &spec),
            false => Guest::plain(&place, &spec),
        };
        let boot = guest.marker("boot ").at - guest.started;
        if !managed {
            guest.qmp().balloon(TARGET_BYTES).unwrap();
        }
        let loaded = guest.marker("balloon loaded devices=1").at;
        guest.marker("balloon settled");
        assert!(guest.marker("verified ").text.contains(" bad=0 "));
        guest.marker("done ok");
        std::thread::sleep(Duration::from_millis(500));
        let held = sampler.finish();
        held.check(managed).unwrap();
        let before = held.peak(Some(loaded));
        let who = if managed { "zerosweep, 300 MiB" } else { "plain QEMU" };
        println!(
            "  {who:<20} boot {:5.2} s | held before the balloon is loaded {:7.1} MiB | after it \
             {:7.1} MiB, {:3} superpages in the guest",
            boot.as_secs_f64(),
            mib(before),
            mib(held.last()),
            held.superpages
        );
        before_balloon.push(before as f64);
    }
    let (plain, managed) = (before_balloon[0], before_balloon[1]);
    assert!(plain >= 0.95 * GUEST_BYTES as f64, "the plain guest did not take everything: {plain}");
    assert!(managed <= TOLERANCE * TARGET_BYTES as f64, "the managed guest held {managed}");
}

/// What may be left, in KiB, when a pause looks like the end.
const PAUSE_KIB: f64 = 8192.0;

/// The pattern that a guest of one CPU fills its memory with; one of two has half of it. The guest
/// has some 240 MiB with 300. Its kernel keeps 44 MiB of them free, and each CPU has lists of freed
/// pages, 46 MiB in all, that another one gets nothing from: with 96 MiB a guest of two ran out of
/// memory.
const FILL_MIB: u64 = 64;

fn check(variant: &str, cpus: u64, append: &str) {
    println!();
    let fill_mib = FILL_MIB / cpus;
    let place = Place::new();
    let account = Arc::new(Account::Cgroup(MemoryCgroup::create().unwrap()));
    let sampler = Sampler::start(&account, GUEST_BYTES);
    let append = format!("zs.fill={fill_mib}M zs.settle=240 zs.end=idle {append}");
    let cpus = cpus.to_string();
    let qemu = ["-smp", &cpus];
    let spec = Spec { qemu: &qemu, append: &append, cgroup: account.cgroup(), ..Spec::default() };
    let mut guest = Guest::managed(&place, &spec);

    let boot = guest.marker("boot ").at - guest.started;
    let settled = guest.marker("balloon settled");
    let total_kib = value(&settled, "mem_total");
    let given_back_kib = value(&settled, "mem_before") - total_kib;
    let owed_kib = ((GUEST_BYTES - TARGET_BYTES) >> 10) as f64;
    // A balloon that finds no page for a moment pauses, and looks settled; `quiet` waits for the
    // last of it.
    let nearly_kib = owed_kib - PAUSE_KIB;
    assert!(given_back_kib >= nearly_kib, "the guest gave back {given_back_kib} of {owed_kib} KiB");
    let verified = guest.marker("verified ");
    let expected = format!("verified pages={} bad=0 ", fill_mib * MEBIBYTE / PAGE_BYTES);
    assert!(verified.text.starts_with(&expected), "{}", verified.text);
    guest.marker("done ok");

    let status = quiet(&guest);
    check_figures(&guest, &status);
    check_tools(&place, &status);
    check_held(&sampler.finish(), variant);
    println!(
        "  {variant}: boot {:.2} s, inflate {:.2} s; superpages in the guest {}, broken ranges {}, \
         in the cache {}; faults {}, reclaimed {} superpages and {} singles; fault p50 {:.2} ms, \
         p99 {:.2} ms, longest {:.2} ms",
        boot.as_secs_f64(),
        value(&settled, "seconds") - 1.0,
        status.superpages.in_guest,
        status.superpages.broken,
        status.superpages.in_cache,
        status.counters.faults,
        status.counters.engine.superpages_reclaimed,
        status.counters.engine.singles_reclaimed,
        status.fault_latency.p50_ns as f64 / 1e6,
        status.fault_latency.p99_ns as f64 / 1e6,
        status.fault_latency.max_ns as f64 / 1e6,
    );

    guest.signal(Signal::TERM);
    assert_eq!(guest.end(), 0, "QEMU ends well when it is asked to");
    guest.wait_until_gone();
    assert_eq!(place.left_behind(), [""; 0]);
}

/// The figures once nothing moves: three looks in a row with the same number of faults, at each of
/// which the kernel counts the same superpages as the engine.
fn quiet(guest: &Guest) -> Status {
    let (mut before, mut looks) = (guest.status(), 0);
    let wanted = (GUEST_BYTES - TARGET_BYTES) / PAGE_BYTES;
    wait_until("the balloon is full and the guest quiet", Duration::from_secs(30), || {
        std::thread::sleep(Duration::from_millis(250));
        let status = guest.status();
        let moved = status.counters.faults != before.counters.faults
            || status.pages.ballooned_out.abs_diff(wanted) > FEW_PAGES;
        looks = if moved { 0 } else { looks + 1 };
        if !moved && !kernel_agrees(&status.superpages) {
            guest.fail("engine and kernel count different superpages");
        }
        before = status;
        (looks == 3).then_some(())
    });
    before
}

fn check_figures(guest: &Guest, status: &Status) {
    let (pages, target) = (&status.pages, TARGET_BYTES / PAGE_BYTES);
    let asserts = [
        ("the guest is managed", status.state == State::Managing && status.reason.is_none()),
        ("the balloon is full", {
            let wanted = GUEST_BYTES / PAGE_BYTES - target;
            pages.ballooned_out.abs_diff(wanted) <= FEW_PAGES
        }),
        ("INV-2: the parts are the whole", {
            pages.total == pages.populated + pages.cache + pages.retained
        }),
        ("INV-3: never above the target", status.counters.engine.peak_total <= target),
        ("nothing is borrowed", status.borrowed_pages == 0),
        ("no one waits", status.stalled_threads == 0 && status.counters.engine.exhaustions == 0),
        ("superpages stay whole", status.superpages.in_guest > 0),
    ];
    for (what, holds) in asserts {
        if !holds {
            guest.fail(&format!("not so: {what}"));
        }
    }
}

/// `status`, `ps` and `audit` of the program itself.
fn check_tools(place: &Place, status: &Status) {
    let shown: Status = place.json(["status", "vm", "--json"]);
    assert_eq!((shown.pid, shown.pages.max), (status.pid, status.pages.max));
    let listed = place.output(["ps"]);
    assert!(stdout(&listed).contains("vm"), "{}", stdout(&listed));
    let audited = place.output(["audit", "vm"]);
    assert_eq!(audited.status.code(), Some(0), "R19: {}{}", stdout(&audited), stderr(&audited));
}

fn check_held(held: &Held, variant: &str) {
    println!("  {variant}: {}", held.summary());
    held.check(true).unwrap();
    let is_old = KernelVersion::running() < Some(KernelVersion::WITH_TABLE_RECLAIM);
    let tolerance = if is_old { TOLERANCE_BEFORE_TABLE_RECLAIM } else { TOLERANCE };
    let limit = tolerance * TARGET_BYTES as f64;
    let peak = held.peak(None);
    assert!(peak as f64 <= limit, "held {:.1} MiB, above the target", mib(peak));
}
