//! The guest gives pages back, or only their content (rules [R4], [R5]).
//!
//! [R4]: crate::rules#r4
//! [R5]: crate::rules#r5

use core::fmt;

use super::Session;
use super::zero_check::Check;
use crate::cache::Dirty;
use crate::event::Event;
use crate::frame::{Gfn, Mfn, Order, SUPERPAGE_PAGES, Superpage};
use crate::machine::{Host, Machine};
use crate::p2m::{Entry, RamState};
use crate::policy::{DecreaseCheck, Gate};
use crate::run::Run;

/// A range that cannot be given back. [`Session::decrease`] changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecreaseError {
    /// The range ends beyond the guest's memory.
    OutOfRange,
    /// Another operation is at work in the range: wait, then call again.
    InTransit,
    /// The domain is being taken down.
    Dying,
}

impl fmt::Display for DecreaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OutOfRange => "the range ends beyond the guest's memory",
            Self::InTransit => "the range is in transit",
            Self::Dying => "the domain is being taken down",
        })
    }
}

impl core::error::Error for DecreaseError {}

/// A range whose content was given up in part: the pages before `next`. Nothing was changed from
/// `next` on; [`Session::discard`] may be called again for the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiscardError {
    /// Pages before `next` that became PoD.
    pub discarded: u64,
    /// The first page that was not done.
    pub next: Gfn,
    /// Why it was not done.
    pub reason: DecreaseError,
}

impl fmt::Display for DiscardError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the content was given up to gfn {} only: {}", self.next, self.reason)
    }
}

impl core::error::Error for DiscardError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        Some(&self.reason)
    }
}

/// What is in a range, in pages; pinned pages are neither.
#[derive(Clone, Copy, Debug, Default)]
struct Content {
    pod: u64,
    ram: u64,
}

/// Where the frame of a page that is given back goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Destination {
    Cache,
    Host,
}

/// A run that was taken from the guest.
enum Taken {
    /// To be cleared.
    Dirty(Dirty),
    /// Clear.
    Clean(Run),
    /// For the host: its content is not needed.
    Unneeded(Run),
}

impl Taken {
    fn mfn(&self) -> Mfn {
        match self {
            Self::Dirty(dirty) => dirty.mfn(),
            Self::Clean(run) | Self::Unneeded(run) => run.mfn(),
        }
    }

    fn order(&self) -> Order {
        match self {
            Self::Dirty(dirty) => dirty.order(),
            Self::Clean(run) | Self::Unneeded(run) => run.order(),
        }
    }
}

impl<H: Host> Session<H> {
    /// The guest gives `[gfn, gfn + 2^order)` back. Returns how many pages it had there: pages
    /// given back before, special and pinned ones change nothing and do not count, nor does a page
    /// that the machine says is busy. (Xen: `p2m_pod_decrease_reservation`, and what the caller
    /// does with the rest.)
    ///
    /// # Errors
    /// See [`DecreaseError`].
    pub fn decrease(&mut self, gfn: Gfn, order: Order) -> Result<u64, DecreaseError> {
        if order == Order::PAGE && self.decrease_promised(gfn) {
            return Ok(1);
        }
        self.admit(gfn, order)?;
        let domain = self.host.domain();
        if domain.policy.sweeps_before_first_decrease() && !domain.swept_before_decrease {
            // The sweep claims what it checks: the range is only looked at, and claimed after it.
            self.claimed_run(gfn, order, |session| session.domain().swept_before_decrease = true)
                .ok_or(DecreaseError::InTransit)?;
            self.sweep_all_superpages();
            self.admit(gfn, order)?;
        }
        let given = self
            .claimed_run(gfn, order, |session| session.decrease_claimed(gfn, order))
            .ok_or(DecreaseError::InTransit)?;
        self.upkeep_inline();
        Ok(given)
    }

    fn decrease_claimed(&mut self, gfn: Gfn, order: Order) -> u64 {
        let chunked = self.domain().policy.chunked_decrease();
        let chunk = if chunked { order.chunk_at(gfn) } else { order };
        let mut given = 0;
        for n in 0..order.pages() >> chunk.raw() {
            given += self.decrease_chunk(gfn.offset(n << chunk.raw()), chunk);
        }
        self.domain().statistics.pages_given_back += given;
        given
    }

