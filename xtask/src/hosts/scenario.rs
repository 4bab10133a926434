//! What is run on each host.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;
use zerosweep_lab::image::{GuestImage, cache_dir};

use super::arch::Arch;
use super::boot::{CUT_OFF, Said};
use super::record::Outcome;
use super::system::PROGRAMS;
use crate::cargo::{target, workspace};
use crate::need::Need;
use crate::tests::PROGRAM;
use crate::tests::program::{Program, counts, failures};

/// Makes `$1` the root, with the directories `$2`, `$3` and `$4` in it, and becomes the command
/// behind.
const ENTER: &str = r#"
set -e
mount --bind "$1" "$1"
cd "$1"
mount -t proc proc proc
mount --rbind /sys sys
mount --rbind /dev dev
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
root=$1
for directory in "$2" "$3" "$4"; do
    mkdir -p ".$directory"
    mount --bind "$directory" ".$directory"
done
shift 4
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
exec chroot "$root" "$@"
"#;
/// The name of the example of a VMM, and what its guest is told and may hold.
const VMM: &str = "zerosweep-vmm-example";
const VMM_MAX_MEM: &str = "512M";
const VMM_TARGET: &str = "160M";
const VMM_COMMAND_LINE: &str =
    "console=ttyS0 quiet panic=-1 zs.fill=64M zs.first=30 zs.settle=20 zs.end=poweroff";
/// The name of the program under test.
const ZEROSWEEP: &str = "zerosweep";
/// A guest may hold this share of its target.
const TOLERANCE: f64 = 1.02;
/// The variable that says how QEMU runs the guests of tests.
const ACCEL: &str = "ZEROSWEEP_TEST_ACCEL";

/// Something that is run on a host, and a column of the table.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    work: Work,
    limit: Duration,
}

enum Work {
    /// The program, with arguments.
    Program(&'static [&'static str]),
    /// All tests of zerosweep-linux that a host allows.
    Linux,
    /// Tests of real guests: those whose names begin with one of these.
    RealGuest(Accelerator, &'static [&'static str]),
    /// The example of a VMM, with the image of the tests' guests.
    Vmm,
}

/// What runs the guests of tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Accelerator {
    Kvm,
    Tcg,
}

impl Accelerator {
    /// Its value of [`ACCEL`].
    fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// All of them, in the order of the table's columns.
pub(crate) const SCENARIOS: [Scenario; 7] = [
    Scenario {
        name: "doctor",
        about: "`zerosweep doctor` finds that guests can run",
        work: Work::Program(&["doctor", "--json"]),
        limit: seconds(120),
    },
    Scenario {
        name: "demo",
        about: "`zerosweep demo`: threads are the guest",
        work: Work::Program(&["demo", "--json"]),
        limit: seconds(400),
    },
    Scenario {
        name: "linux",
        about: "the tests of `zerosweep-linux`",
        work: Work::Linux,
        limit: seconds(600),
    },
    Scenario {
        name: "guest",
        about: "a Debian guest under QEMU with KVM boots and balloons within its target",
        work: Work::RealGuest(Accelerator::Kvm, &["boots::boots_and_balloons_within_its_target"]),
        limit: seconds(600),
    },
    Scenario {
        name: "kvm",
        about: "scrubbing guests, two CPUs, churn, too little memory, resets, vhost-net, under KVM",
        work: Work::RealGuest(
            Accelerator::Kvm,
            &["boots::", "churn::", "exhaustion::", "kvm::", "resets::", "vhost::"],
        ),
        limit: seconds(900),
    },
    Scenario {
        name: "vmm",
        about: "the example of a VMM boots a Debian guest with two CPUs, and its balloon follows",
        work: Work::Vmm,
        limit: seconds(400),
    },
    Scenario {
        name: "tcg",
        about: "the tests with real guests, on QEMU's software CPU; too slow on an emulated host",
        work: Work::RealGuest(Accelerator::Tcg, &[""]),
        limit: seconds(900),
    },
];

impl Scenario {
    /// The scenario of that name.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn named(name: &str) -> Result<&'static Self> {
        let known =
            || SCENARIOS.iter().map(|scenario| scenario.name).collect::<Vec<_>>().join(", ");
        let found = SCENARIOS.iter().find(|scenario| scenario.name == name);
        found.with_context(|| format!("no scenario {name}: there are {}", known()))
    }

    /// Whether hosts of this architecture can run it.
    pub(crate) fn is_for(&self, arch: Arch) -> bool {
        arch.has_kvm() || matches!(self.work, Work::Program(_) | Work::Linux)
    }

