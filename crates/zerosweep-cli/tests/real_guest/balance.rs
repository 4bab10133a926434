//! `zerosweep balance` with three guests on one host: memory goes to the one that needs it, and the
//! sum stays within the budget at every moment.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use serde_json::Value;

use super::harness::{
    Agent, Guest, MEBIBYTE, PAGE_BYTES, PATIENCE, Place, Spec, mib, stderr, stdout, wait_until,
};

const TOTAL_BYTES: u64 = 3 * FIRST_BYTES;
/// The target of each guest at the start.
const FIRST_BYTES: u64 = 500 * MEBIBYTE;
const NAMES: [&str; 3] = ["busy", "idle-1", "idle-2"];

/// Ends with its test.
struct Balance(Child);

impl Drop for Balance {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(place: &Place, name: &str) -> Guest {
    // The busy one writes and deletes files all the time once it is idle.
    let work = if name == "busy" { "zs.fill=64M zs.stir=180M" } else { "zs.fill=8M zs.rewrite=1" };
    let append = format!("{work} zs.first=60 zs.end=idle");
    let run = ["--target", "500M"];
    Guest::managed(place, &Spec { name, run: &run, append: &append, ..Spec::default() })
}

/// Targets, and what is held, of all guests.
fn figures(guests: &[Guest]) -> Vec<(u64, u64)> {
    let figures = |guest: &Guest| {
        let pages = guest.status().pages;
        (pages.target * PAGE_BYTES, pages.total * PAGE_BYTES)
    };
    guests.iter().map(figures).collect()
}

#[test]
#[ignore = "needs QEMU, a guest image and userfaultfd: cargo xtask test sets them up"]
fn memory_goes_to_the_guest_that_needs_it() {
    let place = Place::new();
    let guests = NAMES.map(|name| start(&place, name));
    for guest in &guests {
        guest.marker("done ok");
    }
    let before = figures(&guests);
    assert!(before.iter().all(|&(target, _)| target == FIRST_BYTES), "{before:?}");

    // A dry run says what it would do, and does nothing.
    let limits = NAMES.map(|name| format!("--guest={name}:min=160M"));
    let mut words = vec!["balance", "--total", "1500M"];
    words.extend(limits.iter().map(String::as_str));
    let dry = place.output(words.iter().chain(&["--dry-run"]));
    assert!(dry.status.success(), "{}", stderr(&dry));
    println!("\n{}", stdout(&dry));
    for name in NAMES {
        assert!(stdout(&dry).contains(name), "{}", stdout(&dry));
    }
    assert_eq!(figures(&guests).iter().map(|f| f.0).collect::<Vec<_>>(), [FIRST_BYTES; 3]);
    let small = place.output(["balance", "--total", "700M", "--dry-run"]);
    assert_eq!(small.status.code(), Some(2), "three times 256M are more");
    assert!(stderr(&small).contains("768M"), "{}", stderr(&small));

    words.extend(["--interval", "1", "--json"]);
    let child = place.command(&words).stdout(Stdio::piped()).spawn().unwrap();
    let mut balance = Balance(child);
    let lines = BufReader::new(balance.0.stdout.take().unwrap());
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let rounds = scope.spawn(|| {
            let rounds = lines.lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap());
            let rounds: Vec<Value> = rounds.collect();
            ended.store(true, Ordering::SeqCst);
            rounds
        });
        let peak = follow(&guests, &ended);
        rustix::process::kill_process(Pid::from_child(&balance.0), Signal::INT).unwrap();
        let rounds = rounds.join().unwrap();
        println!(
            "  {} rounds; sum of targets at most {:.0} MiB of {:.0}",
            rounds.len(),
            mib(peak),
            mib(TOTAL_BYTES)
        );
        assert!(rounds.iter().all(|round| round["guests"].as_array().unwrap().len() == 3));
    });
    assert_eq!(balance.0.wait().unwrap().code(), Some(0), "Ctrl-C ends it well");

    // The targets stay, and no byte was lost on the way.
    let after = figures(&guests);
    std::thread::sleep(Duration::from_secs(2));
    let later = figures(&guests);
    for ((guest, name), (after, later)) in guests.iter().zip(NAMES).zip(after.iter().zip(&later)) {
        assert_eq!(after.0, later.0, "{name}");
        println!("  {name}: target {:.0} MiB, holds {:.0} MiB", mib(later.0), mib(later.1));
        let from = guest.console.len();
        let line = guest.marker_from(from, "alive ");
        assert!(line.text.contains(" bad=0"), "{}", line.text);
        assert!(!guest.console.has("damaged"), "{}", guest.console.tail(20));
        let audit = place.output(["audit", name]);
        assert!(audit.status.success(), "{}", stderr(&audit));
    }
}

/// Looks at all guests until the busy one has got memory from both others; the highest sum of
/// targets that was seen.
fn follow(guests: &[Guest; 3], ended: &AtomicBool) -> u64 {
    let mut agents: Vec<Agent> = guests.iter().map(Guest::agent).collect();
    let mut peak = 0;
    wait_until("memory has gone from the idle guests to the busy one", PATIENCE, || {
        assert!(!ended.load(Ordering::SeqCst), "balance ended by itself");
        let statuses: Vec<_> = agents.iter_mut().map(|agent| agent.status().unwrap()).collect();
        let targets: Vec<u64> = statuses.iter().map(|status| status.target_bytes).collect();
        // Not of one moment: one that was looked at before it shrank may be counted beside one that
        // was looked at after it grew. So it is looked at again.
        if targets.iter().sum::<u64>() > TOTAL_BYTES {
            let again = agents.iter_mut().rev().map(|agent| agent.status().unwrap().target_bytes);
            assert!(again.sum::<u64>() <= TOTAL_BYTES, "{targets:?}");
        } else {
            peak = peak.max(targets.iter().sum());
        }
        for status in &statuses {
            assert_eq!(status.borrowed_pages, 0, "{status:#?}");
        }
        let moved = targets[0] >= 560 * MEBIBYTE
            && targets[1..].iter().all(|&target| target <= 450 * MEBIBYTE);
        moved.then_some(peak)
    })
}
