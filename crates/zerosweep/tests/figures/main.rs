//! What each policy comes to with guests that are always the same, figure for figure. A change that
//! moves one of them is seen, and is either wanted or not; `expected.txt` is rewritten with
//! `ZEROSWEEP_WRITE_FIGURES=1 cargo test -p zerosweep --test figures`.
//!
//! Nobody has worked these figures out by hand: whether a policy is right, the rules' tests and the
//! model say.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod operates;

use std::fmt::Write as _;
use std::path::Path;

use zerosweep::{
    Config, Consolidation, FaultError, Gfn, InvalidTouch, Mfn, Order, Policy, Progress, Superpage,
    Upkeep,
};
use zerosweep_sim::{Failure, SoftwareGuest, SoftwareMachine, TouchError, splitmix64};

const SUPERPAGES: u64 = 48;
const PAGES: u64 = SUPERPAGES * 512;
const TARGET: u64 = 18 * 512;

fn percent(seed: u64) -> u64 {
    splitmix64(seed) % 100
}

fn guest(policy: Policy, upkeep: Upkeep, invalid_touch: InvalidTouch) -> SoftwareGuest {
    let config = Config { upkeep, invalid_touch, ..Config::new(PAGES, TARGET, policy) };
    SoftwareGuest::on(SoftwareMachine::new(PAGES), config).unwrap()
}

/// Touches a page and leaves something in it, or zeros. False if there was no frame, or the machine
/// refused.
fn write(guest: &mut SoftwareGuest, page: u64, offset: usize, value: u64) -> bool {
    match guest.write(Gfn::new(page), offset, value) {
        Ok(()) => true,
        Err(TouchError::Exhausted | TouchError::Fault(FaultError::Map)) => false,
        Err(TouchError::Fault(error)) => panic!("page {page}: {error}"),
    }
}

/// Ends a change: what can wait is done where a host does it.
fn keep_up(guest: &mut SoftwareGuest, idle: bool) {
    if guest.domain.wants_upkeep(idle) {
        while guest.session().upkeep(4, idle) == Progress::More {}
    }
}

/// Zeroes its memory, keeps some of it, and balloons down to its target.
fn scrubs(guest: &mut SoftwareGuest, is_kept: impl Fn(u64) -> bool) -> u64 {
    let mut missed = 0;
    for page in 0..PAGES {
        let offset = 8 * (splitmix64(page) % 512) as usize;
        missed += u64::from(!write(guest, page, offset, u64::from(is_kept(page))));
    }
    for page in (0..PAGES).rev().filter(|&page| !is_kept(page)).take((PAGES - TARGET) as usize) {
        guest.session().decrease(Gfn::new(page), Order::PAGE).unwrap();
        if page % 128 == 0 {
            keep_up(guest, false);
        }
    }
    keep_up(guest, true);
    missed
}

/// Does whatever comes: writes, zeroes, gives back in all orders, discards, takes again; devices
/// hold frames for a while, the machine refuses calls, frames break, and the target moves.
fn churns(guest: &mut SoftwareGuest) -> u64 {
    let (mut missed, mut consolidation) = (0, Consolidation::default());
    for round in 0..4_000_u64 {
        let chance = |n: u64| splitmix64(round * 16 + n);
        let page = chance(0) % PAGES;
        match chance(1) % 32 {
            0..12 => {
                let (first, count) = (page & !15, chance(2) % 24);
                for page in first..(first + count).min(PAGES) {
                    let value = if percent(page ^ round) < 60 { 0 } else { page };
                    missed += u64::from(!write(guest, page, 8 * (page % 512) as usize, value));
                }
            }
            12..18 => {
                let order = Order::new((chance(2) % 6) as u8).unwrap();
                let gfn = Gfn::new(page & !(order.pages() - 1));
                guest.session().decrease(gfn, order).unwrap();
            }
            18 => drop(guest.session().decrease(Gfn::new(page & !511), Order::SUPERPAGE)),
            19..22 => drop(guest.session().discard(Gfn::new(page), chance(2) % 700)),
            22..24 => drop(guest.session().retake(Gfn::new(page), chance(2) % 600)),
            24 => {
                let target = (8 + chance(2) % 24) * 512 - chance(3) % 300;
                // There may be no frames for it.
                let _ = guest.session().set_target(target);
            }
            25 => {
                let first = &mut (page / 512);
                let _ = guest.session().sweep_full(first, 8);
            }
            26 => drop(guest.session().consolidate(&mut consolidation, 4)),
            27 => {
                let mfn = Mfn::new(chance(2) % PAGES);
                guest.machine.set_busy(mfn, chance(3) % 3 == 0);
            }
            28 => {
                let how = if chance(3) % 2 == 0 { Failure::Refuse } else { Failure::Pieces };
                guest.machine.fail(chance(2) % 8, 1, how);
            }
            29 if round % 8 == 0 => drop(guest.session().offline(Mfn::new(chance(2) % PAGES))),
            _ => keep_up(guest, chance(2) % 4 == 0),
        }
    }
    guest.machine.fail_no_more();
    keep_up(guest, true);
    missed
}

/// Everything that can be counted, and what each superpage is.
fn figures(name: &str, guest: &SoftwareGuest, missed: u64) -> String {
    guest.domain.audit().unwrap();
    let (domain, p2m) = (&guest.domain, guest.domain.p2m());
    let map: String =
        (0..p2m.superpages()).map(|n| char::from(p2m.state(Superpage::new(n)).letter())).collect();
    let mut text = format!("{name}, {}\n  missed {missed}\n  {map}\n", domain.policy());
    let debug = [
        format!("{:?}", domain.quantities()),
        format!("{:?}", domain.statistics()),
        format!("{:?}", domain.forecast()),
        format!("{:?}", guest.machine.counters()),
    ];
    for figures in debug {
        writeln!(text, "  {figures}").unwrap();
    }
    text
}

fn all_figures() -> String {
    let mut text = String::new();
    for policy in Policy::ALL {
        for (name, kept) in [("scrubs, 5 % clustered", 9), ("scrubs, 2 % scattered", 0)] {
            let mut guest = guest(policy, Upkeep::Inline, InvalidTouch::Refuse);
            let most = if kept == 9 { 5 } else { 2 };
            let missed = scrubs(&mut guest, |page| percent(7777 + (page >> kept)) < most);
            text += &figures(name, &guest, missed);
        }
        for (name, upkeep) in [("churns", Upkeep::Inline), ("churns, a host", Upkeep::Host)] {
            let mut guest = guest(policy, upkeep, InvalidTouch::Increase);
            let missed = churns(&mut guest);
            text += &figures(name, &guest, missed);
        }
        for upkeep in [Upkeep::Inline, Upkeep::Host] {
            for invalid_touch in [InvalidTouch::Refuse, InvalidTouch::Increase] {
                text += &operates::operated(policy, upkeep, invalid_touch);
            }
        }
    }
    text
}

#[test]
fn figures_are_what_they_were() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/figures/expected.txt");
    let found = all_figures();
    if std::env::var_os("ZEROSWEEP_WRITE_FIGURES").is_some() {
        std::fs::write(&path, &found).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap();
    for (number, (found, expected)) in found.lines().zip(expected.lines()).enumerate() {
        assert_eq!(found, expected, "line {}", number + 1);
    }
    assert_eq!(found.len(), expected.len());
}
