//! The table from guest frame to entry.
//!
//! ```text
//!            records: one per superpage, 16 bytes               tables: one per broken range
//! gfn >> 9 ─►┌──────────────────────────────┬───────────────┐
//!            │ entry: invalid │ PoD │ ram   │ notes         │   gfn & 511 ─► 512 entries of
//!            │        special │ table ──────┼───────────────┼──────────────► 8 bytes
//!            └──────────────────────────────┴───────────────┘
//! ```
//!
//! A whole superpage is one record; a look-up is at most two loads. A record's notes hold the bit
//! *in transit* (rule [R14]), the remembered non-zero word (rule [R10]), and the number of a table of
//! pages that are out but keep their frames (rule [R12]).
//!
//! Invariant: a record that is in transit belongs to one operation, which alone changes it and its
//! table. Invariant: an order 18 PoD range is 512 superpage entries: nothing that the engine does
//! could tell the difference, because such an entry is split before it is used. Invariant: only a
//! whole ram superpage has pages that are out and retained; looked at page by page
//! ([`P2m::get`]) these are invalid, and the others are singles.
//!
//! Neighbours: [`crate::session`] changes it; [`crate::Domain::audit`] recounts it.
//!
//! [R10]: crate::rules#r10
//! [R12]: crate::rules#r12
//! [R14]: crate::rules#r14

mod entry;

pub use entry::{Entry, RamState, SuperpageState, Tally};

use alloc::vec::Vec;

use crate::error::OutOfTableMemory;
use crate::frame::{Gfn, Mfn, Order, SUPERPAGE_PAGES, Superpage};
use crate::page_bits::PageBits;
use crate::retained::Retained;
use entry::{INVALID, KIND_MASK, NUMBER_SHIFT, TABLE, decode, encode};

const PAGES: usize = SUPERPAGE_PAGES as usize;

/// One superpage's record.
#[derive(Clone, Copy, Default)]
struct Record {
    entry: u64,
    notes: u64,
}

const _: () = assert!(size_of::<Record>() == 16);

const NOTE_TRANSIT: u64 = 1 << 63;
const NOTE_HINT: u64 = 1 << 62;
/// The last check found more non-zero pages than are worth copying.
const NOTE_DENSE: u64 = 1 << 61;
/// Offset of a 64-bit word in a superpage: 18 bits.
const NOTE_HINT_WORD: u64 = (1 << 18) - 1;
/// Breaking the superpage failed the last time.
const NOTE_DEFERRED: u64 = 1 << 60;
/// Number, plus one, of the place of the superpage's retained pages: 32 bits.
const NOTE_PLACE: u64 = 0xffff_ffff << NOTE_PLACE_SHIFT;
const NOTE_PLACE_SHIFT: u32 = 20;

fn place_of(notes: u64) -> Option<u32> {
    ((notes & NOTE_PLACE) >> NOTE_PLACE_SHIFT).checked_sub(1).map(|place| place as u32)
}

struct Table {
    entries: Vec<u64>,
    tally: Tally,
}

/// Memory for the entries of one broken range. It is allocated without the lock that faults need.
pub(crate) struct SpareTable(Vec<u64>);

impl SpareTable {
    /// Memory for one.
    ///
    /// # Errors
    /// When there is no memory.
    pub(crate) fn new() -> Result<Self, OutOfTableMemory> {
        let mut entries = Vec::new();
        entries.try_reserve_exact(PAGES).map_err(|_| OutOfTableMemory)?;
        entries.resize(PAGES, INVALID);
        Ok(Self(entries))
    }
}

/// Spare tables that should be ready, and the most that are kept.
const SPARES_WANTED: usize = 2;
const SPARES_KEPT: usize = 64;

/// The table gfn → entry. See the module's text.
pub struct P2m {
    records: Vec<Record>,
    tables: Vec<Option<Table>>,
    free_tables: Vec<u32>,
    spares: Vec<SpareTable>,
    retained: Retained,
    /// How many superpages may have been put last.
    deferred: u64,
    pages: u64,
}

