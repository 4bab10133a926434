//! A small language that drives the engine on the software machine, a step a line.
//!
//! ```text
//! file    = { [ step ] [ "#" comment ] newline }
//! step    = "rd" GFN [ OFFSET ] | "wr" GFN OFFSET VALUE | "dec" GFN ORDER | "pop" GFN ORDER
//!         | "pod" GFN ORDER | "special" GFN ORDER | "target" PAGES
//!         | "sweep" | "consolidate" | "audit"
//! number  = decimal | "0x" hexadecimal, with "_" between digits
//! ```
//!
//! All of a file is read before its first step is done. A step that cannot be done is an answer,
//! not an end: nothing has changed, and the next step follows. `docs/script.md` has the meaning of
//! each step, and examples.

use std::fmt;
use std::num::NonZeroUsize;

use serde::Serialize;
use serde::ser::{SerializeMap as _, Serializer};
use zerosweep::{
    BuildError, Config, ConfigError, Consolidation, DecreaseError, Event, Fault, FaultError,
    FillError, Gfn, InvalidTouch, Mfn, Order, Policy, Progress, Session, TargetError,
};
use zerosweep_sim::{NewGuestError, Recorder, SoftwareGuest, SoftwareMachine};

const PAGE_BYTES: u64 = zerosweep::PAGE_BYTES;
const SUPERPAGE_PAGES: u64 = zerosweep::SUPERPAGE_PAGES;
/// Superframes that the host has beyond twice what the guest may hold.
const SPARE_SUPERFRAMES: u64 = 64;

/// Superframes of a host whose guest may hold `pages`: enough, however its singles lie.
pub(crate) fn superframes_for(pages: u64) -> u64 {
    pages.div_ceil(SUPERPAGE_PAGES) * 2 + SPARE_SUPERFRAMES
}

/// A step of a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The guest reads the word at an offset in bytes into a page.
    Read {
        /// The page.
        gfn: u64,
        /// A multiple of 8, below 4096.
        offset: u64,
    },
    /// The guest writes that word.
    Write {
        /// The page.
        gfn: u64,
        /// A multiple of 8, below 4096.
        offset: u64,
        /// What is written, in the machine's order of bytes.
        value: u64,
    },
    /// The guest gives 2^order pages back.
    Decrease {
        /// The first of them.
        gfn: u64,
        /// Up to 9, or the step is an error.
        order: u64,
    },
    /// 2^order pages get frames of the host, all or none.
    Populate {
        /// The first of them.
        gfn: u64,
        /// Up to 9, or the step is an error.
        order: u64,
    },
    /// 2^order pages are promised.
    PopulateOnDemand {
        /// The first of them.
        gfn: u64,
        /// Up to 18, or the step is an error.
        order: u64,
    },
    /// 2^order pages are never to be reclaimed.
    Special {
        /// The first of them.
        gfn: u64,
        /// Up to 18, or the step is an error.
        order: u64,
    },
    /// The guest may hold so many pages.
    Target {
        /// Pages.
        pages: u64,
    },
    /// Every populated superpage is looked at.
    Sweep,
    /// Live singles are moved together.
    Consolidate,
    /// Everything is counted anew.
    Audit,
}

/// A line that is no step.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct SyntaxError {
    /// Counted from 1.
    pub line: NonZeroUsize,
    /// What is wrong.
    pub reason: String,
}

/// A script as it was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Script {
    /// Its steps, in their order.
    pub steps: Vec<Step>,
}

/// How a step is written.
struct Form {
    name: &'static str,
    arguments: &'static str,
    least: usize,
    most: usize,
    make: fn(&[u64]) -> Result<Step, String>,
}

