//! Frame numbers, orders and page counts: the units of everything else.
//!
//! A [`Gfn`] is where the guest sees a page, an [`Mfn`] is which frame stands behind it; they are
//! never mixed. A [`Superpage`] is a 2 MiB range of guest frames, and therefore always aligned; a
//! [`Superframe`] is the same of machine frames.

use core::fmt;

/// Bytes in a page.
pub const PAGE_BYTES: u64 = 4096;
/// Pages in a superpage.
pub const SUPERPAGE_PAGES: u64 = 512;
/// Bytes in a superpage.
pub const SUPERPAGE_BYTES: u64 = PAGE_BYTES * SUPERPAGE_PAGES;
/// The first frame number that is too large: frame numbers have 48 bits.
pub const FRAME_LIMIT: u64 = 1 << 48;

/// A guest frame number, in units of 4 KiB.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gfn(u64);

/// A machine frame number, in units of 4 KiB.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mfn(u64);

/// log2 of a run of frames: 0 is a page, 9 a superpage of 2 MiB, 18 is 1 GiB.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Order(u8);

/// A guest superpage: gfns `512 × n` to `512 × n + 511`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Superpage(u64);

/// A superframe: mfns `512 × n` to `512 × n + 511`, which can back a whole superpage.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Superframe(u64);

