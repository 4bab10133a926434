//! The runner: does the steps on the software machine.

use std::fmt;

use zerosweep::{
    BuildError, Config, ConfigError, Consolidation, DecreaseError, FRAME_LIMIT, Fault, FaultError,
    FillError, Gfn, InvalidTouch, Mfn, Order, Policy, Progress, SUPERPAGE_BYTES, SUPERPAGE_PAGES,
    Session, TargetError,
};
use zerosweep_sim::{NewGuestError, Recorder, SoftwareGuest, SoftwareMachine};

use super::output::{Line, Quantities, ShownEvent, StepResult};
use super::parse::{Script, Step};

/// Superframes that the host has beyond twice what the guest may hold.
const SPARE_SUPERFRAMES: u64 = 64;

/// Superframes of a host whose guest may hold `pages`: enough, however its singles lie.
pub(crate) fn superframes_for(pages: u64) -> u64 {
    pages.div_ceil(SUPERPAGE_PAGES) * 2 + SPARE_SUPERFRAMES
}

/// A guest that runs the steps of a script: from gfn 0 on all of its memory is PoD, in the largest
/// orders that fit, and its cache is full.
pub struct Runner {
    guest: SoftwareGuest,
    steps: u64,
}

/// An invalid guest.
#[derive(Debug, thiserror::Error)]
pub enum NewRunnerError {
    /// The guest cannot be built.
    #[error("{0}")]
    Guest(NewGuestError),
    /// This machine has no memory for what the guest may hold.
    #[error("no memory for the software machine: this guest may hold {0} GiB")]
    OutOfMemory(u64),
}

impl NewRunnerError {
    /// Whether other sizes would do.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        let config = matches!(
            self,
            Self::Guest(NewGuestError::Config(
                ConfigError::MaxPages(_) | ConfigError::Target { .. }
            ))
        );
        config || matches!(self, Self::OutOfMemory(_))
    }
}

impl Runner {
    /// A guest of `max_pages` that may hold `target` pages, on a host that has enough for all of
    /// `script`.
    ///
    /// # Errors
    /// When the guest is invalid.
    pub fn new(
        script: &Script,
        max_pages: u64,
        target: u64,
        policy: Policy,
    ) -> Result<Self, NewRunnerError> {
        let highest = script.highest_target(target).min(max_pages);
        let superframes = superframes_for(highest);
        let bytes = superframes.checked_mul(SUPERPAGE_BYTES);
        let bytes = bytes.and_then(|bytes| usize::try_from(bytes).ok());
        if bytes.is_none_or(|bytes| Vec::<u8>::new().try_reserve_exact(bytes).is_err()) {
            return Err(NewRunnerError::OutOfMemory(superframes / ((1 << 30) / SUPERPAGE_BYTES)));
        }
        let machine = SoftwareMachine::new(superframes * SUPERPAGE_PAGES);
        let config = Config {
            invalid_touch: InvalidTouch::Refuse,
            ..Config::new(max_pages, target, policy)
        };
        let guest = SoftwareGuest::on(machine, config).map_err(NewRunnerError::Guest)?;
        Ok(Self { guest, steps: 0 })
    }

    /// Runs one step.
    pub fn run(&mut self, step: Step) -> Line {
        self.steps += 1;
        let mut doer = Doer(Recorder::new(&mut self.guest));
        let result = match doer.run(step) {
            Ok(result) => result,
            Err(Refusal(name)) => StepResult::Error(name),
        };
        let events = doer.0.events.into_iter().filter_map(ShownEvent::of).collect();
        let quantities = self.guest.domain.quantities();
        Line {
            step: self.steps,
            op: step.op(),
            args: step.arguments(),
            result,
            events,
            state: Quantities {
                entries: quantities.entries,
                cache: quantities.cache,
                total: quantities.total(),
            },
        }
    }
}

/// The name of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Refusal(&'static str);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl From<BuildError> for Refusal {
    fn from(error: BuildError) -> Self {
        Self(match error {
            BuildError::OutOfRange => "out_of_range",
            BuildError::Busy(_) => "busy",
            BuildError::InTransit => "in_transit",
            BuildError::OverTarget => "over_target",
            BuildError::OutOfFrames => "out_of_frames",
            BuildError::TableMemory => "table_memory",
            BuildError::Dying => "dying",
        })
    }
}

