//! A guest touched a page (rules [R3], [R9], [R15]).
//!
//! [R3]: crate::rules#r3
//! [R9]: crate::rules#r9
//! [R15]: crate::rules#r15

use core::fmt;

use super::Session;
use super::mapping::FromHostError;
use super::sweep::Step;
use super::zero_check::{Check, WORTH_COPYING};
use crate::domain::{Forecast, InvalidTouch};
use crate::event::Event;
use crate::frame::{Gfn, Order, SUPERPAGE_PAGES};
use crate::machine::Host;
use crate::p2m::{Entry, RamState};
use crate::policy::{AfterPopulate, BeforeFrame};
use crate::ring::Recent;
use crate::run::Run;

/// The answer to a touch.
#[must_use = "the guest waits for an answer"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The range around the page has frames. Every thread that waits for it can go on.
    Present {
        /// First gfn of the range.
        gfn: Gfn,
        /// Its size.
        order: Order,
    },
    /// Another operation has claimed the range. Wait until it is done, then call again.
    InTransit,
    /// The byte budget is used up. Serve other faults, then call again.
    Again,
    /// No frame can be found (rule [R15]): stall, [borrow](Session::fault_borrowing), or end it.
    ///
    /// [R15]: crate::rules#r15
    Exhausted,
}

/// A touch that cannot be served. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultError {
    /// The page is ballooned out, or beyond the guest's memory.
    Unmapped,
    /// The page is special: not ours.
    Special,
    /// The machine could not map the frame.
    Map,
    /// There is no memory for the tables.
    TableMemory,
    /// The domain is being taken down.
    Dying,
    /// The guest wrote to a page that was shown as zeros, and there is no frame to keep it
    /// ([`Session::fault_reading`]).
    Unkept,
}

impl fmt::Display for FaultError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unmapped => "the page is not the guest's",
            Self::Special => "the page is special",
            Self::Map => "the frame could not be mapped",
            Self::TableMemory => "no memory for the engine's own tables",
            Self::Dying => "the domain is being taken down",
            Self::Unkept => "no frame for what the guest wrote while the host was reading",
        })
    }
}

impl core::error::Error for FaultError {}

/// What may be done when there is no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Beyond {
    Stop,
    Borrow,
}

impl<H: Host> Session<H> {
    /// The guest touched `gfn`. (Xen: `p2m_pod_demand_populate`.)
    ///
    /// # Errors
    /// When the touch cannot be served; nothing is changed then.
    pub fn fault(&mut self, gfn: Gfn) -> Result<Fault, FaultError> {
        self.serve(gfn, Beyond::Stop)
    }

    /// As [`Session::fault`], but takes a single from the host beyond the target instead of
    /// [`Fault::Exhausted`] ([INV-3]: borrowing is counted). Exhausted still, if the host has none.
    ///
    /// # Errors
    /// As [`Session::fault`].
    ///
    /// [INV-3]: crate::rules#inv-3
    pub fn fault_borrowing(&mut self, gfn: Gfn) -> Result<Fault, FaultError> {
        self.serve(gfn, Beyond::Borrow)
    }

    fn serve(&mut self, gfn: Gfn, beyond: Beyond) -> Result<Fault, FaultError> {
        self.prepare_tables();
        loop {
            let domain = self.host.domain();
            if domain.life != crate::Life::Alive {
                return Err(FaultError::Dying);
            }
            if !domain.p2m.contains(gfn, Order::PAGE) {
                return Err(FaultError::Unmapped);
            }
            if domain.p2m.in_transit(gfn.superpage()) {
                return Ok(Fault::InTransit);
            }
            let (entry, order) = domain.p2m.get(gfn);
            let served = match entry {
                Entry::Special => return Err(FaultError::Special),
                Entry::Ram { state: RamState::Detached, .. } => Some(self.remap(gfn)?),
                Entry::Ram { .. } => Some(Fault::Present { gfn: gfn.align_down(order), order }),
                Entry::Pod => self.populate(gfn, order, beyond)?,
                Entry::Invalid if domain.p2m.is_out(gfn) => {
                    if domain.invalid_touch == InvalidTouch::Refuse {
                        return Err(FaultError::Unmapped);
                    }
                    let whole = domain.p2m.whole(gfn.superpage());
                    if let Some(Entry::Ram { state: RamState::Detached, .. }) = whole {
                        // First it is mapped: if that fails, nothing is changed.
                        let fault = self.remap(gfn)?;
                        if fault == Fault::InTransit {
                            return Ok(fault);
                        }
                    }
                    self.retake(gfn, 1);
                    None
                }
                Entry::Invalid if domain.invalid_touch == InvalidTouch::Increase => {
                    self.increase(gfn, beyond)?
                }
                Entry::Invalid => return Err(FaultError::Unmapped),
            };
            if let Some(fault) = served {
                let populated = !matches!(entry, Entry::Ram { .. });
                if populated && matches!(fault, Fault::Present { .. }) {
                    self.domain().rings.touched.record(gfn);
                    self.tell_if_low();
                }
                return Ok(fault);
            }
        }
    }

