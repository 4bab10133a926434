//! The layers of `zerosweep-linux` that `ARCHITECTURE.md` lists point one way.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use crate::sources::{code, names_after, root, sources, top_module};

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

fn check(file: &Path, module: &str, layers: &HashMap<String, usize>) {
    let Some(own) = layers.get(module) else {
        panic!("ARCHITECTURE.md has no layer for {module}, in {}", file.display());
    };
    let text = fs::read_to_string(file).expect("a source file can be read");
    for import in names_after(&code(&text), "crate::") {
        let layer = layers.get(&import);
        let is_above = layer.is_some_and(|layer| layer <= own);
        assert!(is_above, "{} imports crate::{import}, which is no layer above", file.display());
    }
}

#[test]
fn no_module_of_zerosweep_linux_imports_a_later_layer() {
    let architecture = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("a map");
    let layers = layers(&architecture);
    assert!(layers.len() >= 14 && layers["sys"] < layers["machine"], "{layers:?}");
    let source = root().join("crates/zerosweep-linux/src");
    let mut found = Vec::new();
    sources(&source, "rs", &mut found);
    let mut files = 0;
    for file in found {
        let module = top_module(&source, &file);
        if module != "lib" && module != "tests" {
            check(&file, &module, &layers);
            files += 1;
        }
    }
    assert!(files > 40, "{files} files");
}