impl From<DecreaseError> for Refusal {
    fn from(error: DecreaseError) -> Self {
        Self(match error {
            DecreaseError::OutOfRange => "out_of_range",
            DecreaseError::InTransit => "in_transit",
            DecreaseError::Dying => "dying",
        })
    }
}

impl From<FaultError> for Refusal {
    fn from(error: FaultError) -> Self {
        Self(match error {
            FaultError::Unmapped => "unmapped",
            FaultError::Special => "special",
            FaultError::Map => "map",
            FaultError::TableMemory => "table_memory",
            FaultError::Dying => "dying",
            FaultError::Unkept => "unkept",
        })
    }
}

impl From<TargetError> for Refusal {
    fn from(error: TargetError) -> Self {
        Self(match error {
            TargetError::OutOfRange { .. } => "out_of_range",
            TargetError::Dying => "dying",
            TargetError::Fill(FillError::OutOfFrames) => "out_of_frames",
            TargetError::Fill(FillError::TableMemory) => "table_memory",
        })
    }
}

/// Runs one step, and records its events.
struct Doer<'a>(Recorder<'a>);

impl Doer<'_> {
    fn run(&mut self, step: Step) -> Result<StepResult, Refusal> {
        match step {
            Step::Read { gfn, offset } => {
                let mfn = self.touch(gfn)?;
                Ok(StepResult::Number(self.0.guest.machine.word(mfn, offset as usize / 8)))
            }
            Step::Write { gfn, offset, value } => {
                let mfn = self.touch(gfn)?;
                self.0.guest.machine.set_word(mfn, offset as usize / 8, value);
                Ok(StepResult::Done)
            }
            Step::Decrease { gfn, order } => {
                let order = order_up_to(order, Order::SUPERPAGE)?;
                let gfn = gfn_of(gfn, order)?;
                Ok(StepResult::Number(Session::new(&mut self.0).decrease(gfn, order)?))
            }
            Step::Populate { gfn, order } => {
                let order = order_up_to(order, Order::SUPERPAGE)?;
                Session::new(&mut self.0).populate_physmap(gfn_of(gfn, order)?, order)?;
                Ok(StepResult::Done)
            }
            Step::PopulateOnDemand { gfn, order } => {
                let order = order_up_to(order, Order::MAX)?;
                Session::new(&mut self.0).populate_on_demand(gfn_of(gfn, order)?, order)?;
                Ok(StepResult::Done)
            }
            Step::Special { gfn, order } => {
                let order = order_up_to(order, Order::MAX)?;
                Session::new(&mut self.0).set_special(gfn_of(gfn, order)?, order)?;
                Ok(StepResult::Done)
            }
            Step::Target { pages } => {
                Session::new(&mut self.0).set_target(pages)?;
                Ok(StepResult::Done)
            }
            Step::Sweep => Ok(StepResult::Number(self.sweep())),
            Step::Consolidate => self.consolidate(),
            Step::Audit => Ok(match self.0.guest.domain.audit() {
                Ok(()) => StepResult::Done,
                Err(difference) => StepResult::Difference(difference.to_string()),
            }),
        }
    }

    /// The guest touches a page, until it has a frame.
    fn touch(&mut self, gfn: u64) -> Result<Mfn, Refusal> {
        let gfn = gfn_of(gfn, Order::PAGE).map_err(|_| Refusal("unmapped"))?;
        // There is no clock: every touch may find what the guest has zeroed since the last one.
        self.0.guest.domain.allow_sweep();
        loop {
            if let Some((mfn, _)) = self.0.guest.machine.translate(gfn) {
                // Its frame may still be there (rule R12), but the page is not the guest's.
                return if self.0.guest.domain.p2m().is_out(gfn) {
                    Err(Refusal("unmapped"))
                } else {
                    Ok(mfn)
                };
            }
            if Session::new(&mut self.0).fault(gfn)? == Fault::Exhausted {
                return Err(Refusal("exhausted"));
            }
        }
    }

    /// Pages that a full sweep (rule [R8]) took back.
    ///
    /// [R8]: zerosweep::rules#r8
    fn sweep(&mut self) -> u64 {
        let populated = |doer: &Self| doer.0.guest.domain.quantities().populated;
        let before = populated(self);
        let mut next = 0;
        while Session::new(&mut self.0).sweep_full(&mut next, 1024) == Progress::More {}
        before.saturating_sub(populated(self))
    }

    /// Pages that were moved together (rule [R13]).
    ///
    /// [R13]: zerosweep::rules#r13
    fn consolidate(&mut self) -> Result<StepResult, Refusal> {
        let mut work = Consolidation::default();
        loop {
            let progress = Session::new(&mut self.0).consolidate(&mut work, 1024);
            if progress.map_err(|_| Refusal("table_memory"))? == Progress::Done {
                return Ok(StepResult::Number(work.moved()));
            }
        }
    }
}

