//! Numbers of Xen's records that matter to populate on demand.
//!
//! A record's first word has its number in bits 27:0, how many words of its own it has in bits
//! 30:28, and in bit 31 whether a time stamp comes before them.

/// Whose records follow: CPU, and bytes.
pub const CPU_CHANGE: u32 = 0x001_f003;
/// How many records were lost.
pub const LOST_RECORDS: u32 = 0x001_f001;
/// An entry of the p2m was set.
pub const SET_P2M_ENTRY: u32 = 0x010_f004;
/// The guest gave a range back.
pub const DECREASE_RESERVATION: u32 = 0x010_f005;
/// A promised range got a frame.
pub const POD_POPULATE: u32 = 0x010_f010;
/// A range of zeros was promised again.
pub const POD_ZERO_RECLAIM: u32 = 0x010_f011;
/// A promised superpage was broken.
pub const POD_SUPERPAGE_SPLINTER: u32 = 0x010_f012;
/// A virtual CPU was runnable and runs now; `xenalyze` takes from it whose the next records are.
pub const RUNNABLE_TO_RUNNING: u32 = 0x002_1101;
/// A virtual CPU ran and waits now.
pub const RUNNING_TO_BLOCKED: u32 = 0x002_1021;

/// What a zero check saw of 64 pages. No record of Xen's: of its class of records that guests make
/// themselves, and only in recordings. Seven words: the first page, which pages were looked at, which
/// of them are not zero (two words each, bit n is page n), and the domain.
pub const LOOK: u32 = 0x0800_f201;

/// What [`SET_P2M_ENTRY`] says of a page with a frame.
pub const TYPE_RAM: u32 = 0;
/// Of one that is not the guest's.
pub const TYPE_INVALID: u32 = 1;
/// Of one that is promised.
pub const TYPE_POD: u32 = 6;
