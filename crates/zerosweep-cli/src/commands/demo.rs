//! `zerosweep demo`: the main job, with nothing to install.
//!
//! A guest that scrubs all of its memory boots with a quarter of it and balloons down, under no
//! policy, under today's Xen's and under ours. On real memory where userfaultfd allows, else on the
//! software machine; with `--guest qemu` it is a real Linux.

mod qemu;

use std::fmt::Write as _;
use std::ops::ControlFlow;
use std::process::ExitCode;

use zerosweep::Policy;
use zerosweep_client::error::Failure;
use zerosweep_client::output;
use zerosweep_client::size::{PAGE_BYTES, Size};
use zerosweep_lab::cost::CostModel;
use zerosweep_lab::guest::{DEFAULT_SEED, Guest};
use zerosweep_lab::host::HostFacts;
use zerosweep_lab::result::{Outcome, Report, Run, SCHEMA, TimeKind};
use zerosweep_lab::run::{Experiment, on_linux, on_software};
use zerosweep_linux::AdoptError;

use crate::cli::{DemoArguments, DemoGuest};
use crate::map::LiveMap;

const POLICIES: [Policy; 3] = [Policy::None, Policy::Xen2016, Policy::Zerosweep];
const GUEST: &str = "scrub:dirty_percent=5,clustered";

/// Runs the demo.
pub(super) fn execute(arguments: &DemoArguments) -> Result<ExitCode, Failure> {
    if arguments.guest == DemoGuest::Qemu {
        return qemu::execute(arguments);
    }
    let (max_mem, target) = sizes(arguments, 1 << 30)?;
    let mut demo = Demo {
        max_mem,
        target,
        say: Narrator { quiet: arguments.json },
        map: LiveMap::new(arguments.json),
        instead: None,
    };
    demo.introduce();
    let mut runs = Vec::new();
    for policy in POLICIES {
        runs.push(demo.run(policy)?);
    }
    if arguments.json {
        output::json(&Report { schema: SCHEMA, host: HostFacts::read(), runs })?;
    } else {
        output::text(&comparison(&runs, demo.instead.as_deref()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What the guest has and may hold, checked.
fn sizes(arguments: &DemoArguments, max_mem: u64) -> Result<(Size, Size), Failure> {
    let max_mem = arguments.max_mem.unwrap_or(Size(max_mem));
    let quarter = Size(max_mem.0 / 4 / PAGE_BYTES * PAGE_BYTES);
    let target = arguments.target.unwrap_or(quarter);
    let whole_pages = |size: Size| size.0.is_multiple_of(PAGE_BYTES);
    if !whole_pages(max_mem) || !whole_pages(target) {
        return Err(Failure::usage("--max-mem and --target are multiples of 4K"));
    }
    if target.0 == 0 || target > max_mem {
        return Err(Failure::usage(format!(
            "--target is {target}, but must be more than 0 and at most --max-mem, {max_mem}"
        )));
    }
    Ok((max_mem, target))
}

/// Reports the progress to people, on standard error. Programs get one document and nothing else.
struct Narrator {
    quiet: bool,
}

impl Narrator {
    fn line(&self, line: impl std::fmt::Display) {
        if !self.quiet {
            eprintln!("{line}");
        }
    }
}

struct Demo {
    max_mem: Size,
    target: Size,
    say: Narrator,
    map: LiveMap,
    /// Why it is not real memory.
    instead: Option<String>,
}

impl Demo {
    fn introduce(&self) {
        self.say.line(format_args!(
            "A guest is told that it has {} and may hold {}. It scrubs all of its memory\n\
             (5 % of its superpages stay dirty), then its balloon gives the rest back in 4K pages.\n",
            self.max_mem, self.target
        ));
    }

    fn run(&mut self, policy: Policy) -> Result<Run, Failure> {
        let guest: Guest = GUEST.parse().map_err(Failure::work)?;
        let cpus = std::thread::available_parallelism().map_or(1, |n| n.get().min(4)) as u32;
        let experiment = Experiment {
            guest,
            policy,
            max_mem_bytes: self.max_mem.0,
            target_bytes: self.target.0,
            vcpus: cpus,
            seed: DEFAULT_SEED,
            costs: CostModel::default(),
            timeline: false,
            events: None,
        };
        let title = format!("policy {policy}");
        let map = &mut self.map;
        let mut watch = |letters: &[u8]| {
            map.draw(&title, letters);
            ControlFlow::Continue(())
        };
        let run = if self.instead.is_none() {
            match on_linux(&experiment, &mut watch) {
                Err(error) if error.is::<AdoptError>() => {
                    let reason = format!("{error:#}");
                    self.say.line(format_args!(
                        "Real memory cannot be used here: {reason}.\n\
                         The demo runs on the software machine instead; its times are \
                         modelled.\n`zerosweep doctor` says more.\n"
                    ));
                    self.instead = Some(reason);
                    None
                }
                other => Some(other),
            }
        } else {
            None
        };
        let run = run.unwrap_or_else(|| {
            // One virtual CPU there: its result depends on nothing but the seed.
            let experiment = Experiment { vcpus: 1, ..experiment };
            on_software(&experiment, &mut watch)
        });
        self.map.keep();
        let run = run.map_err(|error| Failure::work(format!("policy {policy}: {error:#}")))?;
        self.say.line(format_args!("  {}\n", sentence(&run)));
        Ok(run)
    }
}

fn sentence(run: &Run) -> String {
    let verb = match run.time_kind {
        TimeKind::Measured => "took",
        TimeKind::Modelled => "would take (modelled)",
    };
    match run.outcome {
        Outcome::Ok => format!(
            "booted and ballooned; it {verb} {:.2} s and {:.2} s, and never held more than {}",
            run.boot_seconds,
            run.balloon_seconds,
            Size(run.peak_total_bytes).rounded()
        ),
        Outcome::Exhausted | Outcome::Stalled | Outcome::Killed => format!(
            "did not boot: all of its {} were in use, and no zero page was found",
            Size(run.target_bytes).rounded()
        ),
    }
}

/// A table of at most 80 columns.
fn comparison(runs: &[Run], instead: Option<&str>) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "{:10} {:>8} {:>8} {:>9} {:>9} {:>9} {:>9} {:>8}",
        "policy", "boot s", "balloon", "2M pops", "4K pops", "whole in", "whole in", "scanned"
    );
    let _ = writeln!(
        text,
        "{:10} {:>8} {:>8} {:>9} {:>9} {:>9} {:>9} {:>8}",
        "", "", "s", "", "", "guest", "cache", ""
    );
    for run in runs {
        let _ = match run.outcome {
            Outcome::Ok => writeln!(
                text,
                "{:10} {:>8.2} {:>8.2} {:>9} {:>9} {:>9} {:>9} {:>8}",
                run.policy,
                run.boot_seconds,
                run.balloon_seconds,
                run.engine.populates_2m,
                run.engine.populates_4k,
                run.superpages_in_guest,
                run.superpages_in_cache,
                Size(run.engine.bytes_scanned).rounded()
            ),
            _ => writeln!(text, "{:10} did not boot: out of memory", run.policy),
        };
    }
    let machine = match instead {
        None => "real memory through userfaultfd; times are measured",
        Some(_) => "the software machine, because userfaultfd is not allowed; times modelled",
    };
    let _ = writeln!(text, "\n{machine}");
    text
}
