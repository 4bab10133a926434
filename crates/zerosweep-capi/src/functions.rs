//! The functions that a C program calls. What is said about them is what the header says.
#![expect(unsafe_code, reason = "names that the linker knows, and a scan of the program's memory")]

use core::ffi::c_char;
use core::mem::MaybeUninit;
use core::ptr::NonNull;
use std::time::{Duration, Instant};

use zerosweep::{
    AuditError, Config, Domain, Entry, FRAME_LIMIT, Fault, Gfn, InvalidTouch, Life, Mfn, Offline,
    Order, Policy, Progress, RamState, SUPERPAGE_PAGES, Upkeep,
};

use crate::abi::{
    ZS_ABI_VERSION, ZS_ALL_ZERO, zs_config, zs_entry, zs_entry_kind, zs_invalid_touch, zs_machine,
    zs_machine_calls, zs_quantities, zs_range, zs_statistics, zs_upkeep_by,
};
use crate::domain::{Beyond, zs_domain};
use crate::ffi::{self, give, on};
use crate::machine::{Functions, Subscriber};
use crate::status::zs_status;

/// Returns the library's ZS_ABI_VERSION. If it differs from the header's, do not go on.
#[unsafe(no_mangle)]
pub extern "C" fn zs_abi_version() -> u32 {
    ZS_ABI_VERSION
}

/// Returns the library's version, such as "0.1.0". The string belongs to the library.
#[unsafe(no_mangle)]
pub extern "C" fn zs_version() -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
}

/// Returns what a zs_status means, in English. The string belongs to the library. Any number is
/// allowed.
#[unsafe(no_mangle)]
pub extern "C" fn zs_error_message(status: i32) -> *const c_char {
    zs_status::of(status).map_or(c"not a zs_status", zs_status::message).as_ptr()
}

/// Makes a domain without a page. Call zs_populate_on_demand() and zs_set_target() next.
///
/// Both structures are copied. What their pointers point to must stay until zs_domain_destroy(),
/// except `policy`. The domain belongs to the caller. Any number of threads may call the functions
/// that take a domain at once, unless a function says otherwise.
///
/// Errors: NULL, SIZE, UNSUPPORTED, VALUE, POLICY, MACHINE, MAX_PAGES, TARGET, OUT_OF_MEMORY.
/// *domain is written only if there is no error.
#[unsafe(no_mangle)]
pub extern "C" fn zs_domain_create(
    config: *const zs_config,
    machine: *const zs_machine,
    domain: Option<&mut MaybeUninit<*mut zs_domain>>,
) -> zs_status {
    ffi::without_domain(|| {
        let place = domain.ok_or(zs_status::Null)?;
        let made = make(&ffi::take(config)?, ffi::take(machine)?)?;
        place.write(ffi::lend(made)?);
        Ok(zs_status::Ok)
    })
}

fn make(config: &zs_config, machine: zs_machine) -> Result<zs_domain, zs_status> {
    let policy = ffi::name(config.policy)?.map_or(Ok(Policy::default()), str::parse)?;
    let mut made = Config::new(config.max_pages, config.target, policy);
    made.invalid_touch = match config.invalid_touch {
        n if n == zs_invalid_touch::Refuse as u32 => InvalidTouch::Refuse,
        n if n == zs_invalid_touch::Increase as u32 => InvalidTouch::Increase,
        _ => return Err(zs_status::Value),
    };
    made.upkeep = match config.upkeep_by {
        n if n == zs_upkeep_by::Operation as u32 => Upkeep::Inline,
        n if n == zs_upkeep_by::Caller as u32 => Upkeep::Host,
        _ => return Err(zs_status::Value),
    };
    let is_serial = match config.machine_calls {
        n if n == zs_machine_calls::Concurrent as u32 => false,
        n if n == zs_machine_calls::Serial as u32 => true,
        _ => return Err(zs_status::Value),
    };
    if config.reserved != 0 || config.expect_frames > FRAME_LIMIT {
        return Err(zs_status::Value);
    }
    if config.fault_budget_bytes > 0 {
        made.fault_budget_bytes = config.fault_budget_bytes;
    }
    let functions = Functions::new(machine)?;
    let mut domain = Domain::new(made)?;
    if config.expect_frames > 0 {
        domain.expect_frames(config.expect_frames)?;
    }
    Ok(zs_domain::new(domain, functions, Subscriber::new(config), is_serial))
}