    /// The shortest way, for our policy: a page that has no frame. False if it is not one, or if
    /// more is to be done.
    fn decrease_promised(&mut self, gfn: Gfn) -> bool {
        let domain = self.host.domain();
        let superpage = gfn.superpage();
        let simple = domain.policy.keeps_whole()
            && domain.life == crate::Life::Alive
            && domain.p2m.get(gfn) == (Entry::Pod, Order::PAGE)
            && !domain.p2m.in_transit(superpage);
        if !simple {
            return false;
        }
        domain.p2m.set_page(gfn, Entry::Invalid);
        domain.entries -= 1;
        domain.statistics.pages_given_back += 1;
        self.host.event(Event::Remove { gfn, order: Order::PAGE });
        let _ = self.return_excess();
        self.upkeep_inline();
        true
    }

    fn admit(&mut self, gfn: Gfn, order: Order) -> Result<(), DecreaseError> {
        self.prepare_tables();
        if !self.is_alive() {
            return Err(DecreaseError::Dying);
        }
        if !self.domain().p2m.contains(gfn, order) {
            return Err(DecreaseError::OutOfRange);
        }
        Ok(())
    }

    fn decrease_chunk(&mut self, gfn: Gfn, order: Order) -> u64 {
        if self.domain().policy.keeps_whole() {
            self.attach(gfn.superpage());
        }
        let mut content = self.content(gfn, order);
        if self.check_on_decrease(gfn, order, content) {
            content = self.content(gfn, order);
        }
        let mut given = self.retain_run(gfn, order);
        if given > 0 {
            content = self.content(gfn, order);
        }
        let domain = self.host.domain();
        let under_pod = domain.entries > 0 && (content.pod > 0 || domain.debt() > 0);
        if under_pod {
            given += self.decrease_under_pod(gfn, order, content);
        }
        if under_pod || given > 0 {
            let _ = self.return_excess();
        }
        given + self.give_run(gfn, order, Destination::Host)
    }

    fn content(&mut self, gfn: Gfn, order: Order) -> Content {
        let p2m = &self.host.domain().p2m;
        let mut content = Content::default();
        let mut at = gfn;
        let end = gfn.offset(order.pages());
        while at < end {
            let (entry, entry_order) = p2m.get(at);
            let next = at.align_down(entry_order).offset(entry_order.pages()).min(end);
            let pages = next.raw() - at.raw();
            match entry {
                Entry::Pod => content.pod += pages,
                Entry::Ram { state, .. } if state != RamState::Pinned => content.ram += pages,
                _ => {}
            }
            at = next;
        }
        content
    }

    /// Checks the superpage around the range if the policy says so. True if a check was made.
    fn check_on_decrease(&mut self, gfn: Gfn, order: Order, content: Content) -> bool {
        let domain = self.host.domain();
        let debt = domain.debt() > 0;
        let superpage = gfn.superpage();
        let pages = order.pages();
        let is_whole_ram = matches!(domain.p2m.whole(superpage), Some(Entry::Ram { .. }));
        let wanted = match domain.policy.decrease_check() {
            DecreaseCheck::Never => false,
            DecreaseCheck::WholeOrShatter(gate) => {
                (debt || gate == Gate::Always) && order < Order::SUPERPAGE && is_whole_ram
            }
            DecreaseCheck::AroundFirst => debt && domain.entries > 0 && content.pod < pages,
            DecreaseCheck::RamChunk => {
                debt && domain.entries > 0 && order < Order::SUPERPAGE && content.ram == pages
            }
            // What was populated a moment ago is being given back page by page, each page touched
            // first: a guest that clears pages when it allocates them. To take it whole now would
            // make a fault of every other page of it; these are retained instead, as everything is
            // while no frame is wanted.
            DecreaseCheck::WhileOwed => {
                debt && domain.quantities().owed() > 0
                    && order < Order::SUPERPAGE
                    && content.ram > 0
                    && !domain.rings.zerosweep.contains(superpage.first())
            }
        };
        if !wanted {
            return false;
        }
        let shatters = matches!(domain.policy.decrease_check(), DecreaseCheck::WholeOrShatter(_));
        // A guest that takes pages to give them back touches them first: nothing is evacuated now.
        if self.check_claimed_superpage(superpage, 0) != Check::Reclaimed && shatters {
            // Without table memory it stays whole, and is checked again the next time.
            let _ = self.split(superpage);
        }
        true
    }