    /// Whether it has tests of the program's own, which are built apart.
    pub(crate) fn has_real_guests(&self) -> bool {
        matches!(self.work, Work::RealGuest(..))
    }

    /// Its steps on a host that has what `has` says.
    pub(crate) fn steps(
        &self,
        programs: &Programs,
        has: &dyn Fn(Need) -> bool,
    ) -> Result<Vec<Step>> {
        let accelerator = match self.work {
            Work::RealGuest(accelerator, _) => accelerator,
            Work::Program(_) | Work::Linux | Work::Vmm => Accelerator::Kvm,
        };
        let step = |name: String, program: &str, arguments: Vec<String>| Step {
            name,
            limit: self.limit,
            program: program.to_owned(),
            arguments,
            accelerator,
        };
        match self.work {
            Work::Program(arguments) => {
                let arguments = arguments.iter().map(|&word| word.to_owned()).collect();
                Ok(vec![step(self.name.to_owned(), ZEROSWEEP, arguments)])
            }
            Work::Vmm => {
                let image = GuestImage::find()?;
                let files = [("--kernel", &image.kernel), ("--initrd", &image.initrd)];
                let files =
                    files.map(|(option, path)| [option.to_owned(), path.display().to_string()]);
                let rest = ["--max-mem", VMM_MAX_MEM, "--target", VMM_TARGET, "--vcpus", "2"];
                let rest = rest.into_iter().chain(["--cmdline", VMM_COMMAND_LINE]);
                let arguments = files.into_iter().flatten().chain(rest.map(str::to_owned));
                Ok(vec![step(self.name.to_owned(), VMM, arguments.collect())])
            }
            Work::Linux => {
                let mut steps = Vec::new();
                for (name, program) in &programs.linux {
                    let tests = chosen(program, |_| true, has)?;
                    if !tests.is_empty() {
                        let arguments = test_arguments(&tests);
                        steps.push(step(format!("{}:{name}", self.name), name, arguments));
                    }
                }
                Ok(steps)
            }
            Work::RealGuest(_, prefixes) => {
                let (name, program) = programs.real_guest.as_ref().context("it was not built")?;
                let is_wanted = |test: &str| prefixes.iter().any(|prefix| test.starts_with(prefix));
                let tests = chosen(program, is_wanted, has)?;
                // The first name may be the beginning of another one.
                let tests = match prefixes {
                    [only] if tests.iter().any(|test| test == only) => vec![(*only).to_owned()],
                    _ => tests,
                };
                let one = |test: &String| {
                    let short = test.replace("::", ":");
                    let arguments = test_arguments(std::slice::from_ref(test));
                    step(format!("{}:{short}", self.name), name, arguments)
                };
                Ok(tests.iter().map(one).collect())
            }
        }
    }

    /// What its steps came to. `None`: none of them was run.
    pub(crate) fn outcome(&self, all: &[Said]) -> Option<Outcome> {
        let is_of = |said: &&Said| {
            said.step
                .strip_prefix(self.name)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
        };
        let said: Vec<_> = all.iter().filter(is_of).collect();
        if said.is_empty() {
            return None;
        }
        let seconds = said.iter().map(|said| said.seconds).sum();
        let (passed, detail) = match self.work {
            Work::Program(_) => program_outcome(self.name, said[0]),
            Work::Vmm => vmm_outcome(said[0]),
            Work::Linux | Work::RealGuest(..) => tests_outcome(&said),
        };
        let figures = said.iter().flat_map(|said| figures(&said.text)).collect();
        Some(Outcome { passed, detail, seconds, figures })
    }
}

/// A command that a host runs.
pub(crate) struct Step {
    pub(crate) name: String,
    pub(crate) limit: Duration,
    /// Its name among the programs.
    program: String,
    arguments: Vec<String>,
    accelerator: Accelerator,
}

impl Step {
    /// As lines of a host's `steps`.
    pub(crate) fn line(&self) -> String {
        let (limit, program) = (self.limit.as_secs(), &self.program);
        let arguments: Vec<_> = self.arguments.iter().map(|word| format!("'{word}'")).collect();
        let arguments = arguments.join(" ");
        let setting = format!("export {ACCEL}={}", self.accelerator.name());
        format!("{setting}\nstep {} {limit} /{PROGRAMS}/{program} {arguments}\n", self.name)
    }