/// Frees a domain's own memory; NULL is allowed. The machine is not called: to give the frames back
/// to it, call zs_teardown() before. No other thread may be in a call with this domain, or make one
/// later.
///
/// Errors: REENTRANT.
#[unsafe(no_mangle)]
pub extern "C" fn zs_domain_destroy(domain: Option<NonNull<zs_domain>>) -> zs_status {
    ffi::without_domain(|| {
        if let Some(domain) = domain {
            ffi::take_back(domain);
        }
        Ok(zs_status::Ok)
    })
}

/// Promises 2^order pages from `gfn` on: a touch will populate them. Pages that are promised
/// already stay promised, and are not counted again. Any alignment.
///
/// Errors: ORDER, OUT_OF_RANGE, BUSY (ram or special in the range), OUT_OF_MEMORY, DYING.
#[unsafe(no_mangle)]
pub extern "C" fn zs_populate_on_demand(
    domain: Option<NonNull<zs_domain>>,
    gfn: u64,
    order: u32,
) -> zs_status {
    on_run(domain, gfn, order, |domain, gfn, order| {
        domain
            .retry_in_transit(gfn, order.pages(), |session| session.populate_on_demand(gfn, order))
    })
}

/// Marks 2^order pages from `gfn` on as special: MMIO, foreign, page tables. The engine never
/// touches them. Pages that were promised there are promised no longer. Any alignment.
///
/// Errors: ORDER, OUT_OF_RANGE, BUSY (ram in the range), OUT_OF_MEMORY, DYING.
#[unsafe(no_mangle)]
pub extern "C" fn zs_set_special(
    domain: Option<NonNull<zs_domain>>,
    gfn: u64,
    order: u32,
) -> zs_status {
    on_run(domain, gfn, order, |domain, gfn, order| {
        domain.retry_in_transit(gfn, order.pages(), |session| session.set_special(gfn, order))
    })
}

/// Populates 2^order pages from `gfn` on with frames from the host, all or nothing: a kernel image,
/// or memory that the guest asks for again. Promised pages there are replaced. Any alignment.
///
/// Errors: ORDER, OUT_OF_RANGE, BUSY (ram or special in the range), OVER_TARGET, OUT_OF_FRAMES,
/// OUT_OF_MEMORY, DYING.
#[unsafe(no_mangle)]
pub extern "C" fn zs_populate_physmap(
    domain: Option<NonNull<zs_domain>>,
    gfn: u64,
    order: u32,
) -> zs_status {
    on_run(domain, gfn, order, |domain, gfn, order| {
        domain.retry_in_transit(gfn, order.pages(), |session| session.populate_physmap(gfn, order))
    })
}

/// Pins a populated page: its frame is never checked, moved or reclaimed until zs_unpin(). The
/// superpage around it is broken.
///
/// Errors: OUT_OF_RANGE, NO_FRAME, MAP_FAILED, OUT_OF_MEMORY.
#[unsafe(no_mangle)]
pub extern "C" fn zs_pin(domain: Option<NonNull<zs_domain>>, gfn: u64) -> zs_status {
    set_pinned(domain, gfn, true)
}

/// Ends zs_pin(). A page that is not pinned stays so. Errors: as zs_pin().
#[unsafe(no_mangle)]
pub extern "C" fn zs_unpin(domain: Option<NonNull<zs_domain>>, gfn: u64) -> zs_status {
    set_pinned(domain, gfn, false)
}

fn set_pinned(domain: Option<NonNull<zs_domain>>, gfn: u64, pinned: bool) -> zs_status {
    on_run(domain, gfn, 0, |domain, gfn, _| {
        let set = domain.retry_in_transit(gfn, 1, |session| {
            if pinned { session.pin(gfn) } else { session.unpin(gfn) }
        });
        set.map_err(|status| match status {
            zs_status::Busy => zs_status::NoFrame,
            zs_status::OutOfFrames => zs_status::MapFailed,
            other => other,
        })
    })
}

/// Sets how many pages the domain may hold, fills the cache up to it, and breaks superpages with
/// retained pages while the total is above it. This may take long; zs_begin_target() works in
/// steps.
///
/// Errors: TARGET, DYING. OUT_OF_FRAMES, OUT_OF_MEMORY: the target is in force; call zs_fill() to
/// go on.
#[unsafe(no_mangle)]
pub extern "C" fn zs_set_target(domain: Option<NonNull<zs_domain>>, target: u64) -> zs_status {
    on(domain, |domain| Ok(domain.session().set_target(target).map(|()| zs_status::Ok)?))
}

