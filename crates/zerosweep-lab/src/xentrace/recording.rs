//! A guest's side of a trace: what it did, and what was in its pages.
//!
//! ```text
//! records ──► what happened ──► from the end back: what ──► from the start on: ──► steps
//!             to whom           was in a page when it       writes between two
//!                               was touched                 looks that differ
//! ```
//!
//! A trace of Xen's does not tell everything. What is assumed:
//!
//! - A page that was reclaimed or given back before it was touched again was zero from its touch on:
//!   the guest scrubs what it gives back. One that it kept is not zero ([`Unknown::Data`]), or is
//!   ([`Unknown::Zero`]).
//! - Of a superpage that was populated whole, only the page that faulted was touched for sure. Its
//!   other pages are written to at the same time if they are not zero, and are not touched if they
//!   are.
//! - A touch of a page that has a frame is not in a trace: a guest that scrubs what it gives back
//!   does so unseen.
//!
//! A recording of ours ([`Event::Look`]) says what zero checks saw: then a page was that from its
//! touch on, and if a later check saw something else, the guest wrote to it just before that one.
//! So under the policy of the recording the same checks see the same again.

use std::io::Read;

use serde::Serialize;
use zerosweep::SUPERPAGE_PAGES;

use super::reader::{Broken, Reader, Reason};
use super::{Event, Layout, PageKind};

const WORDS: usize = SUPERPAGE_PAGES as usize / 64;

/// A bit for each page of a superpage.
pub(super) type Bits = [u64; WORDS];

/// What pages are taken for of which the trace says nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unknown {
    /// Something is in them.
    #[default]
    Data,
    /// They are zero.
    Zero,
}

/// Something that the guest did.
pub(super) enum Step {
    /// It touched a page, and left it zero or not.
    Touch { gfn: u64, zero: bool },
    /// It touched a page of a superpage; these pages of it are not zero.
    TouchSuperpage { gfn: u64, data: Box<Bits> },
    /// It gave a range back.
    Decrease { gfn: u64, order: u8 },
}

/// A guest's side of a trace.
pub struct Recording {
    /// Xen's number of the domain.
    pub domain: u32,
    /// Pages from gfn 0 on that were promised at first.
    pub max_pages: u64,
    /// What the guest holds at the end if its balloon reached its target: what is promised and what
    /// has a frame. `None` if it has given nothing back.
    pub final_pages: Option<u64>,
    /// Whether a touch brings a page back that was given back, as under QEMU; Xen's guests have to
    /// ask first.
    pub(super) takes_back: bool,
    pub(super) steps: Vec<Step>,
}

/// A trace that cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// It cannot be read to its end.
    #[error(transparent)]
    Broken(#[from] Broken),
    /// There is no such domain, or nothing was promised to it.
    #[error(
        "nothing was promised to domain {domain} in this trace: it must begin before the guest"
    )]
    NothingPromised {
        /// Whose pages were asked for.
        domain: u32,
    },
    /// More pages than a guest may have.
    #[error("domain {domain} was promised {pages} pages, more than 1 TiB")]
    TooLarge {
        /// Whose pages they are.
        domain: u32,
        /// How many.
        pages: u64,
    },
}

impl Recording {
    /// Takes a domain's side out of a trace. All of its records are held in memory, 80 bytes each.
    ///
    /// # Errors
    /// See [`RecordingError`].
    pub fn read<R: Read>(
        reader: &mut Reader<R>,
        layout: Layout,
        domain: u32,
        unknown: Unknown,
    ) -> Result<Self, RecordingError> {
        let mut events = Vec::new();
        while let Some(record) = reader.next_record()? {
            let (offset, tsc) = (record.offset, record.tsc);
            let event = Event::decode(&record, layout)
                .map_err(|error| Broken { offset, reason: Reason::Event(error) })?;
            events.extend(event.filter(|event| event.domain() == domain).map(|e| (tsc, e)));
        }
        // Windows come in the order in which they were written. A stable sort keeps records of one
        // time in that order.
        events.sort_by_key(|&(tsc, _)| tsc);
        let events: Vec<Event> = events.into_iter().map(|(_, event)| event).collect();
        let max_pages = promised(&events).ok_or(RecordingError::NothingPromised { domain })?;
        if max_pages > 1 << 28 {
            return Err(RecordingError::TooLarge { domain, pages: max_pages });
        }
        let (mut happened, takes_back) = happenings(&events, max_pages);
        fill_in(&mut happened, max_pages, unknown);
        Ok(Self {
            domain,
            max_pages,
            final_pages: final_pages(&events, max_pages),
            takes_back,
            steps: steps(happened, max_pages),
        })
    }

