//! Why tests are ignored, read from their sources: a test program lists the names of its ignored
//! tests, but not their reasons.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::need::{Need, Needs};

/// Why a test is ignored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// It needs something.
    Needs(Needs),
    /// It is for people to run by hand, or part of another test.
    Other,
}

/// The reasons of one package, by the names of the functions.
#[derive(Debug, Default)]
pub(crate) struct Reasons(BTreeMap<String, Reason>);

impl Reasons {
    /// Reads the sources below `package`.
    ///
    /// # Errors
    /// When a test needs something unknown, gives no reason, or has the name of another test that
    /// needs something else.
    pub(crate) fn of_package(package: &Path) -> Result<Self> {
        let mut reasons = Self::default();
        reasons.add_all(&package.join("src"))?;
        reasons.add_all(&package.join("tests"))?;
        Ok(reasons)
    }

    /// Why the test of that name, with the names of its modules before it, is ignored.
    ///
    /// # Errors
    /// When the sources have no such test.
    pub(crate) fn of_test(&self, name: &str) -> Result<&Reason> {
        let function = name.rsplit("::").next().unwrap_or(name);
        self.0.get(function).with_context(|| {
            format!("test {name} is ignored, but no line `#[ignore = \"…\"]` says why")
        })
    }

    /// Returns the needs of each test that needs something.
    pub(crate) fn needs(&self) -> impl Iterator<Item = &Needs> {
        self.0.values().filter_map(|reason| match reason {
            Reason::Needs(needs) => Some(needs),
            Reason::Other => None,
        })
    }

    fn add_all(&mut self, directory: &Path) -> Result<()> {
        for file in sources(directory)? {
            let text =
                fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
            self.add(&text).with_context(|| format!("in {}", file.display()))?;
        }
        Ok(())
    }

    fn add(&mut self, text: &str) -> Result<()> {
        let mut lines = text.lines().enumerate();
        while let Some((number, line)) = lines.next() {
            let line = line.trim();
            if line == "#[ignore]" {
                bail!("line {}: an ignored test says why: `#[ignore = \"needs …\"]`", number + 1);
            }
            let Some(reason) = line.strip_prefix("#[ignore = \"") else { continue };
            let reason = reason.strip_suffix("\"]").with_context(|| {
                format!("line {}: the reason of an ignored test takes one line", number + 1)
            })?;
            let needs = Need::all_in(reason)
                .map_err(|why| anyhow::anyhow!("line {}: {why}", number + 1))?;
            let reason = needs.map_or(Reason::Other, Reason::Needs);
            let function = lines.by_ref().find_map(|(_, line)| {
                let (_, name) = line.split_once("fn ")?;
                Some(name.split(['(', '<']).next()?.to_owned())
            });
            let function = function
                .with_context(|| format!("line {}: no function follows this reason", number + 1))?;
            if let Some(other) = self.0.insert(function.clone(), reason.clone())
                && other != reason
            {
                bail!("two tests are called {function} and need different things: rename one");
            }
        }
        Ok(())
    }
}

/// The source files below a directory; none if there is no such directory.
fn sources(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).with_context(|| format!("reading {}", directory.display())),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(sources(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(files)
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    fn read(text: &str) -> Result<Reasons> {
        let mut reasons = Reasons::default();
        reasons.add(text).map(|()| reasons)
    }

    #[test]
    fn a_test_is_found_by_its_name_whatever_its_module() {
        let text = "#[test]\n#[ignore = \"needs userfaultfd, KVM\"]\nfn stalls() {\n}\n\
                    #[test]\nfn ordinary() {}\n    #[ignore = \"takes an hour\"]\n    #[test]\n    \
                    pub(crate) fn long<T>() {}\n";
        let reasons = read(text).unwrap();
        let needs = Reason::Needs(Needs::from([Need::Userfaultfd, Need::Kvm]));
        assert_eq!(reasons.of_test("deep::er::stalls").unwrap(), &needs);
        assert_eq!(reasons.of_test("long").unwrap(), &Reason::Other);
        let unknown = reasons.of_test("ordinary").unwrap_err().to_string();
        assert!(unknown.contains("test ordinary is ignored, but no line"), "{unknown}");
    }

    #[test]
    fn what_says_nothing_or_something_unknown_is_an_error_with_its_line() {
        for (text, error) in [
            ("#[ignore]\nfn f() {}", "line 1: an ignored test says why"),
            ("\n#[ignore = \"needs luck\"]\nfn f() {}", "line 2: unknown need `luck`"),
            ("#[ignore = \"needs KVM\"]", "line 1: no function follows"),
            ("#[ignore = \"needs KVM, \\", "line 1: the reason of an ignored test takes one line"),
        ] {
            let message = read(text).unwrap_err().to_string();
            assert!(message.starts_with(error), "{message}");
        }
        let twice = "#[ignore = \"needs KVM\"]\nfn f() {}\n#[ignore = \"needs root\"]\nfn f() {}";
        let message = read(twice).unwrap_err().to_string();
        assert!(message.starts_with("two tests are called f"), "{message}");
    }

    /// An invalid reason is found here, not in the middle of a run.
    #[test]
    fn every_reason_in_the_workspace_is_read() {
        let crates = crate::cargo::workspace().join("crates");
        let mut count = 0;
        for package in fs::read_dir(crates).unwrap() {
            let reasons = Reasons::of_package(&package.unwrap().path()).unwrap();
            count += reasons.needs().count();
        }
        assert!(count > 100, "only {count} tests need something");
    }
}
