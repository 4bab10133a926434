//! What both languages see: constants, structures, the machine's table of functions.
//! These have their C names here, and what is said about them is what the header says.
//!
//! Invariant: a structure that begins with `size` only grows, at its end, by fields for which zero
//! means what was so before. Numbers of enumerations stay.

use core::ffi::{c_char, c_void};

use zerosweep::{Order, PAGE_BYTES, SUPERPAGE_PAGES, Statistics};

/// The version of this interface. It changes only when a program that was compiled with an older
/// header would not work any more; zs_abi_version() says which one the library has.
pub const ZS_ABI_VERSION: u32 = 1;

/// Bytes in a page: gfns and mfns count these.
pub const ZS_PAGE_BYTES: u64 = 4096;

/// Pages in a superpage: 2 MiB, order 9.
pub const ZS_SUPERPAGE_PAGES: u64 = 512;

/// The largest order of a range: 1 GiB.
pub const ZS_ORDER_MAX: u32 = 18;

/// What a zero check returns when it found no word that is not zero.
pub const ZS_ALL_ZERO: u32 = u32::MAX;

const _: () = assert!(ZS_PAGE_BYTES == PAGE_BYTES && ZS_SUPERPAGE_PAGES == SUPERPAGE_PAGES);
const _: () = assert!(ZS_ORDER_MAX == Order::MAX.raw() as u32);

/// What may be in a frame.
#[repr(u32)]
#[derive(Clone, Copy)]
pub enum zs_content {
    /// Anything.
    Unknown = 0,
    /// Zeros only.
    Zero = 1,
}

/// How zs_machine.map mapped a run.
#[repr(u32)]
#[derive(Clone, Copy)]
pub enum zs_mapped {
    /// As one mapping of the order that was asked for.
    Whole = 0,
    /// As single pages.
    Pieces = 1,
    /// Not at all; nothing has changed.
    Failed = 2,
}

/// The result of zs_machine.unmap.
#[repr(u32)]
#[derive(Clone, Copy)]
pub enum zs_unmapped {
    /// The guest cannot reach the run any more, once flushed.
    Done = 0,
    /// Something else uses the run, such as a device. It is mapped as before, but perhaps as single
    /// pages.
    Busy = 1,
}

/// Whether the machine's functions are called by several threads at once.
#[repr(u32)]
#[derive(Clone, Copy)]
pub enum zs_machine_calls {
    /// By all threads that call this library, but never for the same pages or frames at once. This
    /// includes allocate, allocate_in, free and flush.
    Concurrent = 0,
    /// By one thread at a time: the machine needs no lock because of this library. A fault may then
    /// wait while another thread's call checks, clears or copies a superpage.
    Serial = 1,
}

/// What a touch of a page that is ballooned out means.
#[repr(u32)]
#[derive(Clone, Copy)]
pub enum zs_invalid_touch {
    /// An error of the guest's, as under Xen: ZS_STATUS_UNMAPPED.
    Refuse = 0,
    /// The guest may use the page again without saying so, as under QEMU: the page is promised and
    /// populated at once.
    Increase = 1,
}

/// Which thread does the upkeep: clears frames, breaks superpages with retained pages, and returns
/// surplus frames to the host.
#[repr(u32)]
#[derive(Clone, Copy)]
pub enum zs_upkeep_by {
    /// The operation that causes it, before it returns.
    Operation = 0,
    /// The program, in a thread of its own: zs_wants_upkeep() and zs_upkeep().
    Caller = 1,
}

/// What zs_event says.
#[repr(u32)]
#[derive(Clone, Copy)]
pub enum zs_event_kind {
    /// A promised range got a frame: gfn, mfn, order; fault: the page that was touched.
    Populate = 0,
    /// A zero range is promised again, its frame is in the cache: gfn, mfn, order.
    Reclaim = 1,
    /// The entry of a promised superpage was broken because no superpage was cached: gfn, fault.
    Splinter = 2,
    /// The entry of a populated superpage was broken: gfn.
    Shatter = 3,
    /// A superpage with few live pages gave up its frames: gfn, mfn; pages: how many were live.
    Evacuate = 4,
    /// A range is not the guest's any more: gfn, order.
    Remove = 5,
    /// The frame of a range that was given back went to the cache: gfn, mfn, order.
    Steal = 6,
    /// A frame went back to the host: mfn, order.
    Return = 7,
    /// The guest will soon be out of frames: pages: how many it can still touch without a scan;
    /// likely: how many more a scan should find.
    Low = 8,
    /// No frame could be found: gfn, the page that was touched.
    Exhausted = 9,
    /// A step of a sweep ended: gfn: where it began; pages: how many it reclaimed.
    Sweep = 10,
    /// The guest has taken a retained page again: gfn.
    Retake = 11,
}