    fn tell_if_low(&mut self) {
        if let Some(Forecast { certain, likely, .. }) = self.domain().low_forecast() {
            self.host.event(Event::Low { certain, likely });
        }
    }

    /// A frame that a failed check could not map back is mapped now.
    fn remap(&mut self, gfn: Gfn) -> Result<Fault, FaultError> {
        self.claimed(gfn.superpage(), |session| {
            let p2m = &session.domain().p2m;
            // One mapping, if it is one superpage, even where pages of it are out.
            let (entry, order) = match p2m.whole(gfn.superpage()) {
                Some(entry) => (entry, Order::SUPERPAGE),
                None => p2m.get(gfn),
            };
            let at = gfn.align_down(order);
            if let Entry::Ram { mfn, state: RamState::Detached } = entry {
                let run = Run::new(mfn.align_down(order), order);
                // It stays in its entry if it cannot be mapped.
                session.map(at, run).map_err(|_| FaultError::Map)?;
            }
            Ok(Fault::Present { gfn: at, order })
        })
        .unwrap_or(Ok(Fault::InTransit))
    }

    /// Populates a PoD entry. `None`: it changed, look again.
    fn populate(
        &mut self,
        gfn: Gfn,
        order: Order,
        beyond: Beyond,
    ) -> Result<Option<Fault>, FaultError> {
        if let Some(fault) = self.find_frames(gfn, order, beyond) {
            return Ok(Some(fault));
        }
        let populated = self
            .claimed(gfn.superpage(), |session| session.populate_claimed_entry(gfn, order))
            .unwrap_or(Ok(Some(Fault::InTransit)))?;
        if let Some(Fault::Present { gfn: at, order }) = populated {
            self.after_populate(at, order);
        }
        Ok(populated)
    }

    fn populate_claimed_entry(
        &mut self,
        gfn: Gfn,
        order: Order,
    ) -> Result<Option<Fault>, FaultError> {
        let domain = self.host.domain();
        if domain.p2m.get(gfn) != (Entry::Pod, order) {
            return Ok(None);
        }
        if order == Order::PAGE && self.refill(gfn) {
            return Ok(Some(Fault::Present {
                gfn: gfn.superpage().first(),
                order: Order::SUPERPAGE,
            }));
        }
        let domain = self.host.domain();
        let taken = match order {
            Order::SUPERPAGE => domain.cache.take_superpage(),
            _ => domain.cache.take_single(),
        };
        let Some(run) = taken else {
            if order == Order::SUPERPAGE && domain.cache.clean_pages() > 0 {
                self.splinter(gfn)?;
            }
            return Ok(None);
        };
        let mfn = run.mfn();
        self.map_from_cache(gfn, run)?;
        let at = gfn.align_down(order);
        let (_, mapped) = self.domain().p2m.get(gfn);
        self.host.event(Event::Populate { gfn: at, mfn, order, fault: gfn });
        Ok(Some(Fault::Present { gfn: at, order: order.max(mapped) }))
    }

