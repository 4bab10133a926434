//! The header is what the sources say.

use std::fs;
use std::path::Path;

/// In the order of the header.
const SOURCES: [&str; 4] = ["status.rs", "abi.rs", "domain.rs", "functions.rs"];

/// `ZEROSWEEP_WRITE_HEADER=1 cargo test -p zerosweep-capi --test header` writes it.
#[test]
fn the_header_is_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).unwrap();
    let builder = cbindgen::Builder::new().with_config(config);
    let with_source =
        |builder: cbindgen::Builder, name| builder.with_src(root.join("src").join(name));
    let mut made = Vec::new();
    SOURCES.into_iter().fold(builder, with_source).generate().unwrap().write(&mut made);
    let made = String::from_utf8(made).unwrap();
    let path = root.join("include/zerosweep.h");
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
