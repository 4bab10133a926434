//! What the processor walks: under KVM, the nested page tables are the truth about superpages.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use zerosweep_wire::State;

use super::harness::{
    FEW_PAGES, GUEST_BYTES, Guest, MEBIBYTE, PAGE_BYTES, Place, Spec, kernel_agrees, stderr, value,
    wait_until,
};

/// KVM's own figures, summed over all of its guests.
const FIGURES: &str = "/sys/kernel/debug/kvm";
/// Superpages that the engine counts and KVM may not have mapped: nobody touched them since they
/// moved, or something else lies in the same 2 MiB.
const MISSING: u64 = 2;
/// KVM maps a superpage when the guest touches it, and the guest touches all of its memory only now
/// and then.
const SETTLING: Duration = Duration::from_secs(120);
const TARGET_BYTES: u64 = 768 * MEBIBYTE;
/// The guest writes files, deletes most of them, and then balloons; its pattern stays in use.
const APPEND: &str = "zs.fill=200M zs.churn=800M zs.clump=1M zs.first=60 zs.settle=240 zs.end=idle";

fn figure(name: &str) -> u64 {
    let path = Path::new(FIGURES).join(name);
    let text = fs::read_to_string(&path);
    let text = text.unwrap_or_else(|e| panic!("{}: {e}; is debugfs mounted?", path.display()));
    text.trim().parse().unwrap()
}

/// What it cost KVM, as far as it counts that.
fn costs() -> String {
    let names = ["pf_taken", "pf_fixed", "remote_tlb_flush", "mmu_shadow_zapped", "exits"];
    let known = names.iter().filter(|name| Path::new(FIGURES).join(name).exists());
    known.map(|name| format!("{name} {}", figure(name))).collect::<Vec<_>>().join(", ")
}

/// The engine, the kernel and KVM agree about the guest's superpages.
#[track_caller]
fn agree(guest: &Guest, step: &str) {
    let mut last = (0, None, 0);
    let mut agreed = || {
        let superpages = guest.status().superpages;
        last = (superpages.in_guest, superpages.in_guest_by_kernel, figure("pages_2m"));
        let (engine, kernel, nested) = last;
        kernel_agrees(&superpages) && nested + MISSING >= kernel.unwrap_or(engine)
    };
    let end = Instant::now() + SETTLING;
    let mut done = agreed();
    while !done && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(500));
        done = agreed();
    }
    let (engine, kernel, nested) = last;
    let total = guest.status().pages.total * 4096 / MEBIBYTE;
    println!(
        "  {step:<20} engine {engine}, kernel {kernel:?}, KVM {nested} superpages and {} pages; \
         {total} MiB held; {}",
        figure("pages_4k"),
        costs()
    );
    if !done {
        guest.fail(&format!("after {step} they do not agree"));
    }
}

/// Boots a guest that churns and balloons, consolidates, and compares at each step. Plain QEMU
/// beside it.
#[test]
#[ignore = "needs QEMU, a guest image, userfaultfd, root, KVM on hardware"]
fn nested_page_tables_have_the_superpages_that_the_engine_counts() {
    println!();
    let place = Place::new();
    let run = ["--target", "2G"];
    let spec = Spec { run: &run, append: APPEND, kvm: true, ..Spec::default() };
    let guest = Guest::managed(&place, &spec);
    guest.marker("filled ");
    agree(&guest, "boot");
    guest.marker("balloon loaded devices=1");
    agree(&guest, "churn");
    let output = place.output(["set-target", "vm", "768M", "--no-wait"]);
    assert!(output.status.success(), "{}", stderr(&output));
    wait_until("the balloon is there", Duration::from_secs(300), || {
        let pages = guest.status().pages;
        (pages.total * 4096 <= TARGET_BYTES).then_some(())
    });
    guest.marker("balloon settled");
    agree(&guest, "balloon");
    assert_eq!(value(&guest.marker("verified files="), "bad"), 0.0);
    guest.marker("done ok");
    let output = place.output(["consolidate", "vm"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let from = guest.console.len();
    guest.marker_from(from, "alive ");
    agree(&guest, "consolidation");
    let output = place.output(["sweep", "vm"]);
    assert!(output.status.success(), "{}", stderr(&output));
    agree(&guest, "sweep");
    let alive = guest.marker_from(guest.console.len(), "alive ");
    assert_eq!(value(&alive, "bad"), 0.0);
    assert!(place.output(["audit", "vm"]).status.success());
    drop(guest);

    let place = Place::new();
    let guest = Guest::plain(&place, &spec);
    guest.marker("balloon loaded devices=1");
    println!("  plain QEMU, churn: KVM {} superpages; {}", figure("pages_2m"), costs());
    guest.qmp().balloon(TARGET_BYTES).unwrap();
    guest.marker("balloon settled");
    println!("  plain QEMU, balloon: KVM {} superpages; {}", figure("pages_2m"), costs());
    assert_eq!(value(&guest.marker("verified files="), "bad"), 0.0);
}

/// Ten times down and up again, with files that are written and looked at meanwhile.
#[test]
#[ignore = "needs QEMU, a guest image, userfaultfd, KVM on hardware"]
fn ten_balloon_cycles_lose_nothing() {
    const CYCLES: usize = 10;
    println!();
    let place = Place::new();
    let append = "init_on_free=1 zs.fill=64M zs.stir=48M zs.clump=256K zs.first=60 zs.settle=240 \
                  zs.end=idle";
    let spec = Spec { run: &["--target", "600M"], append, kvm: true, ..Spec::default() };
    let guest = Guest::managed(&place, &spec);
    guest.marker("done ok");
    for cycle in 1..=CYCLES {
        for (target, mebibytes) in [("450M", 450), ("600M", 600)] {
            let output = place.output(["set-target", "vm", target, "--no-wait"]);
            assert!(output.status.success(), "{}", stderr(&output));
            let wanted = (GUEST_BYTES - mebibytes * MEBIBYTE) / PAGE_BYTES;
            wait_until("the balloon is there", Duration::from_secs(120), || {
                let out = guest.status().pages.ballooned_out;
                (out.abs_diff(wanted) <= FEW_PAGES).then_some(())
            });
        }
        let alive = guest.marker_from(guest.console.len(), "alive ");
        assert_eq!(value(&alive, "bad"), 0.0, "cycle {cycle}");
    }
    let stirred = guest.console.lines(0).into_iter().filter(|line| line.text.contains("stirred "));
    let (done, not): (Vec<_>, Vec<_>) =
        stirred.partition(|line| !line.text.contains("not stirred"));
    assert!(done.iter().all(|line| value(line, "bad") == 0.0), "files are damaged");
    let status = guest.status();
    println!(
        "  {CYCLES} cycles: {} times files were right ({} times no room), peak {} of {} pages, {} \\
         superpages in the guest; {}",
        done.len(),
        not.len(),
        status.counters.engine.peak_total,
        status.pages.target,
        status.superpages.in_guest,
        costs()
    );
    if done.len() < CYCLES || status.borrowed_pages != 0 || status.state != State::Managing {
        guest.fail("it works within its target, and nothing is borrowed");
    }
    assert!(place.output(["audit", "vm"]).status.success());
}
