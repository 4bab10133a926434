//! `zerosweep trace` on traces of a real Xen host.
use std::fs;
use std::io::{Read as _, Write as _};
use std::process::{Command, Output, Stdio};

use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use crate::support::{stderr, stdout};

const BOOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/xentrace/boot-4.20.bin.gz");
const OUT_OF_MEMORY: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/xentrace/oom-4.20.bin.gz");

fn trace(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_zerosweep")).arg("trace").args(arguments).output().unwrap()
}

fn document(arguments: &[&str]) -> Value {
    let output = trace(arguments);
    assert!(output.status.success(), "{}", stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_boot_has_the_counts_that_its_captor_gave() {
    let document = document(&["read", BOOT, "--json"]);
    let guest = &document["domains"]["1"];
    assert_eq!(guest["populates"], json!({"0": 171_721, "9": 441}));
    assert_eq!(guest["reclaims"], json!({"0": 164_402, "9": 388}));
    assert_eq!(guest["decreases"], json!({"0": 196_608}));
    assert_eq!(guest["splinters"], 0);
    assert_eq!(guest["pages_at_the_end"]["pod"], 45_830);
    assert_eq!((&document["lost_records"], &document["layout"]), (&json!(0), &json!("words")));
    assert_eq!(document["broken"], Value::Null);
    let text = stdout(&trace(&["read", BOOT]));
    assert!(text.contains("populates    172162 (171721 of order 0, 441 of order 9)"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
}

#[test]
fn a_guest_that_ran_out_has_its_splinters() {
    let document = document(&["read", OUT_OF_MEMORY, "--json"]);
    assert_eq!(document["domains"]["2"]["splinters"], 8);
}

#[test]
fn todays_xen_does_in_a_replay_what_it_did() {
    let replayed = |arguments: &[&str]| {
        let all = [&["replay", "--policy", "xen-2016", "--json"], arguments].concat();
        let replay = document(&all)["replays"][0].clone();
        assert_eq!(replay["exhausted_after"], Value::Null);
        (replay["populates_2m"].as_u64().unwrap(), replay["populates_4k"].as_u64().unwrap())
    };
    assert_eq!(replayed(&[OUT_OF_MEMORY, "--target", "128M"]), (73, 5726), "as recorded");
    // What the guest wrote to superpages that it had is not in a trace: within one percent.
    let (superpages, singles) = replayed(&[BOOT]);
    assert!(superpages.abs_diff(441) <= 4, "{superpages} instead of 441");
    assert!(singles.abs_diff(171_721) <= 1717, "{singles} instead of 171721");
}

#[test]
fn ours_boots_it_without_a_single() {
    let document = document(&["replay", BOOT, "--policy", "zerosweep", "--json"]);
    assert_eq!(document["target_bytes"], 65_536_u64 * 4096);
    let replay = &document["replays"][0];
    assert_eq!((&replay["populates_4k"], &replay["shatters"]), (&json!(0), &json!(0)));
    assert_eq!(replay["exhausted_after"], Value::Null);
}

#[test]
fn a_replay_says_what_it_needs() {
    for (arguments, part) in [
        (&["replay", OUT_OF_MEMORY][..], "--target is needed"),
        (
            &["replay", BOOT, "--domain", "7"],
            "there is no domain 7 in the trace; those in it are [1]",
        ),
        (&["replay", BOOT, "--target", "2G"], "invalid target: 2G (must be a multiple of 4K"),
    ] {
        let output = trace(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(stderr(&output).contains(part), "{arguments:?}: {}", stderr(&output));
    }
}

#[test]
fn a_trace_that_is_cut_is_read_up_to_there() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("cut.gz");
    let whole = fs::read(OUT_OF_MEMORY).unwrap();
    for length in [whole.len() / 2, 9, 0] {
        fs::write(&file, &whole[..length]).unwrap();
        let output = trace(&["read", file.to_str().unwrap(), "--json"]);
        let status = i32::from(length > 0);
        assert_eq!(output.status.code(), Some(status), "{length}: {}", stderr(&output));
        if length > 100 {
            let document: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert!(document["domains"]["2"]["p2m_sets"].as_u64().unwrap() > 1000);
            assert!(document["broken"].as_str().unwrap().starts_with("byte "));
        }
    }
    let output = trace(&["read", "/no/such/trace"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("cannot read /no/such/trace: No such file"));
}

const RECORDING: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../testdata/recordings/debian-init-on-free.zerosweep.bin.gz"
);

#[test]
fn a_recording_says_what_zero_checks_saw() {
    let text = stdout(&trace(&["read", RECORDING]));
    assert!(text.contains("\n  looks        57 records: 63 pages zero, 57 not\n"), "{text}");
    let read = document(&["read", RECORDING, "--json"]);
    assert_eq!(
        read["domains"]["1"]["looks"],
        json!({"records": 57, "pages_zero": 63, "pages_live": 57})
    );
    let replay = document(&["replay", RECORDING, "--policy", "zerosweep", "--json"]);
    assert_eq!(replay["target_bytes"], 208 << 20, "what the guest had when its balloon was done");
    let done = &replay["replays"][0];
    assert_eq!((&done["populates_2m"], &done["populates_4k"]), (&json!(168), &json!(0)));
    let xen = document(&["read", BOOT, "--json"]);
    assert_eq!(xen["domains"]["1"]["looks"]["records"], 0);
}

#[test]
fn a_recording_that_is_cut_is_read_up_to_there() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("cut.bin.gz");
    let whole = fs::read(RECORDING).unwrap();
    let mut before = u64::MAX;
    for length in [whole.len() - 1, whole.len() / 2, whole.len() / 10] {
        fs::write(&file, &whole[..length]).unwrap();
        let path = file.to_str().unwrap();
        let output = trace(&["read", path, "--json"]);
        assert_eq!(output.status.code(), Some(1), "{length}: {}", stderr(&output));
        assert!(stderr(&output).contains("the part before is shown"), "{}", stderr(&output));
        let document: Value = serde_json::from_slice(&output.stdout).unwrap();
        let records = document["records"].as_u64().unwrap();
        assert!(records > 100 && records < before, "{records} records of {length} bytes");
        before = records;
        let output = trace(&["replay", path]);
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        assert!(output.stdout.is_empty());
    }
}

/// The end of the last point of a line, in pages, where the plot's height is `most` pages.
fn last_point(page: &str, class: &str, most: f64) -> f64 {
    let line = page.split(&format!("<polyline class=\"line {class}\" points=\"")).nth(1).unwrap();
    let last = line.split('"').next().unwrap().split(' ').next_back().unwrap();
    let y: f64 = last.split_once(',').unwrap().1.parse().unwrap();
    (200.0 - y) / 200.0 * most
}

#[test]
fn a_report_draws_what_the_counts_say() {
    let directory = tempfile::tempdir().unwrap();
    let page = directory.path().join("boot.html");
    let output = trace(&["report", BOOT, "-o", page.to_str().unwrap()]);
    assert!(output.status.success() && output.stdout.is_empty(), "{}", stderr(&output));
    let text = fs::read_to_string(&page).unwrap();
    assert!(text.contains("441 populates of 2 MiB, 171721 of 4 KiB"), "{}", &text[..3000]);
    assert!(!text.contains("<script") && !text.contains("src=") && !text.contains("href="));
    // The largest figure is that of the promised pages at the start: 246,272 pages, 962 MiB.
    let most = 246_272.0;
    assert!(text.contains("up to 962 MiB"));
    for (class, pages) in [("entries", 45_830.0), ("populated", 19_722.0), ("total", 196_608.0)] {
        let drawn = last_point(&text, class, most);
        assert!((drawn - pages).abs() < most / 1000.0, "{class}: {drawn}, not {pages}");
    }
    for class in ["whole", "broken", "retained", "pod", "out"] {
        let path = text.split(&format!("<path class=\"cell-{class}\" d=\"")).nth(1).unwrap();
        assert!(path.starts_with('M'), "nothing in the map is {class}");
    }
    let seconds = ["report", BOOT, "--cpu-hz", "2.4G", "-o", page.to_str().unwrap()];
    assert!(trace(&seconds).status.success());
    let text = fs::read_to_string(&page).unwrap();
    assert!(text.contains(" s from left to right") && text.contains(" a second"));
}

#[test]
fn a_report_of_a_trace_that_is_cut_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let (file, page) = (directory.path().join("<cut>.gz"), directory.path().join("cut.html"));
    let whole = fs::read(OUT_OF_MEMORY).unwrap();
    fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    let arguments = ["report", file.to_str().unwrap(), "-o", page.to_str().unwrap()];
    let output = trace(&[&arguments[..], &["--domain", "2"]].concat());
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("the part before is drawn"), "{}", stderr(&output));
    let text = fs::read_to_string(&page).unwrap();
    assert!(text.contains("<b>Cut or damaged.</b> byte ") && text.contains("Its superpages"));
    assert!(text.contains("&lt;cut&gt;.gz") && !text.contains("<cut>"));
    for (more, part) in
        [(&["--domain", "77"][..], "there is no domain 77"), (&["--cpu-hz", "fast"], "not a rate")]
    {
        let output = trace(&[&["report", BOOT, "-o", page.to_str().unwrap()], more].concat());
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains(part), "{}", stderr(&output));
    }
    let output = trace(&["report", BOOT, "-o", "/no/such/page.html"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("cannot write /no/such/page.html"), "{}", stderr(&output));
}

const PACKED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/xentrace/packed/");

/// The program reads `input` from a pipe, with these arguments.
fn piped(arguments: &[&str], input: Vec<u8>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zerosweep"));
    command.arg("trace").args(arguments).stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // A program that does not want all of it closes the pipe.
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

fn packed(name: &str) -> Vec<u8> {
    fs::read(format!("{PACKED}{name}")).unwrap()
}

#[test]
fn packed_traces_are_read() {
    let counts = |file: &str| {
        let mut document = document(&["read", file, "--json"]);
        document.as_object_mut().unwrap().remove("file");
        document
    };
    let expect = counts(&format!("{PACKED}begin.bin.gz"));
    assert!(expect["records"].as_u64().unwrap() > 1000 && expect["broken"].is_null(), "{expect}");
    for name in ["begin.bin.xz", "begin.bin.zst"] {
        assert_eq!(counts(&format!("{PACKED}{name}")), expect, "{name}");
    }
    // Files packed one by one and put together, and one that is packed twice.
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("trace");
    let path = file.to_str().unwrap();
    let records = |document: &Value| document["records"].as_u64().unwrap();
    for name in ["begin.bin.gz", "begin.bin.xz", "begin.bin.zst"] {
        fs::write(&file, packed(name).repeat(2)).unwrap();
        assert_eq!(records(&counts(path)), 2 * records(&expect), "{name}");
        let mut twice = GzEncoder::new(Vec::new(), Compression::fast());
        twice.write_all(&packed(name)).unwrap();
        fs::write(&file, twice.finish().unwrap()).unwrap();
        assert_eq!(counts(path), expect, "{name}");
    }
}

#[test]
fn a_packed_trace_that_is_cut_or_damaged_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("trace");
    for name in ["begin.bin.gz", "begin.bin.xz", "begin.bin.zst"] {
        let whole = packed(name);
        let mut damaged = whole.clone();
        let at = whole.len() / 2;
        damaged[at] ^= 0x55;
        for bytes in [&whole[..whole.len() * 2 / 3], &whole[..9], &damaged] {
            fs::write(&file, bytes).unwrap();
            let output = trace(&["read", file.to_str().unwrap(), "--json"]);
            assert_eq!(output.status.code(), Some(1), "{name}: {}", stdout(&output));
            assert!(
                stderr(&output).contains("cannot be read on")
                    || stderr(&output).contains("cannot read")
            );
        }
    }
}

#[test]
fn traces_come_through_pipes_too() {
    let expect = document(&["read", &format!("{PACKED}begin.bin.gz"), "--json"]);
    for name in ["begin.bin.gz", "begin.bin.xz", "begin.bin.zst"] {
        for from in ["-", "/dev/stdin"] {
            let output = piped(&["read", from, "--json"], packed(name));
            assert!(output.status.success(), "{name} {from}: {}", stderr(&output));
            let document: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(document["domains"], expect["domains"]);
            assert_eq!(document["file"], from);
        }
    }
    let replay = ["replay", "-", "--policy", "xen-2016", "--target", "128M", "--json"];
    let output = piped(&replay, fs::read(OUT_OF_MEMORY).unwrap());
    assert!(output.status.success(), "{}", stderr(&output));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["replays"][0]["populates_4k"], 5726);
    let directory = tempfile::tempdir().unwrap();
    let page = directory.path().join("page.html");
    let report = ["report", "-", "-o", page.to_str().unwrap(), "--domain", "2"];
    let output = piped(&report, fs::read(OUT_OF_MEMORY).unwrap());
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(fs::read_to_string(&page).unwrap().contains("standard input"));
}

