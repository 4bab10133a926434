//! A guest's side that was recorded by `run --record` is replayed exactly.

use std::fs;

use serde_json::Value;

use super::harness::{Guest, Place, Spec};

/// A boot with `init_on_free` that is ballooned down and ends by itself: under the policy that it
/// ran under, the replay has the populates of the recording.
#[test]
#[ignore = "needs QEMU, a guest image and userfaultfd: cargo xtask test sets them up"]
fn a_recording_is_done_again_as_it_was() {
    for policy in ["zerosweep", "xen-2016"] {
        check(policy);
    }
}

fn check(policy: &str) {
    let place = Place::new();
    let file = place.path().join("guest.bin.gz");
    let path = file.to_str().unwrap();
    let run = ["--target", "300M", "--policy", policy, "--record", path];
    let append = "init_on_free=1 zs.fill=64M";
    let mut guest = Guest::managed(&place, &Spec { run: &run, append, ..Spec::default() });
    guest.marker("balloon settled");
    let recorded = guest.status().events.unwrap();
    assert_eq!((&recorded.error, recorded.file.as_path()), (&None, file.as_path()));
    guest.marker("done ok");
    assert_eq!(guest.end(), 0);
    let bytes = fs::metadata(&file).unwrap().len();
    assert!(fs::read(&file).unwrap().starts_with(&[0x1f, 0x8b]), "packed by gzip");

    let read: Value = place.json(["trace", "read", path, "--json"]);
    assert_eq!(read["lost_records"], 0);
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    assert!(number(&read["bytes"]) > 4 * bytes, "{bytes} bytes of {}", read["bytes"]);
    let domain = &read["domains"]["1"];
    assert!(number(&domain["looks"]["pages_live"]) > 10, "{domain}");
    let recorded = ["9", "0"].map(|order| number(&domain["populates"][order]));
    let replay = ["trace", "replay", path, "--policy", policy, "--json"];
    let replay: Value = place.json(replay);
    let done = &replay["replays"][0];
    assert_eq!(
        (&done["exhausted_after"], number(&replay["target_bytes"])),
        (&Value::Null, 300 << 20)
    );
    let again = ["populates_2m", "populates_4k"].map(|field| number(&done[field]));
    println!("  {policy}: {recorded:?}, again {again:?}; {bytes} bytes");
    // What happens at once on two processors comes in some order, and pages are taken back unseen.
    for (recorded, again) in recorded.into_iter().zip(again) {
        assert!(again.abs_diff(recorded) <= 2 + recorded / 50, "{policy}: {again}, not {recorded}");
    }
    assert!(recorded[0] > 100, "{recorded:?}");
}