    /// Maps a frame that was just taken from the cache.
    fn map_from_cache(&mut self, gfn: Gfn, run: Run) -> Result<(), FaultError> {
        let (order, pages) = (run.order(), run.pages());
        let domain = self.host.domain();
        // The frame is out of the cache: it must be counted as populated in the same breath.
        domain.count_populate(pages);
        domain.flight.from_pod += pages;
        let mapped = self.map(gfn.align_down(order), run);
        let domain = self.host.domain();
        domain.flight.from_pod -= pages;
        match mapped {
            Ok(()) => {
                self.count_mapped(order);
                Ok(())
            }
            Err(run) => {
                domain.count_unpopulate(pages);
                match order {
                    // It may be this frame that cannot be mapped: the next try takes another.
                    Order::SUPERPAGE => domain.cache.put_last(run),
                    _ => self.put(run),
                }
                Err(FaultError::Map)
            }
        }
    }

    fn count_mapped(&mut self, order: Order) {
        let statistics = &mut self.domain().statistics;
        if order == Order::SUPERPAGE {
            statistics.populates_2m += 1;
        } else {
            statistics.populates_4k += 1;
        }
    }

    /// Breaks a PoD superpage entry, because there are only singles.
    fn splinter(&mut self, gfn: Gfn) -> Result<(), FaultError> {
        let domain = self.host.domain();
        domain.p2m.split(gfn.superpage()).map_err(|_| FaultError::TableMemory)?;
        domain.statistics.splinters += 1;
        let first = gfn.superpage().first();
        self.host.event(Event::Splinter { gfn: first, fault: gfn });
        Ok(())
    }

    /// Breaks the entry of a superpage without frames, if it is whole.
    pub(super) fn break_promise(&mut self, gfn: Gfn) -> Result<(), FaultError> {
        let p2m = &mut self.host.domain().p2m;
        if p2m.whole(gfn.superpage()) == Some(Entry::Pod) {
            return self.splinter(gfn);
        }
        p2m.split(gfn.superpage()).map_err(|_| FaultError::TableMemory)
    }

    /// A touch of an invalid page: one more page is promised and populated at once, by the host
    /// while the target allows, else from the cache. `None`: it changed, look again.
    fn increase(&mut self, gfn: Gfn, beyond: Beyond) -> Result<Option<Fault>, FaultError> {
        let superpage = gfn.superpage();
        let at_once = self
            .claimed(superpage, |session| session.increase_at_once(gfn))
            .unwrap_or(Ok(Some(Fault::InTransit)))?;
        if at_once.is_some() {
            return Ok(at_once);
        }
        if let Some(fault) = self.find_frames(gfn, Order::PAGE, beyond) {
            return Ok(Some(fault));
        }
        self.claimed(superpage, |session| session.increase_from_cache(gfn))
            .unwrap_or(Ok(Some(Fault::InTransit)))
    }

    /// With a whole superpage for the range if that can be, else a page, if the host gives one.
    fn increase_at_once(&mut self, gfn: Gfn) -> Result<Option<Fault>, FaultError> {
        let domain = self.host.domain();
        if domain.p2m.get(gfn).0 != Entry::Invalid || domain.p2m.is_out(gfn) {
            return Ok(None);
        }
        if self.refill(gfn) {
            let first = gfn.superpage().first();
            return Ok(Some(Fault::Present { gfn: first, order: Order::SUPERPAGE }));
        }
        self.increase_from_host(gfn)
    }

    fn increase_from_host(&mut self, gfn: Gfn) -> Result<Option<Fault>, FaultError> {
        let domain = self.host.domain();
        let q = domain.quantities();
        let room = q.total() + domain.flight.incoming < q.target;
        if !room || domain.p2m.get(gfn).0 != Entry::Invalid {
            return Ok(None);
        }
        domain.p2m.split(gfn.superpage()).map_err(|_| FaultError::TableMemory)?;
        self.populate_single_from_host(gfn, Entry::Invalid)
    }

    fn increase_from_cache(&mut self, gfn: Gfn) -> Result<Option<Fault>, FaultError> {
        let domain = self.host.domain();
        let wanted = domain.p2m.get(gfn).0 == Entry::Invalid && !domain.p2m.is_out(gfn);
        if !wanted || domain.cache.clean_pages() == 0 {
            return Ok(None);
        }
        domain.p2m.split(gfn.superpage()).map_err(|_| FaultError::TableMemory)?;
        self.populate_single_from_cache(gfn)
    }