    /// PoD pages lose their entries; ram is stolen for the cache while there is debt.
    fn decrease_under_pod(&mut self, gfn: Gfn, order: Order, mut content: Content) -> u64 {
        let end = gfn.offset(order.pages());
        let chunked = self.domain().policy.chunked_decrease();
        let mut at = gfn;
        let mut given = 0;
        while at < end && (content.pod > 0 || (self.domain().debt() > 0 && content.ram > 0)) {
            let (entry, entry_order) = self.entry_at(at, end);
            let within = at.align_down(entry_order).offset(entry_order.pages()).min(end);
            let pages = match entry {
                Entry::Pod => {
                    let pages = self.drop_pod(at, within.raw() - at.raw());
                    // If the machine failed, ram may have become PoD on the way.
                    content.pod = content.pod.saturating_sub(pages);
                    given += pages;
                    pages
                }
                Entry::Ram { state, .. }
                    if state != RamState::Pinned && self.domain().debt() > 0 =>
                {
                    // A chunk never reaches beyond an entry of its own order or more.
                    let run = if chunked { order.min(entry_order) } else { Order::PAGE };
                    given += self.give_run(at, run, Destination::Cache);
                    content.ram -= run.pages().min(content.ram);
                    run.pages()
                }
                _ => 1,
            };
            at = at.offset(pages.max(1));
        }
        given
    }

    /// The entry at `at`; that of the superpage if all of it lies before `end`, even if pages of
    /// it are out.
    fn entry_at(&mut self, at: Gfn, end: Gfn) -> (Entry, Order) {
        let p2m = &self.host.domain().p2m;
        if at.is_aligned(Order::SUPERPAGE)
            && at.offset(SUPERPAGE_PAGES) <= end
            && let Some(entry) = p2m.whole(at.superpage())
        {
            return (entry, Order::SUPERPAGE);
        }
        p2m.get(at)
    }

    /// Makes a run within one PoD entry invalid. Returns its pages, 0 without table memory.
    pub(super) fn drop_pod(&mut self, gfn: Gfn, pages: u64) -> u64 {
        let domain = self.host.domain();
        let superpage = gfn.superpage();
        let order = if pages == SUPERPAGE_PAGES { Order::SUPERPAGE } else { Order::PAGE };
        if order == Order::SUPERPAGE {
            domain.p2m.set_whole(superpage, Entry::Invalid);
            domain.entries -= pages;
            self.host.event(Event::Remove { gfn, order });
            return pages;
        }
        if domain.p2m.split(superpage).is_err() {
            return 0;
        }
        for page in (0..pages).map(|i| gfn.offset(i)) {
            let domain = self.host.domain();
            domain.p2m.set_page(page, Entry::Invalid);
            domain.entries -= 1;
            self.host.event(Event::Remove { gfn: page, order });
        }
        pages
    }

    /// Takes every free ram page of a run away from the guest. Returns how many.
    fn give_run(&mut self, gfn: Gfn, order: Order, to: Destination) -> u64 {
        let mut given = 0;
        let mut done = 0;
        while done < order.pages() {
            let at = gfn.offset(done);
            let left = order.pages() - done;
            let (whole, pages) = self.whole_ram_at(at, left);
            done += pages;
            given += match whole {
                Some(mfn) => self.give_superpage(at.superpage(), mfn, to),
                None => self.give_single(at, to),
            };
        }
        given
    }

    fn whole_ram_at(&mut self, at: Gfn, left: u64) -> (Option<Mfn>, u64) {
        if at.is_aligned(Order::SUPERPAGE) && left >= SUPERPAGE_PAGES {
            match self.domain().p2m.whole(at.superpage()) {
                Some(Entry::Ram { mfn, state }) if state != RamState::Pinned => {
                    return (Some(mfn), SUPERPAGE_PAGES);
                }
                Some(_) => return (None, SUPERPAGE_PAGES),
                None => {}
            }
        }
        (None, 1)
    }

    fn give_superpage(&mut self, superpage: Superpage, mfn: Mfn, to: Destination) -> u64 {
        let (gfn, order) = (superpage.first(), Order::SUPERPAGE);
        let Some(taken) = self.take_from_guest(gfn, mfn, order, to) else { return 0 };
        let domain = self.host.domain();
        let given = order.pages() - domain.p2m.forget_outs(superpage);
        domain.p2m.set_whole(superpage, Entry::Invalid);
        domain.p2m.set_hint(superpage, None);
        domain.populated -= given;
        self.deliver(gfn, taken);
        given
    }