/// Sets how many pages the domain may hold, and does nothing else. zs_shrink() and zs_fill() do the
/// rest, in steps.
///
/// Errors: TARGET, DYING.
#[unsafe(no_mangle)]
pub extern "C" fn zs_begin_target(domain: Option<NonNull<zs_domain>>, target: u64) -> zs_status {
    on(domain, |domain| Ok(domain.session().begin_target(target).map(|()| zs_status::Ok)?))
}

/// Breaks up to `steps` superpages with retained pages while the total is above the target, and
/// returns surplus frames to the host. MORE if there may be more to do.
#[unsafe(no_mangle)]
pub extern "C" fn zs_shrink(domain: Option<NonNull<zs_domain>>, steps: u64) -> zs_status {
    on(domain, |domain| Ok(progress(domain.session().shrink(steps))))
}

/// Takes up to `steps` runs from the host for the cache, as far as the target allows. MORE if there
/// are more to take.
///
/// Errors: OUT_OF_FRAMES, OUT_OF_MEMORY: the frames that were taken stay in the cache.
#[unsafe(no_mangle)]
pub extern "C" fn zs_fill(domain: Option<NonNull<zs_domain>>, steps: u64) -> zs_status {
    on(domain, |domain| Ok(progress(domain.session().fill(steps)?)))
}

/// The guest touched `gfn`. With OK, the range around it is populated and mapped, and `range` gets
/// that range unless it is NULL. Waits for another operation on the range, but not for frames.
///
/// MORE: the budget is used up; serve others and call again. EXHAUSTED: no frame can be found.
///
/// Errors: UNMAPPED, SPECIAL, MAP_FAILED, OUT_OF_MEMORY, DYING.
#[unsafe(no_mangle)]
pub extern "C" fn zs_fault(
    domain: Option<NonNull<zs_domain>>,
    gfn: u64,
    range: Option<&mut MaybeUninit<zs_range>>,
) -> zs_status {
    on(domain, |domain| Ok(answer(domain.fault(Gfn::new(gfn), Beyond::Stop)?, range)))
}

/// As zs_fault(), but takes a page from the host beyond the target instead of returning EXHAUSTED.
/// The page is counted as borrowed. EXHAUSTED only if the host has no page.
#[unsafe(no_mangle)]
pub extern "C" fn zs_fault_borrowing(
    domain: Option<NonNull<zs_domain>>,
    gfn: u64,
    range: Option<&mut MaybeUninit<zs_range>>,
) -> zs_status {
    on(domain, |domain| Ok(answer(domain.fault(Gfn::new(gfn), Beyond::Borrow)?, range)))
}

/// As zs_fault(), but when there is no frame it waits until other threads' operations bring one:
/// pages given back, a higher target, a sweep. EXHAUSTED if no frame came for `timeout_ms`
/// (UINT64_MAX: waits for ever). Do not call it from a thread that others need to bring frames.
///
/// Nothing reports the pages that the guest itself made zero. Call zs_allow_sweep() about once a
/// second while a thread waits, so that they are found.
#[unsafe(no_mangle)]
pub extern "C" fn zs_fault_wait(
    domain: Option<NonNull<zs_domain>>,
    gfn: u64,
    timeout_ms: u64,
    range: Option<&mut MaybeUninit<zs_range>>,
) -> zs_status {
    on(domain, |domain| {
        let end = match timeout_ms {
            u64::MAX => None,
            ms => Instant::now().checked_add(Duration::from_millis(ms)),
        };
        Ok(answer(domain.fault_until(Gfn::new(gfn), end)?, range))
    })
}

fn answer(fault: Fault, range: Option<&mut MaybeUninit<zs_range>>) -> zs_status {
    match fault {
        Fault::Present { gfn, order } => {
            give(range, zs_range { gfn: gfn.raw(), order: order.raw().into(), reserved: 0 });
            zs_status::Ok
        }
        // Waited for already; if it is so again, the caller may as well come again.
        Fault::InTransit | Fault::Again => zs_status::More,
        Fault::Exhausted => zs_status::Exhausted,
    }
}

