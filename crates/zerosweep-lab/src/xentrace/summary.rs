//! What was done to each domain, counted in one pass.

use std::collections::BTreeMap;
use std::io::Read;

use serde::{Serialize, Serializer};

use super::reader::{Broken, Reader, Reason};
use super::{Event, Layout, PageStates, Tally};

/// Counts for each order from 0 to 18.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ByOrder([u64; 19]);

impl ByOrder {
    /// How many there are of `order`.
    #[must_use]
    pub fn of(&self, order: u8) -> u64 {
        self.0.get(usize::from(order)).copied().unwrap_or(0)
    }

    /// How many there are in all.
    #[must_use]
    pub fn all(&self) -> u64 {
        self.0.iter().sum()
    }

    /// How many pages that are.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.0.iter().enumerate().map(|(order, count)| count << order).sum()
    }

    /// Those orders of which there are any.
    pub fn orders(&self) -> impl Iterator<Item = (u8, u64)> + '_ {
        let orders = self.0.iter().enumerate().map(|(order, &count)| (order as u8, count));
        orders.filter(|&(_, count)| count > 0)
    }

    fn count(&mut self, order: u8) {
        self.0[usize::from(order)] += 1;
    }
}

impl Serialize for ByOrder {
    /// A map from orders to counts, without those that are 0.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.orders())
    }
}

/// What zero checks saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Looks {
    /// Records; each is of at most 64 pages.
    pub records: u64,
    /// Pages that were zero, but could not be reclaimed. Pages that were reclaimed are in the
    /// records of reclaims.
    pub pages_zero: u64,
    /// Pages that were not zero.
    pub pages_live: u64,
}

/// What was done to a domain.
#[derive(Default, Serialize)]
pub struct DomainSummary {
    /// Promised ranges that got a frame.
    pub populates: ByOrder,
    /// Ranges of zeros that were promised again.
    pub reclaims: ByOrder,
    /// Promised superpages that were broken.
    pub splinters: u64,
    /// Ranges that were given back.
    pub decreases: ByOrder,
    /// What zero checks saw, as recordings of ours say.
    pub looks: Looks,
    /// Entries of the p2m that were set.
    pub p2m_sets: u64,
    /// How populates and reclaims changed the cache, in pages. A trace does not record the frames
    /// that were stolen when pages were given back, or what the cache held at the start.
    pub cache_change: i64,
    #[serde(serialize_with = "pages", rename = "pages_at_the_end")]
    states: PageStates,
}

fn pages<S: Serializer>(states: &PageStates, serializer: S) -> Result<S::Ok, S::Error> {
    states.tally().serialize(serializer)
}

impl DomainSummary {
    /// What its pages are at the end, by the records of the p2m: `pod` is Xen's count of entries.
    /// `None` if there are too many.
    #[must_use]
    pub fn pages_at_the_end(&self) -> Option<Tally> {
        self.states.tally()
    }
}

/// What is in a trace.
#[derive(Default, Serialize)]
pub struct Summary {
    /// Records of all kinds.
    pub records: u64,
    /// Length, unpacked.
    pub bytes: u64,
    /// Records that Xen reports as dropped.
    pub lost_records: u64,
    /// CPUs with records.
    pub cpus: usize,
    /// The first and the last time stamp.
    pub tsc: Option<(u64, u64)>,
    /// Records that are not of populate on demand.
    pub other_records: u64,
    /// By Xen's number.
    pub domains: BTreeMap<u32, DomainSummary>,
}

impl Summary {
    /// Counts the records of a trace. After an error, the counts cover what was read before it.
    pub fn read<R: Read>(reader: &mut Reader<R>, layout: Layout) -> (Self, Result<(), Broken>) {
        let mut summary = Self::default();
        let outcome = summary.count(reader, layout);
        summary.records = reader.records();
        summary.bytes = reader.offset();
        summary.lost_records = reader.lost();
        summary.cpus = reader.cpus();
        (summary, outcome)
    }

    fn count<R: Read>(&mut self, reader: &mut Reader<R>, layout: Layout) -> Result<(), Broken> {
        while let Some(record) = reader.next_record()? {
            let (offset, tsc) = (record.offset, record.tsc);
            if tsc > 0 {
                let (first, last) = self.tsc.unwrap_or((tsc, tsc));
                self.tsc = Some((first.min(tsc), last.max(tsc)));
            }
            let event = Event::decode(&record, layout)
                .map_err(|error| Broken { offset, reason: Reason::Event(error) })?;
            match event {
                Some(event) => self.domains.entry(event.domain()).or_default().count(event, tsc),
                None => self.other_records += 1,
            }
        }
        Ok(())
    }
}

impl DomainSummary {
    fn count(&mut self, event: Event, tsc: u64) {
        match event {
            Event::SetEntry { gfn, kind, order, .. } => {
                self.p2m_sets += 1;
                self.states.set(gfn, order, kind, tsc);
            }
            Event::Decrease { order, .. } => self.decreases.count(order),
            Event::Populate { order, .. } => {
                self.populates.count(order);
                self.cache_change -= 1 << order;
            }
            Event::Reclaim { order, .. } => {
                self.reclaims.count(order);
                self.cache_change += 1 << order;
            }
            Event::Splinter { .. } => self.splinters += 1,
            Event::Look { looked, live, .. } => {
                self.looks.records += 1;
                self.looks.pages_zero += u64::from((looked & !live).count_ones());
                self.looks.pages_live += u64::from(live.count_ones());
            }
        }
    }
}