    fn give_single(&mut self, gfn: Gfn, to: Destination) -> u64 {
        let (mfn, state) = match self.split_around(gfn) {
            Some(Entry::Ram { mfn, state }) => (mfn, state),
            Some(Entry::Pod) => return self.drop_pod(gfn, 1),
            _ => return 0,
        };
        if state == RamState::Pinned {
            return 0;
        }
        let Some(taken) = self.take_from_guest(gfn, mfn, Order::PAGE, to) else { return 0 };
        let domain = self.host.domain();
        domain.p2m.set_page(gfn, Entry::Invalid);
        domain.populated -= 1;
        self.deliver(gfn, taken);
        1
    }

    /// Makes a ram page of a claimed superpage an entry of its own. Returns what it is now: the
    /// split may have moved it, or taken it. `None`: it was no ram, or cannot be split.
    fn split_around(&mut self, gfn: Gfn) -> Option<Entry> {
        let is_ram = matches!(self.domain().p2m.get(gfn).0, Entry::Ram { .. });
        if !is_ram || self.split(gfn.superpage()).is_err() {
            return None;
        }
        Some(self.domain().p2m.get(gfn).0)
    }

    /// Unmaps a run, and makes it ready for where it goes. Its entry still says ram. `None`: it is
    /// in use, or the cache has no room.
    fn take_from_guest(
        &mut self,
        gfn: Gfn,
        mfn: Mfn,
        order: Order,
        to: Destination,
    ) -> Option<Taken> {
        let superpages = u64::from(order == Order::SUPERPAGE);
        self.domain().cache.reserve(superpages, mfn, order.pages()).ok()?;
        let is_detached =
            matches!(self.domain().p2m.get(gfn), (Entry::Ram { state: RamState::Detached, .. }, _));
        let later = to == Destination::Cache && self.clears_later();
        if !is_detached && later && order == Order::PAGE && self.flushes_later() {
            return Some(Taken::Dirty(Dirty::Unflushed(self.unmap(gfn, mfn, order)?)));
        }
        let run =
            if is_detached { Run::new(mfn, order) } else { self.unmap_flushed(gfn, mfn, order)? };
        Some(match to {
            Destination::Host => Taken::Unneeded(run),
            Destination::Cache if later => Taken::Dirty(Dirty::Flushed(run)),
            Destination::Cache => {
                self.clear(&run);
                Taken::Clean(run)
            }
        })
    }

    /// Whether singles for the cache are flushed together, when they are cleared. A guest that may
    /// touch a page again at once must not reach its old frame.
    fn flushes_later(&mut self) -> bool {
        self.domain().invalid_touch == crate::InvalidTouch::Refuse
    }

    /// Whether frames that came back dirty are cleared when there is time for it (rule [R11]).
    ///
    /// [R11]: crate::rules#r11
    fn clears_later(&mut self) -> bool {
        self.domain().policy.keeps_whole()
    }

    /// Brings a run whose entries were just made invalid to its new place.
    fn deliver(&mut self, gfn: Gfn, taken: Taken) {
        let (mfn, order) = (taken.mfn(), taken.order());
        match taken {
            Taken::Dirty(dirty) => {
                self.put_dirty(dirty);
                self.host.event(Event::Remove { gfn, order });
                self.note_steal(gfn, mfn, order);
            }
            Taken::Clean(run) => {
                let cached = self.cached_order(order);
                let domain = self.host.domain();
                let joined = if cached == order {
                    domain.put(run)
                } else {
                    run.into_pages().filter_map(|page| domain.put(page)).last()
                };
                self.host.event(Event::Remove { gfn, order });
                self.note_steal(gfn, mfn, order);
                self.finish_join(joined);
            }
            Taken::Unneeded(run) => {
                self.host.event(Event::Remove { gfn, order });
                self.free(run);
            }
        }
    }

    /// Puts a run into the cache that is to be cleared.
    fn put_dirty(&mut self, dirty: Dirty) {
        let domain = self.host.domain();
        domain.cache.put_dirty(dirty);
        domain.note_peak();
    }

    /// The older policies steal singles only.
    fn cached_order(&mut self, order: Order) -> Order {
        if self.domain().policy.chunked_decrease() { order } else { Order::PAGE }
    }

