//! The project's own files, for tests that read them.

use std::fs;
use std::path::{Path, PathBuf};

/// The root of the workspace.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is in the workspace").to_owned()
}

/// Files below `folder` with this extension; build outputs are left out.
pub(crate) fn sources(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    for entry in entries.map(|entry| entry.expect("a directory can be read")) {
        let (path, kind) = (entry.path(), entry.file_type().expect("a file has a type"));
        let name = entry.file_name();
        if kind.is_dir() && name != "target" && !name.to_string_lossy().starts_with('.') {
            sources(&path, extension, found);
        } else if kind.is_file() && path.extension().is_some_and(|is| is == extension) {
            found.push(path);
        }
    }
}

/// The module at the top of a crate that a file below its `src` belongs to.
pub(crate) fn top_module(source: &Path, file: &Path) -> String {
    let below = file.strip_prefix(source).expect("below the sources");
    let module = below.iter().next().expect("a name").to_string_lossy();
    module.trim_end_matches(".rs").to_owned()
}

/// A source text without its unit tests and comments.
pub(crate) fn code(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text);
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

/// The names that follow each `root::` in a source text: one, or those of a list in braces.
pub(crate) fn names_after(code: &str, root: &str) -> Vec<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let name = |text: &str| text.chars().take_while(|&c| is_part(c)).collect::<String>();
    let mut names = Vec::new();
    for (at, _) in code.match_indices(root) {
        if code[..at].chars().next_back().is_some_and(|c| is_part(c) || c == ':') {
            continue;
        }
        let rest = &code[at + root.len()..];
        let Some(list) = rest.strip_prefix('{') else {
            names.push(name(rest));
            continue;
        };
        let mut depth = 1;
        let mut begins = true;
        for (at, c) in list.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                break;
            }
            if begins && is_part(c) {
                names.push(name(&list[at..]));
            }
            begins = depth == 1 && (c == ',' || (begins && c.is_whitespace()));
        }
    }
    names
}

#[test]
fn names_are_found_alone_and_in_lists() {
    let code = "use crate::{b::{x, y}, c as d};\nfn f() { crate::e::g(); mycrate::h(); }";
    assert_eq!(names_after(code, "crate::"), ["b", "c", "e"]);
}
