//! The domain's end (rule [R18]): every frame goes back, in steps.
//!
//! [R18]: crate::rules#r18

use super::{Progress, Session};
use crate::domain::Life;
use crate::frame::{Gfn, Mfn, Order, Superpage};
use crate::machine::{Host, Machine};
use crate::p2m::{Entry, RamState};
use crate::run::Run;

impl<H: Host> Session<H> {
    /// Takes down up to `superpages` superpages, then as many runs of the cache. No other operation
    /// is accepted from the first call on; those under way are waited for by [`Progress::More`].
    /// A busy frame is tried again at the next call.
    pub fn teardown(&mut self, superpages: u64) -> Progress {
        let domain = self.host.domain();
        let first = match domain.life {
            Life::Alive => 0,
            Life::Dying(next) => next,
            Life::Dead => return Progress::Done,
        };
        let all = domain.p2m.superpages();
        let last = first.saturating_add(superpages).min(all);
        domain.life = Life::Dying(first);
        for superpage in (first..last).map(Superpage::new) {
            if !self.take_down(superpage) {
                return Progress::More;
            }
            self.domain().life = Life::Dying(superpage.number() + 1);
        }
        if last < all {
            return Progress::More;
        }
        for _ in 0..superpages {
            let run = self.take_any();
            let domain = self.host.domain();
            let Some(run) = run else {
                if domain.flight.incoming + domain.flight.in_hand > 0 {
                    return Progress::More;
                }
                domain.life = Life::Dead;
                return Progress::Done;
            };
            self.free(run);
        }
        Progress::More
    }

    /// Takes a run out of the cache that no CPU can reach.
    fn take_any(&mut self) -> Option<Run> {
        let cache = &mut self.host.domain().cache;
        if let Some(run) = cache.take_superpage().or_else(|| cache.take_single()) {
            return Some(run);
        }
        let dirty = cache.take_dirty()?;
        Some(self.flush_dirty(dirty))
    }

    /// False if it is in transit or busy.
    fn take_down(&mut self, superpage: Superpage) -> bool {
        self.claimed(superpage, |session| session.take_down_claimed(superpage)).unwrap_or(false)
    }

    fn take_down_claimed(&mut self, superpage: Superpage) -> bool {
        match self.domain().p2m.whole(superpage) {
            Some(Entry::Ram { mfn, state }) => {
                self.take_down_run(superpage.first(), mfn, Order::SUPERPAGE, state)
            }
            Some(entry) => {
                self.take_down_nothing(superpage, entry);
                true
            }
            None => (0..512).all(|index| self.take_down_page(superpage.page(index))),
        }
    }

    fn take_down_nothing(&mut self, superpage: Superpage, entry: Entry) {
        let domain = self.host.domain();
        if entry == Entry::Pod {
            domain.entries -= domain.p2m.tally(superpage).pod;
        }
        domain.p2m.set_whole(superpage, Entry::Invalid);
    }

    fn take_down_page(&mut self, gfn: Gfn) -> bool {
        let domain = self.host.domain();
        match domain.p2m.get(gfn).0 {
            Entry::Invalid => true,
            Entry::Ram { mfn, state } => self.take_down_run(gfn, mfn, Order::PAGE, state),
            entry => {
                domain.entries -= u64::from(entry == Entry::Pod);
                domain.p2m.set_page(gfn, Entry::Invalid);
                true
            }
        }
    }

    fn take_down_run(&mut self, gfn: Gfn, mfn: Mfn, order: Order, state: RamState) -> bool {
        let run = match state {
            RamState::Detached => Some(Run::new(mfn, order)),
            _ => self.unmap_flushed(gfn, mfn, order),
        };
        let Some(run) = run else { return false };
        let domain = self.host.domain();
        if order == Order::SUPERPAGE {
            domain.populated += domain.p2m.forget_outs(gfn.superpage());
            domain.p2m.set_whole(gfn.superpage(), Entry::Invalid);
        } else {
            domain.p2m.set_page(gfn, Entry::Invalid);
        }
        domain.populated -= order.pages();
        let mfn = run.into_mfn();
        self.host.machine(|m| m.free(mfn, order));
        true
    }
}
