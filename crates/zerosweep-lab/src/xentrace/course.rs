//! How a domain's memory changed: counts and the superpage map, in as many columns as fit a page.
//!
//! A trace is read twice. The first time finds from when to when it goes and which superpages there
//! are ([`Extent`]); the second time keeps what each page is, and writes a column whenever one is
//! over ([`Course`]). Records come in the order in which Xen's buffers were emptied: they are put
//! in order by their time stamps, as far as [`REORDERED`] of them reach.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};
use std::io::Read;

use super::reader::{Broken, Reader, Reason};
use super::{Event, Layout, PageKind, Tally};

/// The number of columns of a course.
pub const COLUMNS: usize = 160;
/// Cells of a map at most: each stands for one superpage or for several.
const CELLS: usize = 512;
/// Records that are held back until none of an earlier time is to be expected.
const REORDERED: usize = 1 << 17;
/// Superpages at most: 1 TiB.
const MOST_SUPERPAGES: usize = 1 << 19;
const PAGES: u64 = zerosweep::SUPERPAGE_PAGES;

/// From when to when, and where.
#[derive(Clone, Debug, Default)]
pub struct Extent {
    /// The first and the last time stamp of the domain's records.
    pub tsc: Option<(u64, u64)>,
    /// Numbers of the superpages that were promised, populated or given back, ascending.
    superpages: Vec<u64>,
    /// There were more superpages than are kept: those are not drawn.
    pub overflowed: bool,
}

impl Extent {
    /// Reads a trace to its end, or to where it is broken.
    pub fn read<R: Read>(
        reader: &mut Reader<R>,
        layout: Layout,
        domain: u32,
    ) -> (Self, Result<(), Broken>) {
        let mut extent = Self::default();
        let mut known = BTreeSet::new();
        let outcome = each_event(reader, layout, domain, |tsc, event| {
            let (first, last) = extent.tsc.unwrap_or((tsc, tsc));
            extent.tsc = Some((first.min(tsc), last.max(tsc)));
            let Some((_, first, pages)) = change(&event) else { return };
            for number in first / PAGES..(first + pages).div_ceil(PAGES) {
                if known.len() < MOST_SUPERPAGES {
                    known.insert(number);
                } else {
                    extent.overflowed |= !known.contains(&number);
                }
            }
        });
        extent.superpages = known.into_iter().collect();
        (extent, outcome)
    }

    /// How many superpages there are.
    #[must_use]
    pub fn superpages(&self) -> usize {
        self.superpages.len()
    }

    /// How many of them a cell of the map stands for.
    #[must_use]
    pub fn superpages_per_cell(&self) -> usize {
        self.superpages.len().div_ceil(CELLS).max(1)
    }
}

/// What happened in one column, and what there was at its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Column {
    /// Pages that got a frame.
    pub populated: u64,
    /// Pages that were promised again.
    pub reclaimed: u64,
    /// Pages that were given back.
    pub decreased: u64,
    /// What the pages are.
    pub pages: Tally,
    /// A letter a cell: `m` some pages have frames and others have not, `b` broken, `W` whole, `p`
    /// promised, `.` given back, a blank before the first record; the first of these that a
    /// superpage of the cell is.
    pub map: String,
}

/// The columns, all as long.
#[derive(Clone, Debug, Default)]
pub struct Course {
    /// [`COLUMNS`] of them; none if there was nothing.
    pub columns: Vec<Column>,
}

impl Course {
    /// Reads the trace that `extent` was read from once more.
    pub fn read<R: Read>(
        reader: &mut Reader<R>,
        layout: Layout,
        domain: u32,
        extent: &Extent,
    ) -> (Self, Result<(), Broken>) {
        let Some((first, last)) = extent.tsc else { return (Self::default(), Ok(())) };
        let mut memory = Memory::new(extent);
        let mut columns: Vec<Column> = Vec::with_capacity(COLUMNS);
        let mut current = Column::default();
        let ticks = u128::from(last - first) + 1;
        let mut apply = |tsc: u64, event: Event| {
            let at = (u128::from(tsc.saturating_sub(first)) * COLUMNS as u128 / ticks) as usize;
            while columns.len() < at {
                columns.push(memory.close(std::mem::take(&mut current)));
            }
            match event {
                Event::Populate { order, .. } => current.populated += 1 << order,
                Event::Reclaim { order, .. } => current.reclaimed += 1 << order,
                Event::Decrease { order, .. } => current.decreased += 1 << order,
                _ => {}
            }
            memory.apply(&event);
        };
        let mut waiting = BinaryHeap::new();
        let mut held = HashMap::new();
        let mut number = 0_u64;
        let outcome = each_event(reader, layout, domain, |tsc, event| {
            number += 1;
            waiting.push(Reverse((tsc, number)));
            held.insert(number, event);
            if waiting.len() > REORDERED
                && let Some(Reverse((tsc, number))) = waiting.pop()
                && let Some(event) = held.remove(&number)
            {
                apply(tsc, event);
            }
        });
        while let Some(Reverse((tsc, number))) = waiting.pop() {
            if let Some(event) = held.remove(&number) {
                apply(tsc, event);
            }
        }
        while columns.len() < COLUMNS {
            columns.push(memory.close(std::mem::take(&mut current)));
        }
        (Self { columns }, outcome)
    }
}

