//! What a step says, as a line of JSON.

use serde::Serialize;
use serde::ser::{SerializeMap as _, Serializer};
use zerosweep::{Event, Order};

/// The result of a step: one line of the output.
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
    /// `"ok"`: done, without a number.
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
    /// `None` for an event that is not shown: a forecast changes nothing.
    pub(super) fn of(event: Event) -> Option<Self> {
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
