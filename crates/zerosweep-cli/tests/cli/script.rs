//! `zerosweep script`: the examples of its document, word by word, and errors.
use std::fs;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use crate::support::stderr;

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/script.md");

fn script<'a>(text: &str, arguments: impl IntoIterator<Item = &'a str>) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_zerosweep"))
        .args(["script", "-"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may have ended already: wrong usage needs no script.
    let _ = child.stdin.take().unwrap().write_all(text.as_bytes());
    child.wait_with_output().unwrap()
}

/// What stands between two marks, and what follows.
fn between<'a>(text: &'a str, from: &str, to: &str) -> Option<(&'a str, &'a str)> {
    let (_, rest) = text.split_once(from)?;
    rest.split_once(to)
}

#[test]
fn the_examples_of_the_document_are_exact() {
    let document = fs::read_to_string(DOCUMENT).unwrap();
    let (_, mut rest) = document.split_once("## Examples").unwrap();
    let mut examples = 0;
    while let Some((arguments, after)) = between(rest, "\n`--", "`\n") {
        let (text, after) = between(after, "```text\n", "```").unwrap();
        let (expected, after) = between(after, "```json\n", "```").unwrap();
        let arguments = format!("--{arguments}");
        let output = script(text, arguments.split(' '));
        assert!(output.status.success(), "{}", stderr(&output));
        assert_eq!(String::from_utf8(output.stdout).unwrap(), expected, "{arguments}");
        examples += 1;
        rest = after;
    }
    assert_eq!(examples, 5);
}

#[test]
fn bad_syntax_ends_it_before_the_first_step() {
    let output = script("rd 1\n\nrd 1 4095", ["--max-mem", "8M", "--target", "4M"]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0));
    assert!(stderr(&output).contains("line 3: the offset 4095 is not a multiple of 8"));
}

#[test]
fn invalid_sizes_are_wrong_usage() {
    for (max_mem, target, part) in [
        ("8M", "16M", "invalid target: 4096 pages (must be 1 to 2048)"),
        ("8M", "0", "invalid target: 0 pages (must be 1 to 2048)"),
        ("8M", "4097", "--target is 4097, but must be a multiple of 4K"),
        ("15E", "15E", "no memory for the software machine"),
        ("256P", "256P", "no memory for the software machine"),
    ] {
        let output = script("rd 1", ["--max-mem", max_mem, "--target", target]);
        assert_eq!(output.status.code(), Some(2), "{max_mem} {target}: {}", stderr(&output));
        assert!(stderr(&output).contains(part), "{max_mem} {target}: {}", stderr(&output));
    }
}

#[test]
fn errors_in_steps_do_not_end_it() {
    let output = script("rd 99999\ndec 0 0", ["--max-mem", "8M", "--target", "4M"]);
    assert!(output.status.success());
    let lines = String::from_utf8(output.stdout).unwrap();
    assert_eq!(lines.lines().count(), 2);
    assert!(
        lines.starts_with(r#"{"step":1,"op":"rd","args":[99999,0],"result":{"error":"unmapped"}"#)
    );
}
