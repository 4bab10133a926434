//! Test programs: built by cargo, asked for their tests, and run.
//!
//! They are not run by `cargo test`, because it cannot run chosen tests of one program and other
//! tests of another.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::reasons::{Reason, Reasons};
use crate::aarch64;
use crate::cargo::{self, Outcome};
use crate::need::Needs;

/// What runs a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum On {
    /// This machine.
    Machine,
    /// [`crate::aarch64`].
    Emulator,
}

impl On {
    /// What cargo is told more, as arguments and as variables.
    fn cargo(self) -> (&'static [&'static str], &'static [(&'static str, &'static str)]) {
        match self {
            Self::Machine => (&[], &[]),
            Self::Emulator => (&["--target", aarch64::TARGET], &aarch64::VARIABLES),
        }
    }
}

/// A test program.
#[derive(Clone)]
pub(crate) struct Program {
    on: On,
    /// As arguments of `cargo test`.
    cargo: Vec<String>,
    /// The package's directory, in which its tests run.
    directory: PathBuf,
    path: PathBuf,
}

/// The results of tests.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ran {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    /// The names of those that failed, as far as they are known.
    pub(crate) failures: Vec<String>,
    pub(crate) time: Duration,
}

/// Builds the test programs that `arguments` of `cargo test` select; nothing if that fails.
pub(crate) fn build(arguments: &[&str], on: On) -> Result<Option<Vec<Program>>> {
    let (arguments, variables) = build_command(arguments, on);
    let (outcome, messages) = cargo::output(&arguments, variables)?;
    if outcome == Outcome::Failed {
        return Ok(None);
    }
    let messages = messages.lines().map(serde_json::from_str::<Value>);
    let programs = messages.filter_map(|message| Program::from(&message.ok()?, on));
    Ok(Some(programs.collect()))
}

/// Starts the same build, and does not wait for it.
pub(crate) fn start_build(arguments: &[&str], on: On) -> Result<Child> {
    let (arguments, variables) = build_command(arguments, on);
    cargo::start(&arguments, variables)
}

/// Arguments and variables of cargo.
fn build_command<'a>(
    arguments: &[&'a str],
    on: On,
) -> (Vec<&'a str>, &'static [(&'static str, &'static str)]) {
    let more = ["--no-run", "--message-format", "json-render-diagnostics"];
    let (target, variables) = on.cargo();
    ([&["test"], arguments, target, &more].concat(), variables)
}

impl Program {
    /// Returns the program that one of cargo's messages names, if it names one.
    fn from(message: &Value, on: On) -> Option<Self> {
        if message["reason"] != "compiler-artifact" || message["profile"]["test"] != true {
            return None;
        }
        let directory = Path::new(message["manifest_path"].as_str()?).parent()?;
        let package = directory.file_name()?.to_str()?;
        let target = message["target"]["name"].as_str()?;
        let kind = message["target"]["kind"][0].as_str()?;
        let selected = match kind {
            "test" => vec!["--test", target],
            "bin" => vec!["--bin", target],
            "example" => vec!["--example", target],
            _ => vec!["--lib"],
        };
        let arguments = ["-p", package].into_iter().chain(selected);
        Some(Self {
            on,
            cargo: arguments.map(str::to_owned).collect(),
            directory: directory.to_owned(),
            path: message["executable"].as_str()?.into(),
        })
    }

    /// Whether it is the integration test of that name.
    pub(crate) fn is(&self, test: &str) -> bool {
        self.cargo.last().is_some_and(|last| last == test)
    }

    /// Returns its name in the summary.
    pub(crate) fn name(&self) -> String {
        self.cargo[1..].join(" ").replace("--test ", "").replace("--", "")
    }

    /// The same, fit for a file.
    pub(crate) fn file_name(&self) -> String {
        self.name().replace(' ', "-")
    }

    /// The command that runs it, or some of its tests.
    pub(crate) fn command(&self, profile: &[&str], tests: &[String]) -> String {
        let (target, variables) = self.on.cargo();
        let mut words = vec!["test"];
        words.extend(profile.iter().chain(target));
        words.extend(self.cargo.iter().map(String::as_str));
        if !tests.is_empty() {
            words.extend(["--", "--include-ignored", "--exact"]);
            words.extend(tests.iter().map(String::as_str));
        }
        cargo::shown(&words, variables)
    }

    /// Its file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Its tests that are not ignored.
    pub(crate) fn ordinary(&self) -> Result<Vec<String>> {
        let ignored = self.list(&["--ignored"])?;
        let mut tests = self.list(&[])?;
        tests.retain(|test| !ignored.contains(test));
        Ok(tests)
    }

    /// Its ignored tests, by what they need.
    pub(crate) fn needing(&self) -> Result<BTreeMap<Needs, Vec<String>>> {
        let ignored = self.list(&["--ignored"])?;
        let mut tests = BTreeMap::<Needs, Vec<String>>::new();
        if ignored.is_empty() {
            return Ok(tests);
        }
        let reasons = Reasons::of_package(&self.directory)?;
        for name in ignored {
            if let Reason::Needs(needs) = reasons.of_test(&name)? {
                tests.entry(needs.clone()).or_default().push(name);
            }
        }
        Ok(tests)
    }

