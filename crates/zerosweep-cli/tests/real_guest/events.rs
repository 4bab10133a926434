//! The trace of a real guest's memory agrees with `status`.

use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use zerosweep_wire::Status;

use super::harness::{Guest, Place, Spec, wait_until};

/// A boot with `init_on_free`, which scrubs, splinters and is ballooned down, then is ended: counts
/// and pages are those of the agent's last answer.
#[test]
#[ignore = "needs QEMU, a guest image and userfaultfd: cargo xtask test sets them up"]
fn a_trace_says_what_status_says() {
    for policy in ["zerosweep", "xen-2016"] {
        check(policy);
    }
}

fn check(policy: &str) {
    let place = Place::new();
    let file = place.path().join("events.bin");
    let path = file.to_str().unwrap();
    let run = ["--target", "300M", "--policy", policy, "--events", path];
    let append = "init_on_free=1 zs.fill=64M zs.end=idle";
    let mut guest = Guest::managed(&place, &Spec { run: &run, append, ..Spec::default() });
    guest.marker("balloon settled");
    guest.marker("done ok");
    // A guest that idles touches a page now and then: it is stopped, so that nothing moves.
    guest.qmp().execute("stop", &json!({})).unwrap();
    let status = quiet(&guest);
    let recorded = status.events.clone().unwrap();
    assert_eq!(
        (recorded.lost, &recorded.error, recorded.file.as_path()),
        (0, &None, file.as_path())
    );
    assert!(recorded.bytes > 1 << 20, "{} bytes", recorded.bytes);
    guest.signal(Signal::TERM);
    assert_eq!(guest.end(), 0);
    compare(&place, &file, &status);
    println!(
        "  {policy}: {} records, {} bytes; {} populates of 2M, {} of 4K, {} pages given back",
        recorded.records,
        recorded.bytes,
        status.counters.engine.populates_2m,
        status.counters.engine.populates_4k,
        status.counters.engine.pages_given_back,
    );
}

/// The figures once they are the same twice, and all is written.
fn quiet(guest: &Guest) -> Status {
    let mut before = guest.status();
    wait_until("nothing moves", Duration::from_secs(30), || {
        std::thread::sleep(Duration::from_millis(500));
        let status = guest.status();
        let quiet = (status.counters, status.pages, status.events.clone())
            == (before.counters, before.pages, before.events.clone());
        before = status;
        quiet.then_some(())
    });
    before
}

fn compare(place: &Place, file: &Path, status: &Status) {
    let document: Value = place.json(["trace", "read", file.to_str().unwrap(), "--json"]);
    let domain = &document["domains"]["1"];
    let count = |value: &Value| value.as_u64().unwrap_or(0);
    let (done, pages) = (&status.counters.engine, &status.pages);
    let at_the_end = &domain["pages_at_the_end"];
    for (what, traced, said) in [
        ("populates of superpages", count(&domain["populates"]["9"]), done.populates_2m),
        ("populates of pages", count(&domain["populates"]["0"]), done.populates_4k),
        ("splinters", count(&domain["splinters"]), done.splinters),
        ("pages given back", count(&domain["decreases"]["0"]), done.pages_given_back),
        ("superpages reclaimed", count(&domain["reclaims"]["9"]), done.superpages_reclaimed),
        ("entries at the end", count(&at_the_end["pod"]), pages.entries),
        ("pages of ram at the end", count(&at_the_end["ram"]), pages.populated),
        ("pages out at the end", count(&at_the_end["invalid"]), pages.ballooned_out),
    ] {
        assert_eq!(traced, said, "{what}");
    }
    assert!(done.populates_2m > 100 && done.pages_given_back > 100_000, "{done:?}");
}

/// A file system with room for 64 KiB.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn at(path: std::path::PathBuf) -> Self {
        std::fs::create_dir(&path).unwrap();
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=64k", "zerosweep-test"]).arg(&path);
        assert!(mount.status().unwrap().success());
        Self(path)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// A file that cannot be written to is reported before the VMM is started. One that cannot be
/// written on costs the trace, and not the guest.
#[test]
#[ignore = "needs QEMU, a guest image, userfaultfd and root: cargo xtask test sets them up"]
fn a_full_disk_costs_the_trace_and_not_the_guest() {
    let place = Place::new();
    let disk = SmallDisk::at(place.path().join("disk"));
    let file = disk.0.join("trace").to_str().unwrap().to_owned();
    let run = ["--target", "300M", "--events", &file];
    let append = "zs.fill=64M zs.end=idle";
    let mut guest = Guest::managed(&place, &Spec { run: &run, append, ..Spec::default() });
    guest.marker("balloon settled");
    assert!(guest.marker("verified ").text.contains(" bad=0 "));
    guest.marker("done ok");
    let recorded = guest.status().events.unwrap();
    assert!(recorded.error.unwrap().contains("No space left on device"));
    guest.signal(Signal::TERM);
    assert_eq!(guest.end(), 0);
    wait_until("the warning is there", Duration::from_secs(5), || {
        let said = guest.errors.tail(30);
        said.contains(&format!("{file} cannot be written: No space left")).then_some(())
    });
}
