//! No two modules of a crate import each other, in one step or in several.
//!
//! Modules are those at the top of a crate: what is below one belongs to it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Which modules a module imports.
type Imports = BTreeMap<String, BTreeSet<String>>;

/// A source text without its unit tests and comments.
fn code(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text);
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

/// The names that follow each `root::` in a source text: one, or those of a list in braces.
fn names_after(code: &str, root: &str) -> Vec<String> {
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

fn read(source: &Path, folder: &Path, imports: &mut Imports) {
    for entry in fs::read_dir(folder).expect("a folder can be read") {
        let path: PathBuf = entry.expect("an entry can be read").path();
        let below = path.strip_prefix(source).expect("below the sources");
        let module = below.iter().next().expect("a name").to_string_lossy();
        let module = module.trim_end_matches(".rs").to_owned();
        if path.is_dir() {
            read(source, &path, imports);
        } else if path.extension().is_some_and(|is| is == "rs")
            && !["lib", "main", "bin"].contains(&module.as_str())
        {
            let code = code(&fs::read_to_string(&path).expect("a source file can be read"));
            let mut names = names_after(&code, "crate::");
            if below.iter().count() == 1 {
                names.extend(names_after(&code, "super::"));
            }
            imports.entry(module).or_default().extend(names);
        }
    }
}

/// A circle that begins and ends with `module`, if there is one.
fn circle<'a>(imports: &'a Imports, module: &'a str) -> Option<Vec<&'a str>> {
    let mut ways = vec![vec![module]];
    let mut seen = BTreeSet::new();
    while let Some(way) = ways.pop() {
        for import in &imports[*way.last()?] {
            if import == module && way.len() > 1 {
                return Some(way);
            }
            if imports.contains_key(import) && import != module && seen.insert(import) {
                ways.push(way.iter().copied().chain([import.as_str()]).collect());
            }
        }
    }
    None
}

#[test]
fn no_modules_of_a_crate_import_each_other() {
    let crates =
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace").join("crates");
    let mut count = 0;
    for entry in fs::read_dir(&crates).expect("the crates can be listed") {
        let source = entry.expect("an entry can be read").path().join("src");
        let mut imports = Imports::new();
        read(&source, &source, &mut imports);
        for module in imports.keys() {
            let circle = circle(&imports, module);
            assert_eq!(circle, None, "{}: each imports the next", source.display());
        }
        count += imports.len();
    }
    assert!(count > 100, "{count} modules");
}

#[test]
fn circles_are_found() {
    let code = "use crate::{b::{x, y}, c as d};\nfn f() { crate::e::g(); mycrate::h(); }";
    assert_eq!(names_after(code, "crate::"), ["b", "c", "e"]);
    let set = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    let imports: Imports = [("a", &["b"][..]), ("b", &["c", "b"]), ("c", &["a"]), ("d", &["a"])]
        .into_iter()
        .map(|(module, names)| (module.to_owned(), set(names)))
        .collect();
    assert_eq!(circle(&imports, "a"), Some(vec!["a", "b", "c"]));
    assert_eq!(circle(&imports, "d"), None);
}