fn each_event<R: Read>(
    reader: &mut Reader<R>,
    layout: Layout,
    domain: u32,
    mut each: impl FnMut(u64, Event),
) -> Result<(), Broken> {
    while let Some(record) = reader.next_record()? {
        let (offset, tsc) = (record.offset, record.tsc);
        let event = Event::decode(&record, layout)
            .map_err(|error| Broken { offset, reason: Reason::Event(error) })?;
        if let Some(event) = event.filter(|event| event.domain() == domain) {
            each(tsc, event);
        }
    }
    Ok(())
}

/// Which pages an event changed: their new kind, the first page, and how many.
fn change(event: &Event) -> Option<(PageKind, u64, u64)> {
    match *event {
        // Devices and their holes are no memory of the guest's.
        Event::SetEntry { kind: PageKind::Other(_), .. } => None,
        Event::SetEntry { gfn, kind, order, .. } => {
            let pages = 1 << order;
            Some((kind, gfn & !(pages - 1), pages))
        }
        _ => None,
    }
}

/// What a page is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Page {
    #[default]
    Unknown,
    Ram,
    Pod,
    Invalid,
}

enum Superpage {
    /// One entry for all of it.
    One(Page),
    Each(Box<[Page; PAGES as usize]>),
}

impl Superpage {
    fn letter(&self) -> u8 {
        let pages = match self {
            Self::One(Page::Ram) => return b'W',
            Self::One(page) => std::slice::from_ref(page),
            Self::Each(pages) => &pages[..],
        };
        let has = |page| pages.contains(&page);
        match (has(Page::Ram), has(Page::Pod), has(Page::Invalid)) {
            (true, false, false) => b'b',
            (true, _, _) => b'm',
            (false, true, _) => b'p',
            (false, false, true) => b'.',
            (false, false, false) => b' ',
        }
    }
}

/// All pages of the domain.
struct Memory<'a> {
    extent: &'a Extent,
    superpages: Vec<Superpage>,
    tally: Tally,
}

impl<'a> Memory<'a> {
    fn new(extent: &'a Extent) -> Self {
        let unknown = || Superpage::One(Page::Unknown);
        let superpages = extent.superpages.iter().map(|_| unknown()).collect();
        Self { extent, superpages, tally: Tally::default() }
    }

    fn apply(&mut self, event: &Event) {
        let Some((kind, first, pages)) = change(event) else { return };
        let page = match kind {
            PageKind::Ram => Page::Ram,
            PageKind::Pod => Page::Pod,
            PageKind::Invalid | PageKind::Other(_) => Page::Invalid,
        };
        let end = first + pages;
        let mut at = first;
        while at < end {
            let number = at / PAGES;
            let next = ((number + 1) * PAGES).min(end);
            if let Ok(place) = self.extent.superpages.binary_search(&number) {
                let range = (at % PAGES) as usize..(at % PAGES + (next - at)) as usize;
                self.set(place, range, page);
            }
            at = next;
        }
    }

    fn set(&mut self, place: usize, range: std::ops::Range<usize>, page: Page) {
        let superpage = &mut self.superpages[place];
        let tally = &mut self.tally;
        let mut count = |page, pages: u64, sign: i64| {
            let counted = match page {
                Page::Ram => &mut tally.ram,
                Page::Pod => &mut tally.pod,
                Page::Invalid => &mut tally.invalid,
                Page::Unknown => return,
            };
            *counted = counted.wrapping_add_signed(sign * pages as i64);
        };
        let one = match superpage {
            Superpage::One(was) => {
                let was = *was;
                *superpage = Superpage::Each(Box::new([was; PAGES as usize]));
                range.len() == PAGES as usize
            }
            Superpage::Each(_) => range.len() == PAGES as usize,
        };
        if let Superpage::Each(pages) = superpage {
            for was in &mut pages[range] {
                count(*was, 1, -1);
                count(page, 1, 1);
                *was = page;
            }
            // Pages that are promised or out are so one by one or together alike.
            let alike = page != Page::Ram && pages.iter().all(|&other| other == page);
            if one || alike {
                *superpage = Superpage::One(page);
            }
        }
    }