/// The guest gives 2^order pages from `gfn` on back: its balloon inflates. `given`, unless it is
/// NULL, says how many of them it had: pages given back before, special, pinned and busy ones do
/// not count. Any alignment.
///
/// Errors: ORDER, OUT_OF_RANGE, DYING.
#[unsafe(no_mangle)]
pub extern "C" fn zs_decrease(
    domain: Option<NonNull<zs_domain>>,
    gfn: u64,
    order: u32,
    given: Option<&mut MaybeUninit<u64>>,
) -> zs_status {
    on_run(domain, gfn, order, |domain, gfn, order| {
        give(
            given,
            domain.retry_in_transit(gfn, order.pages(), |session| session.decrease(gfn, order))?,
        );
        Ok(())
    })
}

/// The guest gives up the content of `pages` pages from `gfn` on and keeps the pages, which read as
/// zero from now on: a free page report. `discarded`, unless it is NULL, says how many became
/// promised ones.
///
/// Errors: OUT_OF_RANGE, DYING.
#[unsafe(no_mangle)]
pub extern "C" fn zs_discard(
    domain: Option<NonNull<zs_domain>>,
    gfn: u64,
    pages: u64,
    discarded: Option<&mut MaybeUninit<u64>>,
) -> zs_status {
    on(domain, |domain| {
        let gfn = Gfn::new(gfn);
        let end = gfn.offset(pages);
        if end.raw() > domain.look(|domain| domain.quantities().max) {
            return Err(zs_status::OutOfRange);
        }
        // A superpage at a time, so that what was done before one in transit is counted.
        let (mut at, mut sum) = (gfn, 0);
        while at < end {
            let next = at.superpage().first().offset(SUPERPAGE_PAGES).min(end);
            let pages = next.raw() - at.raw();
            sum += domain.retry_in_transit(at, pages, |session| {
                // Within a superpage all is done, or nothing.
                session.discard(at, pages).map_err(|error| error.reason)
            })?;
            at = next;
        }
        give(discarded, sum);
        Ok(zs_status::Ok)
    })
}

/// The guest takes `pages` pages from `gfn` on again: its balloon deflates. Retained pages are
/// retaken at once; `retaken`, unless it is NULL, says how many. For the others, call
/// zs_populate_on_demand() or zs_populate_physmap(); with ZS_INVALID_TOUCH_INCREASE, the guest's
/// touch is enough.
#[unsafe(no_mangle)]
pub extern "C" fn zs_retake(
    domain: Option<NonNull<zs_domain>>,
    gfn: u64,
    pages: u64,
    retaken: Option<&mut MaybeUninit<u64>>,
) -> zs_status {
    on(domain, |domain| {
        give(retaken, domain.session().retake(Gfn::new(gfn), pages));
        Ok(zs_status::Ok)
    })
}

/// Goes on with a full sweep: checks `superpages` superpages from number *next on, and reclaims
/// those that are zero. *next must be 0 at the start, and is advanced. MORE until the end, and
/// until surplus frames have been returned to the host.
///
/// Errors: NULL, DYING.
#[unsafe(no_mangle)]
pub extern "C" fn zs_sweep(
    domain: Option<NonNull<zs_domain>>,
    next: Option<&mut u64>,
    superpages: u64,
) -> zs_status {
    on(domain, |domain| {
        let next = next.ok_or(zs_status::Null)?;
        alive(domain)?;
        Ok(progress(domain.session().sweep_full(next, superpages)))
    })
}

/// Lets the next fault that finds no frame sweep again, although the last sweep found nothing.
#[unsafe(no_mangle)]
pub extern "C" fn zs_allow_sweep(domain: Option<NonNull<zs_domain>>) -> zs_status {
    on(domain, |domain| {
        domain.change(Domain::allow_sweep);
        Ok(zs_status::Ok)
    })
}

/// Returns MORE if zs_upkeep() has something to do, else OK. Cheap. `idle`: not 0 if the balloon
/// has stopped, even if it has not reached the target.
#[unsafe(no_mangle)]
pub extern "C" fn zs_wants_upkeep(domain: Option<NonNull<zs_domain>>, idle: u32) -> zs_status {
    on(domain, |domain| {
        let wants = domain.look(|domain| domain.wants_upkeep(idle != 0));
        Ok(if wants { zs_status::More } else { zs_status::Ok })
    })
}

/// Does the upkeep, in up to `steps` steps of about a superpage each. MORE if something is left.
/// `idle`: as for zs_wants_upkeep(). For ZS_UPKEEP_BY_CALLER.
#[unsafe(no_mangle)]
pub extern "C" fn zs_upkeep(
    domain: Option<NonNull<zs_domain>>,
    steps: u64,
    idle: u32,
) -> zs_status {
    on(domain, |domain| Ok(progress(domain.session().upkeep(steps, idle != 0))))
}

