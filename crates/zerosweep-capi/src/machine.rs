//! The program's functions as the engine's machine.
//!
//! What they answer is checked as far as that is possible: an answer that cannot be is a panic,
//! which `ffi` turns into `ZS_STATUS_BROKEN`.
#![expect(unsafe_code, reason = "the functions are the program's")]

use core::cell::Cell;
use core::ffi::c_void;

use zerosweep::{
    Allocated, Content, Event, FRAME_LIMIT, Gfn, Machine, MapError, Mapped, Mfn, Order,
    OutOfFrames, PAGE_BYTES, SUPERPAGE_PAGES, Superframe, Unmapped,
};

use crate::abi::{ZS_ALL_ZERO, zs_content, zs_event, zs_event_kind, zs_machine, zs_mapped};
use crate::abi::{zs_config, zs_unmapped};
use crate::status::zs_status;

/// Words of 8 bytes in a page.
const PAGE_WORDS: u64 = PAGE_BYTES / 8;

thread_local! {
    /// This thread is in a function of the program's.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Marks this thread as being in a function of the program's, until it is dropped.
pub(crate) struct Inside(());

impl Inside {
    pub(crate) fn enter() -> Self {
        INSIDE.set(true);
        Self(())
    }

    pub(crate) fn is_here() -> bool {
        INSIDE.get()
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.set(false);
    }
}

/// The program's functions, of which those that must be there are.
pub(crate) struct Functions(zs_machine);

// SAFETY: `zs_machine` is a table of functions and a pointer that is only handed to them. The
// caller of `zs_domain_create` vouches that any thread that calls the library can call them, and
// several at once unless `ZS_MACHINE_CALLS_SERIAL` is set.
unsafe impl Send for Functions {}
// SAFETY: as above.
unsafe impl Sync for Functions {}

impl Functions {
    pub(crate) fn new(machine: zs_machine) -> Result<Self, zs_status> {
        // All of them are named, so that a new one is not forgotten here.
        let zs_machine {
            size: _,
            opaque: _,
            allocate,
            free,
            map,
            unmap,
            flush,
            quick_check,
            peek,
            zero_check,
            clear,
            copy,
            scrub,
            allocate_in: _,
            park: _,
            retire: _,
        } = machine;
        let complete = allocate.is_some()
            && free.is_some()
            && map.is_some()
            && unmap.is_some()
            && flush.is_some()
            && quick_check.is_some()
            && peek.is_some()
            && zero_check.is_some()
            && clear.is_some()
            && copy.is_some()
            && scrub.is_some();
        if complete { Ok(Self(machine)) } else { Err(zs_status::Machine) }
    }

    pub(crate) fn calls(&self) -> Calls<'_> {
        Calls(&self.0)
    }
}

/// Calls the program's functions.
pub(crate) struct Calls<'a>(&'a zs_machine);

/// Calls a function that must be there.
macro_rules! call {
    ($self:ident.$name:ident($($argument:expr),*)) => {{
        let Some(function) = $self.0.$name else {
            unreachable!("zs_domain_create has seen to it that there is {}", stringify!($name))
        };
        // SAFETY: the caller of `zs_domain_create` vouches that the function can be called so.
        unsafe { function($self.0.opaque, $($argument),*) }
    }};
}

impl Calls<'_> {
    /// What an allocation answered.
    fn allocated(
        name: &str,
        order: Order,
        take: impl FnOnce(*mut u64, *mut u32) -> i32,
    ) -> Result<Allocated, OutOfFrames> {
        let (mut mfn, mut content) = (u64::MAX, zs_content::Unknown as u32);
        if take(&raw mut mfn, &raw mut content) != 0 {
            return Err(OutOfFrames);
        }
        let mfn = Mfn::new(mfn);
        assert!(
            mfn.is_aligned(order) && mfn.offset(order.pages()).raw() <= FRAME_LIMIT,
            "zs_machine.{name} gave frame {mfn}, which cannot be the first of a run of order {}",
            order.raw()
        );
        Ok(Allocated { mfn, content: content_of(name, content) })
    }
}