    /// How many touches and give-backs there are.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.steps.len()
    }
}

/// Pages from 0 on that were promised before anything was touched.
fn promised(events: &[Event]) -> Option<u64> {
    let is_touch = |event: &&Event| !matches!(event, Event::Populate { .. });
    let ends = events.iter().take_while(is_touch).filter_map(|event| match *event {
        Event::SetEntry { gfn, kind: PageKind::Pod, order, .. } => Some(gfn + (1 << order)),
        _ => None,
    });
    ends.max()
}

fn final_pages(events: &[Event], max_pages: u64) -> Option<u64> {
    let mut is_out = vec![false; max_pages as usize];
    for event in events {
        let (gfn, order, out) = match *event {
            Event::SetEntry { gfn, kind: PageKind::Invalid, order, .. } => (gfn, order, true),
            Event::SetEntry { gfn, order, .. } => (gfn, order, false),
            _ => continue,
        };
        let end = gfn.saturating_add(1 << order).min(max_pages);
        if gfn < end {
            is_out[gfn as usize..end as usize].fill(out);
        }
    }
    let out = is_out.iter().filter(|&&out| out).count() as u64;
    (out > 0).then_some(max_pages - out)
}

/// What happened to pages below the guest's end, by the records.
enum Happening {
    Touch {
        gfn: u64,
        zero: bool,
    },
    TouchSuperpage {
        gfn: u64,
        pages: Box<Touched>,
    },
    Decrease {
        gfn: u64,
        end: u64,
        order: u8,
    },
    /// It is zero now, and then it is gone.
    Reclaim {
        gfn: u64,
        end: u64,
    },
    Look {
        gfn: u64,
        looked: u64,
        live: u64,
    },
}

/// Pages of a superpage that was populated.
struct Touched {
    /// They were not there before.
    fresh: Bits,
    /// They are not zero.
    data: Bits,
}

/// Where a page is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Promised,
    Guest,
    Out,
}

/// Finds out what each record meant for the guest; and whether it touched what it had given back.
fn happenings(events: &[Event], max_pages: u64) -> (Vec<Happening>, bool) {
    let mut places = vec![Place::Promised; max_pages as usize];
    let mut happened = Vec::new();
    let mut takes_back = false;
    // Pages that were out and have a frame now. If no populate follows, theirs was retained.
    let mut retaken: Vec<u64> = Vec::new();
    for event in events {
        if let Event::SetEntry { gfn, kind, order, .. } = *event {
            let (first, end) = range(gfn, order, max_pages);
            let out = |&gfn: &u64| places[gfn as usize] == Place::Out;
            if kind == PageKind::Ram {
                retaken.extend((first..end).filter(out));
            }
            continue;
        }
        let populated = match *event {
            Event::Populate { gfn, order, .. } => range(gfn, order, max_pages),
            _ => (0, 0),
        };
        for gfn in retaken.drain(..).filter(|gfn| !(populated.0..populated.1).contains(gfn)) {
            places[gfn as usize] = Place::Guest;
            takes_back = true;
            happened.push(Happening::Touch { gfn, zero: false });
        }
        match *event {
            Event::Reclaim { gfn, order, .. } => {
                let (gfn, end) = range(gfn, order, max_pages);
                for place in &mut places[gfn as usize..end as usize] {
                    if *place == Place::Guest {
                        *place = Place::Promised;
                    }
                }
                happened.push(Happening::Reclaim { gfn, end });
            }
            Event::Decrease { gfn, order, .. } if gfn < max_pages => {
                let end = gfn.saturating_add(1 << order).min(max_pages);
                places[gfn as usize..end as usize].fill(Place::Out);
                happened.push(Happening::Decrease { gfn, end, order });
            }
            Event::Populate { gfn, order, .. } if gfn < max_pages => {
                takes_back |= places[gfn as usize] == Place::Out;
                if order == 0 {
                    places[gfn as usize] = Place::Guest;
                    happened.push(Happening::Touch { gfn, zero: false });
                    continue;
                }
                let first = gfn & !(SUPERPAGE_PAGES - 1);
                let mut fresh = [0; WORDS];
                for index in 0..SUPERPAGE_PAGES.min(max_pages - first) {
                    let place = &mut places[(first + index) as usize];
                    // Of a range that was broken, some pages are there, and some stay out.
                    if *place == Place::Promised || first + index == gfn {
                        *place = Place::Guest;
                        fresh[(index / 64) as usize] |= 1 << (index % 64);
                    }
                }
                let pages = Box::new(Touched { fresh, data: [0; WORDS] });
                happened.push(Happening::TouchSuperpage { gfn, pages });
            }
            Event::Look { gfn, looked, live, .. } => {
                takes_back = true;
                happened.push(Happening::Look { gfn, looked, live });
            }
            _ => {}
        }
    }
    (happened, takes_back)
}