fn order_up_to(order: u64, most: Order) -> Result<Order, Refusal> {
    let order = u8::try_from(order).ok().and_then(Order::new);
    order.filter(|&order| order <= most).ok_or(Refusal("order"))
}

/// A gfn whose range of `order` has an end.
fn gfn_of(gfn: u64, order: Order) -> Result<Gfn, Refusal> {
    match gfn.checked_add(order.pages()) {
        Some(end) if end <= FRAME_LIMIT => Ok(Gfn::new(gfn)),
        _ => Err(Refusal("out_of_range")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str, policy: Policy) -> Vec<String> {
        let script = Script::parse(text).unwrap();
        let mut runner = Runner::new(&script, 2048, 1024, policy).unwrap();
        let line = |&step| serde_json::to_string(&runner.run(step)).unwrap();
        script.steps.iter().map(line).collect()
    }

    #[test]
    fn a_line_is_as_documented() {
        let lines = lines(
            "rd 700 # the guest looks\n\n  dec 0x200 0",
            Policy::Rfc2011(zerosweep::Gate::Debt),
        );
        assert_eq!(
            lines,
            [
                r#"{"step":1,"op":"rd","args":[700,0],"result":0,"events":[{"event":"populate","gfn":512,"order":9,"fault":700}],"state":{"entries":1536,"cache":512,"total":1024}}"#,
                r#"{"step":2,"op":"dec","args":[512,0],"result":1,"events":[{"event":"reclaim","gfn":512,"order":9},{"event":"remove","gfn":512,"order":0}],"state":{"entries":2047,"cache":1024,"total":1024}}"#,
            ]
        );
    }

    #[test]
    fn errors_are_answers_and_change_nothing() {
        let text = "dec 0 10\npop 0 10\npod 0 19\nspecial 0 18446744073709551615\n\
                    dec 2047 1\nrd 2048\nrd 0xffffffffffffffff\ntarget 0\ntarget 2049\n\
                    wr 0 0 7\npod 0 0\npop 0 0\nspecial 0 9\ndec 5 0\npop 5 0\naudit";
        let lines = lines(text, Policy::Xen2016);
        let names = [
            "order",
            "order",
            "order",
            "order",
            "out_of_range",
            "unmapped",
            "unmapped",
            "out_of_range",
            "out_of_range",
            "",
            "busy",
            "busy",
            "busy",
            "",
            "over_target",
            "",
        ];
        for (line, name) in lines.iter().zip(names) {
            let error = format!(r#""result":{{"error":"{name}"}},"events":[]"#);
            assert_eq!(line.contains("error"), !name.is_empty(), "{line}");
            assert!(name.is_empty() || line.contains(&error), "{line}");
        }
        assert_eq!(lines.len(), names.len());
    }

    #[test]
    fn what_is_written_is_read_under_every_policy() {
        let text = "wr 5 4088 0xabc\nrd 5 4088\nsweep\nconsolidate\nrd 5 4088\naudit";
        for policy in Policy::ALL {
            let lines = lines(text, policy);
            assert!(lines[1].contains(r#""result":2748"#), "{}", lines[1]);
            assert!(lines[4].contains(r#""result":2748"#), "{}", lines[4]);
            assert!(lines[5].contains(r#""result":"ok""#), "{}", lines[5]);
        }
    }
}