fn content_of(name: &str, content: u32) -> Content {
    match content {
        n if n == zs_content::Unknown as u32 => Content::Unknown,
        n if n == zs_content::Zero as u32 => Content::Zero,
        n => panic!("zs_machine.{name} answered {n}, which is not a zs_content"),
    }
}

/// An offset within `pages` pages.
fn word_of(name: &str, word: u32, pages: u64) -> Option<u32> {
    if word == ZS_ALL_ZERO {
        return None;
    }
    assert!(
        u64::from(word) < pages * PAGE_WORDS,
        "zs_machine.{name} found word {word} of {pages} pages"
    );
    Some(word)
}

impl Machine for Calls<'_> {
    fn allocate(&mut self, order: Order) -> Result<Allocated, OutOfFrames> {
        Self::allocated("allocate", order, |mfn, content| {
            call!(self.allocate(order.raw().into(), mfn, content))
        })
    }

    fn allocate_in(&mut self, superframe: Superframe) -> Result<Allocated, OutOfFrames> {
        let Some(allocate_in) = self.0.allocate_in else { return Err(OutOfFrames) };
        let name = "allocate_in";
        let allocated = Self::allocated(name, Order::PAGE, |mfn, content| {
            // SAFETY: the caller of `zs_domain_create` vouches that the function can be called so.
            unsafe { allocate_in(self.0.opaque, superframe.first().raw(), mfn, content) }
        })?;
        let mfn = allocated.mfn;
        assert!(
            mfn.superframe() == superframe,
            "zs_machine.{name} gave frame {mfn}, which is not one of the {SUPERPAGE_PAGES} of \
             {}",
            superframe.first()
        );
        Ok(allocated)
    }

    fn free(&mut self, mfn: Mfn, order: Order) {
        call!(self.free(mfn.raw(), order.raw().into()));
    }

    fn map(&mut self, gfn: Gfn, mfn: Mfn, order: Order) -> Result<Mapped, MapError> {
        match call!(self.map(gfn.raw(), mfn.raw(), order.raw().into())) {
            n if n == zs_mapped::Whole as u32 => Ok(Mapped::Whole),
            n if n == zs_mapped::Pieces as u32 => Ok(Mapped::Pieces),
            n if n == zs_mapped::Failed as u32 => Err(MapError),
            n => panic!("zs_machine.map answered {n}, which is not a zs_mapped"),
        }
    }

    fn unmap(&mut self, gfn: Gfn, mfn: Mfn, order: Order) -> Unmapped {
        match call!(self.unmap(gfn.raw(), mfn.raw(), order.raw().into())) {
            n if n == zs_unmapped::Done as u32 => Unmapped::Done,
            n if n == zs_unmapped::Busy as u32 => Unmapped::Busy,
            n => panic!("zs_machine.unmap answered {n}, which is not a zs_unmapped"),
        }
    }

    fn flush(&mut self) {
        call!(self.flush());
    }

    fn quick_check(&mut self, gfn: Gfn, mfn: Mfn, order: Order) -> Option<u32> {
        let word = call!(self.quick_check(gfn.raw(), mfn.raw(), order.raw().into()));
        word_of("quick_check", word, order.pages())
    }

    fn peek(&mut self, gfn: Gfn, mfn: Mfn, word: u32) -> u64 {
        call!(self.peek(gfn.raw(), mfn.raw(), word))
    }

    fn zero_check(&mut self, mfn: Mfn, pages: u64) -> Option<u32> {
        let word = call!(self.zero_check(mfn.raw(), pages));
        word_of("zero_check", word, pages)
    }

    fn clear(&mut self, mfn: Mfn, order: Order) {
        call!(self.clear(mfn.raw(), order.raw().into()));
    }

    fn copy(&mut self, from: Mfn, to: Mfn) {
        call!(self.copy(from.raw(), to.raw()));
    }

    fn scrub(&mut self, gfn: Gfn, mfn: Mfn) -> Content {
        content_of("scrub", call!(self.scrub(gfn.raw(), mfn.raw())))
    }

    fn park(&mut self, superframe: Superframe) {
        if let Some(park) = self.0.park {
            // SAFETY: the caller of `zs_domain_create` vouches that the function can be called so.
            unsafe { park(self.0.opaque, superframe.first().raw()) };
        }
    }

    fn retire(&mut self, mfn: Mfn) {
        if let Some(retire) = self.0.retire {
            // SAFETY: the caller of `zs_domain_create` vouches that the function can be called so.
            unsafe { retire(self.0.opaque, mfn.raw()) };
        }
    }
}

