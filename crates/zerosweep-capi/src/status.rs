//! What a call came to, and what it says to a person.

use core::ffi::CStr;

use zerosweep::{BuildError, ConfigError, DecreaseError, FaultError, FillError, OutOfTableMemory};
use zerosweep::{TargetError, UnknownPolicy};

/// The result of a call. 0: done. Above 0: no error, but not done either. Below 0: an error;
/// nothing was changed, unless the function says otherwise. zs_error_message() has a text for each.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum zs_status {
    /// Done.
    Ok = 0,
    /// Work is left: serve others, then call again.
    More = 1,
    /// No frame can be found. Let the guest wait (zs_fault_wait()), borrow (zs_fault_borrowing()),
    /// raise the target, or end the guest.
    Exhausted = 2,

    /// A pointer that must not be NULL is NULL.
    Null = -1,
    /// A structure's `size` is too small: it was not set.
    Size = -2,
    /// A structure asks for something that this library does not know yet.
    Unsupported = -3,
    /// A field has an invalid value.
    Value = -4,
    /// No policy has this name.
    Policy = -5,
    /// A function of zs_machine that must not be NULL is NULL.
    Machine = -6,
    /// max_pages is 0, or too large.
    MaxPages = -7,
    /// The target is 0, or above max_pages.
    Target = -8,
    /// The order is above ZS_ORDER_MAX.
    Order = -9,
    /// The range ends beyond the guest's memory.
    OutOfRange = -10,
    /// Ram or special is in the way.
    Busy = -11,
    /// The domain would hold more than its target.
    OverTarget = -12,
    /// The host has no frame to give. After zs_set_target() and zs_fill() the new target is in
    /// force, and the frames that were taken are in the cache. Call zs_fill() to go on.
    OutOfFrames = -13,
    /// There is no memory for the engine's own tables.
    OutOfMemory = -14,
    /// The page is not the guest's.
    Unmapped = -15,
    /// The page is special: not the engine's.
    Special = -16,
    /// The machine did not map a frame.
    MapFailed = -17,
    /// The page has no frame.
    NoFrame = -18,
    /// The frame is not in the cache.
    NotCached = -19,
    /// The domain is being taken down.
    Dying = -20,
    /// The audit found a difference.
    AuditFailed = -21,
    /// The call came from within a function of zs_machine, or from an event.
    Reentrant = -22,
    /// A function of zs_machine gave an invalid answer, or the engine found a defect in itself. The
    /// domain cannot be used any more: all calls except zs_failure() and zs_domain_destroy() return
    /// this. zs_failure() says more.
    Broken = -23,
}

impl zs_status {
    const ALL: [Self; 26] = [
        Self::Ok,
        Self::More,
        Self::Exhausted,
        Self::Null,
        Self::Size,
        Self::Unsupported,
        Self::Value,
        Self::Policy,
        Self::Machine,
        Self::MaxPages,
        Self::Target,
        Self::Order,
        Self::OutOfRange,
        Self::Busy,
        Self::OverTarget,
        Self::OutOfFrames,
        Self::OutOfMemory,
        Self::Unmapped,
        Self::Special,
        Self::MapFailed,
        Self::NoFrame,
        Self::NotCached,
        Self::Dying,
        Self::AuditFailed,
        Self::Reentrant,
        Self::Broken,
    ];

    /// The status of this number.
    pub(crate) fn of(number: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|&status| status as i32 == number)
    }

    pub(crate) fn message(self) -> &'static CStr {
        match self {
            Self::Ok => c"done",
            Self::More => c"work is left: call again",
            Self::Exhausted => c"no frame can be found",
            Self::Null => c"a pointer that must not be NULL is NULL",
            Self::Size => c"a structure's size is not set",
            Self::Unsupported => c"a structure asks for something that this library does not know",
            Self::Value => c"a field has an invalid value",
            Self::Policy => {
                c"unknown policy; there are none, hypercall-2011, rfc-2011:gate=debt, \
                  rfc-2011:gate=always, xen-2012, xen-2016, zerosweep"
            }
            Self::Machine => c"a function of zs_machine that must not be NULL is NULL",
            Self::MaxPages => c"max_pages is 0, or too large",
            Self::Target => c"the target is 0, or above max_pages",
            Self::Order => c"the order is above 18",
            Self::OutOfRange => c"the range ends beyond the guest's memory",
            Self::Busy => c"ram or special is in the way",
            Self::OverTarget => c"the domain would hold more than its target",
            Self::OutOfFrames => c"the host has no frame to give",
            Self::OutOfMemory => c"no memory for the engine's own tables",
            Self::Unmapped => c"the page is not the guest's",
            Self::Special => c"the page is special",
            Self::MapFailed => c"the frame could not be mapped",
            Self::NoFrame => c"the page has no frame",
            Self::NotCached => c"the frame is not in the cache",
            Self::Dying => c"the domain is being taken down",
            Self::AuditFailed => c"the audit found a difference",
            Self::Reentrant => c"called from within a function of zs_machine, or from an event",
            Self::Broken => c"the domain is broken: zs_failure() says why",
        }
    }
}

