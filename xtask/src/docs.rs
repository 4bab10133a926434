//! What the documents say about the sources is compared with the sources.
//!
//! - `ARCHITECTURE.md` names the files and tests of each rule and invariant of `docs/rules.md`.
//! - Every rule or invariant that a document or a doc comment cites is a link to it.
//! - Sentences can be read by people for whom English is a second language.

use std::fs;
use std::path::{Path, PathBuf};

use crate::sources::{root, sources};

const RULES: usize = 20;
const INVARIANTS: usize = 11;

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The cells of the row of `ARCHITECTURE.md` that begins with a link to `name`.
fn row(architecture: &str, name: &str) -> Vec<String> {
    let link = format!("[{name}](docs/rules.md#{})", name.to_lowercase());
    let mut rows = architecture.lines().filter(|line| {
        let first = line.strip_prefix("| ").and_then(|line| line.split(" | ").next());
        first.is_some_and(|cell| cell.split(", ").any(|cited| cited == link))
    });
    let row = rows.next().unwrap_or_else(|| panic!("ARCHITECTURE.md has no row for {name}"));
    assert_eq!(rows.next(), None, "ARCHITECTURE.md has two rows for {name}");
    row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
}

/// The paths in a cell, below `folder`. All of them exist.
fn files(cell: &str, folder: &str) -> Vec<PathBuf> {
    let names: Vec<&str> = cell.split('`').skip(1).step_by(2).collect();
    assert!(!names.is_empty(), "no file in {cell:?}");
    let path = |name: &str| {
        let path = Path::new(folder).join(name);
        assert!(root().join(&path).is_file(), "ARCHITECTURE.md names {name}, which does not exist");
        path
    };
    names.into_iter().map(path).collect()
}

fn rules() -> impl Iterator<Item = String> {
    (1..=RULES).map(|n| format!("R{n}"))
}

fn invariants() -> impl Iterator<Item = String> {
    (1..=INVARIANTS).map(|n| format!("INV-{n}"))
}

/// The names of rules and invariants in a text, with where each begins.
fn cited(text: &str) -> Vec<(usize, &str)> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find(is_part) {
        let word = &rest[start..];
        let word = &word[..word.find(|c| !is_part(c)).unwrap_or(word.len())];
        let at = text.len() - rest.len() + start;
        if rules().chain(invariants()).any(|name| name == word) {
            found.push((at, word));
        }
        rest = &rest[start + word.len()..];
    }
    found
}

/// Phrases that make a reader stop, each with words that do not.
const PHRASES: [(&str, &str); 9] = [
    ("so many", "a number of …, at most …, this many"),
    ("whoever", "a thread that …, every program that …"),
    ("what came of", "the outcome of"),
    ("came of it", "the outcome"),
    ("so much memory", "an amount of memory"),
    ("be had", "is there, is free, can be allocated"),
    ("without a word", "and does not report it"),
    ("by the kernel's word", "as the kernel reports it"),
    ("as it comes to that", "when it is needed"),
];

#[test]
fn sentences_are_read_once() {
    let mut files = Vec::new();
    for extension in ["md", "rs", "c", "h", "js", "html", "toml"] {
        sources(&root(), extension, &mut files);
    }
    assert!(files.len() > 300, "{} files", files.len());
    for file in files.iter().filter(|file| !file.ends_with("xtask/src/docs.rs")) {
        let text = fs::read_to_string(file).expect("a source file can be read").to_lowercase();
        for (number, line) in text.lines().enumerate() {
            for (phrase, better) in PHRASES {
                let found = line.find(phrase).is_some_and(|at| {
                    let ends = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric());
                    ends(line[..at].chars().next_back())
                        && ends(line[at + phrase.len()..].chars().next())
                });
                let (file, number) = (file.display(), number + 1);
                assert!(!found, "{file}:{number}: {phrase:?}; write {better}");
            }
        }
    }
}

#[test]
fn the_documents_say_how_many_calls_a_machine_has() {
    let source = read("crates/zerosweep/src/machine.rs");
    let (_, body) = source.split_once("\npub trait Machine {\n").expect("the trait is there");
    let (body, _) = body.split_once("\n}\n").expect("the trait has an end");
    let required = body.lines().filter(|line| line.starts_with("    fn ") && line.ends_with(';'));
    assert_eq!(required.count(), 11, "correct README.md and docs/embedding.md");
    for document in ["README.md", "docs/embedding.md"] {
        assert!(read(document).contains("of eleven calls"), "{document}");
    }
}

#[test]
fn every_rule_has_its_text_its_files_and_its_tests() {
    let (architecture, text) = (read("ARCHITECTURE.md"), read("docs/rules.md"));
    for name in rules() {
        let anchor = name.to_lowercase();
        let heading = format!("<a id=\"{anchor}\"></a>\n## {name}: ");
        assert!(text.contains(&heading), "docs/rules.md has no section {heading:?}");
        let [_, _, code, tests] = &row(&architecture, &name)[..] else {
            panic!("the row of {name} has not four cells")
        };
        files(code, "crates/zerosweep/src");
        let tests = files(tests, "crates/zerosweep/tests");
        let test = format!("#[test]\nfn {anchor}_");
        let named = |file: &PathBuf| read(file).contains(&test);
        assert!(tests.iter().any(named), "no test {anchor}_… in {tests:?}");
    }
}

#[test]
fn every_invariant_is_asserted_where_the_table_says() {
    let (architecture, text) = (read("ARCHITECTURE.md"), read("docs/rules.md"));
    for name in invariants() {
        let anchor = format!("<a id=\"{}\"></a>**{name}** ", name.to_lowercase());
        assert!(text.contains(&anchor), "docs/rules.md has no {anchor:?}");
        for file in files(&row(&architecture, &name)[1], "") {
            let cites = read(&file);
            let cites = cited(&cites);
            assert!(cites.iter().any(|cite| cite.1 == name), "{} has no {name}", file.display());
        }
    }
}

#[test]
fn every_rule_that_a_document_cites_can_be_clicked() {
    let mut documents = Vec::new();
    sources(&root(), "md", &mut documents);
    assert!(documents.len() > 20, "{documents:?}");
    for document in documents.iter().filter(|path| !path.ends_with("docs/rules.md")) {
        let text = read(document);
        for (at, name) in cited(&text) {
            let before = text[..at].ends_with('[');
            let after = text[at + name.len()..].starts_with("](");
            let (line, file) = (text[..at].lines().count(), document.display());
            assert!(before && after, "{file}:{line}: {name} is not a link to docs/rules.md#…");
        }
    }
}

#[test]
fn every_rule_that_a_doc_comment_cites_can_be_clicked() {
    let mut files = Vec::new();
    sources(&root().join("crates"), "rs", &mut files);
    assert!(files.len() > 200, "{} files", files.len());
    for file in files {
        let text = fs::read_to_string(&file).expect("a source file can be read");
        for (number, line) in text.lines().enumerate() {
            let comment = line.trim_start();
            let is_doc = comment.starts_with("///") || comment.starts_with("//!");
            for (at, name) in cited(line).into_iter().filter(|_| is_doc) {
                let after = &line[at + name.len()..];
                let linked = line[..at].ends_with('[') && after.starts_with(']');
                let (file, line) = (file.display(), number + 1);
                assert!(
                    linked,
                    "{file}:{line}: {name} is not a link; write [{name}] and its target"
                );
                let target = after.starts_with("](") || text.contains(&format!("[{name}]: "));
                assert!(target, "{file}:{line}: [{name}] has no target");
            }
        }
    }
}