#[test]
fn what_is_packed_otherwise_is_named() {
    for (name, packer) in [("begin.bin.bz2", "bzip2"), ("begin.zip", "zip")] {
        for command in ["read", "replay"] {
            let output = trace(&[command, &format!("{PACKED}{name}")]);
            let said = stderr(&output);
            assert_eq!(output.status.code(), Some(1), "{said}");
            assert!(said.contains(&format!("it is packed by {packer}")), "{said}");
            assert!(said.contains("| zerosweep trace") && output.stdout.is_empty(), "{said}");
        }
    }
    let output = piped(&["read", "-"], b"7z\xbc\xaf\x27\x1c and more".to_vec());
    assert!(stderr(&output).contains("standard input: it is packed by 7z"), "{}", stderr(&output));
}

#[test]
fn rubbish_is_named_as_rubbish() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("trace");
    let mut boot = Vec::new();
    MultiGzDecoder::new(&packed("begin.bin.gz")[..]).read_to_end(&mut boot).unwrap();
    let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/../../README.md");
    for bytes in [
        fs::read(readme).unwrap(),
        fs::read(env!("CARGO_BIN_EXE_zerosweep")).unwrap(),
        vec![0xff; 4096],
        vec![0; 4096],
        // Within a record.
        boot[5001..].to_vec(),
        boot[5002..].to_vec(),
    ] {
        fs::write(&file, &bytes).unwrap();
        for arguments in [&["read"][..], &["read", "--layout", "words"], &["replay"]] {
            let all = [arguments, &[file.to_str().unwrap()]].concat();
            let output = trace(&all);
            let said = stderr(&output);
            assert_eq!(output.status.code(), Some(1), "{said}{}", stdout(&output));
            assert!(said.contains("it is no xentrace file"), "{:x?}: {said}", &bytes[..8]);
            assert!(output.stdout.is_empty(), "{}", stdout(&output));
        }
    }
    // It is a trace though its window's beginning, and a part of a record, is missing.
    for cut in [412 + 12, 4096, 4100, 5000] {
        fs::write(&file, &boot[cut..]).unwrap();
        let output = trace(&["read", file.to_str().unwrap()]);
        assert!(output.status.success(), "{cut}: {}", stderr(&output));
    }
}

