//! The host reads pages that have no frame (rule [R22]).
//!
//! A guest that is saved, dumped or migrated is read out by threads of the VMM. What is promised or
//! given back is zero, so these threads may see zeros and nothing is populated. A machine can show
//! zeros only to everybody, and on Linux it protects them from writes a moment after they are shown.
//! What the guest writes in that moment is in no frame of ours: it is found, and gets one.
//!
//! [R22]: crate::rules#r22

use super::Session;
use super::fault::{Fault, FaultError};
use crate::domain::{InvalidTouch, Life};
use crate::frame::{Gfn, Order, SUPERPAGE_PAGES, Superpage};
use crate::machine::{Host, Machine, Shown};
use crate::p2m::Entry;

impl<H: Host> Session<H> {
    /// A thread of the host reads `gfn`. All pages of its superpage that have no frame can be read
    /// as zeros afterwards, and nothing is populated. `None`: the page has a frame, or the machine
    /// shows no zeros here, so the read is a touch like any other ([`Session::fault`]).
    ///
    /// # Errors
    /// [`FaultError::Unkept`] if the guest wrote meanwhile and there is no frame for what it wrote;
    /// that page must not be touched by the engine any more. The others as in [`Session::fault`].
    pub fn fault_reading(&mut self, gfn: Gfn) -> Result<Option<Fault>, FaultError> {
        self.prepare_tables();
        let domain = self.host.domain();
        if domain.life != Life::Alive {
            return Err(FaultError::Dying);
        }
        if !self.has_no_frame(gfn) {
            return Ok(None);
        }
        let superpage = gfn.superpage();
        match self.claimed(superpage, |session| session.show_claimed_superpage(gfn)) {
            None => Ok(Some(Fault::InTransit)),
            Some(Ok(Shown::Unsupported)) => Ok(None),
            Some(Ok(Shown::Zeros | Shown::Written)) => {
                Ok(Some(Fault::Present { gfn: superpage.first(), order: Order::SUPERPAGE }))
            }
            Some(Err(error)) => Err(error),
        }
    }

    /// Whether a touch of `gfn` would populate it.
    fn has_no_frame(&mut self, gfn: Gfn) -> bool {
        let domain = self.host.domain();
        domain.p2m.contains(gfn, Order::PAGE)
            && match domain.p2m.get(gfn).0 {
                Entry::Pod => true,
                Entry::Invalid => {
                    domain.invalid_touch == InvalidTouch::Increase && !domain.p2m.is_out(gfn)
                }
                Entry::Ram { .. } | Entry::Special => false,
            }
    }

    fn show_claimed_superpage(&mut self, gfn: Gfn) -> Result<Shown, FaultError> {
        // It may have changed before it was claimed.
        if !self.has_no_frame(gfn) {
            return Ok(Shown::Unsupported);
        }
        let superpage = gfn.superpage();
        let p2m = &self.host.domain().p2m;
        // A write that comes in between breaks the entry, and must find memory for the table.
        if p2m.whole(superpage).is_some() && p2m.wants_spare() {
            return Ok(Shown::Unsupported);
        }
        let mut shown = Shown::Zeros;
        let mut index = 0;
        while index < SUPERPAGE_PAGES {
            let first = superpage.first().offset(index);
            let pages = self.run_without_frames(superpage, index);
            if pages > 0 {
                match self.show_zeros(first, pages)? {
                    Shown::Zeros => {}
                    Shown::Written => shown = Shown::Written,
                    Shown::Unsupported => return Ok(Shown::Unsupported),
                }
            }
            index += pages + 1;
        }
        Ok(shown)
    }

    /// How many pages from the one at `index` on have no frame.
    fn run_without_frames(&mut self, superpage: Superpage, index: u64) -> u64 {
        let pages = (index..SUPERPAGE_PAGES).map(|index| superpage.first().offset(index));
        pages.take_while(|&gfn| self.has_no_frame(gfn)).count() as u64
    }

    fn show_zeros(&mut self, first: Gfn, pages: u64) -> Result<Shown, FaultError> {
        let shown = self.host.machine(|m| m.show_zeros(first, pages));
        match shown {
            Shown::Unsupported => {}
            Shown::Zeros => self.domain().statistics.pages_shown += pages,
            Shown::Written => {
                for gfn in (0..pages).map(|page| first.offset(page)) {
                    if self.host.machine(|m| m.is_written(gfn)) {
                        self.keep_written(gfn)?;
                    } else {
                        self.domain().statistics.pages_shown += 1;
                    }
                }
            }
        }
        Ok(shown)
    }

    /// Gives a frame to a page of a claimed superpage that holds what the guest wrote, beyond the
    /// target if need be.
    fn keep_written(&mut self, gfn: Gfn) -> Result<(), FaultError> {
        let from_cache =
            self.break_promise(gfn).and_then(|()| self.populate_single_from_cache(gfn));
        match from_cache {
            Ok(Some(_)) => Ok(()),
            _ => match self.borrow_claimed_page(gfn) {
                Some(Fault::Present { .. }) => Ok(()),
                _ => Err(FaultError::Unkept),
            },
        }
    }
}
