//! A script out of whatever bytes: what was written is read, whatever happens in between, and the
//! books are right after every step.

use std::collections::HashMap;

use zerosweep::Policy;
use zerosweep_lab::script::{Runner, Script, Step, StepResult};

const MAX_PAGES: u64 = 6 * 512;
const TARGET: u64 = 3 * 512;
/// How many steps of a script are done, at most.
const STEPS: usize = 200;

/// Reads a script, and does it under a policy that its length decides on.
pub(crate) fn check(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let script = match Script::parse(&text) {
        Ok(script) => script,
        Err(error) => {
            let lines = text.lines().count();
            assert!((1..=lines).contains(&error.line.get()), "{error}, of {lines} lines");
            return;
        }
    };
    let policy = Policy::ALL[input.len() % Policy::ALL.len()];
    let mut runner = match Runner::new(&script, MAX_PAGES, TARGET, policy) {
        Ok(runner) => runner,
        Err(error) => panic!("{error}"),
    };
    let mut written = HashMap::new();
    for &step in script.steps.iter().take(STEPS) {
        let line = runner.run(step);
        match (step, &line.result) {
            (Step::Write { gfn, offset, value }, StepResult::Done) => {
                written.insert((gfn, offset), value);
            }
            (Step::Read { gfn, offset }, StepResult::Number(value)) => {
                let expected = written.get(&(gfn, offset)).copied().unwrap_or(0);
                assert_eq!(*value, expected, "{policy}: {step:?}");
            }
            (Step::Decrease { gfn, order }, StepResult::Number(_)) => {
                let end = gfn.saturating_add(1 << order);
                written.retain(|&(page, _), _| !(gfn..end).contains(&page));
            }
            _ => {}
        }
        serde_json::to_string(&line).expect("a line can be shown");
        let audit = runner.run(Step::Audit).result;
        assert_eq!(audit, StepResult::Done, "{policy}: after {step:?}");
    }
}