    /// The guest gives up the content of `pages` from `gfn`, and keeps the pages: they read as
    /// zero from now on. A free page report, or any `MADV_DONTNEED` that is not a balloon's.
    /// Frames go to the cache, whole superpages whole; pinned and busy pages are left alone.
    /// Returns how many pages became PoD.
    ///
    /// # Errors
    /// [`DiscardError`] says which pages are done.
    pub fn discard(&mut self, gfn: Gfn, pages: u64) -> Result<u64, DiscardError> {
        let refused = |reason| DiscardError { discarded: 0, next: gfn, reason };
        if !self.is_alive() {
            return Err(refused(DecreaseError::Dying));
        }
        let end = gfn.offset(pages);
        if end.raw() > self.domain().p2m.pages() {
            return Err(refused(DecreaseError::OutOfRange));
        }
        let mut at = gfn;
        let mut discarded = 0;
        let mut outcome = Ok(());
        while at < end {
            let superpage = at.superpage();
            let next = superpage.page(SUPERPAGE_PAGES as usize).min(end);
            let pages = next.raw() - at.raw();
            let Some(done) = self.claimed(superpage, |session| session.discard_claimed(at, pages))
            else {
                let reason = DecreaseError::InTransit;
                outcome = Err(DiscardError { discarded, next: at, reason });
                break;
            };
            discarded += done;
            at = next;
        }
        if discarded > 0 && self.flushes_later() {
            // The pages are still the guest's: its next access must find the new ones. (What is in
            // the cache is flushed once more before it is cleared.)
            let _ = self.flush();
        }
        let _ = self.return_excess();
        self.upkeep_inline();
        outcome.map(|()| discarded)
    }

    /// Discards a run within one claimed superpage.
    fn discard_claimed(&mut self, gfn: Gfn, pages: u64) -> u64 {
        let superpage = gfn.superpage();
        if let (Some(mfn), _) = self.whole_ram_at(gfn, pages)
            && self.domain().p2m.outs(superpage) == 0
        {
            return self.discard_superpage(superpage, mfn);
        }
        (0..pages).map(|i| self.discard_single(gfn.offset(i))).sum()
    }

    fn discard_superpage(&mut self, superpage: Superpage, mfn: Mfn) -> u64 {
        let (gfn, order) = (superpage.first(), Order::SUPERPAGE);
        let Some(taken) = self.take_from_guest(gfn, mfn, order, Destination::Cache) else {
            return 0;
        };
        if matches!(taken, Taken::Clean(_)) && self.cached_order(order) == order {
            self.host.machine(|m| m.park(mfn.superframe()));
        }
        let domain = self.host.domain();
        domain.p2m.set_whole(superpage, Entry::Pod);
        domain.p2m.set_hint(superpage, None);
        domain.count_unpopulate(SUPERPAGE_PAGES);
        self.deliver_discarded(gfn, taken);
        SUPERPAGE_PAGES
    }

    /// Puts a run whose entries were just made PoD into the cache.
    fn deliver_discarded(&mut self, gfn: Gfn, taken: Taken) {
        let (mfn, order) = (taken.mfn(), taken.order());
        match taken {
            Taken::Dirty(dirty) => self.put_dirty(dirty),
            Taken::Clean(run) | Taken::Unneeded(run) => self.put(run),
        }
        self.host.event(Event::Reclaim { gfn, mfn, order });
    }

    fn discard_single(&mut self, gfn: Gfn) -> u64 {
        let superpage = gfn.superpage();
        if self.domain().policy.keeps_whole()
            && let Some(first) = self.free_frames(superpage)
        {
            // It is made zero where it is: a check of the superpage finds that later.
            self.scrub(gfn, first.offset(gfn.index_in_superpage() as u64));
            return 0;
        }
        let Some(Entry::Ram { mfn, state }) = self.split_around(gfn) else { return 0 };
        if state == RamState::Pinned {
            return 0;
        }
        let Some(taken) = self.take_from_guest(gfn, mfn, Order::PAGE, Destination::Cache) else {
            return 0;
        };
        let domain = self.host.domain();
        domain.p2m.set_page(gfn, Entry::Pod);
        domain.count_unpopulate(1);
        if domain.policy.keeps_whole() && domain.p2m.tally(superpage).pod == SUPERPAGE_PAGES {
            domain.p2m.set_whole(superpage, Entry::Pod);
        }
        self.deliver_discarded(gfn, taken);
        1
    }
}