    fn list(&self, arguments: &[&str]) -> Result<Vec<String>> {
        let output = self.start().args(["--list", "--format", "terse"]).args(arguments).output();
        let output = output.with_context(|| format!("starting {}", self.path.display()))?;
        ensure!(output.status.success(), "{} --list: {}", self.path.display(), output.status);
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
    }

    fn start(&self) -> Command {
        let mut command = match self.on {
            On::Machine => Command::new(&self.path),
            On::Emulator => aarch64::run(&self.path),
        };
        command.current_dir(&self.directory).stdin(Stdio::null());
        command
    }

    /// Runs the tests with these names; without names, all tests that are not ignored. Shows the
    /// output at the end.
    pub(crate) fn run(&self, tests: &[String], variables: &[(&str, &Path)]) -> Result<Ran> {
        let log = cargo::target().join("tests");
        fs::create_dir_all(&log).with_context(|| format!("creating {}", log.display()))?;
        // It may run several times at once, for tests with different needs.
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let log = log.join(format!("{}-{number}.log", std::process::id()));
        let out = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        let name = match tests {
            [test] => format!("{} {test}", self.name()),
            _ => self.name(),
        };
        eprintln!("running {name}");
        let began = Instant::now();
        let mut command = self.start();
        command.envs(variables.iter().copied());
        if !tests.is_empty() {
            command.args(["--include-ignored", "--exact", "--show-output"]).args(tests);
        }
        let status = command.stdout(out.try_clone()?).stderr(out).status();
        let status = status.with_context(|| format!("starting {}", self.path.display()))?;
        let time = began.elapsed();
        let said = fs::read(&log).with_context(|| format!("reading {}", log.display()))?;
        fs::remove_file(&log)?;
        let said = String::from_utf8_lossy(&said);
        println!("\n=== {name} ({:.1} s)\n{}", time.as_secs_f64(), said.trim_end());
        let (passed, failed) = counts(&said);
        // One that ends in the middle has no result to be counted.
        let failed = if status.success() { failed } else { failed.max(1) };
        Ok(Ran { passed, failed, failures: failures(&said), time })
    }
}

/// How many tests passed and failed, by the last line that says so.
pub(crate) fn counts(said: &str) -> (u64, u64) {
    let Some(line) = said.lines().rfind(|line| line.starts_with("test result: ")) else {
        return (0, 0);
    };
    let number = |what: &str| {
        let before = line.split(what).next().unwrap_or_default();
        before.rsplit([' ', '.']).find(|word| !word.is_empty())?.parse().ok()
    };
    (number(" passed").unwrap_or(0), number(" failed").unwrap_or(0))
}

/// The names in the last list of failures.
pub(crate) fn failures(said: &str) -> Vec<String> {
    let Some((_, list)) = said.rsplit_once("\nfailures:\n") else { return Vec::new() };
    list.lines().map_while(|line| line.strip_prefix("    ")).map(str::to_owned).collect()
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    #[test]
    fn the_last_result_counts() {
        let said = "test result: ok. 1 passed; 0 failed; 0 ignored\nx\n\
                    test result: FAILED. 12 passed; 3 failed; 4 ignored; finished in 0.1s\n\n";
        assert_eq!(counts(said), (12, 3));
        assert_eq!(counts("killed"), (0, 0));
        let said =
            "failures:\n\n---- a stdout ----\nx\n\nfailures:\n    a\n    b::c\n\ntest result: ";
        assert_eq!(failures(said), ["a", "b::c"]);
        assert_eq!(failures("test result: ok"), [""; 0]);
    }

    #[test]
    fn a_program_is_what_cargo_tells_of() {
        let message = serde_json::json!({
            "reason": "compiler-artifact", "manifest_path": "/w/crates/zerosweep-linux/Cargo.toml",
            "target": {"kind": ["test"], "name": "memory"}, "profile": {"test": true},
            "executable": "/w/target/checked/deps/memory-1f",
        });
        let program = Program::from(&message, On::Machine).unwrap();
        assert_eq!(program.name(), "zerosweep-linux memory");
        assert_eq!(program.directory, Path::new("/w/crates/zerosweep-linux"));
        let tests = ["a::b".to_owned(), "c".to_owned()];
        assert_eq!(
            program.command(&["--release"], &tests),
            "cargo test --release -p zerosweep-linux --test memory -- --include-ignored --exact \
             a::b c"
        );
        let emulated = Program::from(&message, On::Emulator).unwrap();
        let again = emulated.command(&["--release"], &[]);
        let expected = "cargo test --release --target aarch64-unknown-linux-gnu -p zerosweep-linux \
                        --test memory";
        assert!(again.starts_with("CARGO_TARGET_") && again.ends_with(expected), "{again}");
        for (field, value) in [("reason", "build-finished".into()), ("profile", Value::Null)] {
            let mut other = message.clone();
            other[field] = value;
            assert!(Program::from(&other, On::Machine).is_none(), "{other}");
        }
    }
}