/// The pages of an entry below the guest's end.
fn range(gfn: u64, order: u8, max_pages: u64) -> (u64, u64) {
    let first = (gfn & !((1 << order) - 1)).min(max_pages);
    (first, first.saturating_add(1 << order).min(max_pages))
}

/// What is known of a page between a touch and what comes after it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Unknown,
    Zero,
    Data,
}

/// Finds out what was in a page when it was touched: what comes later tells.
fn fill_in(happened: &mut [Happening], max_pages: u64, unknown: Unknown) {
    let mut fates = vec![Fate::Unknown; max_pages as usize];
    let is_zero = |fate: Fate| match fate {
        Fate::Unknown => unknown == Unknown::Zero,
        Fate::Zero => true,
        Fate::Data => false,
    };
    for happening in happened.iter_mut().rev() {
        match happening {
            Happening::Reclaim { gfn, end } | Happening::Decrease { gfn, end, .. } => {
                fates[*gfn as usize..*end as usize].fill(Fate::Zero);
            }
            Happening::Look { gfn, looked, live } => {
                for (gfn, live) in seen(*gfn, *looked, *live, max_pages) {
                    fates[gfn as usize] = if live { Fate::Data } else { Fate::Zero };
                }
            }
            Happening::Touch { gfn, zero } => {
                *zero = is_zero(std::mem::replace(&mut fates[*gfn as usize], Fate::Unknown));
            }
            Happening::TouchSuperpage { gfn, pages } => {
                let first = *gfn & !(SUPERPAGE_PAGES - 1);
                for index in bits(&pages.fresh) {
                    let fate = &mut fates[(first + index) as usize];
                    if !is_zero(std::mem::replace(fate, Fate::Unknown)) {
                        pages.data[(index / 64) as usize] |= 1 << (index % 64);
                    }
                }
            }
        }
    }
}

/// Pages that a look saw, and whether something was in them.
fn seen(gfn: u64, looked: u64, live: u64, max_pages: u64) -> impl Iterator<Item = (u64, bool)> {
    let pages = (0..64).filter(move |bit| looked >> bit & 1 == 1);
    let pages = pages.filter_map(move |bit| Some((gfn.checked_add(bit)?, live >> bit & 1 == 1)));
    pages.filter(move |&(gfn, _)| gfn < max_pages)
}

fn bits(bits: &Bits) -> impl Iterator<Item = u64> + '_ {
    (0..SUPERPAGE_PAGES).filter(|&index| bits[(index / 64) as usize] >> (index % 64) & 1 == 1)
}

/// What the guest did. Where two looks differ it wrote in between: just before the second one.
fn steps(happened: Vec<Happening>, max_pages: u64) -> Vec<Step> {
    // Whether a page that the guest has is zero.
    let mut zero: Vec<Option<bool>> = vec![None; max_pages as usize];
    let mut steps = Vec::new();
    for happening in happened {
        match happening {
            Happening::Touch { gfn, zero: is_zero } => {
                zero[gfn as usize] = Some(is_zero);
                steps.push(Step::Touch { gfn, zero: is_zero });
            }
            Happening::TouchSuperpage { gfn, pages } => {
                let first = gfn & !(SUPERPAGE_PAGES - 1);
                for index in bits(&pages.fresh) {
                    let data = pages.data[(index / 64) as usize] >> (index % 64) & 1 == 1;
                    zero[(first + index) as usize] = Some(!data);
                }
                steps.push(Step::TouchSuperpage { gfn, data: Box::new(pages.data) });
            }
            Happening::Decrease { gfn, end, order } => {
                zero[gfn as usize..end as usize].fill(None);
                steps.push(Step::Decrease { gfn, order });
            }
            Happening::Reclaim { gfn, end } => {
                for gfn in gfn..end {
                    if zero[gfn as usize].take() == Some(false) {
                        steps.push(Step::Touch { gfn, zero: true });
                    }
                }
            }
            Happening::Look { gfn, looked, live } => {
                for (gfn, live) in seen(gfn, looked, live, max_pages) {
                    if zero[gfn as usize] == Some(live) {
                        zero[gfn as usize] = Some(!live);
                        steps.push(Step::Touch { gfn, zero: !live });
                    }
                }
            }
        }
    }
    steps
}
