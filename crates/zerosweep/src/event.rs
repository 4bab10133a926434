//! Events: what the engine did, for programs that listen (rule [R20]).
//!
//! The engine hands each event to [`Host::event`](crate::Host::event); a host that does not
//! implement it pays nothing.
//!
//! [R20]: crate::rules#r20

use crate::frame::{Gfn, Mfn, Order};

/// Something that the engine did. An event's `gfn` is the first of its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A PoD range got a frame.
    Populate {
        /// First gfn.
        gfn: Gfn,
        /// First frame.
        mfn: Mfn,
        /// Size.
        order: Order,
        /// The touched gfn.
        fault: Gfn,
    },
    /// A zero range became PoD again; its frame went to the cache.
    Reclaim {
        /// First gfn.
        gfn: Gfn,
        /// First frame.
        mfn: Mfn,
        /// Size.
        order: Order,
    },
    /// A PoD superpage entry was broken because no superpage was cached.
    Splinter {
        /// First gfn.
        gfn: Gfn,
        /// The touched gfn.
        fault: Gfn,
    },
    /// A ram superpage entry was broken.
    Shatter {
        /// First gfn.
        gfn: Gfn,
    },
    /// The live pages of a superpage were copied to singles, and its superframe went to the cache.
    /// Or they stayed in their frames, and the other frames went to the cache as singles.
    Evacuate {
        /// First gfn.
        gfn: Gfn,
        /// First frame.
        mfn: Mfn,
        /// How many live pages there were.
        live: u64,
    },
    /// A range became invalid.
    Remove {
        /// First gfn.
        gfn: Gfn,
        /// Size.
        order: Order,
    },
    /// A page that was out, and whose frame was retained, belongs to the guest again.
    Retake {
        /// The page.
        gfn: Gfn,
    },
    /// The frame of a range that was given back went to the cache.
    Steal {
        /// First gfn.
        gfn: Gfn,
        /// First frame.
        mfn: Mfn,
        /// Size.
        order: Order,
    },
    /// A frame was returned to the host.
    Return {
        /// First frame.
        mfn: Mfn,
        /// Size.
        order: Order,
    },
    /// The guest can soon touch no more (rule [R15]). Reported once, and again after the forecast
    /// was twice as good meanwhile.
    ///
    /// [R15]: crate::rules#r15
    Low {
        /// Pages that the guest can still touch without a scan.
        certain: u64,
        /// More pages that scans should find.
        likely: u64,
    },
    /// What a zero check found in pages that it does not reclaim (rules [R5], [R10], [R11]). Pages
    /// that are reclaimed have [`Event::Reclaim`] instead. A superpage has up to eight such events.
    ///
    /// [R5]: crate::rules#r5
    /// [R10]: crate::rules#r10
    /// [R11]: crate::rules#r11
    Checked {
        /// The first of 64 pages, a multiple of 64. Bit n of the others is page n.
        gfn: Gfn,
        /// Pages that were checked. Those of them that are not live are zero.
        checked: u64,
        /// Pages that are not zero.
        live: u64,
    },
    /// No frame could be found.
    Exhausted {
        /// The touched gfn.
        gfn: Gfn,
    },
    /// A step of a sweep ended.
    Sweep {
        /// Where it began.
        gfn: Gfn,
        /// Pages that it reclaimed.
        reclaimed: u64,
    },
}
