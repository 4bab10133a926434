//! Runs every test that this machine allows, in groups, and says at the end which groups ran, which
//! were left out, why, and how to get them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cargo::{CHECKED, Outcome, RELEASE, cargo, shown, start, workspace};
use crate::{machine, setup};

/// Whether tests on real guests are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RealGuests {
    /// Set up what they need, and run them.
    Run,
    /// Do not.
    LeftOut,
}

/// What became of a group of tests.
enum Verdict {
    Passed,
    Failed,
    LeftOut { why: String, how: String },
}

impl From<Outcome> for Verdict {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Passed => Self::Passed,
            Outcome::Failed => Self::Failed,
        }
    }
}

/// Runs the groups; whether none failed.
pub(crate) fn run(real_guests: RealGuests) -> Result<bool> {
    let mut groups = Vec::new();
    let [profile, checked] = CHECKED;
    let ordinary = ["test", profile, checked, "--workspace", "--no-fail-fast"];
    groups.push(("ordinary tests", Verdict::from(cargo(&ordinary, &[])?)));
    // Most of these wait for something: the build for real guests goes on meanwhile.
    let build = match real_guests {
        RealGuests::Run => {
            Some(start(&[&BUILD[..], &["--bins", "--test", "real_guest"]].concat())?)
        }
        RealGuests::LeftOut => None,
    };
    groups.push(("userfaultfd tests", userfaultfd()?));
    build.map(|mut build| build.wait()).transpose()?;
    groups.push(("tests with KVM", with_kvm()?));
    groups.push(("tests in a browser", browser()?));
    groups.push(("tests in C", in_c(real_guests)?));
    groups.push(("tests with Xen's xenalyze", xenalyze()?));
    // Someone may be at work on a tree that has none yet.
    if workspace().join(REAL_GUEST).is_file() {
        groups.push(("tests on real guests", on_real_guests(real_guests)?));
        groups.push(("tests with libvirt", with_libvirt(real_guests)?));
    }
    println!("\nsummary");
    for (name, verdict) in &groups {
        match verdict {
            Verdict::Passed => println!("  passed    {name}"),
            Verdict::Failed => println!("  FAILED    {name}"),
            Verdict::LeftOut { why, how } => {
                println!("  left out  {name}: {why}\n            to run them: {how}");
            }
        }
    }
    Ok(!groups.iter().any(|(_, verdict)| matches!(verdict, Verdict::Failed)))
}

/// The module of the tests on real guests that compare times.
const TIMED: &str = "boot_time::";
/// What they start.
const BUILD: [&str; 6] = ["build", RELEASE, "-p", "zerosweep-cli", "-p", "zerosweep-agent"];
const REAL_GUEST: &str = "crates/zerosweep-cli/tests/real_guest.rs";

fn on_real_guests(wanted: RealGuests) -> Result<Verdict> {
    if wanted == RealGuests::LeftOut {
        let (why, how) = ("--quick".to_owned(), "cargo xtask test".to_owned());
        return Ok(Verdict::LeftOut { why, how });
    }
    if let Err(e) = setup::run() {
        let why = format!("{e:#}");
        if setup::can_install() {
            eprintln!("error: {why}");
            return Ok(Verdict::Failed);
        }
        return Ok(Verdict::LeftOut { why, how: "the above, then cargo xtask test".to_owned() });
    }
    if let Err(why) = machine::userfaultfd() {
        return Ok(Verdict::LeftOut { why, how: "the above, then cargo xtask test".to_owned() });
    }
    // The tests start the program, which preloads the agent: both have to be there.
    if cargo(&BUILD, &[])? == Outcome::Failed {
        return Ok(Verdict::Failed);
    }
    // Those that compare times have the machine to themselves.
    let alone = real_guests(&["--test-threads", "1", TIMED])?;
    let others = real_guests(&["--test-threads", "2", "--skip", TIMED])?;
    let passed = alone == Outcome::Passed && others == Outcome::Passed;
    Ok(if passed { Verdict::Passed } else { Verdict::Failed })
}

fn real_guests(arguments: &[&str]) -> Result<Outcome> {
    #[rustfmt::skip]
    let test = [
        "test", RELEASE, "-p", "zerosweep-cli", "-p", "zerosweep-agent", "--test", "real_guest",
        "--", "--include-ignored", "--nocapture",
    ];
    cargo(&[&test, arguments].concat(), &[])
}

/// Runs the tests on real guests that libvirt starts.
fn with_libvirt(wanted: RealGuests) -> Result<Verdict> {
    ignored("needs libvirt", || {
        if wanted == RealGuests::LeftOut {
            return Err("--quick".to_owned());
        }
        setup::run().and_then(|()| setup::libvirt()).map_err(|e| format!("{e:#}"))?;
        machine::userfaultfd()
    })
}

