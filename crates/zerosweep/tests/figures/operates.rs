//! Whatever a guest, its VMM and its host can do, at random, on little memory: the end of it lies
//! within a superpage, and the host has fewer frames than the guest is told. Every event counts.

use std::collections::BTreeMap;

use zerosweep::{
    Config, Consolidation, Event, Fault, Gfn, Host as _, InvalidTouch, Mfn, Order, Policy,
    Progress, Session, Upkeep,
};
use zerosweep_sim::{
    Failure, Recorder, SoftwareGuest, SoftwareMachine, TouchError, splitmix64, touch, touch_at_rest,
};

const PAGES: u64 = 14 * 512 + 77;
const FRAMES: u64 = 9 * 512;
const TARGET: u64 = 7 * 512 + 30;
const LIVES: u64 = 24;
const ROUNDS: u64 = 100;

/// A session that keeps the events.
type Operator<'a> = Session<Recorder<'a>>;

/// The guest touches a page and writes to it if it gets it. False if not.
///
/// Where the host does the upkeep, it also says when a sweep that found nothing is worth another:
/// here, never.
fn write(session: &mut Operator<'_>, upkeep: Upkeep, page: u64, value: u64) -> bool {
    // In most pages deeper than a quick check looks.
    let depth = if page.is_multiple_of(4) { 8 } else { 512 };
    let (gfn, offset) = (Gfn::new(page), (splitmix64(page) % depth) as usize);
    let frame = match upkeep {
        Upkeep::Inline => touch(session.host(), gfn).ok(),
        Upkeep::Host => touch_borrowing(session, gfn),
    };
    if let Some(mfn) = frame {
        session.host().machine(|machine| machine.set_word(mfn, offset, value));
    }
    frame.is_some()
}

/// Borrows some of the pages for which it would have to wait.
fn touch_borrowing(session: &mut Operator<'_>, gfn: Gfn) -> Option<Mfn> {
    loop {
        match touch_at_rest(session.host(), gfn) {
            Ok(mfn) => return Some(mfn),
            Err(TouchError::Exhausted) if gfn.raw() % 5 < 2 => {
                if matches!(session.fault_borrowing(gfn), Ok(Fault::Exhausted) | Err(_)) {
                    return None;
                }
            }
            Err(_) => return None,
        }
    }
}

/// One thing of the guest's. Returns how much of it could not be done.
fn guest_does(
    session: &mut Operator<'_>,
    upkeep: Upkeep,
    round: u64,
    chance: &dyn Fn(u64) -> u64,
) -> u64 {
    let page = chance(0) % PAGES;
    match chance(1) % 16 {
        0..5 => {
            let count = if chance(2).is_multiple_of(3) { 512 } else { chance(2) % 40 };
            let first = if count == 512 { page & !511 } else { page };
            let zeros = [100, 99, 60, 0][(chance(3) % 4) as usize];
            let mut pages = first..(first + count).min(PAGES);
            let misses = pages.any(|page| {
                let value = if splitmix64(page ^ round) % 100 < zeros { 0 } else { page };
                !write(session, upkeep, page, value)
            });
            u64::from(misses)
        }
        5..7 => {
            let order = Order::new((chance(2) % 5) as u8).expect("an order");
            u64::from(session.decrease(Gfn::new(page), order).is_err())
        }
        // Every other guest gives back little, and so comes to its end.
        9 | 10 if (round / ROUNDS).is_multiple_of(2) => {
            let order = Order::new(8 + (chance(2) % 3) as u8).expect("an order");
            u64::from(session.decrease(Gfn::new(page & !255), order).is_err())
        }
        11 => u64::from(session.discard(Gfn::new(page), chance(2) % 1100).is_err()),
        12 => u64::from(session.discard(Gfn::new(page & !511), 512).is_err()),
        13 => session.retake(Gfn::new(page & !511), 512),
        _ => session.retake(Gfn::new(page), chance(2) % 40),
    }
}

