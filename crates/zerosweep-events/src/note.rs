//! The records of a trace for an event of the engine.

use zerosweep::{Domain, Entry, Event, Gfn, Mfn, Order, Superpage};

/// The kind of a page after an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It has a frame.
    Ram,
    /// It is not the guest's.
    Invalid,
    /// It is promised.
    Pod,
}

/// Which events are recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Detail {
    /// Events that Xen has records for.
    #[default]
    Xen,
    /// Also what zero checks saw, which shows more of the guest's side.
    Guest,
}

/// What a record says of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Its pages are of this kind now.
    Set(Kind),
    /// The guest gave it back.
    Decrease,
    /// It got a frame; the gfn is the touched one.
    Populate,
    /// It was zero and is promised again; the mfn is the last one of the range.
    Reclaim,
    /// Its entry was broken; the gfn is the touched one.
    Splinter,
    /// A check looked at some of 64 pages.
    Look {
        /// The pages that it looked at; bit n is page n.
        looked: u64,
        /// The pages of these that are not zero.
        live: u64,
    },
}

/// One record. Gfns and mfns count pages of 4 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note {
    /// What happened to the range.
    pub what: What,
    /// The first page of the range, unless `what` says otherwise.
    pub gfn: Gfn,
    /// The frame of the range, if it has one.
    pub mfn: Option<Mfn>,
    /// The size of the range.
    pub order: Order,
}

/// Calls `each` with the notes of an event, as far as `detail` asks for them. `domain` must be in
/// the state after the event. It says what the event does not: which pages of a superpage were
/// promised, and which stay out (rule [R12]).
///
/// [R12]: zerosweep::rules#r12
pub fn notes(event: Event, domain: &Domain, detail: Detail, mut each: impl FnMut(Note)) {
    match event {
        Event::Populate { gfn, mfn, order, fault } => {
            set(domain, gfn, mfn, order, Kind::Ram, &mut each);
            each(Note { what: What::Populate, gfn: fault, mfn: Some(mfn), order });
        }
        Event::Reclaim { gfn, mfn, order } => {
            set(domain, gfn, mfn, order, Kind::Pod, &mut each);
            each(reclaim(gfn, mfn, order));
        }
        Event::Evacuate { gfn, mfn, .. } => {
            let mut promised = |note: Note| {
                each(note);
                if note.what == What::Set(Kind::Pod) {
                    let first = mfn.offset(note.gfn.raw() - gfn.raw());
                    each(reclaim(note.gfn, first, note.order));
                }
            };
            describe(domain, gfn.superpage(), &mut promised);
        }
        Event::Splinter { fault, .. } => {
            let order = Order::SUPERPAGE;
            each(Note { what: What::Splinter, gfn: fault, mfn: None, order });
        }
        Event::Remove { gfn, order } => {
            each(Note { what: What::Decrease, gfn, mfn: None, order });
            each(Note { what: What::Set(Kind::Invalid), gfn, mfn: None, order });
        }
        Event::Retake { gfn } => {
            if let Some((Kind::Ram, mfn)) = state(domain, gfn) {
                each(Note { what: What::Set(Kind::Ram), gfn, mfn, order: Order::PAGE });
            }
        }
        Event::Checked { gfn, checked, live } if detail == Detail::Guest => {
            let order = Order::PAGE;
            each(Note { what: What::Look { looked: checked, live }, gfn, mfn: None, order });
        }
        // Broken, stolen, returned, swept, exhausted: Xen has no record for it.
        _ => {}
    }
}

fn reclaim(gfn: Gfn, mfn: Mfn, order: Order) -> Note {
    Note { what: What::Reclaim, gfn, mfn: Some(mfn.offset(order.pages() - 1)), order }
}

fn set(domain: &Domain, gfn: Gfn, mfn: Mfn, order: Order, kind: Kind, each: &mut impl FnMut(Note)) {
    if order == Order::SUPERPAGE {
        return describe(domain, gfn.superpage(), each);
    }
    let mfn = (kind == Kind::Ram).then_some(mfn);
    each(Note { what: What::Set(kind), gfn, mfn, order });
}

/// Returns a page's kind and frame; `None` if the page is not part of populate on demand.
fn state(domain: &Domain, gfn: Gfn) -> Option<(Kind, Option<Mfn>)> {
    match domain.p2m().get(gfn).0 {
        Entry::Ram { mfn, .. } => Some((Kind::Ram, Some(mfn))),
        Entry::Pod => Some((Kind::Pod, None)),
        Entry::Invalid => Some((Kind::Invalid, None)),
        Entry::Special => None,
    }
}

/// All pages of a superpage as they are, in the largest ranges that are of one kind.
fn describe(domain: &Domain, superpage: Superpage, each: &mut impl FnMut(Note)) {
    let end = superpage.first().offset(Order::SUPERPAGE.pages()).raw();
    let pages = (end.min(domain.p2m().pages()) - superpage.first().raw()) as usize;
    let mut run: Option<(usize, Kind, Option<Mfn>)> = None;
    for index in 0..=pages {
        let now = if index < pages { state(domain, superpage.page(index)) } else { None };
        if let Some((start, kind, first)) = run {
            let goes_on = now.is_some_and(|(kind_now, mfn)| {
                kind_now == kind && mfn == first.map(|mfn| mfn.offset((index - start) as u64))
            });
            if goes_on {
                continue;
            }
            in_orders(start, index, |at, order| {
                let mfn = first.map(|mfn| mfn.offset((at - start) as u64));
                each(Note { what: What::Set(kind), gfn: superpage.page(at), mfn, order });
            });
        }
        run = now.map(|(kind, mfn)| (index, kind, mfn));
    }
}

/// Cuts a range of pages into the largest that begin at a multiple of their size.
fn in_orders(from: usize, to: usize, mut each: impl FnMut(usize, Order)) {
    let mut at = from;
    while at < to {
        let fits =
            (0..=9).rev().find(|order| at.is_multiple_of(1 << order) && at + (1 << order) <= to);
        let order = fits.and_then(Order::new).unwrap_or_default();
        each(at, order);
        at += order.pages() as usize;
    }
}