    /// Populates one page of a claimed, broken superpage from the cache, one that was given back
    /// too; `None` if it has none.
    pub(super) fn populate_single_from_cache(
        &mut self,
        gfn: Gfn,
    ) -> Result<Option<Fault>, FaultError> {
        let domain = self.host.domain();
        let was_given_back = domain.p2m.get(gfn).0 == Entry::Invalid;
        let Some(run) = domain.cache.take_single() else { return Ok(None) };
        let mfn = run.mfn();
        if was_given_back {
            domain.p2m.set_page(gfn, Entry::Pod);
            domain.entries += 1;
        }
        if let Err(error) = self.map_from_cache(gfn, run) {
            if was_given_back {
                let domain = self.host.domain();
                domain.p2m.set_page(gfn, Entry::Invalid);
                domain.entries -= 1;
            }
            return Err(error);
        }
        self.host.event(Event::Populate { gfn, mfn, order: Order::PAGE, fault: gfn });
        Ok(Some(Fault::Present { gfn, order: Order::PAGE }))
    }

    /// Populates one page of a claimed, broken superpage from the host; `None` if it has none.
    fn populate_single_from_host(
        &mut self,
        gfn: Gfn,
        was: Entry,
    ) -> Result<Option<Fault>, FaultError> {
        let order = Order::PAGE;
        match self.populate_from_host(gfn, was, order) {
            Ok(mfn) => {
                self.count_mapped(order);
                self.host.event(Event::Populate { gfn, mfn, order, fault: gfn });
                Ok(Some(Fault::Present { gfn, order }))
            }
            Err(error) => {
                self.domain().p2m.drop_empty_table(gfn.superpage());
                match error {
                    FromHostError::OutOfFrames => Ok(None),
                    FromHostError::Map => Err(FaultError::Map),
                }
            }
        }
    }

    /// Does what the policy does before it takes a frame. `Some`: there is none to take.
    fn find_frames(&mut self, gfn: Gfn, order: Order, beyond: Beyond) -> Option<Fault> {
        self.domain().rings.touched.note_miss(gfn);
        let step = self.before_frame(order, beyond);
        self.tell_if_low();
        let domain = self.host.domain();
        if domain.cache.clean_pages() > 0 && step != Step::Again {
            domain.cursors.note_fault(gfn);
            return None;
        }
        if step == Step::Again || domain.flight.in_hand + domain.flight.incoming > 0 {
            return Some(Fault::Again);
        }
        if beyond == Beyond::Borrow {
            return self.borrow_page(gfn);
        }
        domain.statistics.exhaustions += 1;
        self.host.event(Event::Exhausted { gfn });
        Some(Fault::Exhausted)
    }

    fn before_frame(&mut self, order: Order, beyond: Beyond) -> Step {
        let domain = self.host.domain();
        let debt = domain.debt() > 0;
        let before = domain.policy.before_frame();
        match before {
            BeforeFrame::Nothing => {}
            BeforeFrame::BothSweeps if debt => {
                if order == Order::SUPERPAGE && self.domain().cache.superpages() == 0 {
                    self.sweep_superpages_down();
                }
                let cache = &self.host.domain().cache;
                if cache.singles() == 0 && (order == Order::PAGE || cache.superpages() == 0) {
                    self.sweep_singles_down();
                }
            }
            BeforeFrame::BothSweeps => {}
            BeforeFrame::SweepIfEmpty | BeforeFrame::RingThenSweep => {
                if before == BeforeFrame::RingThenSweep && debt {
                    self.check_ring_2016();
                }
                if self.domain().cache.pages() == 0 {
                    self.sweep_singles_down();
                }
            }
            BeforeFrame::BoundedSweep => return self.find_ours(order, beyond),
        }
        Step::Ended
    }