const FORMS: [Form; 10] = [
    Form { name: "rd", arguments: " GFN [OFFSET]", least: 1, most: 2, make: read },
    Form { name: "wr", arguments: " GFN OFFSET VALUE", least: 3, most: 3, make: write },
    Form {
        name: "dec",
        arguments: " GFN ORDER",
        least: 2,
        most: 2,
        make: |a| Ok(Step::Decrease { gfn: a[0], order: a[1] }),
    },
    Form {
        name: "pop",
        arguments: " GFN ORDER",
        least: 2,
        most: 2,
        make: |a| Ok(Step::Populate { gfn: a[0], order: a[1] }),
    },
    Form {
        name: "pod",
        arguments: " GFN ORDER",
        least: 2,
        most: 2,
        make: |a| Ok(Step::PopulateOnDemand { gfn: a[0], order: a[1] }),
    },
    Form {
        name: "special",
        arguments: " GFN ORDER",
        least: 2,
        most: 2,
        make: |a| Ok(Step::Special { gfn: a[0], order: a[1] }),
    },
    Form {
        name: "target",
        arguments: " PAGES",
        least: 1,
        most: 1,
        make: |a| Ok(Step::Target { pages: a[0] }),
    },
    Form { name: "sweep", arguments: "", least: 0, most: 0, make: |_| Ok(Step::Sweep) },
    Form { name: "consolidate", arguments: "", least: 0, most: 0, make: |_| Ok(Step::Consolidate) },
    Form { name: "audit", arguments: "", least: 0, most: 0, make: |_| Ok(Step::Audit) },
];

fn read(arguments: &[u64]) -> Result<Step, String> {
    let offset = arguments.get(1).copied().unwrap_or(0);
    check_offset(offset)?;
    Ok(Step::Read { gfn: arguments[0], offset })
}

fn write(arguments: &[u64]) -> Result<Step, String> {
    check_offset(arguments[1])?;
    Ok(Step::Write { gfn: arguments[0], offset: arguments[1], value: arguments[2] })
}

fn check_offset(offset: u64) -> Result<(), String> {
    match offset {
        _ if offset >= PAGE_BYTES => Err(format!("the offset {offset} is not below {PAGE_BYTES}")),
        _ if !offset.is_multiple_of(8) => {
            Err(format!("the offset {offset} is not a multiple of 8"))
        }
        _ => Ok(()),
    }
}

fn parse_line(line: &str) -> Result<Option<Step>, String> {
    let code = line.split_once('#').map_or(line, |(code, _)| code);
    let mut words = code.split_ascii_whitespace();
    let Some(name) = words.next() else { return Ok(None) };
    let form = FORMS.iter().find(|form| form.name == name).ok_or_else(|| {
        let names: Vec<_> = FORMS.iter().map(|form| form.name).collect();
        format!("unknown step {name:?}; the steps are {}", names.join(", "))
    })?;
    let arguments: Vec<u64> = words.map(parse_number).collect::<Result<_, _>>()?;
    if !(form.least..=form.most).contains(&arguments.len()) {
        let count = arguments.len();
        return Err(format!("{count} arguments, but it is written `{name}{}`", form.arguments));
    }
    (form.make)(&arguments).map(Some)
}

fn parse_number(word: &str) -> Result<u64, String> {
    let (digits, radix) = match word.strip_prefix("0x").or_else(|| word.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None => (word, 10),
    };
    let plain = digits.replace('_', "");
    let is_digit = |byte: u8| char::from(byte).is_digit(radix);
    if plain.is_empty() || digits.starts_with('_') || !plain.bytes().all(is_digit) {
        return Err(format!("{word:?} is no number; numbers are decimal, or hexadecimal with 0x"));
    }
    u64::from_str_radix(&plain, radix)
        .map_err(|_| format!("{word} is more than 64 bits hold, {}", u64::MAX))
}

impl Script {
    /// Reads a script.
    ///
    /// # Errors
    /// The first line that is no step.
    pub fn parse(text: &str) -> Result<Self, SyntaxError> {
        let mut steps = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line_number = NonZeroUsize::MIN.saturating_add(index);
            let step =
                parse_line(line).map_err(|reason| SyntaxError { line: line_number, reason })?;
            steps.extend(step);
        }
        Ok(Self { steps })
    }

    /// The most pages that the guest may hold at any time, from `target` on.
    fn highest_target(&self, target: u64) -> u64 {
        let targets = self.steps.iter().filter_map(|step| match step {
            Step::Target { pages } => Some(*pages),
            _ => None,
        });
        targets.chain([target]).max().unwrap_or(target)
    }
}