/// The program's function that receives events.
pub(crate) struct Subscriber {
    tell: unsafe extern "C" fn(opaque: *mut c_void, event: *const zs_event),
    opaque: *mut c_void,
}

// SAFETY: the pointer is only handed to the function. The caller of `zs_domain_create` vouches that
// the function can be called from any thread that calls the library. One thread at a time calls it.
unsafe impl Send for Subscriber {}
// SAFETY: as above.
unsafe impl Sync for Subscriber {}

impl Subscriber {
    pub(crate) fn new(config: &zs_config) -> Option<Self> {
        Some(Self { tell: config.event?, opaque: config.event_opaque })
    }

    pub(crate) fn tell(&self, event: Event) {
        let Some(event) = flat(event) else { return };
        // SAFETY: the caller of `zs_domain_create` vouches that the function can be called so.
        unsafe { (self.tell)(self.opaque, &raw const event) };
    }
}

/// An event as the program sees it; `None` for one that the header does not know.
fn flat(event: Event) -> Option<zs_event> {
    let mut flat = zs_event { size: size_of::<zs_event>(), ..zs_event::default() };
    let run = |flat: &mut zs_event, gfn: Gfn, mfn: Mfn, order: Order| {
        (flat.gfn, flat.mfn, flat.order) = (gfn.raw(), mfn.raw(), order.raw().into());
    };
    let kind = match event {
        Event::Populate { gfn, mfn, order, fault } => {
            run(&mut flat, gfn, mfn, order);
            flat.fault = fault.raw();
            zs_event_kind::Populate
        }
        Event::Reclaim { gfn, mfn, order } => {
            run(&mut flat, gfn, mfn, order);
            zs_event_kind::Reclaim
        }
        Event::Splinter { gfn, fault } => {
            run(&mut flat, gfn, Mfn::default(), Order::SUPERPAGE);
            flat.fault = fault.raw();
            zs_event_kind::Splinter
        }
        Event::Shatter { gfn } => {
            run(&mut flat, gfn, Mfn::default(), Order::SUPERPAGE);
            zs_event_kind::Shatter
        }
        Event::Evacuate { gfn, mfn, live } => {
            run(&mut flat, gfn, mfn, Order::SUPERPAGE);
            flat.pages = live;
            zs_event_kind::Evacuate
        }
        Event::Remove { gfn, order } => {
            run(&mut flat, gfn, Mfn::default(), order);
            zs_event_kind::Remove
        }
        Event::Steal { gfn, mfn, order } => {
            run(&mut flat, gfn, mfn, order);
            zs_event_kind::Steal
        }
        Event::Return { mfn, order } => {
            run(&mut flat, Gfn::default(), mfn, order);
            zs_event_kind::Return
        }
        Event::Low { certain, likely } => {
            (flat.pages, flat.likely) = (certain, likely);
            zs_event_kind::Low
        }
        Event::Exhausted { gfn } => {
            flat.gfn = gfn.raw();
            zs_event_kind::Exhausted
        }
        Event::Sweep { gfn, reclaimed } => {
            (flat.gfn, flat.pages) = (gfn.raw(), reclaimed);
            zs_event_kind::Sweep
        }
        Event::Retake { gfn } => {
            flat.gfn = gfn.raw();
            zs_event_kind::Retake
        }
        _ => return None,
    };
    flat.kind = kind as u32;
    Some(flat)
}