impl P2m {
    /// A table for gfns 0 to `pages`, all invalid.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub(crate) fn new(pages: u64) -> Result<Self, OutOfTableMemory> {
        let count =
            usize::try_from(pages.div_ceil(SUPERPAGE_PAGES)).map_err(|_| OutOfTableMemory)?;
        let mut records = Vec::new();
        records.try_reserve_exact(count).map_err(|_| OutOfTableMemory)?;
        records.resize(count, Record::default());
        // Address space for the worst case. The host takes memory only for what is used.
        let (mut tables, mut free_tables, mut spares) = (Vec::new(), Vec::new(), Vec::new());
        tables.try_reserve_exact(count).map_err(|_| OutOfTableMemory)?;
        free_tables.try_reserve_exact(count).map_err(|_| OutOfTableMemory)?;
        spares.try_reserve_exact(SPARES_KEPT).map_err(|_| OutOfTableMemory)?;
        let retained = Retained::new(count)?;
        Ok(Self { records, tables, free_tables, spares, retained, deferred: 0, pages })
    }

    /// Number of gfns.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Number of superpages, the last one perhaps partial.
    #[must_use]
    pub fn superpages(&self) -> u64 {
        self.records.len() as u64
    }

    /// Whether all of `[gfn, gfn + 2^order)` is within the table.
    #[must_use]
    pub fn contains(&self, gfn: Gfn, order: Order) -> bool {
        gfn.offset(order.pages()).raw() <= self.pages
    }

    /// Whether all 512 pages of `superpage` are within the table.
    #[must_use]
    pub fn is_full_superpage(&self, superpage: Superpage) -> bool {
        self.contains(superpage.first(), Order::SUPERPAGE)
    }

    /// The entry of `gfn` and the order of it: 9 when one record says it for the whole superpage.
    /// The mfn is that of `gfn` itself. Beyond the end all is invalid. A superpage of which pages
    /// are out and retained looks like one that is broken.
    #[must_use]
    pub fn get(&self, gfn: Gfn) -> (Entry, Order) {
        let Some(record) = self.records.get(gfn.superpage().index()) else {
            return (Entry::Invalid, Order::PAGE);
        };
        if record.entry & KIND_MASK == TABLE {
            let table = self.table_at(record.entry);
            return (decode(table.entries[gfn.index_in_superpage()]), Order::PAGE);
        }
        let order = match place_of(record.notes) {
            None => Order::SUPERPAGE,
            Some(place) if self.retained.bits(place).contains(gfn.index_in_superpage()) => {
                return (Entry::Invalid, Order::PAGE);
            }
            Some(_) => Order::PAGE,
        };
        let entry = match decode(record.entry) {
            Entry::Ram { mfn, state } => {
                Entry::Ram { mfn: mfn.offset(gfn.index_in_superpage() as u64), state }
            }
            other => other,
        };
        (entry, order)
    }

    /// The entry of a superpage that is whole; `None` where it is broken.
    #[must_use]
    pub fn whole(&self, superpage: Superpage) -> Option<Entry> {
        let record = self.records.get(superpage.index())?;
        (record.entry & KIND_MASK != TABLE).then(|| decode(record.entry))
    }

    /// The frame behind a page, that of a retained page included: where its content is, whether it
    /// is mapped or not. `None` where there is none, and beyond the end.
    #[must_use]
    pub fn frame(&self, gfn: Gfn) -> Option<Mfn> {
        if !self.contains(gfn, Order::PAGE) {
            return None;
        }
        let entry = self.whole(gfn.superpage());
        if let Some(Entry::Ram { mfn, .. }) = entry {
            return Some(mfn.align_down(Order::SUPERPAGE).offset(gfn.index_in_superpage() as u64));
        }
        match self.get(gfn).0 {
            Entry::Ram { mfn, .. } => Some(mfn),
            _ => None,
        }
    }

    /// What is in a superpage, page by page; retained pages count as ram.
    #[must_use]
    pub fn tally(&self, superpage: Superpage) -> Tally {
        match self.records.get(superpage.index()) {
            None => Tally::default(),
            Some(record) if record.entry & KIND_MASK == TABLE => self.table_at(record.entry).tally,
            Some(record) => Tally::of(decode(record.entry), SUPERPAGE_PAGES),
        }
    }

    /// The state of a superpage, for maps of guest memory.
    #[must_use]
    pub fn state(&self, superpage: Superpage) -> SuperpageState {
        match self.whole(superpage) {
            Some(Entry::Ram { .. }) if self.outs(superpage) > 0 => SuperpageState::Retaining,
            Some(Entry::Ram { .. }) => SuperpageState::Whole,
            Some(Entry::Pod) => SuperpageState::Promised,
            Some(_) => SuperpageState::Empty,
            None => match self.tally(superpage) {
                tally if tally.ram > 0 => SuperpageState::Broken,
                tally if tally.pod > 0 => SuperpageState::Promised,
                _ => SuperpageState::Empty,
            },
        }
    }

    /// The first frame, if the superpage is 512 free ram entries of consecutive frames from an
    /// aligned one: whole, or broken but in order.
    #[must_use]
    pub fn consecutive(&self, superpage: Superpage) -> Option<Mfn> {
        match self.whole(superpage) {
            Some(Entry::Ram { mfn, state: RamState::Mapped }) => Some(mfn),
            Some(_) => None,
            None => {
                let record = self.records.get(superpage.index())?;
                let table = self.table_at(record.entry);
                let first = table.entries[0];
                let Entry::Ram { mfn, state: RamState::Mapped } = decode(first) else {
                    return None;
                };
                let in_order = || {
                    let step = 1 << NUMBER_SHIFT;
                    table.entries.iter().enumerate().all(|(i, &e)| e == first + i as u64 * step)
                };
                let possible = table.tally.ram == SUPERPAGE_PAGES;
                (possible && mfn.is_aligned(Order::SUPERPAGE) && in_order()).then_some(mfn)
            }
        }
    }

    /// Makes a superpage one entry, whatever it was. A ram entry's mfn must be aligned.
    pub(crate) fn set_whole(&mut self, superpage: Superpage, entry: Entry) {
        debug_assert!(self.is_full_superpage(superpage) || entry == Entry::Invalid);
        debug_assert!(
            !matches!(entry, Entry::Ram { mfn, .. } if !mfn.is_aligned(Order::SUPERPAGE))
        );
        debug_assert!(
            self.outs(superpage) == 0 || matches!(entry, Entry::Ram { .. }),
            "retained pages are settled first"
        );
        let record = &mut self.records[superpage.index()];
        let old = core::mem::replace(&mut record.entry, encode(entry));
        if old & KIND_MASK == TABLE {
            let number = old >> NUMBER_SHIFT;
            // There is room for all there can be: see `new`.
            self.free_tables.push(number as u32);
            if let Some(table) = self.tables[number as usize].take()
                && self.spares.len() < SPARES_KEPT
            {
                self.spares.push(SpareTable(table.entries));
            }
        }
    }

    /// Breaks a superpage's record into 512 entries that say the same. Nothing to do if it is
    /// broken already; a PoD or ram range beyond the end of the table stays invalid there.
    ///
    /// # Errors
    /// When there is no memory. Nothing was changed.
    pub(crate) fn split(&mut self, superpage: Superpage) -> Result<(), OutOfTableMemory> {
        let Some(entry) = self.whole(superpage) else { return Ok(()) };
        let inside = (self.pages - superpage.first().raw()).min(SUPERPAGE_PAGES) as usize;
        let number = self.new_table()?;
        let table = self.tables[number as usize].as_mut().ok_or(OutOfTableMemory)?;
        for (i, slot) in table.entries.iter_mut().take(inside).enumerate() {
            *slot = encode(match entry {
                Entry::Ram { mfn, state } => Entry::Ram { mfn: mfn.offset(i as u64), state },
                other => other,
            });
        }
        table.tally = Tally::of(entry, inside as u64);
        self.records[superpage.index()].entry = u64::from(number) << NUMBER_SHIFT | TABLE;
        Ok(())
    }

    /// Sets one page's entry. Its superpage must be broken ([`P2m::split`]). When that leaves
    /// nothing but invalid entries, the table is given back.
    pub(crate) fn set_page(&mut self, gfn: Gfn, entry: Entry) {
        let superpage = gfn.superpage();
        let record = self.records[superpage.index()].entry;
        assert_eq!(record & KIND_MASK, TABLE, "set_page needs a broken superpage at {gfn:?}");
        let number = (record >> NUMBER_SHIFT) as usize;
        let Some(table) = self.tables[number].as_mut() else { return };
        let slot = &mut table.entries[gfn.index_in_superpage()];
        let old = decode(core::mem::replace(slot, encode(entry)));
        table.tally.remove(old, 1);
        table.tally.add(entry, 1);
        self.drop_empty_table(superpage);
    }

    /// Gives a broken superpage's table back if nothing but invalid entries is in it.
    pub(crate) fn drop_empty_table(&mut self, superpage: Superpage) {
        if self.whole(superpage).is_none() && self.tally(superpage) == Tally::default() {
            self.set_whole(superpage, Entry::Invalid);
        }
    }

    /// Marks the superpage as in transit. Returns false if another operation has claimed it.
    #[must_use = "a superpage that is not claimed may not be changed"]
    pub(crate) fn claim(&mut self, superpage: Superpage) -> bool {
        let record = &mut self.records[superpage.index()];
        let is_free = record.notes & NOTE_TRANSIT == 0;
        record.notes |= NOTE_TRANSIT;
        is_free
    }

    /// Ends what [`P2m::claim`] began.
    pub(crate) fn release(&mut self, superpage: Superpage) {
        let record = &mut self.records[superpage.index()];
        debug_assert!(record.notes & NOTE_TRANSIT != 0);
        record.notes &= !NOTE_TRANSIT;
    }

    /// Whether an operation has claimed the superpage.
    #[must_use]
    pub fn in_transit(&self, superpage: Superpage) -> bool {
        self.records.get(superpage.index()).is_some_and(|r| r.notes & NOTE_TRANSIT != 0)
    }

    /// The offset, in words of 8 bytes, where the last check found something non-zero.
    #[must_use]
    pub fn hint(&self, superpage: Superpage) -> Option<u32> {
        let notes = self.records.get(superpage.index())?.notes;
        (notes & NOTE_HINT != 0).then_some((notes & NOTE_HINT_WORD) as u32)
    }

    /// Remembers a non-zero word, or forgets it.
    pub(crate) fn set_hint(&mut self, superpage: Superpage, word: Option<u32>) {
        let notes = &mut self.records[superpage.index()].notes;
        *notes &= !(NOTE_HINT | NOTE_HINT_WORD | NOTE_DENSE);
        if let Some(word) = word {
            *notes |= NOTE_HINT | u64::from(word) & NOTE_HINT_WORD;
        }
    }

    /// Whether the last check found more non-zero pages than are worth copying.
    #[must_use]
    pub fn is_dense(&self, superpage: Superpage) -> bool {
        self.records.get(superpage.index()).is_some_and(|r| r.notes & NOTE_DENSE != 0)
    }

    /// Remembers that a check found too many non-zero pages, until the hint changes.
    pub(crate) fn set_dense(&mut self, superpage: Superpage) {
        self.records[superpage.index()].notes |= NOTE_DENSE;
    }

    /// R: pages that are out and keep their frames.
    #[must_use]
    pub fn retained_pages(&self) -> u64 {
        self.retained.pages()
    }

    /// How many pages of a superpage are out and retained.
    #[must_use]
    pub fn outs(&self, superpage: Superpage) -> u64 {
        self.place(superpage).map_or(0, |place| self.retained.count(place))
    }

    /// Which pages of a superpage are out and retained.
    #[must_use]
    pub fn out_bits(&self, superpage: Superpage) -> PageBits {
        self.place(superpage).map_or_else(PageBits::default, |place| self.retained.bits(place))
    }

    /// Whether a page is out and retained.
    #[must_use]
    pub fn is_out(&self, gfn: Gfn) -> bool {
        let place = self.place(gfn.superpage());
        place.is_some_and(|place| self.retained.bits(place).contains(gfn.index_in_superpage()))
    }

    /// Marks a page of a whole ram superpage as out and retained; false if it was.
    ///
    /// # Errors
    /// When there is no memory for the mark. Nothing was changed.
    pub(crate) fn retain(&mut self, gfn: Gfn) -> Result<bool, OutOfTableMemory> {
        let superpage = gfn.superpage();
        debug_assert!(matches!(self.whole(superpage), Some(Entry::Ram { .. })));
        let place = match self.place(superpage) {
            Some(place) => place,
            None => {
                let place = self.retained.open(superpage)?;
                self.records[superpage.index()].notes |= (u64::from(place) + 1) << NOTE_PLACE_SHIFT;
                place
            }
        };
        self.records[superpage.index()].notes &= !NOTE_DEFERRED;
        Ok(self.retained.set(place, gfn.index_in_superpage(), true))
    }

    /// Takes the mark of [`P2m::retain`] off a page; false if it had none.
    pub(crate) fn retake(&mut self, gfn: Gfn) -> bool {
        let superpage = gfn.superpage();
        let Some(place) = self.place(superpage) else { return false };
        let was = self.retained.set(place, gfn.index_in_superpage(), false);
        if self.retained.count(place) == 0 {
            self.forget_outs(superpage);
        }
        was
    }

    /// Takes all marks of [`P2m::retain`] off a superpage. Returns how many there were.
    pub(crate) fn forget_outs(&mut self, superpage: Superpage) -> u64 {
        let Some(place) = self.place(superpage) else { return 0 };
        self.records[superpage.index()].notes &= !(NOTE_PLACE | NOTE_DEFERRED);
        self.retained.close(place)
    }

    /// The superpage with the most pages retained, and how many, of those that nobody has claimed
    /// and that are not deferred.
    #[must_use]
    pub fn fewest_live(&self) -> Option<(Superpage, u64)> {
        self.retained.fewest_live(|superpage| {
            self.records[superpage.index()].notes & (NOTE_TRANSIT | NOTE_DEFERRED) == 0
        })
    }

    /// Leaves a superpage out of [`P2m::fewest_live`] until more of its pages come out, or
    /// [`P2m::clear_deferred`].
    pub(crate) fn defer(&mut self, superpage: Superpage) {
        self.records[superpage.index()].notes |= NOTE_DEFERRED;
        self.deferred += 1;
    }

    /// Takes back every [`P2m::defer`].
    pub(crate) fn clear_deferred(&mut self) {
        if core::mem::take(&mut self.deferred) > 0 {
            self.records.iter_mut().for_each(|record| record.notes &= !NOTE_DEFERRED);
        }
    }

    /// Whether there is a superpage all of whose pages are out.
    #[must_use]
    pub fn has_all_out(&self) -> bool {
        self.retained.has_full()
    }

    fn place(&self, superpage: Superpage) -> Option<u32> {
        place_of(self.records.get(superpage.index())?.notes)
    }

    /// Bytes that the table itself takes.
    #[must_use]
    pub fn table_bytes(&self) -> usize {
        let broken = self.tables.iter().flatten().count();
        self.records.len() * size_of::<Record>() + broken * PAGES * size_of::<u64>()
    }

    fn table_at(&self, record: u64) -> &Table {
        let table = self.tables[(record >> NUMBER_SHIFT) as usize].as_ref();
        table.expect("INV-1: a record names a table that exists")
    }

    /// Whether a spare table should be added before the next operation.
    #[must_use]
    pub fn wants_spare(&self) -> bool {
        self.spares.len() < SPARES_WANTED
    }

    /// Memory for a range that will be broken.
    pub(crate) fn add_spare(&mut self, spare: SpareTable) {
        if self.spares.len() < SPARES_KEPT {
            self.spares.push(spare);
        }
    }

    fn new_table(&mut self) -> Result<u32, OutOfTableMemory> {
        let SpareTable(mut entries) = match self.spares.pop() {
            Some(spare) => spare,
            None => SpareTable::new()?,
        };
        entries.fill(INVALID);
        let table = Some(Table { entries, tally: Tally::default() });
        if let Some(number) = self.free_tables.pop() {
            self.tables[number as usize] = table;
            return Ok(number);
        }
        let number = u32::try_from(self.tables.len()).map_err(|_| OutOfTableMemory)?;
        self.tables.push(table);
        Ok(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ram(n: u64) -> Entry {
        Entry::Ram { mfn: Mfn::new(n), state: RamState::Mapped }
    }

    #[test]
    fn a_superpage_has_the_letter_of_what_it_is() {
        let mut p2m = P2m::new(2048).unwrap();
        let superpage = |n| Superpage::new(n);
        p2m.set_whole(superpage(0), ram(512));
        p2m.set_whole(superpage(1), Entry::Pod);
        p2m.set_whole(superpage(2), Entry::Special);
        let letters =
            |p2m: &P2m| (0..4).map(|n| p2m.state(superpage(n)).letter()).collect::<Vec<_>>();
        assert_eq!(letters(&p2m), b"Wp..");
        assert_eq!(p2m.retain(Gfn::new(3)), Ok(true));
        p2m.set_whole(superpage(3), Entry::Pod);
        p2m.split(superpage(1)).unwrap();
        p2m.split(superpage(2)).unwrap();
        p2m.split(superpage(3)).unwrap();
        p2m.set_page(Gfn::new(512), Entry::Special);
        assert_eq!(letters(&p2m), b"rp.p");
        p2m.set_page(Gfn::new(513), ram(7));
        assert_eq!(letters(&p2m), b"rb.p");
        for state in SuperpageState::ALL {
            assert_eq!(SuperpageState::from_letter(state.letter()), Some(state));
            assert_eq!(state.is_whole(), b"Wr".contains(&state.letter()));
        }
        assert_eq!(SuperpageState::from_letter(b'?'), None);
    }

    #[test]
    fn a_page_has_the_frame_of_its_superpage_or_its_own() {
        let mut p2m = P2m::new(1024).unwrap();
        p2m.set_whole(Superpage::new(0), ram(512));
        p2m.set_whole(Superpage::new(1), Entry::Pod);
        p2m.split(Superpage::new(1)).unwrap();
        p2m.set_page(Gfn::new(513), ram(7));
        let frame = |n| p2m.frame(Gfn::new(n));
        assert_eq!([frame(0), frame(511), frame(513)], [512, 1023, 7].map(|n| Some(Mfn::new(n))));
        assert_eq!([frame(512), frame(1024)], [None, None]);
    }

    #[test]
    fn notes_of_a_superpage_do_not_disturb_each_other() {
        let mut p2m = P2m::new(1300).unwrap();
        let (first, last) = (Superpage::new(0), Superpage::new(2));
        assert!(p2m.is_full_superpage(first) && !p2m.is_full_superpage(last));
        p2m.set_whole(first, ram(512));
        assert!(p2m.claim(first));
        assert_eq!((p2m.hint(first), p2m.is_dense(first)), (None, false));
        p2m.set_hint(first, Some(0x3_ffff));
        assert_eq!((p2m.hint(first), p2m.is_dense(first)), (Some(0x3_ffff), false));
        p2m.set_hint(first, Some(0x1234));
        p2m.set_dense(first);
        assert_eq!((p2m.hint(first), p2m.is_dense(first)), (Some(0x1234), true));
        assert!(p2m.in_transit(first) && !p2m.claim(first));
        p2m.set_hint(first, Some(0x1235));
        assert_eq!((p2m.hint(first), p2m.is_dense(first)), (Some(0x1235), false));
        p2m.set_hint(first, None);
        p2m.release(first);
        assert_eq!((p2m.hint(first), p2m.in_transit(first)), (None, false));
    }

    #[test]
    fn the_end_of_memory_is_no_page() {
        let mut p2m = P2m::new(1300).unwrap();
        let last = Superpage::new(2);
        p2m.split(last).unwrap();
        p2m.set_page(Gfn::new(1299), Entry::Pod);
        assert_eq!(p2m.tally(last).pod, 1);
        assert_eq!(p2m.get(Gfn::new(1299)).0, Entry::Pod);
        assert_eq!(p2m.get(Gfn::new(1300)).0, Entry::Invalid);
    }

    #[test]
    fn a_whole_superpage_costs_16_bytes() {
        let mut p2m = P2m::new(1 << 20).unwrap();
        for n in 0..p2m.superpages() {
            p2m.set_whole(Superpage::new(n), Entry::Pod);
        }
        assert_eq!(p2m.table_bytes() as u64, p2m.superpages() * 16);
        p2m.split(Superpage::new(7)).unwrap();
        assert_eq!(p2m.table_bytes() as u64, p2m.superpages() * 16 + 4096);
    }

    #[test]
    fn so_many_spare_tables_are_wanted_and_so_many_are_kept() {
        let mut p2m = P2m::new(512 * 80).unwrap();
        for spares in 0..100 {
            assert_eq!(p2m.wants_spare(), spares < SPARES_WANTED);
            assert_eq!(p2m.spares.len(), spares.min(SPARES_KEPT));
            p2m.add_spare(SpareTable::new().unwrap());
        }
        let all = || (0..80).map(Superpage::new);
        all().for_each(|superpage| p2m.split(superpage).unwrap());
        assert_eq!(p2m.spares.len(), 0, "they were used before others were made");
        for (number, superpage) in all().enumerate() {
            assert_eq!(p2m.spares.len(), number.min(SPARES_KEPT));
            p2m.set_whole(superpage, Entry::Pod);
        }
    }

    #[test]
    fn what_was_deferred_is_found_again_once_that_is_cleared() {
        let mut p2m = P2m::new(1024).unwrap();
        let superpage = Superpage::new(1);
        p2m.set_whole(superpage, ram(2048));
        assert_eq!(p2m.retain(Gfn::new(600)), Ok(true));
        p2m.defer(superpage);
        assert_eq!(p2m.fewest_live(), None);
        p2m.clear_deferred();
        assert_eq!(p2m.fewest_live(), Some((superpage, 1)));
        p2m.defer(superpage);
        assert_eq!(p2m.retain(Gfn::new(601)), Ok(true));
        assert_eq!(p2m.fewest_live(), Some((superpage, 2)), "another page came out");
        p2m.defer(superpage);
        assert_eq!(p2m.forget_outs(superpage), 2);
        assert_eq!(p2m.retain(Gfn::new(602)), Ok(true));
        assert_eq!(p2m.fewest_live(), Some((superpage, 1)));
    }

    #[test]
    fn splitting_keeps_every_page() {
        let mut p2m = P2m::new(1024).unwrap();
        let sp = Superpage::new(1);
        p2m.set_whole(sp, ram(2048));
        assert_eq!(p2m.get(Gfn::new(600)), (ram(2048 + 88), Order::SUPERPAGE));
        p2m.split(sp).unwrap();
        assert_eq!(p2m.get(Gfn::new(600)), (ram(2048 + 88), Order::PAGE));
        assert_eq!(p2m.consecutive(sp), Some(Mfn::new(2048)));
        p2m.set_page(Gfn::new(600), ram(7));
        assert_eq!(p2m.consecutive(sp), None);
        p2m.set_page(Gfn::new(600), Entry::Pod);
        assert_eq!(p2m.tally(sp), Tally { pod: 1, ram: 511, special: 0 });
    }

    #[test]
    fn a_table_of_nothing_is_given_back_and_used_again() {
        let mut p2m = P2m::new(1024).unwrap();
        p2m.set_whole(Superpage::new(0), Entry::Pod);
        p2m.split(Superpage::new(0)).unwrap();
        for g in 0..512 {
            p2m.set_page(Gfn::new(g), Entry::Invalid);
        }
        assert_eq!(p2m.whole(Superpage::new(0)), Some(Entry::Invalid));
        assert_eq!(p2m.table_bytes(), 32);
        p2m.set_whole(Superpage::new(1), Entry::Pod);
        p2m.split(Superpage::new(1)).unwrap();
        assert_eq!(p2m.tables.len(), 1);
    }

    #[test]
    fn a_partial_last_superpage_ends_where_the_guest_ends() {
        let mut p2m = P2m::new(512 + 3).unwrap();
        p2m.split(Superpage::new(1)).unwrap();
        p2m.set_page(Gfn::new(514), Entry::Pod);
        assert_eq!(p2m.tally(Superpage::new(1)).pod, 1);
        assert!(!p2m.contains(Gfn::new(514), Order::new(1).unwrap()));
        assert!(!p2m.contains(Gfn::new(u64::MAX), Order::MAX));
        assert_eq!(p2m.get(Gfn::new(u64::MAX)).0, Entry::Invalid);
    }

    #[test]
    fn retained_pages_are_invalid_one_by_one_and_whole_together() {
        let mut p2m = P2m::new(1024).unwrap();
        let sp = Superpage::new(1);
        p2m.set_whole(sp, ram(2048));
        assert_eq!(p2m.retain(Gfn::new(600)), Ok(true));
        assert_eq!(p2m.retain(Gfn::new(600)), Ok(false));
        assert_eq!(p2m.get(Gfn::new(600)), (Entry::Invalid, Order::PAGE));
        assert_eq!(p2m.get(Gfn::new(601)), (ram(2048 + 89), Order::PAGE));
        assert_eq!((p2m.whole(sp), p2m.consecutive(sp)), (Some(ram(2048)), Some(Mfn::new(2048))));
        assert_eq!((p2m.state(sp), p2m.retained_pages()), (SuperpageState::Retaining, 1));
        assert_eq!(p2m.fewest_live(), Some((sp, 1)));
        assert!(p2m.claim(sp));
        assert_eq!(p2m.fewest_live(), None, "it is in transit");
        p2m.release(sp);
        assert!(p2m.retake(Gfn::new(600)) && !p2m.retake(Gfn::new(600)));
        assert_eq!(p2m.state(sp), SuperpageState::Whole);
        assert_eq!(p2m.get(Gfn::new(600)).1, Order::SUPERPAGE);
        assert_eq!(p2m.retain(Gfn::new(1023)), Ok(true));
        assert_eq!((p2m.forget_outs(sp), p2m.forget_outs(sp), p2m.outs(sp)), (1, 0, 0));
    }

    #[test]
    fn notes_do_not_disturb_each_other() {
        let mut p2m = P2m::new(512).unwrap();
        let sp = Superpage::new(0);
        p2m.set_hint(sp, Some((1 << 18) - 1));
        assert!(p2m.claim(sp));
        assert!(!p2m.claim(sp));
        assert_eq!(p2m.hint(sp), Some((1 << 18) - 1));
        p2m.set_hint(sp, None);
        assert!(p2m.in_transit(sp));
        p2m.release(sp);
        assert_eq!((p2m.hint(sp), p2m.in_transit(sp)), (None, false));
    }
}
