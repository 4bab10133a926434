//! The bounded sweep: superpages first, then the singles of broken ranges, then, as the last
//! resort, single pages out of superpages that are still whole. A step ends when something was
//! found or the byte budget is used up; the next one goes on where it stopped. Only a full round
//! that finds nothing is exhaustion. If it passed over ranges in transit, it is repeated a few
//! times. What the last faults populated may have to be left alone
//! ([`Touched`](crate::ring::Touched)).

use crate::cursors::{Fruitless, LOOK_BYTES, LOOKS_PER_POPULATE, Phase, Seek};
use crate::domain::Domain;
use crate::event::Event;
use crate::frame::{Gfn, SUPERPAGE_PAGES, Superpage};
use crate::machine::Host;
use crate::p2m::Entry;
use crate::session::Session;
use crate::session::claim::BATCH;
use crate::session::zero_check::WORTH_COPYING;

/// The outcome of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The cache has something now, or a full round found nothing.
    Ended,
    /// The budget is used up.
    Again,
}

/// A step ends when it has found this many pages: a superpage, or a batch of singles.
const ENOUGH_PAGES: u64 = 64;
/// After a round that found nothing: pages that must be populated before the next round.
const REST_POPULATES: u64 = 512;

/// Rounds at most, if ranges in transit were passed over.
const MOST_ROUNDS: u64 = 4;

impl<H: Host> Session<H> {
    /// One step of the emergency sweep.
    pub(crate) fn sweep_step(&mut self) -> Step {
        let domain = self.host.domain();
        if domain.is_sweep_fruitless() {
            return Step::Ended;
        }
        domain.statistics.emergency_sweeps += 1;
        let budget = domain.fault_budget_bytes;
        let start = Superpage::new(domain.cursors.bounded.next).first();
        let mut spent = 0;
        let mut reclaimed = 0;
        let step = loop {
            let Some((superpage, phase)) = self.next_range() else { break Step::Ended };
            let before = self.domain().work_bytes();
            reclaimed += self.sweep_range(superpage, phase);
            spent += self.domain().work_bytes() - before + LOOK_BYTES;
            // Singles are gathered up to a batch; a step for each would cost more than they bring.
            let others_found = reclaimed == 0 && self.domain().cache.pages() > 0;
            let enough = reclaimed >= ENOUGH_PAGES || (reclaimed > 0 && spent >= budget);
            if enough || others_found {
                break Step::Ended;
            }
            if spent >= budget {
                break Step::Again;
            }
        };
        let domain = self.host.domain();
        if reclaimed > 0 {
            domain.cursors.bounded.note_found();
        }
        let (populates, dear) = (domain.populates(), domain.two_rounds_bytes());
        domain.cursors.sweep_cost.add(spent, populates, 2 * dear);
        self.host.event(Event::Sweep { gfn: start, reclaimed });
        step
    }

    /// One step in search of a superpage, where there are only singles: evacuates into them. Where
    /// these are too few the first one found brings more, and the next one comes free whole.
    pub(crate) fn seek_step(&mut self) -> Step {
        let domain = self.host.domain();
        let populates = domain.populates();
        let cursor = &mut domain.cursors.seek;
        if cursor.fruitless.is_some_and(|then| populates < then + REST_POPULATES) {
            return Step::Ended;
        }
        domain.statistics.emergency_sweeps += 1;
        let (budget, all) = (domain.fault_budget_bytes, domain.p2m.superpages());
        let mut spent = 0;
        loop {
            let domain = self.host.domain();
            let before = domain.work_bytes();
            let cursor = &mut domain.cursors.seek;
            if domain.cache.superpages() > 0 {
                cursor.seen = 0;
                return Step::Ended;
            }
            if cursor.seen >= all {
                *cursor = Seek { next: cursor.next, seen: 0, fruitless: Some(populates) };
                return Step::Ended;
            }
            if spent >= budget {
                return Step::Again;
            }
            let superpage = Superpage::new(cursor.next % all);
            cursor.next = (cursor.next + 1) % all;
            cursor.seen += 1;
            let _ = self.sweep_superpage(superpage);
            spent += self.domain().work_bytes() - before + LOOK_BYTES;
        }
    }

