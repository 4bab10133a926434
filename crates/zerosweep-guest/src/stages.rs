//! The guest's life, stage by stage.

use std::fs;
use std::num::NonZero;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::balloon;
use crate::churn::Churn;
use crate::console::mark;
use crate::failure::Failure;
use crate::meminfo::MemInfo;
use crate::memory::{self, Region};
use crate::modules::{self, Loaded};
use crate::net;
use crate::options::{Check, Driver, End, Options};
use crate::scrub;
use crate::system;
use crate::watcher::Watcher;

/// How often an idle guest says that it is well.
const ALIVE: Duration = Duration::from_secs(5);
/// What could not be done is tried again after this.
const REST: Duration = Duration::from_millis(200);

/// Runs every stage and prints how it went; what is to happen then.
pub(crate) fn run() -> End {
    match boot() {
        Ok(options) => {
            match live(&options) {
                Ok(mut kept) => {
                    mark("done ok");
                    if options.end == End::Idle {
                        idle(&mut kept, &options);
                    }
                }
                Err(failure) => report(&failure),
            }
            options.end
        }
        Err(failure) => {
            report(&failure);
            End::PowerOff
        }
    }
}

fn report(failure: &Failure) {
    mark(format_args!("error {}", failure.detail));
    mark(format_args!("done failed reason={}", failure.reason));
}

/// The boot marker, before anything heavy, and what the guest is asked to do.
fn boot() -> Result<Options, Failure> {
    system::mount_console()?;
    mark(format_args!(
        "boot uptime={:.2} cpus={} mem_total={}",
        system::uptime_seconds(),
        cpus(),
        MemInfo::read()?.total_kib
    ));
    system::mount_rest()?;
    let command_line = fs::read_to_string("/proc/cmdline")
        .map_err(|e| Failure::new("options", format_args!("/proc/cmdline: {e}")))?;
    Options::parse(&command_line).map_err(|why| Failure::new("options", why))
}

fn cpus() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// Everything between boot and end; the regions that are still held.
fn live(options: &Options) -> Result<Vec<Region>, Failure> {
    load_bus()?;
    if options.net {
        net::start()?;
    }
    let filled = fill("filled", "fill", options.fill_bytes, options.seed, 0)?;
    let first_touched = filled.page_count();
    let churn = churn(options)?;
    if options.scrub {
        let start = Instant::now();
        let bytes = scrub::free_memory(cpus())?;
        mark(format_args!("scrubbed bytes={bytes} seconds={:.3}", start.elapsed().as_secs_f64()));
    }
    let watcher = Watcher::start(filled, options.check)?;
    match options.balloon {
        Driver::Loaded => inflate(options)?,
        Driver::LeftOut => mark("balloon left out"),
    }
    let touched = fill("touched", "touch", options.touch_bytes, options.seed, first_touched);
    let (filled, passes) = watcher.finish()?;
    let mut regions = vec![filled];
    let untouched = touched.map(|region| regions.push(region)).err();
    verify(&mut regions, passes + 1)?;
    if let Some(churn) = churn {
        let (files, bad) = (churn.kept_count(), churn.damaged_count());
        mark(format_args!("verified files={files} bad={bad}"));
        if bad > 0 {
            return Err(Failure::new(
                "damaged",
                format_args!("{bad} of {files} files are damaged"),
            ));
        }
    }
    untouched.map_or(Ok(regions), Err)
}

fn load_bus() -> Result<(), Failure> {
    let (mut loaded, mut absent) = (Vec::new(), Vec::new());
    for name in modules::BUS {
        match modules::load(name)? {
            Loaded::Yes => loaded.push(name),
            Loaded::Absent => absent.push(name),
        }
    }
    mark(format_args!("modules loaded={} absent={}", loaded.join(","), absent.join(",")));
    Ok(())
}

fn fill(
    marker: &str,
    stage: &'static str,
    bytes: u64,
    seed: u64,
    first_page: u64,
) -> Result<Region, Failure> {
    let start = Instant::now();
    let region = Region::fill(memory::reserve(stage, bytes)?, seed, first_page);
    if bytes > 0 {
        mark(format_args!(
            "{marker} bytes={} seed={seed} seconds={:.3}",
            region.bytes(),
            start.elapsed().as_secs_f64()
        ));
    }
    Ok(region)
}

fn churn(options: &Options) -> Result<Option<Churn>, Failure> {
    if options.churn_bytes == 0 {
        return Ok(None);
    }
    let start = Instant::now();
    let Options { churn_bytes, clump_bytes, seed, .. } = *options;
    let churn = Churn::new(Path::new(system::WORK), churn_bytes, clump_bytes, seed)?;
    mark(format_args!(
        "churned bytes={} files={} kept={} seconds={:.3}",
        churn.bytes,
        churn.files,
        churn.kept_count(),
        start.elapsed().as_secs_f64()
    ));
    Ok(Some(churn))
}

fn inflate(options: &Options) -> Result<(), Failure> {
    let before = MemInfo::read()?;
    let start = Instant::now();
    let devices = balloon::load()?;
    mark(format_args!("balloon loaded devices={devices}"));
    let settled = balloon::settle(before, options.first, options.settle)?;
    mark(format_args!(
        "balloon settled mem_before={} mem_total={} seconds={:.3}",
        before.total_kib,
        settled.total_kib,
        start.elapsed().as_secs_f64()
    ));
    Ok(())
}

fn verify(regions: &mut [Region], passes: u64) -> Result<(), Failure> {
    for region in regions.iter_mut() {
        region.verify(Check::Read);
    }
    let pages: u64 = regions.iter().map(Region::page_count).sum();
    let bad: u64 = regions.iter().map(Region::bad_count).sum();
    mark(format_args!("verified pages={pages} bad={bad} passes={passes}"));
    if bad > 0 {
        return Err(Failure::new("damaged", format_args!("{bad} of {pages} pages are damaged")));
    }
    Ok(())
}

/// Verifies for ever, and says now and then that the guest is well. Between two looks it rests, or
/// stirs its memory up.
fn idle(regions: &mut [Region], options: &Options) {
    for round in 0.. {
        match options.stir_bytes {
            0 => thread::sleep(ALIVE),
            bytes => stir(bytes, options, round),
        }
        for region in regions.iter_mut() {
            region.verify(options.check);
        }
        mark(format_args!(
            "alive uptime={:.2} mem_total={} pages={} bad={}",
            system::uptime_seconds(),
            MemInfo::read().map_or(0, |info| info.total_kib),
            regions.iter().map(Region::page_count).sum::<u64>(),
            regions.iter().map(Region::bad_count).sum::<u64>()
        ));
    }
}

/// Writes files, deletes most of them, verifies the rest and deletes it, in a directory of its own.
/// A guest that has no room for them at the moment says so.
fn stir(bytes: u64, options: &Options, round: u64) {
    let directory = Path::new(system::WORK).join("stir");
    let seed = options.seed.wrapping_add(round).wrapping_add(1);
    let stirred = fs::create_dir_all(&directory)
        .map_err(|e| Failure::new("stir", format_args!("{}: {e}", directory.display())))
        .and_then(|()| Churn::new(&directory, bytes, options.clump_bytes, seed));
    match stirred {
        Ok(churn) => {
            let (files, bad) = (churn.kept_count(), churn.damaged_count());
            mark(format_args!("stirred round={round} bytes={bytes} files={files} bad={bad}"));
        }
        Err(failure) => {
            thread::sleep(REST);
            mark(format_args!("not stirred round={round}: {}", failure.detail));
        }
    }
    let _ = fs::remove_dir_all(&directory);
}
