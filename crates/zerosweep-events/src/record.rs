//! Numbers of Xen's records that matter to populate on demand.
//!
//! The first word of a record has its number in bits 27:0, the number of its own words in bits
//! 30:28, and in bit 31 whether a time stamp comes before these words.

/// The next window begins: the number of its CPU, and its bytes.
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
/// A virtual CPU was runnable and runs now. `xenalyze` attributes the next records to it.
pub const RUNNABLE_TO_RUNNING: u32 = 0x002_1101;
/// A virtual CPU ran and waits now.
pub const RUNNING_TO_BLOCKED: u32 = 0x002_1021;

/// What a zero check saw of 64 pages. This is not a record of Xen's. Its number is in the class for
/// records that guests make themselves, and it is in recordings only. It has seven words: the first
/// page, which pages were looked at, which of them are not zero (two words each, bit n is page n),
/// and the domain.
pub const LOOK: u32 = 0x0800_f201;

/// The type in [`SET_P2M_ENTRY`] of a page with a frame.
pub const TYPE_RAM: u32 = 0;
/// The type of a page that is not the guest's.
pub const TYPE_INVALID: u32 = 1;
/// The type of a promised page.
pub const TYPE_POD: u32 = 6;
