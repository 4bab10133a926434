//! What each policy would have done with a guest's side of a trace.
//!
//! Of a trace the guest's part is taken: the pages that it touched, the pages that it gave back, and
//! what must have been zero in between, because Xen took it back. That is done again on the software
//! machine under a policy; what Xen did is left out.
//!
//! A trace does not tell everything. What is assumed:
//!
//! - A page that was reclaimed or given back before it was touched again was zero from its touch on:
//!   the guest scrubs what it gives back. One that it kept is not zero ([`Unknown::Data`]), or is
//!   ([`Unknown::Zero`]).
//! - Of a superpage that was populated whole, only the page that faulted was touched for sure. Its
//!   other pages are written to at the same time if they are not zero, and are not touched if they
//!   are.
//! - A touch of a page that has a frame is not in a trace: a guest that scrubs what it gives back
//!   does so unseen.

use std::io::Read;

use serde::Serialize;
use zerosweep::{
    Config, DecreaseError, Gfn, InvalidTouch, Order, Policy, SUPERPAGE_PAGES, Superpage,
};
use zerosweep_sim::{NewGuestError, SoftwareGuest, SoftwareMachine, TouchError};

use super::reader::{Broken, Reader, Reason};
use super::{Event, Layout, PageKind};
use crate::script::superframes_for;

const WORDS: usize = SUPERPAGE_PAGES as usize / 64;

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
enum Step {
    /// It touched a page, and left it zero or not.
    Touch { gfn: u64, zero: bool },
    /// It touched a page of a superpage; these pages of it are not zero.
    TouchSuperpage { gfn: u64, data: Box<[u64; WORDS]> },
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
    steps: Vec<Step>,
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
    /// More than can be.
    #[error("domain {domain} was promised {pages} pages, more than 1 TiB")]
    TooLarge {
        /// Whose pages they are.
        domain: u32,
        /// So many.
        pages: u64,
    },
}

/// What becomes of a page until it is touched again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Unknown,
    /// Reclaimed or given back: it was zero.
    Zero,
}

