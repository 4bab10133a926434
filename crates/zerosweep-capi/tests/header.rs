//! The header is what the sources say.

use std::fs;
use std::path::Path;

use zerosweep::Statistics;

/// In the order of the header.
const SOURCES: [&str; 4] = ["status.rs", "abi.rs", "domain.rs", "functions.rs"];

/// The structure of the counters as it is in C, in Rust.
fn statistics() -> String {
    let begin = "/// What a domain has done since it was made. Pages are of 4 KiB.\n\
         #[repr(C)] pub struct zs_statistics {\n\
         /// sizeof(zs_statistics), by the caller.\npub size: usize,\n";
    let fields = Statistics::COUNTERS
        .iter()
        .map(|counter| format!("/// {}\npub {}: u64,\n", counter.help, counter.name));
    format!("{begin}{}}}\n", fields.collect::<String>())
}

/// The names of the counters in a header.
fn counters_in(header: &str) -> Vec<&str> {
    let lines = header.lines().skip_while(|line| *line != "typedef struct zs_statistics {");
    let fields = lines.take_while(|line| *line != "} zs_statistics;");
    let names = fields.filter_map(|line| line.trim().strip_prefix("uint64_t "));
    names.map(|name| name.trim_end_matches(';')).collect()
}

/// `ZEROSWEEP_WRITE_HEADER=1 cargo test -p zerosweep-capi --test header` writes it.
#[test]
fn the_header_is_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let counters = scratch.path().join("statistics.rs");
    fs::write(&counters, statistics()).unwrap();
    let builder = cbindgen::Builder::new().with_config(config).with_src(counters);
    let with_source =
        |builder: cbindgen::Builder, name| builder.with_src(root.join("src").join(name));
    let mut made = Vec::new();
    SOURCES.into_iter().fold(builder, with_source).generate().unwrap().write(&mut made);
    let made = String::from_utf8(made).unwrap();
    let path = root.join("include/zerosweep.h");
    let there = fs::read_to_string(&path).unwrap();
    let all = Statistics::COUNTERS.iter().map(|counter| counter.name);
    let known = counters_in(&there);
    assert!(known.len() >= 31, "{known:?}");
    let first: Vec<_> = all.take(known.len()).collect();
    assert_eq!(known, first, "a new counter is the last one, and none goes");
    if std::env::var_os("ZEROSWEEP_WRITE_HEADER").is_some() {
        fs::write(&path, &made).unwrap();
    }
    let there = fs::read_to_string(&path).unwrap();
    let differs = there.lines().zip(made.lines()).position(|(there, made)| there != made);
    assert!(
        there == made,
        "include/zerosweep.h differs from the sources from line {} on: \
         `ZEROSWEEP_WRITE_HEADER=1 cargo test -p zerosweep-capi --test header` updates it",
        differs.unwrap_or_else(|| there.lines().count().min(made.lines().count())) + 1
    );
}
