//! The layers of `zerosweep-linux` that `ARCHITECTURE.md` lists point one way.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Returns the row of each module in the table of layers: a module imports none of a later row.
fn layers(architecture: &str) -> HashMap<String, usize> {
    let (_, table) = architecture.split_once("| layer | what |\n").expect("a table of layers");
    let rows = table.lines().skip(1).take_while(|line| line.starts_with('|'));
    let mut layers = HashMap::new();
    for (row, line) in rows.enumerate() {
        let cell = line.split('|').nth(1).expect("a row has cells");
        for name in cell.split('`').skip(1).step_by(2) {
            layers.insert(name.trim_end_matches('/').to_owned(), row);
        }
    }
    // The last row names it in its text, for it is there with a feature only.
    let last = layers["memory"];
    layers.insert("guest_ram".to_owned(), last);
    layers
}

/// Returns the modules of its own crate that a source text names, apart from tests and comments.
fn imports(text: &str) -> impl Iterator<Item = &str> {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text);
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.flat_map(|line| line.split("crate::").skip(1)).map(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        &rest[..end.unwrap_or(rest.len())]
    })
}

fn check(file: &Path, module: &str, layers: &HashMap<String, usize>) {
    let Some(own) = layers.get(module) else {
        panic!("ARCHITECTURE.md has no layer for {module}, in {}", file.display());
    };
    let text = fs::read_to_string(file).expect("a source file can be read");
    for import in imports(&text) {
        let layer = layers.get(import);
        let is_above = layer.is_some_and(|layer| layer <= own);
        assert!(is_above, "{} imports crate::{import}, which is no layer above", file.display());
    }
}

#[test]
fn no_module_of_zerosweep_linux_imports_a_later_layer() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace");
    let architecture = fs::read_to_string(root.join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let layers = layers(&architecture);
    assert!(layers.len() >= 14 && layers["sys"] < layers["machine"], "{layers:?}");
    let mut folders = vec![root.join("crates/zerosweep-linux/src")];
    let source = folders[0].clone();
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder can be read") {
            let path: PathBuf = entry.expect("an entry can be read").path();
            let below = path.strip_prefix(&source).expect("below the sources").to_owned();
            let module = below.iter().next().expect("a name").to_string_lossy();
            let module = module.trim_end_matches(".rs");
            if path.is_dir() {
                folders.push(path);
            } else if module != "lib" && module != "tests" {
                check(&path, module, &layers);
                files += 1;
            }
        }
    }
    assert!(files > 40, "{files} files");
}
