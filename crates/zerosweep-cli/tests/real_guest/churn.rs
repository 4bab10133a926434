//! A guest whose memory is in use here and there gives most of it back: what is left in use stays
//! on huge pages, and no byte of it is lost, whatever the balloon does afterwards.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use zerosweep_lab::real_guest::{Account, MemoryCgroup, Sampler};
use zerosweep_wire::Map;

use super::harness::{
    GUEST_BYTES, Guest, PAGE_BYTES, PATIENCE, Place, Spec, TOLERANCE, kernel_agrees, mib, stderr,
    value, wait_until,
};

const TARGET_BYTES: u64 = 768 << 20;

#[test]
#[ignore = "needs QEMU, a guest image, userfaultfd and a memory cgroup"]
fn what_is_in_use_after_churn_stays_on_superpages() {
    check("clumps of 1 MiB", "zs.clump=1M", 0.99);
}

#[test]
#[ignore = "needs QEMU, a guest image, userfaultfd and a memory cgroup"]
fn what_is_in_use_after_churn_of_single_files_is_at_the_optimum() {
    check("single files", "zs.seed=2", 0.0);
}

fn check(variant: &str, append: &str, least: f64) {
    println!();
    let place = Place::new();
    inflate(variant, append, Some((&place, least)));
    // To compare figures, not to find faults.
    if std::env::var_os("ZEROSWEEP_COMPARE").is_some() {
        let plain = inflate(variant, append, None);
        println!("  {variant}: plain QEMU's balloon {:.2} s", plain.as_secs_f64());
    }
}

/// Churns, balloons down to the target and checks: under zerosweep in a place, or plainly.
fn inflate(variant: &str, append: &str, managed: Option<(&Place, f64)>) -> Duration {
    let place = Place::new();
    let account = Arc::new(Account::Cgroup(MemoryCgroup::create().unwrap()));
    let append = format!("zs.churn=1200M zs.first=60 zs.settle=240 {append}");
    let run = ["--target", "2G"];
    let spec = Spec { run: &run, append: &append, cgroup: account.cgroup(), ..Spec::default() };
    let guest = match managed {
        Some((place, _)) => Guest::managed(place, &spec),
        None => Guest::plain(&place, &spec),
    };
    guest.marker("balloon loaded devices=1");
    let sampler = Sampler::start(&account, GUEST_BYTES);
    let time = balloon(&guest, managed.map(|(place, _)| place));
    if let Some((_, least)) = managed {
        check_layout(&guest, variant, least);
    }
    // Before the guest verifies, which touches page cache.
    std::thread::sleep(Duration::from_millis(300));
    let held = sampler.finish();
    println!(
        "  {variant}, {}: balloon {:.3} s, held {:.1} MiB",
        if managed.is_some() { "zerosweep" } else { "plain QEMU" },
        time.as_secs_f64(),
        mib(held.last())
    );
    if managed.is_some() {
        held.check(true).unwrap();
        assert!(held.last() as f64 <= TOLERANCE * TARGET_BYTES as f64, "{}", held.summary());
    }
    assert_eq!(value(&guest.marker("verified files="), "bad"), 0.0);
    guest.marker("done ok");
    time
}

/// Makes the guest balloon down to its target. Returns how long it took.
fn balloon(guest: &Guest, managed: Option<&Place>) -> Duration {
    let mut qmp = guest.qmp();
    // The guest's own programs come to rest first.
    std::thread::sleep(Duration::from_secs(1));
    let began = Instant::now();
    if let Some(place) = managed {
        drop(qmp);
        let output = place.output(["set-target", "vm", "768M", "--no-wait"]);
        assert!(output.status.success(), "{}", stderr(&output));
        qmp = guest.qmp();
    } else {
        qmp.balloon(TARGET_BYTES).unwrap();
    }
    wait_until("the balloon is there", Duration::from_secs(60), || {
        std::thread::sleep(Duration::from_millis(4));
        (qmp.balloon_actual().unwrap() <= TARGET_BYTES).then_some(())
    });
    began.elapsed()
}

