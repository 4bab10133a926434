//! The policies that the experiments compare: when to check, when to sweep, what to keep whole.
//!
//! The historical ones follow Xen's behaviour of their day exactly, its weaknesses included;
//! `zerosweep` is ours. The functions here are the whole difference between them: no other module
//! compares a policy.

use core::fmt;
use core::str::FromStr;

/// How a domain decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Policy {
    /// Steals under debt, and never looks at memory.
    None,
    /// As `None` on a decrease, with the two emergency sweeps of 2011, and a full superpage sweep
    /// just before the first page is given back: a reconstruction of the hypercall that the Citrix
    /// PV drivers made, which Xen's public headers never had.
    Hypercall2011,
    /// The proposal of March 2011 on xen-devel: the superpage around a page that is given back is
    /// checked, and shattered when it is not zero.
    Rfc2011(Gate),
    /// What Xen committed: the check on a decrease, and on the superpages populated 128 ago.
    Xen2012,
    /// Today's Xen: a ring of 32 recent populates, equal chunks on a decrease.
    Xen2016,
    /// Ours: superpages first, a remembered non-zero word, bounded steps.
    #[default]
    Zerosweep,
}

/// When `rfc-2011` checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Gate {
    /// While there is debt: Tim Deegan's condition.
    Debt,
    /// At every decrease.
    Always,
}

/// Another name of `rfc-2011:gate=debt`.
const RFC_2011: &str = "rfc-2011";

/// What a policy does at a fault before it takes a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BeforeFrame {
    Nothing,
    /// 2M sweep for want of a superpage, then 4K sweep for want of anything.
    BothSweeps,
    /// 4K sweep if the cache is empty.
    SweepIfEmpty,
    /// The ring first, then the 4K sweep if the cache is empty.
    RingThenSweep,
    /// A bounded step, superpages first, if the cache is empty.
    BoundedSweep,
}

/// What a policy does after a populate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AfterPopulate {
    Nothing,
    /// Records it in the ring of [`Policy::Xen2016`], which faults check.
    Record2016,
    /// Under debt: records a superpage in the ring of [`Policy::Xen2012`], and checks the one that it
    /// replaces.
    Check2012,
    /// The same with the ring of [`Policy::Zerosweep`].
    CheckZerosweep,
}

/// When a decrease checks the superpage around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DecreaseCheck {
    Never,
    /// Inside a whole ram superpage; a failed check shatters it.
    WholeOrShatter(Gate),
    /// Under debt, unless the whole range is PoD; then everything is counted again.
    AroundFirst,
    /// Under debt, if the whole chunk is ram and less than a superpage.
    RamChunk,
    /// While pages are owed, if it has not lately been seen to be non-zero.
    WhileOwed,
}

impl Policy {
    /// Every policy, in order of age.
    pub const ALL: [Self; 7] = [
        Self::None,
        Self::Hypercall2011,
        Self::Rfc2011(Gate::Debt),
        Self::Rfc2011(Gate::Always),
        Self::Xen2012,
        Self::Xen2016,
        Self::Zerosweep,
    ];

    /// Every name that can be parsed, the default's first. `rfc-2011` is the proposal as it was.
    pub const NAMES: [&'static str; Self::ALL.len() + 1] = [
        Self::Zerosweep.name(),
        Self::None.name(),
        Self::Hypercall2011.name(),
        RFC_2011,
        Self::Rfc2011(Gate::Debt).name(),
        Self::Rfc2011(Gate::Always).name(),
        Self::Xen2012.name(),
        Self::Xen2016.name(),
    ];

    /// Returns the name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Hypercall2011 => "hypercall-2011",
            Self::Rfc2011(Gate::Debt) => "rfc-2011:gate=debt",
            Self::Rfc2011(Gate::Always) => "rfc-2011:gate=always",
            Self::Xen2012 => "xen-2012",
            Self::Xen2016 => "xen-2016",
            Self::Zerosweep => "zerosweep",
        }
    }

    pub(crate) fn before_frame(self) -> BeforeFrame {
        match self {
            Self::None => BeforeFrame::Nothing,
            Self::Hypercall2011 | Self::Rfc2011(_) => BeforeFrame::BothSweeps,
            Self::Xen2012 => BeforeFrame::SweepIfEmpty,
            Self::Xen2016 => BeforeFrame::RingThenSweep,
            Self::Zerosweep => BeforeFrame::BoundedSweep,
        }
    }

    pub(crate) fn decrease_check(self) -> DecreaseCheck {
        match self {
            Self::None | Self::Hypercall2011 => DecreaseCheck::Never,
            Self::Rfc2011(gate) => DecreaseCheck::WholeOrShatter(gate),
            Self::Xen2012 => DecreaseCheck::AroundFirst,
            Self::Xen2016 => DecreaseCheck::RamChunk,
            Self::Zerosweep => DecreaseCheck::WhileOwed,
        }
    }

    pub(crate) fn after_populate(self) -> AfterPopulate {
        match self {
            Self::None | Self::Hypercall2011 | Self::Rfc2011(_) => AfterPopulate::Nothing,
            Self::Xen2012 => AfterPopulate::Check2012,
            Self::Xen2016 => AfterPopulate::Record2016,
            Self::Zerosweep => AfterPopulate::CheckZerosweep,
        }
    }

    /// Whether only whole superframes return to the host while the total is within the target, and
    /// retained pages do not count while the balloon works.
    pub(crate) fn returns_superframes(self) -> bool {
        self == Self::Zerosweep
    }

    /// Whether a decrease works in equal chunks and steals each at its entry's order.
    pub(crate) fn chunked_decrease(self) -> bool {
        matches!(self, Self::Xen2016 | Self::Zerosweep)
    }

    /// Whether the whole of memory is swept just before the first page is given back.
    pub(crate) fn sweeps_before_first_decrease(self) -> bool {
        self == Self::Hypercall2011
    }

    /// Whether pages move so that superpages stay whole: 512 PoD singles become one entry again,
    /// non-zero words are remembered, live pages are evacuated, given back ones retained.
    pub(crate) fn keeps_whole(self) -> bool {
        self == Self::Zerosweep
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that no policy has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownPolicy;

impl fmt::Display for UnknownPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("unknown policy; there are ")?;
        for (i, policy) in Policy::ALL.iter().enumerate() {
            write!(f, "{}{policy}", if i == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

impl core::error::Error for UnknownPolicy {}

impl FromStr for Policy {
    type Err = UnknownPolicy;

    fn from_str(name: &str) -> Result<Self, UnknownPolicy> {
        if name == RFC_2011 {
            return Ok(Self::Rfc2011(Gate::Debt));
        }
        Self::ALL.into_iter().find(|policy| policy.name() == name).ok_or(UnknownPolicy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn names_round_trip() {
        for policy in Policy::ALL {
            assert_eq!(policy.to_string().parse(), Ok(policy));
            assert!(Policy::NAMES.contains(&policy.name()), "{policy}");
        }
        assert_eq!(Policy::NAMES[0].parse(), Ok(Policy::default()));
        assert_eq!("rfc-2011".parse(), Ok(Policy::Rfc2011(Gate::Debt)));
        for wrong in ["", "xen", "xen-20166", "zerosweep "] {
            assert_eq!(wrong.parse::<Policy>(), Err(UnknownPolicy), "{wrong:?}");
        }
    }
}
