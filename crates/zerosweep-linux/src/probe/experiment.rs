//! Checks by experiment: real huge pages are moved.
//!
//! No registered memory is accessed here: contents are read in the slot, which is not registered.
//! So a move that fails cannot leave this thread waiting for itself.

use super::check::Check;
use crate::addr::{PAGE_BYTES, SUPERPAGE_BYTES, SUPERPAGE_PAGES};
use crate::error::{OpenError, RegionError, SysError};
use crate::kernel_version::KernelVersion;
use crate::sys::pagemap::Pagemap;
use crate::sys::region::Region;
use crate::sys::uffd::{Holes, MoveOutcome, Uffd, Wake, Watch};

/// Why an experiment came to no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// No userfaultfd.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// No memory for it.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// A system call.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// The kernel gave small pages where a huge one was asked for.
    #[error("the kernel gave small pages where a huge page was asked for")]
    NoHugePage,
    /// A move did not succeed.
    #[error("a move of 2 MiB came out as {0:?}")]
    Move(MoveOutcome),
}

/// What a move slot → range → slot of a huge page showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoundTrip {
    /// It was whole in the range.
    pub whole_there: bool,
    /// It was whole in the slot afterwards.
    pub whole_back: bool,
    /// All of its words were as before.
    pub contents_kept: bool,
}

/// Whether the range has an empty page table, and whether it is discarded before the move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EmptyTable {
    /// No page table.
    None,
    /// An empty one.
    Left,
    /// An empty one, and `MADV_DONTNEED` over the empty range.
    Discarded,
}

/// Moves a huge page to a range and back.
///
/// # Errors
/// [`Failure`]; all memory is released.
pub fn round_trip(table: EmptyTable) -> Result<RoundTrip, Failure> {
    let (uffd, pagemap) = (Uffd::open()?, Pagemap::open()?);
    let (slot, range) = (Region::new(SUPERPAGE_BYTES)?, Region::new(SUPERPAGE_BYTES)?);
    let (slot, range) = (slot.all(), range.all());
    slot.populate()?;
    if !pagemap.is_whole(slot)? {
        return Err(Failure::NoHugePage);
    }
    let word = |page: u64| (page * PAGE_BYTES, 0x5eed << 32 | page);
    for (offset, value) in (0..SUPERPAGE_PAGES).map(word) {
        slot.store_word(offset, value).map_err(RegionError::from)?;
    }
    if table != EmptyTable::None {
        // A small page brings the table; dropping that page alone leaves the table.
        let page = range.part(0, PAGE_BYTES).map_err(RegionError::from)?;
        range.forbid_huge_pages()?;
        page.populate()?;
        page.discard()?;
        range.ask_for_huge_pages()?;
    }
    uffd.register(range, Watch::MissingAndProtected)?;
    if table == EmptyTable::Discarded {
        range.discard()?;
    }
    move_all(uffd.move_pages(range, slot, Holes::Stop, Wake::Yes))?;
    let whole_there = pagemap.is_whole(range)?;
    slot.discard()?;
    uffd.register(slot, Watch::Missing)?;
    move_all(uffd.move_pages(slot, range, Holes::Stop, Wake::Yes))?;
    uffd.unregister(slot)?;
    let whole_back = pagemap.is_whole(slot)?;
    let kept = |page| {
        let (offset, value) = word(page);
        slot.load_word(offset) == Ok(value)
    };
    Ok(RoundTrip { whole_there, whole_back, contents_kept: (0..SUPERPAGE_PAGES).all(kept) })
}

fn move_all(outcome: MoveOutcome) -> Result<(), Failure> {
    match outcome {
        MoveOutcome::Done => Ok(()),
        other => Err(Failure::Move(other)),
    }
}

/// What appears where memory is only read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroPage {
    /// The huge zero page, and the kernel reports it as such.
    Huge,
    /// The huge zero page, which the kernel reports like a superpage with a frame.
    HugeMistaken,
    /// Small pages.
    Small,
}

/// Maps memory for reading, and returns what appears.
///
/// # Errors
/// [`Failure`].
pub fn zero_page() -> Result<ZeroPage, Failure> {
    let pagemap = Pagemap::open()?;
    let region = Region::new(SUPERPAGE_BYTES)?;
    region.all().map_zero()?;
    if pagemap.zero_superpages(region.all())? == 1 {
        return Ok(ZeroPage::Huge);
    }
    match pagemap.is_whole(region.all())? {
        true => Ok(ZeroPage::HugeMistaken),
        false => Ok(ZeroPage::Small),
    }
}

pub(super) fn checks() -> Vec<Check> {
    vec![moving(round_trip(EmptyTable::None)), reclaim(round_trip(EmptyTable::Discarded)), zero()]
}

fn moving(result: Result<RoundTrip, Failure>) -> Check {
    let name = "moving a superpage, tried";
    let whole = RoundTrip { whole_there: true, whole_back: true, contents_kept: true };
    match result {
        Ok(trip) if trip == whole => Check::ok(name, "there and back whole, contents kept"),
        Ok(trip) => Check::fail(name, format!("{trip:?}"), "please report this with `uname -a`"),
        Err(failure @ Failure::NoHugePage) => Check::fail(
            name,
            failure.to_string(),
            "`echo madvise > /sys/kernel/mm/transparent_hugepage/enabled; echo 1 > \
             /proc/sys/vm/compact_memory`",
        ),
        Err(failure) => Check::fail(name, why(failure), "mend the checks above first"),
    }
}

fn reclaim(result: Result<RoundTrip, Failure>) -> Check {
    let name = "dropping empty page tables, tried";
    match result {
        Ok(RoundTrip { whole_there: true, .. }) => Check::ok(name, "superpages come back whole"),
        Ok(_) => Check::warn(
            name,
            "a superpage that moves to where small pages were falls in 512 pieces (no PT_RECLAIM)",
            format!(
                "boot Linux {} or newer with CONFIG_PT_RECLAIM=y",
                KernelVersion::WITH_TABLE_RECLAIM
            ),
        ),
        Err(failure) => Check::warn(name, why(failure), "mend the checks above first"),
    }
}

fn zero() -> Check {
    let name = "huge zero page, tried";
    match zero_page() {
        Ok(ZeroPage::Huge) => Check::ok(name, "reads take no memory"),
        Ok(ZeroPage::HugeMistaken) => Check::warn(
            name,
            "reads take no memory, but the kernel reports the huge zero page as a superpage with a \
             frame, so that counts of whole superpages are too high",
            "boot a newer kernel",
        ),
        Ok(ZeroPage::Small) => Check::warn(
            name,
            "reads map small pages",
            "`echo 1 > /sys/kernel/mm/transparent_hugepage/use_zero_page; echo madvise > \
             /sys/kernel/mm/transparent_hugepage/enabled`",
        ),
        Err(failure) => Check::warn(name, why(failure), "mend the checks above first"),
    }
}

/// The failure's text; short where another check has said it at length.
fn why(failure: Failure) -> String {
    match failure {
        Failure::Open(_) => "not tried, as userfaultfd cannot be used".to_owned(),
        Failure::Region(RegionError::Pages(_)) => {
            "not tried, as this kernel's pages have another size".to_owned()
        }
        other => other.to_string(),
    }
}