/// Goes on with a consolidation, or begins one if `restart` is not 0, for up to `superpages` ranges.
/// A consolidation moves single pages together, so that whole superpages become free. MORE until
/// the end. `moved`, unless it is NULL, says how many pages this consolidation has moved. A domain
/// has one consolidation; a second thread waits for the step of the first.
///
/// Errors: OUT_OF_MEMORY.
#[unsafe(no_mangle)]
pub extern "C" fn zs_consolidate(
    domain: Option<NonNull<zs_domain>>,
    restart: u32,
    superpages: u64,
    moved: Option<&mut MaybeUninit<u64>>,
) -> zs_status {
    on(domain, |domain| {
        let (more, pages) = domain.consolidate(restart != 0, superpages)?;
        give(moved, pages);
        Ok(progress(more))
    })
}

/// Takes a broken frame out of the cache for good and calls zs_machine.retire with it. Takes
/// another frame from the host if one is needed.
///
/// Errors: NOT_CACHED (the guest has it, or the host), OUT_OF_MEMORY: nothing is changed.
/// OUT_OF_FRAMES: it is gone, but the host had no other.
#[unsafe(no_mangle)]
pub extern "C" fn zs_offline(domain: Option<NonNull<zs_domain>>, mfn: u64) -> zs_status {
    on(domain, |domain| match domain.session().offline(Mfn::new(mfn))? {
        Offline::Replaced => Ok(zs_status::Ok),
        Offline::Missing => Err(zs_status::OutOfFrames),
        Offline::NotCached => Err(zs_status::NotCached),
    })
}

/// Recounts all figures. `text`, of `bytes` bytes, gets the first difference, or "" if there is
/// none; it may be NULL. The audit takes time and memory by the size of the guest, under the
/// domain's lock. It is for tests and for an operator's command.
///
/// Errors: AUDIT_FAILED, OUT_OF_MEMORY.
#[unsafe(no_mangle)]
pub extern "C" fn zs_audit(
    domain: Option<NonNull<zs_domain>>,
    text: *mut c_char,
    bytes: usize,
) -> zs_status {
    on(domain, |domain| {
        ffi::write_c_str(text, bytes, "");
        let Err(error) = domain.look(Domain::audit) else { return Ok(zs_status::Ok) };
        ffi::write_c_str(text, bytes, &error.to_string());
        Err(match error {
            AuditError::OutOfMemory => zs_status::OutOfMemory,
            _ => zs_status::AuditFailed,
        })
    })
}

/// Gets the quantities, all of the same moment. Set quantities->size before.
///
/// Errors: NULL, SIZE.
#[unsafe(no_mangle)]
pub extern "C" fn zs_get_quantities(
    domain: Option<NonNull<zs_domain>>,
    quantities: Option<NonNull<zs_quantities>>,
) -> zs_status {
    on(domain, |domain| {
        ffi::fill(quantities, &domain.look(quantities_of))?;
        Ok(zs_status::Ok)
    })
}

fn quantities_of(domain: &Domain) -> zs_quantities {
    let (q, forecast) = (domain.quantities(), domain.forecast());
    zs_quantities {
        size: size_of::<zs_quantities>(),
        max: q.max,
        target: q.target,
        populated: q.populated,
        entries: q.entries,
        cache: q.cache,
        retained: q.retained,
        total: q.total(),
        guest: q.guest(),
        debt: q.debt(),
        owed: q.owed(),
        borrowed: domain.borrowed(),
        cached_superpages: domain.cache().superpages(),
        certain: forecast.certain,
        likely: forecast.likely,
        missing: forecast.short,
    }
}

/// Gets what the domain has done since it was made. Set statistics->size before.
///
/// Errors: NULL, SIZE.
#[unsafe(no_mangle)]
pub extern "C" fn zs_get_statistics(
    domain: Option<NonNull<zs_domain>>,
    statistics: Option<NonNull<zs_statistics>>,
) -> zs_status {
    on(domain, |domain| {
        let counters = domain.look(|domain| domain.statistics().values());
        ffi::fill(statistics, &zs_statistics { size: size_of::<zs_statistics>(), counters })?;
        Ok(zs_status::Ok)
    })
}