macro_rules! frame_number {
    ($name:ident, $prefix:literal) => {
        impl $name {
            /// A frame number.
            #[must_use]
            pub const fn new(raw: u64) -> Self {
                Self(raw)
            }

            /// The number itself.
            #[must_use]
            pub const fn raw(self) -> u64 {
                self.0
            }

            /// The frame `pages` further up; saturates, so that a huge sum is out of every range.
            #[must_use]
            pub const fn offset(self, pages: u64) -> Self {
                Self(self.0.saturating_add(pages))
            }

            /// The first frame of the naturally aligned run of `order` around this one.
            #[must_use]
            pub const fn align_down(self, order: Order) -> Self {
                Self(self.0 & !(order.pages() - 1))
            }

            /// Whether a run of `order` may start here.
            #[must_use]
            pub const fn is_aligned(self, order: Order) -> bool {
                self.0 & (order.pages() - 1) == 0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{:#x}"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

frame_number!(Gfn, "g");
frame_number!(Mfn, "m");

macro_rules! run_of_512 {
    ($name:ident, $frame:ident, $prefix:literal, $nth:literal, $member:ident, $which:literal) => {
        impl $name {
            #[doc = $nth]
            #[must_use]
            pub const fn new(n: u64) -> Self {
                Self(n)
            }

            /// Its number: the number of its first frame, divided by 512.
            #[must_use]
            pub const fn number(self) -> u64 {
                self.0
            }

            /// Its number, to index a table with.
            #[must_use]
            pub const fn index(self) -> usize {
                self.0 as usize
            }

            /// Its first frame.
            #[must_use]
            pub const fn first(self) -> $frame {
                $frame(self.0.saturating_mul(SUPERPAGE_PAGES))
            }

            #[doc = $which]
            #[must_use]
            pub const fn $member(self, index: usize) -> $frame {
                self.first().offset(index as u64)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{:#x}"), self.0)
            }
        }
    };
}

run_of_512!(
    Superpage,
    Gfn,
    "s",
    "The `n`th superpage of guest memory.",
    page,
    "Its page number `index`, 0 to 511."
);
run_of_512!(
    Superframe,
    Mfn,
    "f",
    "The `n`th superframe of the machine.",
    frame,
    "Its frame number `index`, 0 to 511."
);

impl Gfn {
    /// The superpage around this page.
    #[must_use]
    pub const fn superpage(self) -> Superpage {
        Superpage(self.0 / SUPERPAGE_PAGES)
    }

    /// Which page of its superpage this is, 0 to 511.
    #[must_use]
    pub const fn index_in_superpage(self) -> usize {
        (self.0 % SUPERPAGE_PAGES) as usize
    }
}

impl Mfn {
    /// The superframe around this frame.
    #[must_use]
    pub const fn superframe(self) -> Superframe {
        Superframe(self.0 / SUPERPAGE_PAGES)
    }

    /// Which frame of its superframe this is, 0 to 511.
    #[must_use]
    pub const fn index_in_superframe(self) -> usize {
        (self.0 % SUPERPAGE_PAGES) as usize
    }
}

impl Order {
    /// A page of 4 KiB.
    pub const PAGE: Self = Self(0);
    /// A superpage of 2 MiB.
    pub const SUPERPAGE: Self = Self(9);
    /// The largest order there is: 1 GiB.
    pub const MAX: Self = Self(18);

    /// An order, unless it is above [`Order::MAX`].
    #[must_use]
    pub const fn new(raw: u8) -> Option<Self> {
        if raw <= Self::MAX.0 { Some(Self(raw)) } else { None }
    }

    /// The number itself.
    #[must_use]
    pub const fn raw(self) -> u8 {
        self.0
    }

    /// Pages in a run of this order.
    #[must_use]
    pub const fn pages(self) -> u64 {
        1 << self.0
    }

    /// Bytes in a run of this order.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.pages() * PAGE_BYTES
    }

    /// The largest order of equal, naturally aligned chunks that make up a run of `self` at `gfn`.
    #[must_use]
    pub const fn chunk_at(self, gfn: Gfn) -> Self {
        Self((gfn.0 | self.pages()).trailing_zeros() as u8)
    }

    /// The first `pages` pages of a guest in as few runs as there can be of [`Order::MAX`],
    /// [`Order::SUPERPAGE`] and [`Order::PAGE`], ascending: how its memory is promised.
    pub fn runs(pages: u64) -> impl Iterator<Item = (Gfn, Self)> {
        let mut at = 0;
        core::iter::from_fn(move || {
            let orders = [Self::MAX, Self::SUPERPAGE, Self::PAGE];
            let order = orders.into_iter().find(|order| order.pages() <= pages - at)?;
            let gfn = Gfn(at);
            at += order.pages();
            Some((gfn, order))
        })
    }
}

impl fmt::Debug for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "o{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;

    #[test]
    fn equal_chunks_of_a_run() {
        let order = |n| Order::new(n).unwrap();
        assert_eq!(order(9).chunk_at(Gfn::new(512)), order(9));
        assert_eq!(order(9).chunk_at(Gfn::new(8)), order(3));
        assert_eq!(order(4).chunk_at(Gfn::new(0)), order(4));
        assert_eq!(order(0).chunk_at(Gfn::new(7)), order(0));
    }

    #[test]
    fn all_pages_are_in_one_run_each() {
        let gib = 1 << 18;
        let runs: alloc::vec::Vec<_> = Order::runs(2 * gib + 512 + 2).collect();
        let expected = [
            (0, Order::MAX),
            (gib, Order::MAX),
            (2 * gib, Order::SUPERPAGE),
            (2 * gib + 512, Order::PAGE),
            (2 * gib + 513, Order::PAGE),
        ];
        assert_eq!(runs, expected.map(|(gfn, order)| (Gfn::new(gfn), order)));
        assert_eq!(Order::runs(0).next(), None);
    }

    #[test]
    fn orders_above_the_maximum_are_none() {
        assert!(Order::new(18).is_some());
        assert!(Order::new(19).is_none());
        assert!(Order::new(63).is_none());
    }

    #[test]
    fn debug_carries_the_unit() {
        assert_eq!(format!("{:?}", Gfn::new(31)), "g0x1f");
        assert_eq!(format!("{:?}", Mfn::new(31)), "m0x1f");
        assert_eq!(format!("{:?} {:?}", Order::SUPERPAGE, Superpage::new(31)), "o9 s0x1f");
    }

    #[test]
    fn a_superpage_has_two_megabytes() {
        assert_eq!(SUPERPAGE_BYTES, 2 << 20);
    }
}
