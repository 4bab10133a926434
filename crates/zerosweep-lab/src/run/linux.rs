//! A run on real memory: the guest is threads of this process, and times are a clock's.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use zerosweep::{Gfn, Order, PAGE_BYTES};
use zerosweep_linux::{AdoptError, GuestMemory, OnExhaustion, Options, Parking, Region};

use super::{Experiment, Readings, Times, assemble};
use crate::guest::Scrub;
use crate::result::{Outcome, Run, TimeKind};

/// How often `watch` is called.
const WATCH: Duration = Duration::from_millis(50);
/// A guest whose every virtual CPU waits for a frame for so long is given up.
const GIVE_UP: Duration = Duration::from_secs(2);

/// Runs the guest. `watch` is given the superpage map, a letter each, from time to time.
///
/// # Errors
/// When memory cannot be managed here ([`AdoptError`] is then the cause), or the guest was damaged
/// (a defect).
pub fn on_linux(experiment: &Experiment, mut watch: impl FnMut(&[u8])) -> Result<Run> {
    let memory = adopt(experiment)?;
    let start = Instant::now();
    let outcome = boot(&memory, experiment, &mut watch)?;
    let boot_seconds = start.elapsed().as_secs_f64();
    let booted = memory.snapshot();
    let start = Instant::now();
    if outcome == Outcome::Ok {
        balloon(&memory, experiment, &mut watch);
    }
    let balloon_seconds = start.elapsed().as_secs_f64();
    watch(&memory.map_letters());
    memory.audit().context("the audit failed")?;
    let end = memory.snapshot();
    if outcome == Outcome::Ok {
        let by_kernel = memory.machine().whole_superpages()?;
        if by_kernel != end.superpages_in_guest {
            bail!("{} superpages are whole, the kernel says {by_kernel}", end.superpages_in_guest);
        }
    }
    let readings = Readings {
        statistics: end.statistics,
        quantities: end.quantities,
        superpages_in_guest: end.superpages_in_guest,
        superpages_in_cache: end.superpages_in_cache,
        superpages_returned: end.statistics.superpages_returned,
    };
    let times = Times {
        boot_seconds,
        balloon_seconds,
        kind: TimeKind::Measured,
        fault_ns: Some(end.latency_ns),
    };
    if outcome == Outcome::Ok {
        // Last, because a read of what was reclaimed populates it again.
        verify(&memory, experiment)?;
        memory.stop();
    }
    Ok(assemble(experiment, "linux", outcome, &booted.statistics, &readings, &times))
}

fn adopt(experiment: &Experiment) -> Result<Arc<GuestMemory>, AdoptError> {
    let region = Region::new(experiment.max_mem_bytes)?;
    let options = Options {
        target_bytes: experiment.target_bytes,
        policy: experiment.policy,
        on_exhaustion: OnExhaustion::Stall,
        parking: Parking::Lazy,
    };
    GuestMemory::new(region, &options)
}

/// Every virtual CPU scrubs its part of memory.
fn boot(
    memory: &Arc<GuestMemory>,
    experiment: &Experiment,
    watch: &mut impl FnMut(&[u8]),
) -> Result<Outcome> {
    let vcpus = u64::from(experiment.vcpus.max(1));
    let stop = Arc::new(AtomicBool::new(false));
    let scrubbed = Arc::new(AtomicU64::new(0));
    let share = experiment.max_pages().div_ceil(vcpus);
    let threads: Vec<_> = (0..vcpus)
        .map(|n| {
            let pages = n * share..((n + 1) * share).min(experiment.max_pages());
            let (memory, stop) = (Arc::clone(memory), Arc::clone(&stop));
            let (guest, scrubbed) = (experiment.guest, Arc::clone(&scrubbed));
            std::thread::spawn(move || scrub(&memory, &guest, pages, &stop, &scrubbed))
        })
        .collect();
    let mut last = (0, Instant::now());
    while !threads.iter().all(std::thread::JoinHandle::is_finished) {
        std::thread::sleep(WATCH);
        watch(&memory.map_letters());
        let done = scrubbed.load(Ordering::Relaxed);
        if done != last.0 || memory.snapshot().stalled == 0 {
            last = (done, Instant::now());
        }
        if let Some(reason) = memory.snapshot().lifted
            && !stop.load(Ordering::Relaxed)
        {
            bail!("the cap had to be lifted: {reason}");
        }
        if last.1.elapsed() >= GIVE_UP {
            // Lets the threads go on, so that they can end.
            stop.store(true, Ordering::Relaxed);
            memory.lift("the run was given up");
        }
    }
    Ok(if stop.load(Ordering::Relaxed) { Outcome::Stalled } else { Outcome::Ok })
}

fn scrub(
    memory: &GuestMemory,
    guest: &Scrub,
    pages: std::ops::Range<u64>,
    stop: &AtomicBool,
    scrubbed: &AtomicU64,
) {
    memory.add_vcpu(zerosweep_linux::sys::raw::thread_id());
    for page in pages {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        // The page is in range and the offset aligned: the store cannot fail.
        let _ = memory.guest().store_word(page * PAGE_BYTES, guest.value(page));
        scrubbed.fetch_add(1, Ordering::Relaxed);
    }
}

fn balloon(memory: &GuestMemory, experiment: &Experiment, watch: &mut impl FnMut(&[u8])) {
    let mut seen = Instant::now();
    for page in experiment.target_pages()..experiment.max_pages() {
        memory.decrease(Gfn::new(page), Order::PAGE);
        if page % 512 == 0 && seen.elapsed() >= WATCH {
            watch(&memory.map_letters());
            seen = Instant::now();
        }
    }
}

fn verify(memory: &GuestMemory, experiment: &Experiment) -> Result<()> {
    for page in 0..experiment.target_pages() {
        let wanted = experiment.guest.value(page);
        let found = memory.guest().load_word(page * PAGE_BYTES)?;
        if found != wanted {
            bail!("page {page} was damaged: {found} is there");
        }
    }
    Ok(())
}