/// Gets a page's entry at this moment. Set entry->size before. A retained page is invalid, like any
/// other page that was given back.
///
/// Errors: NULL, SIZE, OUT_OF_RANGE.
#[unsafe(no_mangle)]
pub extern "C" fn zs_lookup(
    domain: Option<NonNull<zs_domain>>,
    gfn: u64,
    entry: Option<NonNull<zs_entry>>,
) -> zs_status {
    on(domain, |domain| {
        let gfn = Gfn::new(gfn);
        let found = domain.look(|domain| entry_of(domain, gfn)).ok_or(zs_status::OutOfRange)?;
        ffi::fill(entry, &found)?;
        Ok(zs_status::Ok)
    })
}

fn entry_of(domain: &Domain, gfn: Gfn) -> Option<zs_entry> {
    let p2m = domain.p2m();
    if !p2m.contains(gfn, Order::PAGE) {
        return None;
    }
    let (entry, order) = p2m.get(gfn);
    let mut found = zs_entry {
        size: size_of::<zs_entry>(),
        order: order.raw().into(),
        is_in_transit: p2m.in_transit(gfn.superpage()).into(),
        ..zs_entry::default()
    };
    let kind = match entry {
        Entry::Invalid => zs_entry_kind::Invalid,
        Entry::Pod => zs_entry_kind::Pod,
        Entry::Ram { mfn, state } => {
            found.mfn = mfn.raw();
            found.is_pinned = (state == RamState::Pinned).into();
            zs_entry_kind::Ram
        }
        Entry::Special => zs_entry_kind::Special,
    };
    found.kind = kind as u32;
    Some(found)
}

/// Takes the domain down: unmaps up to `superpages` superpages, and gives their frames and those of
/// the cache back to the machine. MORE until all are back, then OK. From the first call on, no
/// other operation is accepted. A frame that is busy is tried again at the next call.
#[unsafe(no_mangle)]
pub extern "C" fn zs_teardown(domain: Option<NonNull<zs_domain>>, superpages: u64) -> zs_status {
    on(domain, |domain| Ok(progress(domain.session().teardown(superpages))))
}

/// Writes why calls return BROKEN to `text`, of `bytes` bytes, which may be NULL. Returns BROKEN,
/// or OK and "" if the domain is not broken.
#[unsafe(no_mangle)]
pub extern "C" fn zs_failure(
    domain: Option<NonNull<zs_domain>>,
    text: *mut c_char,
    bytes: usize,
) -> zs_status {
    ffi::without_domain(|| {
        let failure = ffi::failure(domain.ok_or(zs_status::Null)?);
        ffi::write_c_str(text, bytes, failure.as_deref().unwrap_or_default());
        Ok(if failure.is_some() { zs_status::Broken } else { zs_status::Ok })
    })
}

/// Looks for the first of `count` words of 8 bytes that is not zero, with vector instructions where
/// the CPU has them. Returns its index, or ZS_ALL_ZERO, also if `words` is NULL. Other threads may
/// write the words meanwhile; the result is then a hint. The machine's functions may call this.
///
/// `words` must be aligned to 8 bytes, and `count` must be less than ZS_ALL_ZERO.
#[unsafe(no_mangle)]
pub extern "C" fn zs_first_nonzero(words: *const u64, count: usize) -> u32 {
    if words.is_null() {
        return ZS_ALL_ZERO;
    }
    // SAFETY: the program vouches for `count` words, aligned.
    let found = unsafe { zerosweep_scan::first_nonzero_live(words, count) };
    found.map_or(ZS_ALL_ZERO, |index| index as u32)
}

/// An operation on a run.
fn on_run(
    domain: Option<NonNull<zs_domain>>,
    gfn: u64,
    order: u32,
    work: impl FnOnce(&zs_domain, Gfn, Order) -> Result<(), zs_status>,
) -> zs_status {
    on(domain, |domain| {
        let order = u8::try_from(order).ok().and_then(Order::new).ok_or(zs_status::Order)?;
        work(domain, Gfn::new(gfn), order).map(|()| zs_status::Ok)
    })
}

fn progress(progress: Progress) -> zs_status {
    match progress {
        Progress::Done => zs_status::Ok,
        Progress::More => zs_status::More,
    }
}

fn alive(domain: &zs_domain) -> Result<(), zs_status> {
    match domain.look(Domain::life) {
        Life::Alive => Ok(()),
        Life::Dying(_) | Life::Dead => Err(zs_status::Dying),
    }
}
