//! The results of the tests, by group, and where the time went.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::program::Ran;
use crate::cargo::Outcome;
use crate::need::{Missing, Needs};

/// The results of the tests that need the same.
#[derive(Default)]
struct Group {
    passed: u64,
    failed: u64,
    left_out: usize,
    time: Duration,
}

/// All results so far.
#[derive(Default)]
pub(crate) struct Summary {
    groups: BTreeMap<Needs, Group>,
    documentation: Option<(Outcome, Duration)>,
    builds: Vec<(&'static str, Outcome, Duration)>,
    /// Commands that run what failed.
    again: Vec<String>,
}

impl Summary {
    /// Builds something and records the outcome. Returns `None` if the build failed.
    pub(crate) fn building<T>(
        &mut self,
        what: &'static str,
        build: impl FnOnce() -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        let began = Instant::now();
        let built = build()?;
        let outcome = if built.is_some() { Outcome::Passed } else { Outcome::Failed };
        self.builds.push((what, outcome, began.elapsed()));
        Ok(built)
    }

    /// Runs the examples in the documentation.
    pub(crate) fn documentation(&mut self, run: impl FnOnce() -> Result<Outcome>) -> Result<()> {
        let began = Instant::now();
        self.documentation = Some((run()?, began.elapsed()));
        Ok(())
    }

    /// Tests were run; `command` runs those again that failed.
    pub(crate) fn ran(
        &mut self,
        needs: &Needs,
        ran: &Ran,
        command: impl FnOnce(&[String]) -> String,
    ) {
        let group = self.groups.entry(needs.clone()).or_default();
        group.passed += ran.passed;
        group.failed += ran.failed;
        group.time += ran.time;
        if ran.failed > 0 {
            self.again.push(command(&ran.failures));
        }
    }

    /// Tests were not run, because something is missing.
    pub(crate) fn left_out(&mut self, needs: &Needs, tests: usize) {
        self.groups.entry(needs.clone()).or_default().left_out += tests;
    }

    /// Whether nothing failed.
    pub(crate) fn passed(&self) -> bool {
        self.groups.values().all(|group| group.failed == 0)
            && self.documentation.is_none_or(|(outcome, _)| outcome == Outcome::Passed)
            && self.builds.iter().all(|&(_, outcome, _)| outcome == Outcome::Passed)
    }

    /// All of it as a table; `missing` is why tests were left out.
    pub(crate) fn shown(&self, total: Duration, missing: &[Missing]) -> String {
        let mut text = "\nsummary\n".to_owned();
        let mut line = |verdict: &str, count: &str, time: Duration, what: &str| {
            let _ = writeln!(text, "  {verdict:<8} {count:>4} {:>8}  {what}", shown(time));
        };
        let verdict = |outcome| if outcome == Outcome::Passed { "passed" } else { "FAILED" };
        for &(what, outcome, time) in &self.builds {
            line(verdict(outcome), "", time, what);
        }
        if let Some((outcome, time)) = self.documentation {
            line(verdict(outcome), "", time, "examples in the documentation");
        }
        for (needs, group) in &self.groups {
            let what = name(needs);
            for (verdict, count, time) in [
                ("passed", group.passed, group.time),
                ("FAILED", group.failed, Duration::ZERO),
                ("left out", group.left_out as u64, Duration::ZERO),
            ] {
                if count > 0 {
                    line(verdict, &count.to_string(), time, &what);
                }
            }
        }
        line("in all", "", total, "by the clock: some ran beside others");
        let is_needed = |missing: &&Missing| {
            let groups = self.groups.iter().filter(|(_, group)| group.left_out > 0);
            groups.into_iter().any(|(needs, _)| needs.contains(&missing.need))
        };
        for missing in missing.iter().filter(is_needed) {
            let _ = writeln!(text, "left out, for want of {}: {}", missing.need, missing.what);
            let _ = writeln!(text, "  to get it: {}", missing.how());
        }
        for command in &self.again {
            let _ = writeln!(text, "failed; again: {command}");
        }
        text
    }
}

/// How a group is called.
fn name(needs: &Needs) -> String {
    if needs.is_empty() {
        return "ordinary tests".to_owned();
    }
    let names: Vec<_> = needs.iter().map(|need| need.to_string()).collect();
    format!("tests with {}", names.join(", "))
}

/// Minutes and seconds.
fn shown(time: Duration) -> String {
    let tenths = time.as_millis() / 100;
    match tenths / 600 {
        0 => format!("{}.{} s", tenths / 10, tenths % 10),
        minutes => format!("{minutes}m {:02} s", tenths % 600 / 10),
    }
}

#[cfg(test)]
mod unit_tests {
    use super::*;
    use crate::need::Need;

    #[test]
    fn a_group_in_which_something_is_missing_is_left_out_with_the_way_to_get_it() {
        let mut summary = Summary::default();
        let ran = Ran { passed: 7, time: Duration::from_secs(61), ..Ran::default() };
        summary.ran(&Needs::new(), &ran, |_| unreachable!("nothing failed"));
        summary.left_out(&Needs::from([Need::Userfaultfd, Need::Kvm]), 2);
        assert!(summary.passed());
        let missing = |need, what: &str| Missing { need, what: what.to_owned() };
        let missing =
            [missing(Need::Kvm, "/dev/kvm: no such file"), missing(Need::Root, "not root")];
        let shown = summary.shown(Duration::from_secs(90), &missing);
        assert!(shown.contains("  passed      7  1m 01 s  ordinary tests\n"), "{shown}");
        assert!(
            shown.contains("  left out    2    0.0 s  tests with userfaultfd, KVM\n"),
            "{shown}"
        );
        assert!(shown.contains("left out, for want of KVM: /dev/kvm: no such file\n"), "{shown}");
        assert!(shown.contains("  to get it: a machine with"), "{shown}");
        assert!(!shown.contains("root\n"), "no test that was left out needs it: {shown}");
    }

    #[test]
    fn what_failed_is_shown_with_the_command_that_runs_it_again() {
        let mut summary = Summary::default();
        let ran = Ran { passed: 1, failed: 2, ..Ran::default() };
        summary.ran(&Needs::from([Need::CTools]), &ran, |_| "cargo test -p c".to_owned());
        assert!(!summary.passed());
        let shown = summary.shown(Duration::ZERO, &[]);
        assert!(shown.contains("  FAILED      2    0.0 s  tests with C tools\n"), "{shown}");
        assert!(shown.ends_with("failed; again: cargo test -p c\n"), "{shown}");
    }
}