impl From<OutOfTableMemory> for zs_status {
    fn from(_: OutOfTableMemory) -> Self {
        Self::OutOfMemory
    }
}

impl From<UnknownPolicy> for zs_status {
    fn from(_: UnknownPolicy) -> Self {
        Self::Policy
    }
}

impl From<ConfigError> for zs_status {
    fn from(error: ConfigError) -> Self {
        match error {
            ConfigError::MaxPages(_) => Self::MaxPages,
            ConfigError::Target { .. } => Self::Target,
            ConfigError::TableMemory(_) => Self::OutOfMemory,
        }
    }
}

impl From<FillError> for zs_status {
    fn from(error: FillError) -> Self {
        match error {
            FillError::OutOfFrames => Self::OutOfFrames,
            FillError::TableMemory => Self::OutOfMemory,
        }
    }
}

impl From<TargetError> for zs_status {
    fn from(error: TargetError) -> Self {
        match error {
            TargetError::OutOfRange { .. } => Self::Target,
            TargetError::Dying => Self::Dying,
            TargetError::Fill(error) => error.into(),
        }
    }
}

impl From<FaultError> for zs_status {
    fn from(error: FaultError) -> Self {
        match error {
            FaultError::Unmapped => Self::Unmapped,
            FaultError::Special => Self::Special,
            FaultError::Map | FaultError::Unkept => Self::MapFailed,
            FaultError::TableMemory => Self::OutOfMemory,
            FaultError::Dying => Self::Dying,
        }
    }
}

/// An operation's error: another operation works in the range, or a status for the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    InTransit,
    Status(zs_status),
}

impl From<BuildError> for Refusal {
    fn from(error: BuildError) -> Self {
        Self::Status(match error {
            BuildError::InTransit => return Self::InTransit,
            BuildError::OutOfRange => zs_status::OutOfRange,
            BuildError::Busy(_) => zs_status::Busy,
            BuildError::OverTarget => zs_status::OverTarget,
            BuildError::OutOfFrames => zs_status::OutOfFrames,
            BuildError::TableMemory => zs_status::OutOfMemory,
            BuildError::Dying => zs_status::Dying,
        })
    }
}

impl From<DecreaseError> for Refusal {
    fn from(error: DecreaseError) -> Self {
        Self::Status(match error {
            DecreaseError::InTransit => return Self::InTransit,
            DecreaseError::OutOfRange => zs_status::OutOfRange,
            DecreaseError::Dying => zs_status::Dying,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerosweep::Policy;

    #[test]
    fn every_number_has_a_message_of_its_own() {
        let lowest = zs_status::Broken as i32;
        let highest = zs_status::Exhausted as i32;
        let known: Vec<_> = (lowest..=highest).map(|n| zs_status::of(n).unwrap()).collect();
        let mut messages: Vec<_> = known.iter().map(|status| status.message()).collect();
        messages.sort();
        messages.dedup();
        assert_eq!(messages.len(), zs_status::ALL.len());
        assert_eq!(zs_status::of(lowest - 1), None);
        assert_eq!(zs_status::of(highest + 1), None);
    }

    #[test]
    fn the_message_names_every_policy() {
        let message = zs_status::Policy.message().to_str().unwrap();
        assert_eq!(message, UnknownPolicy.to_string());
        for policy in Policy::ALL {
            assert!(message.contains(&policy.to_string()), "{policy}");
        }
    }
}