/// What never ends is not kept for ever.
#[test]
fn endless_rubbish_is_refused_at_once() {
    for device in ["/dev/zero", "/dev/urandom"] {
        let began = std::time::Instant::now();
        let output = trace(&["read", device]);
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        assert!(stderr(&output).contains("it is no xentrace file"), "{}", stderr(&output));
        assert!(began.elapsed() < std::time::Duration::from_secs(5), "{:?}", began.elapsed());
    }
    let mut yes = Command::new("yes").stdout(Stdio::piped()).spawn().unwrap();
    let mut read = Command::new(env!("CARGO_BIN_EXE_zerosweep"));
    read.args(["trace", "report", "-", "-o", "/dev/null"]).stdin(yes.stdout.take().unwrap());
    let output = read.output().unwrap();
    let _ = yes.kill();
    yes.wait().unwrap();
    assert!(stderr(&output).contains("standard input: it is no xentrace"), "{}", stderr(&output));
}

#[test]
fn a_trace_without_populate_on_demand_is_told_alike_by_all() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("trace");
    let page = directory.path().join("page.html");
    // A CPU change and a record of another kind.
    let other: Vec<u8> =
        [0x2001_f003_u32, 0, 4, 0x0002_f00e].iter().flat_map(|word| word.to_le_bytes()).collect();
    for bytes in [Vec::new(), other] {
        fs::write(&file, bytes).unwrap();
        let path = file.to_str().unwrap();
        let hint = "no record of populate on demand";
        let output = trace(&["read", path]);
        assert!(output.status.success() && stdout(&output).contains(hint), "{}", stderr(&output));
        for arguments in [&["replay", path][..], &["report", path, "-o", page.to_str().unwrap()]] {
            let output = trace(arguments);
            assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
            assert!(stderr(&output).contains(hint), "{}", stderr(&output));
            assert!(!page.exists());
        }
    }
}

#[test]
fn a_window_that_is_cut_is_told_by_what_is_missing_of_it() {
    let words = [0x2001_f003_u32, 0, 512, 0x0002_f00e, 0x1002_f00f, 1, 0x2001_f003, 1, 0];
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let output = piped(&["read", "-"], bytes);
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert!(said.contains("byte 24: the next CPU's window begins"), "{said}");
    assert!(said.contains("500 bytes of this one's are missing"), "{said}");
}