impl Step {
    fn op(self) -> &'static str {
        match self {
            Self::Read { .. } => "rd",
            Self::Write { .. } => "wr",
            Self::Decrease { .. } => "dec",
            Self::Populate { .. } => "pop",
            Self::PopulateOnDemand { .. } => "pod",
            Self::Special { .. } => "special",
            Self::Target { .. } => "target",
            Self::Sweep => "sweep",
            Self::Consolidate => "consolidate",
            Self::Audit => "audit",
        }
    }

    fn arguments(self) -> Vec<u64> {
        match self {
            Self::Read { gfn, offset } => vec![gfn, offset],
            Self::Write { gfn, offset, value } => vec![gfn, offset, value],
            Self::Decrease { gfn, order }
            | Self::Populate { gfn, order }
            | Self::PopulateOnDemand { gfn, order }
            | Self::Special { gfn, order } => vec![gfn, order],
            Self::Target { pages } => vec![pages],
            Self::Sweep | Self::Consolidate | Self::Audit => Vec::new(),
        }
    }
}

/// What a step came to, as a line of the output.
#[derive(Debug, Serialize)]
pub struct Line {
    /// Counted from 1.
    pub step: u64,
    /// As it is written in a script.
    pub op: &'static str,
    /// All of its arguments, the offset of `rd` too if it was left out.
    pub args: Vec<u64>,
    /// What the step says.
    pub result: StepResult,
    /// What happened, in order.
    pub events: Vec<ShownEvent>,
    /// The quantities after it.
    pub state: Quantities,
}

/// What a step says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepResult {
    /// `"ok"`: done, and there is no more to say.
    Done,
    /// A number: the word that was read, or how many pages.
    Number(u64),
    /// `{"error": NAME}`: nothing was done.
    Error(&'static str),
    /// `{"error": "audit", "difference": TEXT}`.
    Difference(String),
}

impl Serialize for StepResult {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (name, difference) = match self {
            Self::Done => return serializer.serialize_str("ok"),
            Self::Number(number) => return serializer.serialize_u64(*number),
            Self::Error(name) => (*name, None),
            Self::Difference(text) => ("audit", Some(text)),
        };
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("error", name)?;
        if let Some(text) = difference {
            map.serialize_entry("difference", text)?;
        }
        map.end()
    }
}

/// Quantities, in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Quantities {
    /// Promised pages without a frame.
    pub entries: u64,
    /// Frames in the cache.
    pub cache: u64,
    /// Frames that the domain holds.
    pub total: u64,
}

/// An event, as a line shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum ShownEvent {
    /// A PoD range got a frame.
    Populate {
        /// First of its range.
        gfn: u64,
        /// Size.
        order: u8,
        /// The touched page.
        fault: u64,
    },
    /// A range of zeros became PoD.
    Reclaim {
        /// First of its range.
        gfn: u64,
        /// Size.
        order: u8,
    },
    /// A PoD superpage was broken.
    Splinter {
        /// First of its range.
        gfn: u64,
        /// Size: 9.
        order: u8,
        /// The touched page.
        fault: u64,
    },
    /// A ram superpage was broken.
    Shatter {
        /// First of its range.
        gfn: u64,
        /// Size: 9.
        order: u8,
    },
    /// The live pages of a superpage went elsewhere.
    Evacuate {
        /// First of its range.
        gfn: u64,
        /// Size: 9.
        order: u8,
        /// How many live pages there were.
        live: u64,
    },
    /// A range became invalid.
    Remove {
        /// First of its range.
        gfn: u64,
        /// Size.
        order: u8,
    },
    /// Its frame went to the cache.
    Steal {
        /// First of its range.
        gfn: u64,
        /// Size.
        order: u8,
    },
    /// A frame went back to the host.
    Return {
        /// Size.
        order: u8,
    },
    /// No frame could be found.
    Exhausted {
        /// The touched page.
        gfn: u64,
    },
    /// A step of a sweep ended.
    Sweep {
        /// Where it began.
        gfn: u64,
        /// Pages that it brought.
        reclaimed: u64,
    },
}