impl Recording {
    /// Takes a domain's side out of a trace. All of its records are held in memory, 40 bytes each.
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
        Ok(Self {
            domain,
            max_pages,
            final_pages: final_pages(&events, max_pages),
            steps: steps(&events, max_pages, unknown),
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

/// What the guest did, with what it left in its pages: what comes later tells.
fn steps(events: &[Event], max_pages: u64, unknown: Unknown) -> Vec<Step> {
    let mut fates = vec![Fate::Unknown; max_pages as usize];
    let is_zero = |fate: Fate| fate == Fate::Zero || unknown == Unknown::Zero;
    let mut steps = Vec::new();
    for event in events.iter().rev() {
        match *event {
            Event::Reclaim { gfn, order, .. } => {
                let first = gfn & !((1 << order) - 1);
                let end = first.saturating_add(1 << order).min(max_pages);
                if first < end {
                    fates[first as usize..end as usize].fill(Fate::Zero);
                }
            }
            Event::Decrease { gfn, order, .. } if gfn < max_pages => {
                let end = gfn.saturating_add(1 << order).min(max_pages);
                fates[gfn as usize..end as usize].fill(Fate::Zero);
                steps.push(Step::Decrease { gfn, order });
            }
            Event::Populate { gfn, order: 0, .. } if gfn < max_pages => {
                let zero = is_zero(fates[gfn as usize]);
                fates[gfn as usize] = Fate::Unknown;
                steps.push(Step::Touch { gfn, zero });
            }
            Event::Populate { gfn, .. } if gfn < max_pages => {
                let first = gfn & !(SUPERPAGE_PAGES - 1);
                let mut data = Box::new([0; WORDS]);
                for index in 0..SUPERPAGE_PAGES.min(max_pages - first) {
                    let fate = &mut fates[(first + index) as usize];
                    if !is_zero(*fate) {
                        data[(index / 64) as usize] |= 1 << (index % 64);
                    }
                    *fate = Fate::Unknown;
                }
                steps.push(Step::TouchSuperpage { gfn, data });
            }
            _ => {}
        }
    }
    steps.reverse();
    steps
}

/// What a policy came to.
#[derive(Clone, Debug, Serialize)]
pub struct Replay {
    /// Its name.
    pub policy: String,
    /// Steps until no frame could be found; `None`: all of them were done.
    pub exhausted_after: Option<usize>,
    /// Populates of superpages.
    pub populates_2m: u64,
    /// Populates of single pages.
    pub populates_4k: u64,
    /// Checks of superpages.
    pub zero_checks_2m: u64,
    /// Checks of superpages that found them zero.
    pub zero_checks_2m_hit: u64,
    /// Checks of single pages.
    pub zero_checks_4k: u64,
    /// Bytes read by checks.
    pub bytes_scanned: u64,
    /// Bytes copied.
    pub bytes_copied: u64,
    /// Steps of emergency sweeps.
    pub emergency_sweeps: u64,
    /// Promised superpages broken.
    pub splinters: u64,
    /// Superpages of ram broken.
    pub shatters: u64,
    /// Superpages reclaimed.
    pub superpages_reclaimed: u64,
    /// Single pages reclaimed.
    pub singles_reclaimed: u64,
    /// Waits for all CPUs.
    pub unmap_flushes: u64,
    /// Whole superpages in the guest at the end.
    pub superpages_in_guest: u64,
    /// Whole superpages in the cache at the end.
    pub superpages_in_cache: u64,
    /// Pages promised without a frame at the end.
    pub entries: u64,
    /// Pages in the cache at the end.
    pub cache: u64,
    /// Pages held at the end.
    pub total: u64,
}

/// A guest that cannot be, or a step that cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// There is no such guest.
    #[error("{0}")]
    Guest(NewGuestError),
    /// A page cannot be touched.
    #[error("gfn {gfn} cannot be touched: {error}")]
    Touch {
        /// Which one.
        gfn: u64,
        /// Why.
        error: TouchError,
    },
    /// A range cannot be given back.
    #[error("gfn {gfn} cannot be given back: {error}")]
    Decrease {
        /// Its first page.
        gfn: u64,
        /// Why.
        error: DecreaseError,
    },
}

impl Recording {
    /// Does it again under `policy`, with a target of `target` pages.
    ///
    /// # Errors
    /// When there can be no such guest, or a step cannot be done.
    pub fn replay(&self, policy: Policy, target: u64) -> Result<Replay, ReplayError> {
        let machine = SoftwareMachine::new(superframes_for(target) * SUPERPAGE_PAGES);
        let config = Config {
            invalid_touch: InvalidTouch::Refuse,
            ..Config::new(self.max_pages, target, policy)
        };
        let mut guest = SoftwareGuest::on(machine, config).map_err(ReplayError::Guest)?;
        let mut exhausted_after = None;
        for (index, step) in self.steps.iter().enumerate() {
            if !done(&mut guest, step)? {
                exhausted_after = Some(index);
                break;
            }
        }
        Ok(Replay::of(&guest, policy, exhausted_after))
    }
}

/// False if there was no frame.
fn done(guest: &mut SoftwareGuest, step: &Step) -> Result<bool, ReplayError> {
    match *step {
        Step::Touch { gfn, zero } => touch(guest, gfn, u64::from(!zero)),
        Step::TouchSuperpage { gfn, ref data } => {
            let first = gfn & !(SUPERPAGE_PAGES - 1);
            let has_data = |index: u64| data[(index / 64) as usize] >> (index % 64) & 1 == 1;
            let faulting = gfn - first;
            let others = (0..SUPERPAGE_PAGES).filter(|&n| n != faulting && has_data(n));
            for index in std::iter::once(faulting).chain(others) {
                if !touch(guest, first + index, u64::from(has_data(index)))? {
                    return Ok(false);
                }
            }
            Ok(true)
        }
        Step::Decrease { gfn, order } => {
            let Some(order) = Order::new(order) else { return Ok(true) };
            match guest.session().decrease(Gfn::new(gfn), order) {
                Ok(_) => Ok(true),
                Err(error) => Err(ReplayError::Decrease { gfn, error }),
            }
        }
    }
}

fn touch(guest: &mut SoftwareGuest, gfn: u64, value: u64) -> Result<bool, ReplayError> {
    match guest.write(Gfn::new(gfn), 0, value) {
        Ok(()) => Ok(true),
        Err(TouchError::Exhausted) => Ok(false),
        Err(error) => Err(ReplayError::Touch { gfn, error }),
    }
}

impl Replay {
    fn of(guest: &SoftwareGuest, policy: Policy, exhausted_after: Option<usize>) -> Self {
        let (domain, statistics) = (&guest.domain, guest.domain.statistics());
        let p2m = domain.p2m();
        let is_whole = |&n: &u64| matches!(p2m.letter(Superpage::new(n)), b'W' | b'r');
        let quantities = domain.quantities();
        Self {
            policy: policy.to_string(),
            exhausted_after,
            populates_2m: statistics.populates_2m,
            populates_4k: statistics.populates_4k,
            zero_checks_2m: statistics.zero_checks_2m,
            zero_checks_2m_hit: statistics.zero_checks_2m_hit,
            zero_checks_4k: statistics.zero_checks_4k,
            bytes_scanned: statistics.bytes_scanned,
            bytes_copied: statistics.bytes_copied,
            emergency_sweeps: statistics.emergency_sweeps,
            splinters: statistics.splinters,
            shatters: statistics.shatters,
            superpages_reclaimed: statistics.superpages_reclaimed,
            singles_reclaimed: statistics.singles_reclaimed,
            unmap_flushes: statistics.unmap_flushes,
            superpages_in_guest: (0..p2m.superpages()).filter(is_whole).count() as u64,
            superpages_in_cache: domain.cache().superpages(),
            entries: quantities.entries,
            cache: quantities.cache,
            total: quantities.total(),
        }
    }
}