    fn close(&self, column: Column) -> Column {
        let rank = |letter: u8| b"mbWp. ".iter().position(|&known| known == letter);
        let cells = self.superpages.chunks(self.extent.superpages_per_cell());
        let letters = cells.map(|cell| {
            let letters = cell.iter().map(Superpage::letter);
            char::from(letters.min_by_key(|&letter| rank(letter)).unwrap_or(b' '))
        });
        Column { pages: self.tally, map: letters.collect(), ..column }
    }
}

#[cfg(test)]
mod tests {
    use zerosweep::{Gfn, Mfn, Order};
    use zerosweep_events::{Kind, Note, What, Writer};

    use super::*;

    fn note(what: What, gfn: u64, order: u8) -> Note {
        let mfn = matches!(what, What::Set(Kind::Ram) | What::Populate | What::Reclaim);
        let order = Order::new(order).unwrap();
        Note { what, gfn: Gfn::new(gfn), mfn: mfn.then(|| Mfn::new(gfn)), order }
    }

    fn course(trace: &[u8]) -> Course {
        let (extent, outcome) = Extent::read(&mut Reader::new(trace), Layout::Words, 1);
        outcome.unwrap();
        let (course, outcome) = Course::read(&mut Reader::new(trace), Layout::Words, 1, &extent);
        outcome.unwrap();
        course
    }

    #[test]
    fn columns_are_as_long_and_have_what_is_at_their_end() {
        let mut trace = Vec::new();
        let mut writer = Writer::begin(&mut trace, 1, 4 * 512);
        let steps = [
            (15, note(What::Set(Kind::Ram), 0, 9)),
            (15, note(What::Populate, 3, 9)),
            (800, note(What::Set(Kind::Ram), 600, 0)),
            (800, note(What::Populate, 600, 0)),
            (900, note(What::Decrease, 0, 0)),
            (900, note(What::Set(Kind::Invalid), 0, 0)),
            (1600, note(What::Set(Kind::Pod), 512, 9)),
            (1600, note(What::Reclaim, 512, 9)),
            (1600, note(What::Set(Kind::Invalid), 1024, 9)),
        ];
        for (time_ns, note) in &steps {
            writer.note(*time_ns, note).unwrap();
        }
        writer.finish(1600).unwrap();
        drop(writer);
        let columns = course(&trace).columns;
        assert_eq!(columns.len(), COLUMNS);
        let map = |at: usize| columns[at].map.as_str();
        assert_eq!((map(0), columns[0].populated), ("pppp", 0));
        assert_eq!((map(1), map(78)), ("Wppp", "Wppp"));
        assert_eq!((map(80), columns[79].populated + columns[80].populated), ("Wmpp", 1));
        assert_eq!((map(100), columns[89].decreased + columns[90].decreased), ("mmpp", 1));
        assert_eq!((map(159), columns[159].reclaimed), ("mp.p", 512));
        let all = Tally { ram: 511, pod: 1024, invalid: 513, other: 0 };
        assert_eq!(columns[159].pages, all);
        assert_eq!(columns.iter().map(|column| column.populated).sum::<u64>(), 513);
    }

    #[test]
    fn records_that_come_late_are_put_in_order() {
        let window = |cpu: u32, records: &[(u64, u32)]| {
            let words: Vec<u32> = records
                .iter()
                .flat_map(|&(tsc, kind)| {
                    [0xe010_f004, tsc as u32, 0, 512, 0, 512, 0, kind, 9 << 16 | 1]
                })
                .collect();
            [&[0x2001_f003, cpu, words.len() as u32 * 4][..], &words].concat()
        };
        // CPU 1 gave the superpage back after CPU 0 had populated it, but its window came first.
        let words = [window(1, &[(900, 1)]), window(0, &[(100, 6), (500, 0), (1000, 6)])].concat();
        let trace: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
        let columns = course(&trace).columns;
        let map = |tsc: usize| columns[(tsc - 100) * COLUMNS / 901].map.clone();
        assert_eq!([map(300), map(700), map(950), map(1000)], ["p", "W", ".", "p"]);
    }
}
