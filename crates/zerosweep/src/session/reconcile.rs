//! What the guest's balloon says, against what the engine counts (rule [R21]).
//!
//! Pages may go and come back, and nobody reports it: a guest that is loaded from a file has a full
//! balloon and gave nothing back here; one that is reset has an empty one. How many pages the balloon
//! has is known, and not which. So promises are dropped or made until the engine counts as many.
//! Pages with content are never touched, and a guest that touches a page whose promise was dropped
//! takes it back ([R3]).
//!
//! [R3]: crate::rules#r3
//! [R21]: crate::rules#r21

use super::{Progress, Session};
use crate::domain::InvalidTouch;
use crate::frame::{Order, SUPERPAGE_PAGES, Superpage};
use crate::machine::Host;
use crate::p2m::{Entry, RamState};

/// How far [`Session::reconcile`] has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reconciliation {
    /// Pages of the guest that its balloon has.
    ballooned: u64,
    stage: Stage,
    /// Superpages that this stage has looked at, from the last one down.
    seen: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Superpages that are wholly promised, or wholly given back: none is broken.
    Superpages,
    /// Pages of broken superpages.
    Pages,
    /// What is left: pages of one superpage that is broken for it.
    Rest,
    Done,
}

impl Reconciliation {
    /// Begins one: the guest's balloon has `ballooned` pages.
    #[must_use]
    pub fn new(ballooned: u64) -> Self {
        Self { ballooned, stage: Stage::Superpages, seen: 0 }
    }
}

/// What the engine's count is short of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Short {
    /// The balloon has this many pages more than were given back.
    GivenBack(u64),
    /// The guest has this many pages more than it is thought to have.
    Promised(u64),
}

impl<H: Host> Session<H> {
    /// Makes the engine count as many pages given back as the balloon has, in about `steps` steps
    /// of a superpage. At most one promise of a superpage is broken for it. At the end the two differ
    /// only if not enough is promised, or given back. Where a touch of a page that was given back is
    /// refused ([`InvalidTouch::Refuse`]), no promise is dropped.
    ///
    /// All gfns count as pages of the guest: not for a domain with gaps that were never promised.
    pub fn reconcile(&mut self, reconciliation: &mut Reconciliation, steps: u64) -> Progress {
        for _ in 0..steps {
            if !self.is_alive() || self.short(reconciliation.ballooned).is_none() {
                reconciliation.stage = Stage::Done;
            }
            let superpages = self.domain().p2m.superpages();
            let (stage, seen) = (reconciliation.stage, reconciliation.seen);
            if stage == Stage::Done {
                break;
            }
            if seen == superpages {
                reconciliation.stage = match stage {
                    Stage::Superpages => Stage::Pages,
                    Stage::Pages => Stage::Rest,
                    Stage::Rest | Stage::Done => Stage::Done,
                };
                reconciliation.seen = 0;
                continue;
            }
            let superpage = Superpage::new(superpages - 1 - seen);
            let ballooned = reconciliation.ballooned;
            if stage == Stage::Rest {
                self.prepare_tables();
            }
            // What another operation works on is left alone.
            let _ = self.claimed(superpage, |session| match stage {
                Stage::Superpages => session.reconcile_superpage(superpage, ballooned),
                Stage::Pages => session.reconcile_pages(superpage, ballooned),
                Stage::Rest => session.reconcile_rest(superpage, ballooned),
                Stage::Done => {}
            });
            reconciliation.seen += 1;
        }
        let _ = self.return_excess();
        self.upkeep_inline();
        match reconciliation.stage {
            Stage::Done => Progress::Done,
            Stage::Superpages | Stage::Pages | Stage::Rest => Progress::More,
        }
    }

    fn short(&mut self, ballooned: u64) -> Option<Short> {
        let quantities = self.domain().quantities();
        let given_back = quantities.max - quantities.guest();
        match ballooned.min(quantities.max) {
            wanted if wanted > given_back => match self.domain().invalid_touch {
                InvalidTouch::Increase => Some(Short::GivenBack(wanted - given_back)),
                InvalidTouch::Refuse => None,
            },
            wanted if wanted < given_back => Some(Short::Promised(given_back - wanted)),
            _ => None,
        }
    }

    /// Drops or makes the promise of a claimed superpage, if all of it may change.
    fn reconcile_superpage(&mut self, superpage: Superpage, ballooned: u64) {
        let short = self.short(ballooned);
        let domain = self.host.domain();
        if !domain.p2m.is_full_superpage(superpage) {
            return;
        }
        match (short, domain.p2m.whole(superpage)) {
            (Some(Short::GivenBack(pages)), Some(Entry::Pod)) if pages >= SUPERPAGE_PAGES => {
                self.drop_pod(superpage.first(), SUPERPAGE_PAGES);
            }
            (Some(Short::Promised(pages)), Some(Entry::Invalid)) if pages >= SUPERPAGE_PAGES => {
                domain.p2m.set_whole(superpage, Entry::Pod);
                domain.entries += SUPERPAGE_PAGES;
            }
            _ => {}
        }
    }

    /// Breaks a claimed superpage that is wholly promised, or wholly given back, and drops or makes
    /// as many promises in it as are missing. Without table memory nothing is done.
    fn reconcile_rest(&mut self, superpage: Superpage, ballooned: u64) {
        let short = self.short(ballooned);
        let domain = self.host.domain();
        let is_wanted = matches!(
            (short, domain.p2m.whole(superpage)),
            (Some(Short::GivenBack(_)), Some(Entry::Pod))
                | (Some(Short::Promised(_)), Some(Entry::Invalid))
        );
        if is_wanted && domain.p2m.split(superpage).is_ok() {
            self.reconcile_pages(superpage, ballooned);
        }
    }

    /// Drops or makes promises of single pages of a claimed superpage that is broken, and gives
    /// those back to the guest that are out and have a frame.
    fn reconcile_pages(&mut self, superpage: Superpage, ballooned: u64) {
        let whole = self.domain().p2m.whole(superpage);
        for gfn in (0..SUPERPAGE_PAGES as usize).map(|index| superpage.page(index)) {
            let Some(short) = self.short(ballooned) else { return };
            let domain = self.host.domain();
            if !domain.p2m.contains(gfn, Order::PAGE) {
                return;
            }
            match (short, domain.p2m.get(gfn).0, whole) {
                (Short::GivenBack(_), Entry::Pod, None) => {
                    self.drop_pod(gfn, 1);
                }
                (Short::Promised(_), Entry::Invalid, None) => {
                    domain.p2m.set_page(gfn, Entry::Pod);
                    domain.entries += 1;
                }
                (
                    Short::Promised(_),
                    Entry::Invalid,
                    Some(Entry::Ram { state: RamState::Mapped, .. }),
                ) => {
                    self.retake_page(gfn);
                }
                _ => {}
            }
        }
    }
}
