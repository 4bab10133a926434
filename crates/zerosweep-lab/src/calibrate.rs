//! Measures on this machine what the cost model is made of.
//!
//! Everything is done with real guest memory of this process, on one thread, several times over;
//! the median counts. What the guest or other programs do to caches meanwhile is not in it.

use std::time::Instant;

use anyhow::{Context, Result};
use zerosweep::{Gfn, Order, PAGE_BYTES, Policy, SUPERPAGE_BYTES, SUPERPAGE_PAGES};
use zerosweep_linux::{GuestMemory, MainLoop, OnExhaustion, Options, Parking, Region};

use crate::cost::CostModel;

/// Memory that is scanned and cleared: more than caches hold.
const BYTES: u64 = 256 << 20;
/// Superpages that are touched.
const SUPERPAGES: u64 = 48;
/// Single pages that are touched and given back: less than a superpage, so that they are singles.
const SINGLES: u64 = 500;
const ROUNDS: usize = 5;

/// Measures the cost model of this machine, in a second or two.
///
/// # Errors
/// When guest memory cannot be managed here.
pub fn calibrate() -> Result<CostModel> {
    let fault_ns = superpage_fault_ns()?;
    let (single_fault_ns, flush_ns) = single_ns()?;
    let (scanned_byte_ns, cleared_byte_ns) = bytes_ns()?;
    Ok(CostModel {
        fault_ns,
        // Where a single's fault is no dearer than a superpage's, mapping it costs nothing more.
        map_4k_ns: (single_fault_ns - fault_ns).max(0.0),
        flush_ns,
        scanned_byte_ns,
        cleared_byte_ns,
    })
}

fn adopt(pages: u64, target: u64) -> Result<std::sync::Arc<GuestMemory>> {
    let region = Region::new(pages * PAGE_BYTES)?;
    let options = Options {
        target_bytes: target * PAGE_BYTES,
        policy: Policy::None,
        on_exhaustion: OnExhaustion::Stall,
        parking: Parking::Lazy,
        fault_threads: Options::DEFAULT_FAULT_THREADS,
        main_loop: MainLoop::None,
    };
    GuestMemory::new(region, &options).context("guest memory cannot be managed here")
}

/// From a store to a page of a promised superpage to the next instruction.
fn superpage_fault_ns() -> Result<f64> {
    let pages = SUPERPAGES * SUPERPAGE_PAGES;
    let memory = adopt(pages, pages)?;
    // Huge pages are got ready ahead of the guest; here all of them are waited for.
    let patience = Instant::now();
    while memory.snapshot().prefaulted < SUPERPAGES && patience.elapsed().as_secs() < 2 {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let store = |n: u64| time_ns(|| memory.guest().store_word(n * SUPERPAGE_BYTES, 1));
    let times: Vec<f64> = (0..SUPERPAGES).map(store).collect::<Result<_, _>>()?;
    memory.stop();
    Ok(median(times))
}

/// A single's fault, and taking it away again.
fn single_ns() -> Result<(f64, f64)> {
    let memory = adopt(2 * SUPERPAGE_PAGES, SINGLES)?;
    // The first one breaks the promised superpage.
    memory.guest().store_word(0, 1)?;
    let fault = |n: u64| time_ns(|| memory.guest().store_word(n * PAGE_BYTES, 1));
    let faults: Vec<f64> = (1..SINGLES).map(fault).collect::<Result<_, _>>()?;
    let give = |n: u64| time_ns(|| memory.inflate(Gfn::new(n), Order::PAGE).map(drop));
    let gives: Vec<f64> = (1..SINGLES).map(give).collect::<Result<_, _>>()?;
    memory.stop();
    Ok((median(faults), median(gives)))
}

/// Scanning a byte, clearing a byte.
fn bytes_ns() -> Result<(f64, f64)> {
    let region = Region::new(BYTES)?;
    region.all().populate()?;
    let (mut scans, mut clears) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let start = Instant::now();
        region.all().clear();
        clears.push(start.elapsed().as_nanos() as f64 / BYTES as f64);
        let start = Instant::now();
        std::hint::black_box(region.all().first_nonzero());
        scans.push(start.elapsed().as_nanos() as f64 / BYTES as f64);
    }
    Ok((median(scans), median(clears)))
}

fn time_ns<E>(work: impl FnOnce() -> Result<(), E>) -> Result<f64, E> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_nanos() as f64)
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert!((median(vec![9.0, 1.0, 5.0]) - 5.0).abs() < 1e-9);
        assert!(median(Vec::new()).abs() < 1e-9);
    }

    #[test]
    fn bytes_cost_something() {
        let (scan, clear) = bytes_ns().unwrap();
        assert!(scan > 0.0 && clear > 0.0);
    }
}