/// One thing of the VMM's, the operator's or the host's. Returns how much of it could not be done.
fn host_does(
    session: &mut Operator<'_>,
    consolidation: &mut Consolidation,
    chance: &dyn Fn(u64) -> u64,
) -> u64 {
    let page = chance(0) % PAGES;
    let gfn = Gfn::new(page);
    let small = Order::new((chance(2) % 4) as u8).expect("an order");
    let failed = match chance(1) % 16 {
        0 => session.populate_on_demand(Gfn::new(page & !511), Order::SUPERPAGE).is_err(),
        1 => session.populate_on_demand(gfn, small).is_err(),
        2 => session.populate_physmap(Gfn::new(page & !511), Order::SUPERPAGE).is_err(),
        3 => session.populate_physmap(gfn, small).is_err(),
        4 if chance(3).is_multiple_of(4) => session.set_special(gfn, small).is_err(),
        5 if chance(3).is_multiple_of(8) => session.pin(gfn).is_err(),
        5 => session.unpin(gfn).is_err(),
        6 => session.set_target((3 + chance(2) % 6) * 512 + chance(3) % 300).is_err(),
        7 => {
            let target = (3 + chance(2) % 6) * 512 + chance(3) % 300;
            let (shrinks, fills) = (chance(4) % 3, chance(5) % 4);
            session.begin_target(target).is_err()
                | (session.shrink(shrinks) == Progress::More)
                | !matches!(session.fill(fills), Ok(Progress::Done))
        }
        8 => matches!(session.sweep_full(&mut (page / 512), 5), Progress::More),
        9 => {
            *consolidation = Consolidation::default();
            let steps = 1 + chance(2) % 3;
            while session.consolidate(consolidation, steps) == Ok(Progress::More) {}
            consolidation.moved() > 0
        }
        10 => {
            let mfn = Mfn::new(chance(2) % FRAMES);
            session.host().machine(|machine| machine.set_busy(mfn, chance(3).is_multiple_of(4)));
            false
        }
        11 | 12 => {
            let how = if chance(3).is_multiple_of(3) { Failure::Pieces } else { Failure::Refuse };
            let (first, count) = (chance(2) % 6, 1 + chance(4) % 3);
            session.host().machine(|machine| machine.fail(first, count, how));
            false
        }
        13 if chance(3).is_multiple_of(8) => session.offline(Mfn::new(chance(2) % FRAMES)).is_err(),
        14 => session.with_claim(gfn, |_| ()),
        _ => {
            let idle = chance(2).is_multiple_of(3);
            let wants = session.host().domain().wants_upkeep(idle);
            while wants && session.upkeep(1 + chance(3) % 3, idle) == Progress::More {}
            wants
        }
    };
    u64::from(failed)
}

/// The name of an event's kind.
fn kind(event: &Event) -> String {
    let debug = format!("{event:?}");
    debug.split(' ').next().unwrap_or_default().to_owned()
}

/// A number that is another one if `text` is.
fn digest(before: u64, text: &str) -> u64 {
    text.bytes().fold(before, |digest, byte| splitmix64(digest ^ u64::from(byte)))
}

/// Operates guests, one after the other: pages that are pinned and special, and much else that is
/// done page by page, leave no superpage whole in the end. Returns the figures of the last one, and
/// the events of all: of each kind how many, and a number that is another one if any of them is.
pub(super) fn operated(policy: Policy, upkeep: Upkeep, invalid_touch: InvalidTouch) -> String {
    let mut config = Config { upkeep, invalid_touch, ..Config::new(PAGES, TARGET, policy) };
    config.fault_budget_bytes = 256 << 10;
    // The older policies look through everything each time.
    let most_undone = if policy == Policy::Zerosweep { 40 } else { 1 };
    let name = format!("operated, {upkeep:?}, {invalid_touch:?}");
    let (mut kinds, mut seen, mut last) = (BTreeMap::new(), 0, String::new());
    for life in 0..LIVES {
        let machine = SoftwareMachine::new(FRAMES).with_poison();
        let mut guest = SoftwareGuest::on(machine, config).expect("frames for its target");
        let mut session = Session::new(Recorder::new(&mut guest));
        let (mut undone, mut consolidation) = (0, Consolidation::default());
        // It has booted, and zeroed more or less of its memory.
        let zeroed = if life.is_multiple_of(3) { PAGES } else { (life % 12) * 640 };
        for page in 0..zeroed {
            let value = u64::from(splitmix64(page ^ life).is_multiple_of(1 << (life % 5 * 3)));
            undone += u64::from(!write(&mut session, upkeep, page, value));
            if undone == most_undone {
                break;
            }
        }
        for round in life * ROUNDS..(life + 1) * ROUNDS {
            let chance = |n: u64| splitmix64((round + 1_000_000) * 16 + n);
            undone += match chance(9) % 3 {
                0 => host_does(&mut session, &mut consolidation, &chance),
                _ => guest_does(&mut session, upkeep, round, &chance),
            };
            for event in session.host().events.drain(..) {
                *kinds.entry(kind(&event)).or_insert(0_u64) += 1;
                seen = digest(seen, &format!("{event:?}"));
            }
        }
        undone += consolidation.moved();
        drop(session);
        last = super::figures(&name, &guest, undone);
        seen = digest(seen, &last);
        let mut session = Session::new(Recorder::new(&mut guest));
        // Frames that are still busy are free after a while.
        let (mut steps, size) = (0, 1 + life % 5);
        while session.teardown(size) == Progress::More {
            steps += 1;
            if steps == 6 {
                session.host().machine(|machine| {
                    (0..FRAMES).for_each(|frame| machine.set_busy(Mfn::new(frame), false));
                });
            }
        }
        drop(session);
        seen = digest(seen, &super::figures(&name, &guest, steps));
    }
    last + &format!("  {kinds:?}, digest {seen:016x}\n")
}
