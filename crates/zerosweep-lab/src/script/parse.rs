//! The grammar: text to steps.

use std::num::NonZeroUsize;

use zerosweep::PAGE_BYTES;

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
    /// The number of pages that the guest may hold changes.
    Target {
        /// Pages.
        pages: u64,
    },
    /// Every populated superpage is looked at.
    Sweep,
    /// Live singles are moved together.
    Consolidate,
    /// Everything is recounted.
    Audit,
}

/// A line that is not a step.
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
    /// When a line is not a step; the first one is reported.
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
    pub(super) fn highest_target(&self, target: u64) -> u64 {
        let targets = self.steps.iter().filter_map(|step| match step {
            Step::Target { pages } => Some(*pages),
            _ => None,
        });
        targets.chain([target]).max().unwrap_or(target)
    }
}

impl Step {
    pub(super) fn op(self) -> &'static str {
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

    pub(super) fn arguments(self) -> Vec<u64> {
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