    /// The next range to look at; `None` after a full round.
    fn next_range(&mut self) -> Option<(Superpage, Phase)> {
        let domain = self.host.domain();
        let (all, populates) = (domain.p2m.superpages(), domain.populates());
        let cursor = &mut domain.cursors.bounded;
        if cursor.seen >= all {
            cursor.seen = 0;
            cursor.phase = match cursor.phase {
                Phase::Superpages => Phase::BrokenRanges,
                Phase::BrokenRanges => Phase::WholeRanges,
                Phase::WholeRanges => {
                    // Several sweeps at once pass over each other's ranges: not for ever.
                    let rounds = cursor.rounds + 1;
                    let again = cursor.found || (cursor.passed_over && rounds < MOST_ROUNDS);
                    cursor.restart();
                    cursor.rounds = if again { rounds } else { 0 };
                    if !again {
                        let rest = REST_POPULATES.max(domain.populated / LOOKS_PER_POPULATE);
                        cursor.fruitless = Some(Fruitless {
                            populates: populates + rest,
                            given_back: domain.statistics.pages_given_back,
                        });
                        return None;
                    }
                    Phase::Superpages
                }
            };
        }
        let superpage = Superpage::new(cursor.next % all);
        cursor.next = (cursor.next + 1) % all;
        cursor.seen += 1;
        cursor.passed_over |= domain.p2m.in_transit(superpage);
        Some((superpage, cursor.phase))
    }

    fn sweep_range(&mut self, superpage: Superpage, phase: Phase) -> u64 {
        let is_whole = self.domain().p2m.whole(superpage).is_some();
        match phase {
            Phase::Superpages => self.sweep_superpage(superpage),
            Phase::BrokenRanges if !is_whole => self.sweep_singles(superpage),
            Phase::WholeRanges if is_whole => self.sweep_singles(superpage),
            _ => 0,
        }
    }

    fn sweep_superpage(&mut self, superpage: Superpage) -> u64 {
        if self.domain().rings.touched.guards_any_of(superpage) {
            return 0;
        }
        self.check_superpage(superpage, WORTH_COPYING).freed()
    }

    fn sweep_singles(&mut self, superpage: Superpage) -> u64 {
        if self.domain().p2m.tally(superpage).ram == 0 {
            return 0;
        }
        let mut reclaimed = 0;
        let mut batch = [Gfn::default(); BATCH];
        let mut len = 0;
        for gfn in (0..SUPERPAGE_PAGES as usize).map(|index| superpage.page(index)) {
            let domain = self.host.domain();
            let is_ram = matches!(domain.p2m.get(gfn).0, Entry::Ram { .. });
            if is_ram && !domain.rings.touched.guards(gfn) {
                batch[len] = gfn;
                len += 1;
            }
            if len == BATCH {
                reclaimed += self.check_singles(&batch);
                len = 0;
            }
        }
        reclaimed + self.check_singles(&batch[..len])
    }
}

impl Domain {
    /// Whether another sweep would find as little as the last one. A guest can make zeros of what
    /// it has without a fault, so a host that lets it wait calls
    /// [`Domain::allow_sweep`] from time to time.
    fn is_sweep_fruitless(&self) -> bool {
        let (populates, given_back) = (self.populates(), self.statistics.pages_given_back);
        self.cursors
            .bounded
            .fruitless
            .is_some_and(|until| populates < until.populates && given_back == until.given_back)
    }

    /// Whether the sweeps cost more of late than what was populated is worth. Then a thread that
    /// may borrow does so at once. Without this rule a thread that reads promised memory, while
    /// another waits for a frame, would sweep all memory for a few pages: those that it has just
    /// read, and left zero.
    pub(crate) fn is_sweep_dear(&self) -> bool {
        self.cursors.sweep_cost.owed_at(self.populates()) >= self.two_rounds_bytes()
    }

    /// What two looks at each page cost. A round costs less: it is always finished before
    /// anything is borrowed.
    fn two_rounds_bytes(&self) -> u64 {
        (2 * self.populated + 4 * self.p2m.superpages()) * LOOK_BYTES
    }

    /// What has been done so far, in bytes that could have been scanned in the same time.
    fn work_bytes(&self) -> u64 {
        let s = &self.statistics;
        s.bytes_scanned + s.bytes_copied * 2 + self.cursors.looks * LOOK_BYTES
    }

    fn populates(&self) -> u64 {
        self.statistics.populates_2m + self.statistics.populates_4k
    }

    /// The next fault that finds no frame sweeps again, even if the last round found nothing, and
    /// leaves nothing out.
    pub fn allow_sweep(&mut self) {
        self.cursors.bounded.fruitless = None;
        self.rings.touched.forget();
        self.p2m.clear_deferred();
    }
}