/// Runs the tests that need userfaultfd.
fn userfaultfd() -> Result<Verdict> {
    ignored("needs userfaultfd", machine::userfaultfd)
}

/// Runs the tests that start virtual machines of their own.
fn with_kvm() -> Result<Verdict> {
    ignored("needs KVM", || machine::userfaultfd().and_then(|()| machine::kvm()))
}

/// Runs the tests that need a browser. It is used where it is, and never installed: it is big.
fn browser() -> Result<Verdict> {
    let names = ["chromium", "chromium-browser", "google-chrome"];
    ignored("needs Chromium", || match names.iter().find_map(|name| machine::program(name)) {
        Some(_) => Ok(()),
        None => Err("Chromium is not on the PATH: `apt-get install chromium`".to_owned()),
    })
}

/// Runs the tests of the C interface that need more than the C compiler that rustc links with.
fn in_c(real_guests: RealGuests) -> Result<Verdict> {
    ignored("needs C tools", || {
        match real_guests {
            RealGuests::Run => setup::c_tools(),
            RealGuests::LeftOut => setup::find_c_tools(),
        }
        .map_err(|e| format!("{e:#}"))
    })
}

/// Runs the tests that have Xen's own reader look at traces. It is used where it is.
fn xenalyze() -> Result<Verdict> {
    ignored("needs xenalyze", || match machine::program("xenalyze") {
        Some(_) => Ok(()),
        None => Err("xenalyze is not on the PATH: `apt-get install xen-utils-4.17`".to_owned()),
    })
}

/// Runs the test targets with tests whose ignore reason starts with `reason`, if the machine has
/// what they need.
fn ignored(reason: &str, needed: impl FnOnce() -> Result<(), String>) -> Result<Verdict> {
    let targets = ignored_targets(&workspace().join("crates"), reason)?;
    let [profile, checked] = CHECKED;
    // Of a part of the packages others would have other features, and be built again.
    let mut arguments = vec!["test", profile, checked, "--workspace", "--no-fail-fast"];
    for target in &targets {
        match target {
            Some(test) => arguments.extend(["--test", test]),
            None => arguments.extend(["--lib", "--bins"]),
        }
    }
    arguments.extend(["--", "--ignored"]);
    if targets.is_empty() {
        let (why, how) = ("there are none".to_owned(), "nothing to do".to_owned());
        return Ok(Verdict::LeftOut { why, how });
    }
    match needed() {
        Ok(()) => Ok(cargo(&arguments, &[])?.into()),
        Err(why) => Ok(Verdict::LeftOut { why, how: shown(&arguments, &[]) }),
    }
}

/// The integration tests in which an ignored test's reason starts with `reason`; `None` stands for
/// the tests in sources.
fn ignored_targets(crates: &Path, reason: &str) -> Result<BTreeSet<Option<String>>> {
    let marker = format!("ignore = \"{reason}");
    let mut targets = BTreeSet::new();
    for package in entries(crates)? {
        for directory in ["src", "tests"].map(|name| package.join(name)) {
            for path in entries(&directory)? {
                if holds(&path, &marker)? {
                    let name = path.file_stem().and_then(|name| name.to_str());
                    let test = name.filter(|_| directory.ends_with("tests"));
                    targets.insert(test.map(str::to_owned));
                }
            }
        }
    }
    Ok(targets)
}

/// Whether a source file, or one somewhere below a directory, holds `marker`.
fn holds(path: &Path, marker: &str) -> Result<bool> {
    if path.is_dir() {
        for entry in entries(path)? {
            if holds(&entry, marker)? {
                return Ok(true);
            }
        }
        return Ok(false);
    }
    let is_source = path.extension().is_some_and(|extension| extension == "rs");
    Ok(is_source && fs::read_to_string(path)?.contains(marker))
}

/// What is in a directory; nothing if there is no such directory.
fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    match fs::read_dir(directory) {
        Ok(entries) => {
            Ok(entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?)
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e).with_context(|| format!("reading {}", directory.display())),
    }
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn targets_with_ignored_tests_are_found_by_their_reason() {
        let root = std::env::temp_dir().join(format!("xtask-targets-{}", std::process::id()));
        let file = |path: &str, text: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let needing = "#[ignore = \"needs userfaultfd in kernel mode\"]\nfn f() {}\n";
        file("a/src/deep/er.rs", needing);
        file("a/src/lib.rs", needing);
        file("a/tests/memory/moves.rs", needing);
        file("b/tests/slow.rs", "#[ignore = \"takes an hour\"]\nfn f() {}\n");
        file("b/tests/uffd.rs", needing);
        let found = ignored_targets(&root, "needs userfaultfd").unwrap();
        let expected = [None, Some("memory"), Some("uffd")].map(|test| test.map(str::to_owned));
        assert_eq!(found, BTreeSet::from(expected));
        fs::remove_dir_all(&root).unwrap();
    }
}