/// Something that the engine did. Fields that zs_event_kind does not name are 0.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct zs_event {
    /// Bytes in this structure, by the library.
    pub size: usize,
    /// A zs_event_kind. Ignore kinds that you do not know.
    pub kind: u32,
    /// Size of the range: 2^order pages.
    pub order: u32,
    /// First page of the range.
    pub gfn: u64,
    /// First frame.
    pub mfn: u64,
    /// The page that was touched.
    pub fault: u64,
    /// A number of pages.
    pub pages: u64,
    /// Another one.
    pub likely: u64,
}

/// The machine, which moves frames: a table of functions of the program.
///
/// Runs have order 0 (a page) or 9 (a superpage, aligned to 512), unless a function says otherwise.
/// A function that fails must have changed nothing. Every function gets `opaque`.
///
/// The functions may not call this library (except zs_first_nonzero(); other calls return
/// ZS_STATUS_REENTRANT), throw, or leave by longjmp. They are called without a lock of the library,
/// except the one that ZS_MACHINE_CALLS_SERIAL asks for. The range that they work on is claimed
/// meanwhile: a thread that touches it waits, in zs_fault().
///
/// An invalid answer, such as a frame that is not aligned, breaks the domain: ZS_STATUS_BROKEN.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct zs_machine {
    /// sizeof(zs_machine).
    pub size: usize,
    /// Passed to every function.
    pub opaque: *mut c_void,

    /// Takes a run from the host. Returns 0 and the first frame, aligned to its order; anything
    /// else if the host has none of that order. `content` is a zs_content, ZS_CONTENT_UNKNOWN
    /// unless it is written.
    pub allocate: Option<
        unsafe extern "C" fn(
            opaque: *mut c_void,
            order: u32,
            mfn: *mut u64,
            content: *mut u32,
        ) -> i32,
    >,

    /// Gives a run back to the host. Its content is not needed any more.
    pub free: Option<unsafe extern "C" fn(opaque: *mut c_void, mfn: u64, order: u32)>,

    /// Maps a run for the guest at `gfn`, where nothing is mapped. Returns a zs_mapped.
    pub map:
        Option<unsafe extern "C" fn(opaque: *mut c_void, gfn: u64, mfn: u64, order: u32) -> u32>,

    /// Unmaps a run. Returns a zs_unmapped. Single pages of a run that was mapped whole may be
    /// unmapped; the others stay mapped. A run that was mapped in pieces may be unmapped whole.
    pub unmap:
        Option<unsafe extern "C" fn(opaque: *mut c_void, gfn: u64, mfn: u64, order: u32) -> u32>,

    /// Waits until no CPU and no device can reach what any thread has unmapped before.
    pub flush: Option<unsafe extern "C" fn(opaque: *mut c_void)>,

    /// Looks at the first 16 words of 8 bytes of each page of a mapped run. The guest may write at
    /// the same time, so the result is a hint. Returns the offset of a word that is not zero, in
    /// words from the first one of the run, or ZS_ALL_ZERO.
    pub quick_check:
        Option<unsafe extern "C" fn(opaque: *mut c_void, gfn: u64, mfn: u64, order: u32) -> u32>,

    /// Reads one word of 8 bytes, `word` words into a mapped superpage or page, while the guest may
    /// write.
    pub peek:
        Option<unsafe extern "C" fn(opaque: *mut c_void, gfn: u64, mfn: u64, word: u32) -> u64>,

    /// Looks at all words of `pages` frames, of one superframe, which are not mapped. Returns the
    /// offset of the first word that is not zero, in words, or ZS_ALL_ZERO. zs_first_nonzero() does
    /// this.
    pub zero_check: Option<unsafe extern "C" fn(opaque: *mut c_void, mfn: u64, pages: u64) -> u32>,

    /// Fills a run that is not mapped with zeros.
    pub clear: Option<unsafe extern "C" fn(opaque: *mut c_void, mfn: u64, order: u32)>,

    /// Copies a frame to another; neither is mapped.
    pub copy: Option<unsafe extern "C" fn(opaque: *mut c_void, from: u64, to: u64)>,

    /// Makes a mapped page that the guest has given back zero. Returns what was in it before: a
    /// zs_content.
    pub scrub: Option<unsafe extern "C" fn(opaque: *mut c_void, gfn: u64, mfn: u64) -> u32>,

    /// May be NULL: the host then never has such a page. As allocate, for a single page out of the
    /// 512 frames from `superframe` on. Consolidation moves live pages there.
    pub allocate_in: Option<
        unsafe extern "C" fn(
            opaque: *mut c_void,
            superframe: u64,
            mfn: *mut u64,
            content: *mut u32,
        ) -> i32,
    >,

    /// May be NULL: nothing is done. A superpage that is all zero goes to the cache. Until it is
    /// mapped again nothing reads it, so the machine may take the memory behind it.
    pub park: Option<unsafe extern "C" fn(opaque: *mut c_void, mfn: u64)>,

    /// May be NULL: nothing is done. A frame that zs_offline() named leaves the domain for good. It
    /// must never be given out again.
    pub retire: Option<unsafe extern "C" fn(opaque: *mut c_void, mfn: u64)>,
}

