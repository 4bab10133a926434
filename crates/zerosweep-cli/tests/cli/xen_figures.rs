//! The scrubbing guest under `xen-2016`, through the program: every figure is one that Xen's own
//! code gives for this guest (4 GiB, of which it may hold 1 GiB).
//!
//! | figure | where in the documents |
//! | --- | --- |
//! | populates | the run |
//! | superpages reclaimed while booting | the run: all without those while ballooning |
//! | quantities at the end of boot | the timeline: the last moment before ballooning |
//! | cache at the end | the run |

use crate::support::{Place, stderr};
use serde_json::Value;

const SUPERPAGE_BYTES: u64 = 2 << 20;
const GUEST_SUPERPAGES: u64 = 2048;
const TARGET_PAGES: u64 = 1 << 18;

/// What Xen does.
struct Figures {
    guest: &'static str,
    reclaimed_booting: u64,
    booted_in_guest: u64,
    booted_in_cache: u64,
    end_in_cache: u64,
    end_singles_in_cache: u64,
}

const ALL_ZERO: Figures = Figures {
    guest: "scrub",
    reclaimed_booting: 2016,
    booted_in_guest: 32,
    booted_in_cache: 480,
    end_in_cache: 512,
    end_singles_in_cache: 0,
};

const FIVE_PERCENT_DIRTY: Figures = Figures {
    guest: "scrub:dirty_percent=5,clustered",
    reclaimed_booting: 1912,
    booted_in_guest: 136,
    booted_in_cache: 376,
    end_in_cache: 406,
    end_singles_in_cache: 38_912,
};

/// The run as it is printed, and its timeline as it is written.
fn run(guest: &str) -> (Value, Vec<Value>) {
    let place = Place::new();
    let out = place.path().join("runs.json");
    let words = ["experiment", "--guest", guest, "--policy", "xen-2016", "--json", "--out"];
    let output = place.output(&[&words[..], &[out.to_str().unwrap()]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let first = |document: &[u8]| {
        let document: Value = serde_json::from_slice(document).unwrap();
        document["runs"][0].clone()
    };
    let timeline = first(&std::fs::read(&out).unwrap())["timeline"].as_array().unwrap().clone();
    let run = first(&output.stdout);
    assert_eq!((&run["guest"], &run["outcome"]), (&guest.into(), &"ok".into()));
    assert_eq!((&run["seed"], &run["max_mem_bytes"]), (&7777.into(), &(4_u64 << 30).into()));
    (run, timeline)
}

fn figure(object: &Value, name: &str) -> u64 {
    object[name].as_u64().unwrap_or_else(|| panic!("no {name} in {object:#}"))
}

fn check(figures: &Figures) {
    let (run, timeline) = run(figures.guest);
    let populates = (figure(&run, "populates_2m"), figure(&run, "populates_4k"));
    assert_eq!(populates, (2048, 0));
    let reclaimed = figure(&run, "superpages_reclaimed");
    let while_booting = reclaimed - figure(&run, "superpages_reclaimed_ballooning");
    assert_eq!(while_booting, figures.reclaimed_booting);

    let is_booting = |moment: &&Value| moment["ballooning"] == false;
    let booted = timeline.iter().rev().find(is_booting).unwrap();
    let superpages = |name: &str| {
        let bytes = figure(booted, name);
        assert_eq!(bytes % SUPERPAGE_BYTES, 0, "singles among {name}");
        bytes / SUPERPAGE_BYTES
    };
    assert_eq!(superpages("populated_bytes"), figures.booted_in_guest);
    assert_eq!(superpages("entries_bytes"), GUEST_SUPERPAGES - figures.booted_in_guest);
    assert_eq!(superpages("cache_bytes"), figures.booted_in_cache);
    assert!(!booted["map"].as_str().unwrap().contains('b'), "a superpage is broken: {booted}");

    let cache = (figure(&run, "superpages_in_cache"), figure(&run, "singles_in_cache"));
    assert_eq!(cache, (figures.end_in_cache, figures.end_singles_in_cache));
    let in_guest = figure(&run, "superpages_in_guest");
    assert_eq!((in_guest + cache.0) * 512 + cache.1, TARGET_PAGES, "the target is all held");
}

#[test]
fn all_zero() {
    check(&ALL_ZERO);
}

#[test]
fn five_percent_of_superpages_dirty() {
    check(&FIVE_PERCENT_DIRTY);
}

#[test]
fn one_percent_of_pages_dirty_defeats_xen() {
    let (run, _) = run("scrub:dirty_percent=1");
    let populates = (figure(&run, "populates_2m"), figure(&run, "populates_4k"));
    assert_eq!(populates, (514, 785_408));
    assert!(figure(&run, "unmap_flushes") > 1_000_000, "a million flushes: {run:#}");
}