    /// Under our policy: what was given back first, cleared or to be cleared; then pages that are
    /// retained; only then a sweep. A superpage is looked for too before a promised one is broken.
    fn find_ours(&mut self, order: Order, beyond: Beyond) -> Step {
        loop {
            let domain = self.host.domain();
            let is_enough = match order {
                Order::SUPERPAGE => domain.cache.superpages() > 0,
                _ => domain.cache.clean_pages() > 0,
            };
            if is_enough {
                return Step::Ended;
            }
            // Pages that were taken again no longer back what is promised: the host does.
            if domain.wants_fill() > 0 && self.fill(1).is_ok() {
                continue;
            }
            let domain = self.host.domain();
            let cleans = domain.cache.clean_pages() == 0 || domain.cache.has_dirty_superpage();
            if cleans && self.clean_batch() {
                continue;
            }
            let domain = self.host.domain();
            let clean = domain.cache.clean_pages();
            if clean > 0 && domain.debt() <= 0 {
                return Step::Ended;
            }
            if self.break_one() {
                continue;
            }
            if clean > 0 {
                return self.seek_step();
            }
            if beyond == Beyond::Borrow && self.domain().is_sweep_dear() {
                return Step::Ended;
            }
            let step = self.sweep_step();
            // Singles were found: with these a superpage may be, at the next turn.
            let found = self.domain().cache.clean_pages() > 0;
            return if found && order == Order::SUPERPAGE { Step::Again } else { step };
        }
    }

    /// Looks at the ring's next place, and on while the cache is empty.
    fn check_ring_2016(&mut self) {
        for ahead in 0..crate::ring::Ring::<32>::LEN {
            if let Some(recent) = self.domain().rings.xen_2016.take(ahead) {
                self.domain().statistics.eager_checks += 1;
                self.check_recent(recent);
            }
            if self.domain().cache.pages() > 0 {
                break;
            }
        }
    }

    fn check_recent(&mut self, recent: Recent) {
        if recent.order < Order::SUPERPAGE {
            self.check_singles(&[recent.gfn]);
        } else if self.check_superpage(recent.gfn.superpage(), 0) != Check::Reclaimed {
            for index in 0..SUPERPAGE_PAGES {
                self.check_singles(&[recent.gfn.offset(index)]);
            }
        }
    }

    /// Records the populate, and checks what the policy checks after one (rule [R6], its first
    /// half).
    ///
    /// [R6]: crate::rules#r6
    fn after_populate(&mut self, gfn: Gfn, order: Order) {
        let recent = Recent { gfn, order };
        let domain = self.host.domain();
        let debt = domain.debt() > 0;
        let superpage = order >= Order::SUPERPAGE;
        let wanted = debt && superpage;
        let old = match domain.policy.after_populate() {
            AfterPopulate::Nothing => None,
            AfterPopulate::Record2016 => {
                domain.rings.xen_2016.record(recent);
                None
            }
            AfterPopulate::Check2012 if wanted => domain.rings.xen_2012.record(recent),
            AfterPopulate::CheckZerosweep if wanted => domain.rings.zerosweep.record(recent),
            AfterPopulate::Check2012 | AfterPopulate::CheckZerosweep => None,
        };
        if let Some(old) = old {
            let most = if domain.is_cache_low() { WORTH_COPYING } else { 0 };
            domain.statistics.eager_checks += 1;
            let _ = self.check_superpage(old.gfn.superpage(), most);
        }
    }

    /// Takes one page from the host beyond the target.
    fn borrow_page(&mut self, gfn: Gfn) -> Option<Fault> {
        self.claimed(gfn.superpage(), |session| session.borrow_claimed_page(gfn))
            .unwrap_or(Some(Fault::InTransit))
    }

    pub(super) fn borrow_claimed_page(&mut self, gfn: Gfn) -> Option<Fault> {
        let domain = self.host.domain();
        let was = domain.p2m.get(gfn).0;
        let populated = match was {
            // Its frame is still there, and its own.
            Entry::Invalid if domain.p2m.is_out(gfn) => None,
            Entry::Pod | Entry::Invalid => {
                let broken = self.break_promise(gfn);
                broken.and_then(|()| self.populate_single_from_host(gfn, was)).ok().flatten()
            }
            _ => None,
        };
        if populated.is_some() {
            self.domain().note_borrowed();
        }
        populated.or_else(|| {
            self.domain().statistics.exhaustions += 1;
            self.host.event(Event::Exhausted { gfn });
            Some(Fault::Exhausted)
        })
    }
}