/// How a domain is made. Set `size`, `max_pages` and `target`; zero is a good value for the others.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct zs_config {
    /// sizeof(zs_config).
    pub size: usize,
    /// Pages that the guest is told that it has: gfns 0 to max_pages - 1.
    pub max_pages: u64,
    /// Pages that the domain may hold: 1 to max_pages.
    pub target: u64,
    /// A policy's name: "zerosweep" (also for NULL), "none", "hypercall-2011",
    /// "rfc-2011:gate=debt", "rfc-2011:gate=always", "xen-2012", "xen-2016". Read during the call
    /// only.
    pub policy: *const c_char,
    /// A zs_invalid_touch.
    pub invalid_touch: u32,
    /// A zs_upkeep_by.
    pub upkeep_by: u32,
    /// A zs_machine_calls.
    pub machine_calls: u32,
    /// 0.
    pub reserved: u32,
    /// How many bytes one zs_fault() may scan before it returns ZS_STATUS_MORE; 0: 8 MiB.
    pub fault_budget_bytes: u64,
    /// If the machine's frames are numbered from 0: how many there are, so that tables for them are
    /// allocated at the start. 0: not known.
    pub expect_frames: u64,
    /// Called with each event; NULL: events are not reported. The thread that works calls it with
    /// one event at a time, in order, under the domain's lock. It should record the event and
    /// return. It may not call this library, nor wait for a thread that does.
    pub event: Option<unsafe extern "C" fn(opaque: *mut c_void, event: *const zs_event)>,
    /// Passed to `event`.
    pub event_opaque: *mut c_void,
}

/// A range that is populated.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct zs_range {
    /// First page.
    pub gfn: u64,
    /// Size: 2^order pages.
    pub order: u32,
    /// 0.
    pub reserved: u32,
}

/// The quantities of a domain, in pages.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct zs_quantities {
    /// sizeof(zs_quantities), by the caller.
    pub size: usize,
    /// Pages that the guest is told that it has.
    pub max: u64,
    /// Pages that the domain may hold.
    pub target: u64,
    /// Pages with a frame.
    pub populated: u64,
    /// Pages that are promised and have no frame.
    pub entries: u64,
    /// Frames that back nothing.
    pub cache: u64,
    /// Pages that were given back and whose frame stays in its superpage until it is needed.
    pub retained: u64,
    /// What the domain holds: populated + cache + retained.
    pub total: u64,
    /// What the guest has not given back: populated + entries.
    pub guest: u64,
    /// What must be found before all that is promised is backed: entries - cache - retained.
    pub debt: i64,
    /// What the guest has still to give back: guest - target.
    pub owed: i64,
    /// Pages held beyond the target because no frame could be found.
    pub borrowed: u64,
    /// Superpages in the cache.
    pub cached_superpages: u64,
    /// Forecast: pages that can be touched without a scan.
    pub certain: u64,
    /// Forecast: more pages that are retained or that a sweep should find.
    pub likely: u64,
    /// Forecast: pages promised beyond both.
    pub missing: u64,
}

/// What a domain has done since it was made. In C each counter is a field, in the order of
/// [`Statistics::COUNTERS`]; the header's test writes them.
///
/// cbindgen:ignore
#[repr(C)]
#[derive(Clone, Copy)]
pub struct zs_statistics {
    /// sizeof(zs_statistics), by the caller.
    pub size: usize,
    /// The values.
    pub counters: [u64; Statistics::COUNTERS.len()],
}

/// The kind of a page's entry.
#[repr(u32)]
#[derive(Clone, Copy)]
pub enum zs_entry_kind {
    /// Nothing: given back, or never there.
    Invalid = 0,
    /// It is promised and has no frame yet.
    Pod = 1,
    /// A frame.
    Ram = 2,
    /// It is never reclaimed, and not the engine's.
    Special = 3,
}

/// The entry of a page.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct zs_entry {
    /// sizeof(zs_entry), by the caller.
    pub size: usize,
    /// A zs_entry_kind.
    pub kind: u32,
    /// 9 if one entry is for the whole superpage, else 0.
    pub order: u32,
    /// The frame of this page, if it is ram.
    pub mfn: u64,
    /// 1 if the frame is pinned.
    pub is_pinned: u32,
    /// 1 while an operation works on the superpage around the page.
    pub is_in_transit: u32,
}