impl ShownEvent {
    /// `None` for what is not told: a forecast is no change.
    fn of(event: Event) -> Option<Self> {
        let superpage = Order::SUPERPAGE.raw();
        Some(match event {
            Event::Populate { gfn, order, fault, .. } => {
                Self::Populate { gfn: gfn.raw(), order: order.raw(), fault: fault.raw() }
            }
            Event::Reclaim { gfn, order, .. } => {
                Self::Reclaim { gfn: gfn.raw(), order: order.raw() }
            }
            Event::Splinter { gfn, fault } => {
                Self::Splinter { gfn: gfn.raw(), order: superpage, fault: fault.raw() }
            }
            Event::Shatter { gfn } => Self::Shatter { gfn: gfn.raw(), order: superpage },
            Event::Evacuate { gfn, live, .. } => {
                Self::Evacuate { gfn: gfn.raw(), order: superpage, live }
            }
            Event::Remove { gfn, order } => Self::Remove { gfn: gfn.raw(), order: order.raw() },
            Event::Steal { gfn, order, .. } => Self::Steal { gfn: gfn.raw(), order: order.raw() },
            Event::Return { order, .. } => Self::Return { order: order.raw() },
            Event::Exhausted { gfn } => Self::Exhausted { gfn: gfn.raw() },
            Event::Sweep { gfn, reclaimed } => Self::Sweep { gfn: gfn.raw(), reclaimed },
            _ => return None,
        })
    }
}

/// A guest that a script is done on: from gfn 0 on all of its memory is PoD, in the largest orders
/// that fit, and its cache is full.
pub struct Runner {
    guest: SoftwareGuest,
    steps: u64,
}

/// A guest that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum NewRunnerError {
    /// It cannot be built.
    #[error("{0}")]
    Guest(NewGuestError),
    /// There is no memory for what it may hold.
    #[error("the software machine has no {0} GiB for what this guest may hold")]
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
    /// When there can be no such guest.
    pub fn new(
        script: &Script,
        max_pages: u64,
        target: u64,
        policy: Policy,
    ) -> Result<Self, NewRunnerError> {
        let highest = script.highest_target(target).min(max_pages);
        let superframes = superframes_for(highest);
        let bytes = superframes.checked_mul(zerosweep::SUPERPAGE_BYTES);
        let bytes = bytes.and_then(|bytes| usize::try_from(bytes).ok());
        if bytes.is_none_or(|bytes| Vec::<u8>::new().try_reserve_exact(bytes).is_err()) {
            return Err(NewRunnerError::OutOfMemory(superframes / 512));
        }
        let machine = SoftwareMachine::new(superframes * SUPERPAGE_PAGES);
        let config = Config {
            invalid_touch: InvalidTouch::Refuse,
            ..Config::new(max_pages, target, policy)
        };
        let guest = SoftwareGuest::on(machine, config).map_err(NewRunnerError::Guest)?;
        Ok(Self { guest, steps: 0 })
    }

    /// Does a step.
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

/// Does a step.
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
                return match self.0.guest.domain.p2m().is_out(gfn) {
                    true => Err(Refusal("unmapped")),
                    false => Ok(mfn),
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
        Some(end) if end <= zerosweep::FRAME_LIMIT => Ok(Gfn::new(gfn)),
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
    fn what_is_no_step_is_refused_with_its_line() {
        for (text, line, part) in [
            ("rd 1\nread 2", 2, "unknown step \"read\"; the steps are rd, wr,"),
            ("\n# x\ndec 1", 3, "1 arguments, but it is written `dec GFN ORDER`"),
            ("sweep 1", 1, "1 arguments, but it is written `sweep`"),
            ("rd 1 4096", 1, "the offset 4096 is not below 4096"),
            ("wr 1 4 0", 1, "the offset 4 is not a multiple of 8"),
            ("rd -1", 1, "\"-1\" is no number"),
            ("rd +1", 1, "\"+1\" is no number"),
            ("rd 0x", 1, "is no number"),
            ("rd 0x_1", 1, "is no number"),
            ("rd 12a", 1, "is no number"),
            ("wr 0 0 18446744073709551616", 1, "more than 64 bits hold"),
        ] {
            let error = Script::parse(text).unwrap_err();
            assert_eq!(error.line.get(), line, "{text}: {error}");
            assert!(error.to_string().contains(part), "{text}: {error}");
        }
        let numbers = Script::parse("wr 0X1F 8 18_446_744_073_709_551_615").unwrap();
        assert_eq!(numbers.steps, [Step::Write { gfn: 31, offset: 8, value: u64::MAX }]);
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