    /// Runs it on this machine: in a root with another QEMU, if there is one.
    pub(crate) fn run_here(&self, programs: &Programs, root: Option<&Path>) -> Result<Said> {
        let files = programs.files();
        let file = files.iter().find(|(name, _)| *name == self.program);
        let (_, file) = file.with_context(|| format!("no program {}", self.program))?;
        let began = Instant::now();
        let mut command = Command::new("timeout");
        command.arg("--signal=KILL").arg(self.limit.as_secs().to_string());
        if let Some(root) = root {
            command.args(["unshare", "--mount", "--pid", "--fork", "--kill-child"]);
            command.args(["sh", "-c", ENTER, "sh"]).arg(root);
            // Programs may be built somewhere else.
            command.args([workspace(), &cache_dir(), &target()]);
        }
        let output = command
            .arg(file)
            .args(&self.arguments)
            .env(PROGRAM, &programs.zerosweep)
            .env(ACCEL, self.accelerator.name())
            .stdin(Stdio::null())
            .output()
            .context("starting timeout")?;
        let seconds = began.elapsed().as_secs_f64();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        let status = output.status.code().unwrap_or(137);
        Ok(Said { step: self.name.clone(), status, seconds, text })
    }
}

/// What hosts run, by their names there.
pub(crate) struct Programs {
    pub(crate) zerosweep: PathBuf,
    pub(crate) vmm: Option<PathBuf>,
    pub(crate) linux: Vec<(String, Program)>,
    pub(crate) real_guest: Option<(String, Program)>,
}

impl Programs {
    /// The program, and the tests with real guests.
    pub(crate) fn of(real_guest: &Program, zerosweep: &Path) -> Self {
        let real_guest = Some((real_guest.file_name(), real_guest.clone()));
        Self { zerosweep: zerosweep.to_owned(), vmm: None, linux: Vec::new(), real_guest }
    }

    /// All files, with their names.
    pub(crate) fn files(&self) -> Vec<(String, PathBuf)> {
        let tests = self.linux.iter().chain(&self.real_guest);
        let tests = tests.map(|(name, program)| (name.clone(), program.path().to_owned()));
        let vmm = self.vmm.iter().map(|path| (VMM.to_owned(), path.clone()));
        let zerosweep = (ZEROSWEEP.to_owned(), self.zerosweep.clone());
        std::iter::once(zerosweep).chain(vmm).chain(tests).collect()
    }
}

/// The variables that tests see.
pub(crate) fn settings(arch: Arch) -> String {
    let mut text = String::new();
    let mut set = |name: &str, value: &str| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "export {name}='{value}'");
    };
    set("HOME", &std::env::home_dir().unwrap_or_default().display().to_string());
    set("results", &arch.port());
    set("emulator", arch.qemu());
    set(PROGRAM, &format!("/{PROGRAMS}/{ZEROSWEEP}"));
    text
}

fn test_arguments(tests: &[String]) -> Vec<String> {
    let words = ["--include-ignored", "--test-threads", "1", "--nocapture", "--exact"];
    words.map(str::to_owned).into_iter().chain(tests.iter().cloned()).collect()
}

/// The tests of a program that a host can run.
fn chosen(
    program: &Program,
    is_wanted: impl Fn(&str) -> bool,
    has: &dyn Fn(Need) -> bool,
) -> Result<Vec<String>> {
    let mut tests = program.ordinary()?;
    for (needs, names) in program.needing()? {
        if needs.iter().all(|&need| has(need)) {
            tests.extend(names);
        }
    }
    tests.retain(|test| is_wanted(test));
    tests.sort();
    Ok(tests)
}

/// The program's own verdict.
fn program_outcome(name: &str, said: &Said) -> (bool, String) {
    let Some(start) = said.text.find('{') else {
        return (false, last_line(&said.text));
    };
    let document: Value = serde_json::from_str(&said.text[start..]).unwrap_or_default();
    if name == "doctor" {
        let checks = document["checks"].as_array().map(Vec::as_slice).unwrap_or_default();
        let failed: Vec<_> = checks
            .iter()
            .filter(|check| check["status"] == "fail")
            .filter_map(|check| check["found"].as_str())
            .collect();
        let detail = if failed.is_empty() { String::new() } else { failed.join("; ") };
        return (said.status == 0 && document["can_run"] == true, detail);
    }
    (said.status == 0 && document.is_object(), String::new())
}