fn check_layout(guest: &Guest, variant: &str, least: f64) {
    let mut agent = guest.agent();
    let began = Instant::now();
    wait_until("what is left above the target is broken up", PATIENCE, || {
        std::thread::sleep(Duration::from_millis(1));
        let pages = agent.status().unwrap().pages;
        (pages.total <= pages.target).then_some(())
    });
    let reached = began.elapsed();
    let status = agent.map().unwrap();
    let live = live_pages(status.map.as_ref().unwrap());
    let all: u64 = live.iter().map(|&(_, pages)| pages).sum();
    let whole: u64 = live.iter().filter(|(whole, _)| *whole).map(|&(_, pages)| pages).sum();
    let (share, optimum) = (whole as f64 / all as f64, optimum(&live) as f64 / all as f64);
    println!(
        "  {variant}: {:.2} % of {all} live pages on {} superpages, greedy optimum {:.2} %; target \
         reached {:.1} ms after the balloon; retained {}, evacuated {} superpages, copied {} pages",
        share * 100.0,
        status.superpages.in_guest,
        optimum * 100.0,
        reached.as_secs_f64() * 1e3,
        status.counters.engine.pages_retained,
        status.counters.engine.evacuations,
        status.counters.engine.bytes_copied / PAGE_BYTES
    );
    assert!(share >= 0.99 * optimum, "{share} of {optimum}");
    assert!(share >= least, "{share}");
    assert!(kernel_agrees(&status.superpages), "{:?}", status.superpages);
    assert_eq!(status.borrowed_pages, 0);
}

/// Returns for each superpage whether it is whole, and how many live pages it has.
fn live_pages(map: &Map) -> Vec<(bool, u64)> {
    let count =
        |index: usize| u64::from_str_radix(&map.live[index * 3..index * 3 + 3], 16).unwrap();
    let letters = map.letters.bytes().enumerate();
    letters.map(|(index, letter)| (matches!(letter, b'W' | b'r'), count(index))).collect()
}

/// The most live pages that superpages could hold within the target: those with the fewest live
/// pages are broken first.
fn optimum(live: &[(bool, u64)]) -> u64 {
    let budget = TARGET_BYTES / PAGE_BYTES;
    let mut counts: Vec<u64> = live.iter().map(|&(_, pages)| pages).filter(|&n| n > 0).collect();
    counts.sort_unstable_by_key(|&pages| std::cmp::Reverse(pages));
    let mut held: u64 = counts.iter().sum();
    let mut fits = |pages: u64| {
        held += 512 - pages;
        held <= budget
    };
    counts.iter().take_while(|&&pages| fits(pages)).sum()
}

#[test]
#[ignore = "needs QEMU, a guest image and userfaultfd: cargo xtask test sets them up"]
fn no_byte_is_lost_through_deflating_re_use_and_reset() {
    let place = Place::new();
    let append = "zs.churn=900M zs.clump=1M zs.first=60 zs.settle=240 zs.touch=500M zs.end=idle";
    let spec = Spec { run: &["--target", "2G"], append, reboots: true, ..Spec::default() };
    let guest = Guest::managed(&place, &spec);
    let set_target = |size: &str| {
        let output = place.output(["set-target", "vm", size, "--wait", "10"]);
        assert!(output.status.success(), "{}", stderr(&output));
    };
    // Down, up again at once, and what came back is used.
    guest.marker("balloon loaded devices=1");
    set_target("768M");
    set_target("2G");
    guest.marker("touched ");
    assert_eq!(value(&guest.marker("verified files="), "bad"), 0.0);
    guest.marker("done ok");
    let status = guest.status();
    let counters = &status.counters;
    let again = counters.engine.pages_retaken + counters.engine.refills * 512;
    assert!(again > 100_000, "{again} pages came back: {counters:#?}");
    assert!(counters.engine.populates_4k < 5_000, "a storm of faults: {counters:#?}");

    // Down again, as far as its programs let it. Then the guest is reset, and uses all of its pages
    // again without saying so.
    set_target("1400M");
    let output = place.output(["audit", "vm"]);
    assert!(output.status.success(), "{}", stderr(&output));
    guest.agent().set_target(GUEST_BYTES).unwrap();
    let lines = guest.console.len();
    let mut qmp = guest.qmp();
    qmp.balloon(GUEST_BYTES).unwrap();
    qmp.execute("system_reset", &json!({})).unwrap();
    drop(qmp);
    guest.marker_from(lines, "boot ");
    guest.marker_from(lines, "balloon loaded devices=1");
    set_target("900M");
    set_target("2G");
    assert_eq!(value(&guest.marker_from(lines, "verified files="), "bad"), 0.0);
    guest.marker_from(lines, "done ok");
    let output = place.output(["audit", "vm"]);
    assert!(output.status.success(), "{}", stderr(&output));
    println!("\n  {:#?}", guest.status().counters);
}
