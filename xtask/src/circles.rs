//! No two modules of a crate import each other, in one step or in several.
//!
//! Modules are those at the top of a crate: what is below one belongs to it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::sources::{code, names_after, root, sources, top_module};

/// Which modules a module imports.
type Imports = BTreeMap<String, BTreeSet<String>>;

/// The modules of the crate whose sources these are, with what each imports.
fn imports_of(source: &Path) -> Imports {
    let mut files = Vec::new();
    sources(source, "rs", &mut files);
    let mut imports = Imports::new();
    for file in files {
        let module = top_module(source, &file);
        if ["lib", "main", "bin"].contains(&module.as_str()) {
            continue;
        }
        let code = code(&fs::read_to_string(&file).expect("a source file can be read"));
        let mut names = names_after(&code, "crate::");
        if file.parent() == Some(source) {
            names.extend(names_after(&code, "super::"));
        }
        imports.entry(module).or_default().extend(names);
    }
    imports
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
    let crates = root().join("crates");
    let mut count = 0;
    for entry in fs::read_dir(&crates).expect("the crates can be listed") {
        let source = entry.expect("an entry can be read").path().join("src");
        let imports = imports_of(&source);
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
    let set = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    let imports: Imports = [("a", &["b"][..]), ("b", &["c", "b"]), ("c", &["a"]), ("d", &["a"])]
        .into_iter()
        .map(|(module, names)| (module.to_owned(), set(names)))
        .collect();
    assert_eq!(circle(&imports, "a"), Some(vec!["a", "b", "c"]));
    assert_eq!(circle(&imports, "d"), None);
}