/// The figures of the example's last line: the guest ended well within its target, nothing was
/// borrowed or lost, and the kernel has the superpages that the engine counts.
fn vmm_outcome(said: &Said) -> (bool, String) {
    let line = said.text.lines().rfind(|line| line.starts_with('{'));
    let figures: Value = line.and_then(|line| serde_json::from_str(line).ok()).unwrap_or_default();
    let number = |name: &str| figures[name].as_u64();
    let wrong = [
        ("it ended", said.status == 0 && figures["ended"] == "power-off"),
        ("bad=0", said.text.contains(" bad=0 ") && said.text.contains("done ok")),
        ("audit", figures["audit"] == "ok"),
        ("nothing borrowed", number("borrowed") == Some(0) && figures["lifted"].is_null()),
        (
            "held",
            matches!((number("held_at_most"), number("target")), (Some(held), Some(target))
                if held as f64 <= target as f64 * TOLERANCE),
        ),
        (
            "superpages",
            number("superpages_in_guest").is_some()
                && number("superpages_in_guest") == number("superpages_in_page_tables"),
        ),
    ];
    let wrong: Vec<_> = wrong.iter().filter(|(_, good)| !good).map(|(what, _)| *what).collect();
    match (wrong.is_empty(), number("superpages_in_guest")) {
        (true, Some(superpages)) => (true, format!("{superpages} superpages")),
        _ => (false, format!("not as expected: {}", wrong.join(", "))),
    }
}

fn tests_outcome(said: &[&Said]) -> (bool, String) {
    let (mut passed, mut failed) = (0, Vec::new());
    for said in said {
        let (good, bad) = counts(&said.text);
        passed += good;
        let names = failures(&said.text);
        if bad > 0 && !names.is_empty() {
            failed.extend(names);
        } else if said.status != 0 {
            let why = match said.status {
                137 => "takes too long".to_owned(),
                CUT_OFF => "the host ended before".to_owned(),
                status => format!("exit status {status}"),
            };
            failed.push(format!("{} ({why})", said.step));
        }
    }
    if failed.is_empty() {
        (true, format!("{passed} {}", if passed == 1 { "test" } else { "tests" }))
    } else {
        (false, format!("{passed} passed, not: {}", failed.join(", ")))
    }
}

/// What tests print of themselves: lines that begin with two blanks, before a list of failures.
fn figures(text: &str) -> Vec<String> {
    let lines = text.lines().take_while(|line| *line != "failures:");
    let figures = lines.filter_map(|line| line.strip_prefix("  "));
    figures.filter(|line| line.starts_with(char::is_alphanumeric)).map(str::to_owned).collect()
}

fn last_line(text: &str) -> String {
    text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing").to_owned()
}

#[cfg(test)]
mod unit_tests {
    use super::*;

    fn said(step: &str, status: i32, text: &str) -> Said {
        Said { step: step.to_owned(), status, seconds: 2.0, text: text.to_owned() }
    }

    #[test]
    fn a_doctor_that_fails_says_why() {
        let doctor = Scenario::named("doctor").unwrap();
        let text = "x\n{\"can_run\": false, \"checks\": [{\"status\": \"fail\", \"found\": \"Linux 6.1\"}]}";
        let outcome = doctor.outcome(&[said("doctor", 1, text)]).unwrap();
        assert_eq!((outcome.passed, outcome.detail.as_str()), (false, "Linux 6.1"));
        let outcome = doctor.outcome(&[said("doctor", 0, "{\"can_run\": true}")]).unwrap();
        assert!(outcome.passed);
        assert!(doctor.outcome(&[said("demo", 0, "{}")]).is_none());
    }

    #[test]
    fn tests_are_counted_over_all_programs() {
        let linux = Scenario::named("linux").unwrap();
        let good = "test result: ok. 3 passed; 0 failed; 0 ignored";
        let bad = "failures:\n    a::b\n\ntest result: FAILED. 1 passed; 1 failed; 0 ignored";
        let outcome = linux.outcome(&[said("linux:a", 0, good), said("linux:b", 0, good)]).unwrap();
        assert_eq!((outcome.passed, outcome.detail.as_str()), (true, "6 tests"));
        let one = "test result: ok. 1 passed; 0 failed; 0 ignored";
        assert_eq!(linux.outcome(&[said("linux:a", 0, one)]).unwrap().detail, "1 test");
        let bad = format!("\n{bad}");
        let steps =
            [said("linux:a", 0, good), said("linux:b", 101, &bad), said("linux:c", 137, "")];
        let outcome = linux.outcome(&steps).unwrap();
        assert!(!outcome.passed);
        assert_eq!(outcome.detail, "4 passed, not: a::b, linux:c (takes too long)");
        let outcome = linux.outcome(&[said("linux:a", 0, good), Said::cut_off("linux:b")]).unwrap();
        assert!(!outcome.passed, "{}", outcome.detail);
    }
}
