//! Real hosts: kernels and QEMUs that people have, booted under QEMU's software CPU, which has
//! AMD's virtualisation with nested page tables; so KVM works in them.
//!
//! ```text
//! packages ─┬─ kernel ──┐
//!           └─ system ──┴─ boot ─ scenario ─ record
//! ```
//!
//! Nothing is installed but `mmdebstrap`: packages are unpacked below the cache directory. Times in
//! such a host say nothing. What is right or wrong there is so on a processor, as far as KVM and the
//! kernel go.

mod arch;
mod boot;
mod kernel;
mod packages;
mod record;
mod scenario;
mod system;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use zerosweep_lab::image::GuestImage;

use self::arch::Arch;
use self::boot::Said;
use self::kernel::HostKernel;
use self::packages::Packages;
use self::record::{Cell, Host, Record};
use self::scenario::{Programs, SCENARIOS, Scenario, Step};
use self::system::{Qemu, System};
use crate::cargo::{self, CHECKED, Outcome, RELEASE, cargo, said_by};
use crate::machine;
use crate::need::{self, Need, Needs};
use crate::tests::program::{Program, Ran, build};

/// The kernel that runs.
const THIS: &str = "this";
/// The scenarios of a run that names none.
const USUAL: [&str; 4] = ["doctor", "demo", "linux", "guest"];

/// What is to be run.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Series of kernels, such as 6.12; or `this`: the one that runs [default: all series]
    #[arg(long, value_name = "SERIES", value_delimiter = ',', value_parser = kernel::series)]
    kernel: Vec<String>,
    /// The processor
    #[arg(long, value_enum, value_delimiter = ',', default_value = "x86_64")]
    arch: Vec<Arch>,
    /// Versions of QEMU for the guests
    #[arg(long, value_name = "VERSION", value_delimiter = ',', default_value = "7.2")]
    qemu: Vec<String>,
    /// What to run [default: doctor, demo, linux, guest]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    scenario: Vec<String>,
    /// Run the scenarios on this machine, with its kernel, its QEMU and KVM, and write a file with
    /// what was seen, which can be sent in
    #[arg(long, conflicts_with_all = ["kernel", "qemu"])]
    here: bool,
    /// Add such a file to the record
    #[arg(long, value_name = "FILE", conflicts_with_all = ["kernel", "qemu", "scenario", "here"])]
    add: Option<PathBuf>,
    /// List kernels, QEMUs and scenarios, and do nothing
    #[arg(long)]
    list: bool,
    /// Do not change the record and the table in docs/hosts.md
    #[arg(long)]
    no_record: bool,
}

/// Runs the scenarios on the hosts. Returns whether all passed or were refused for a known reason.
pub(crate) fn run(options: &Options) -> Result<bool> {
    if options.list {
        list();
        return Ok(true);
    }
    if let Some(file) = &options.add {
        return add(file).map(|()| true);
    }
    if options.here {
        return here(&scenarios(&options.scenario)?);
    }
    ensure!(
        need::can_install(),
        "`cargo xtask hosts` needs root on Debian or Ubuntu: it unpacks packages of Debian's"
    );
    let scenarios = scenarios(&options.scenario)?;
    let qemus = options.qemu.iter().map(|name| Qemu::named(name)).collect::<Result<Vec<_>>>()?;
    let began = Instant::now();
    let packages = Packages::open()?;
    let mut done = Done { all_passed: true, hosts: 0 };
    for &arch in &options.arch {
        // What needs KVM is not run where there is none.
        let scenarios: Vec<_> = scenarios.iter().copied().filter(|s| s.is_for(arch)).collect();
        let kernels = match options.kernel.is_empty() {
            true => kernel::all(arch),
            false => options.kernel.clone(),
        };
        run_arch(arch, &packages, &qemus, &kernels, &scenarios, options, &mut done)?;
    }
    println!("\n{} hosts in {} s", done.hosts, began.elapsed().as_secs());
    Ok(done.all_passed)
}

/// What was run so far.
struct Done {
    all_passed: bool,
    hosts: u32,
}

impl Done {
    fn host(&mut self, cells: Vec<Cell>, options: &Options) -> Result<()> {
        self.all_passed &= cells.iter().all(|cell| cell.outcome.passed);
        keep(cells, options)
    }
}

/// Runs the scenarios on all hosts of one architecture.
fn run_arch(
    arch: Arch,
    packages: &Packages,
    qemus: &[Qemu],
    kernels: &[String],
    scenarios: &[&Scenario],
    options: &Options,
    done: &mut Done,
) -> Result<()> {
    let missing = need::obtain(&arch.needs().iter().copied().collect());
    if let Some(missing) = missing.first() {
        bail!("hosts need {missing}");
    }
    arch.get_emulator()?;
    let programs = programs(scenarios, arch)?;
    let in_host = steps(scenarios, &programs, &|need| arch.has(need))?;
    let image = arch.has_kvm().then(GuestImage::find).transpose()?;
    for &qemu in qemus {
        let system = System::pack(packages, qemu, arch, &programs.files(), image.as_ref())?;
        for series in kernels {
            done.hosts += 1;
            let cells = if series == THIS {
                let root = qemu.root(packages, arch)?;
                let host = Host { qemu: qemu.version.to_owned(), ..this_host()? };
                // A browser is not in that root.
                let has = |need| need != Need::Chromium && is_here(need);
                let steps = steps(scenarios, &programs, &has)?;
                run_here(&host, scenarios, &programs, &steps, Some(&root))?
            } else {
                match HostKernel::get(packages, series, arch) {
                    Ok(kernel) => run_on(&kernel, qemu, arch, &system, &in_host, scenarios)?,
                    Err(error) => {
                        println!("Linux {series} is not available: {error:#}");
                        done.all_passed = false;
                        continue;
                    }
                }
            };
            done.host(cells, options)?;
        }
    }
    Ok(())
}

/// What `cargo xtask test` runs of all this where KVM has no processor's help: a guest under KVM in
/// a host with the kernel of Debian 13. `real_guest` and `zerosweep` were built before.
pub(crate) fn run_one(real_guest: &Program, zerosweep: &Path) -> Result<Ran> {
    let arch = Arch::X86_64;
    let (packages, qemu) = (Packages::open()?, Qemu::named("7.2")?);
    let kernel = HostKernel::get(&packages, "6.12", arch)?;
    let scenario = Scenario::named("guest")?;
    let programs = Programs::of(real_guest, zerosweep);
    let steps = steps(&[scenario], &programs, &|need| arch.has(need))?;
    let image = GuestImage::find()?;
    let system = System::pack(&packages, qemu, arch, &programs.files(), Some(&image))?;
    let began = Instant::now();
    let cells = run_on(&kernel, qemu, arch, &system, &steps, &[scenario])?;
    let failed = cells.iter().filter(|cell| !cell.outcome.passed).count() as u64;
    let passed = cells.len() as u64 - failed;
    Ok(Ran { passed, failed, failures: Vec::new(), time: began.elapsed() })
}

/// Adds cells to the record, which another run may have changed meanwhile.
fn keep(cells: Vec<Cell>, options: &Options) -> Result<()> {
    if options.no_record {
        return Ok(());
    }
    let mut record = Record::read()?;
    cells.into_iter().for_each(|cell| record.add(cell));
    record.write()
}

/// How often a host is booted until all of its steps have come to an end. A run of many steps needs
/// several boots where an emulated host stands still now and then.
const BOOTS: u32 = 10;
/// How often a host may stand still at one step, or not come to its first.
const TRIES: u32 = 3;

/// Boots one host, and prints what its steps came to.
fn run_on(
    kernel: &HostKernel,
    qemu: Qemu,
    arch: Arch,
    system: &System,
    steps: &[Step],
    scenarios: &[&Scenario],
) -> Result<Vec<Cell>> {
    let began = Instant::now();
    let limit = |name: &str| {
        let step = steps.iter().find(|step| step.name == name);
        step.map_or(Duration::ZERO, |step| step.limit)
    };
    let mut pending: Vec<_> = steps.iter().collect();
    let mut said = Vec::new();
    let mut logs = Vec::new();
    let (mut stood, mut failed) = (HashMap::new(), 0);
    for boot in 1..=BOOTS {
        let lines: String = pending.iter().map(|step| step.line()).collect();
        let initramfs = system.initramfs(kernel, &scenario::settings(arch), &lines)?;
        let log = log(&format!("{}-qemu-{}-{boot}", kernel.version, qemu.version))?;
        logs.push(log.with_extension("results").display().to_string());
        match boot::boot(kernel, arch, &initramfs.path(), &limit, &log) {
            Ok(ran) => {
                for ran in ran {
                    // An emulated host may stand still, whatever runs in it.
                    if ran.status == boot::CUT_OFF {
                        println!("  the host stood still at {}", ran.step);
                        let times = stood.entry(ran.step.clone()).or_insert(0);
                        *times += 1;
                        if *times < TRIES {
                            continue;
                        }
                    }
                    pending.retain(|step| step.name != ran.step);
                    said.push(ran);
                }
            }
            Err(error) => {
                println!("  it does not run: {error:#}");
                failed += 1;
            }
        }
        if pending.is_empty() || failed == TRIES {
            break;
        }
    }
    // A scenario has not passed when only some of its steps were run.
    said.extend(pending.iter().map(|step| Said::cut_off(&step.name)));
    println!("Linux {}, QEMU {} ({} s):", kernel.version, qemu.version, began.elapsed().as_secs());
    let host = Host {
        arch: arch.name().to_owned(),
        kernel: kernel.version.clone(),
        qemu: qemu.version.to_owned(),
        on: "emulated".to_owned(),
    };
    let cells = cells(&host, scenarios, &said)?;
    if cells.iter().any(|cell| !cell.outcome.passed) {
        println!("  what it said is in {}", logs.join(", "));
    }
    Ok(cells)
}

/// The cells of a host's row, which are printed.
fn cells(host: &Host, scenarios: &[&Scenario], said: &[Said]) -> Result<Vec<Cell>> {
    let (commit, date) = (commit(), said_by("date", &["-u", "+%F"])?);
    let cell = |scenario: &&Scenario| {
        let outcome = scenario.outcome(said).unwrap_or_else(|| record::Outcome {
            passed: false,
            detail: "was not reached".to_owned(),
            seconds: 0.0,
            figures: Vec::new(),
        });
        let verdict = if outcome.passed { "passed" } else { "FAILED" };
        let (name, seconds, detail) = (scenario.name, outcome.seconds, &outcome.detail);
        println!("  {verdict}  {name:<8} {seconds:>6.1} s  {detail}");
        let (scenario, host) = (name.to_owned(), host.clone());
        Cell { host, scenario, outcome, commit: commit.clone(), date: date.clone() }
    };
    Ok(scenarios.iter().map(cell).collect())
}

/// Runs the scenarios on this machine.
fn here(scenarios: &[&Scenario]) -> Result<bool> {
    let needs = Needs::from([Need::Qemu, Need::GuestImage, Need::Userfaultfd, Need::HardwareKvm]);
    let missing = need::obtain(&needs);
    if !missing.is_empty() {
        let all: Vec<_> = missing.iter().map(|missing| format!("\n  {missing}")).collect();
        bail!("this machine cannot show everything:{}", all.concat());
    }
    let programs = programs(scenarios, Arch::X86_64)?;
    let steps = steps(scenarios, &programs, &is_here)?;
    let host = this_host()?;
    let cells = run_here(&host, scenarios, &programs, &steps, None)?;
    let passed = cells.iter().all(|cell| cell.outcome.passed);
    let mut record = Record::default();
    cells.into_iter().for_each(|cell| record.add(cell));
    let file = log(&host.on)?.with_extension("json");
    record.write_to(&file)?;
    println!("the figures are in {}: `cargo xtask hosts --add` takes them", file.display());
    Ok(passed)
}

/// Whether this machine has it.
fn is_here(need: Need) -> bool {
    need.missing().is_none()
}

/// This machine, with its own QEMU.
fn this_host() -> Result<Host> {
    let version = said_by("qemu-system-x86_64", &["--version"])?;
    let version = version.split_whitespace().nth(3).unwrap_or("unknown").to_owned();
    Ok(Host {
        arch: std::env::consts::ARCH.to_owned(),
        kernel: machine::kernel(),
        qemu: version,
        on: machine::slug(),
    })
}

/// Runs steps on this machine: in a root with another QEMU, if there is one.
fn run_here(
    host: &Host,
    scenarios: &[&Scenario],
    programs: &Programs,
    steps: &[Step],
    root: Option<&Path>,
) -> Result<Vec<Cell>> {
    let log = log(&format!("{}-qemu-{}", host.kernel, host.qemu))?.with_extension("results");
    let mut text = String::new();
    let mut said = Vec::new();
    for step in steps {
        println!("{}", step.name);
        let ran = step.run_here(programs, root)?;
        text += &format!("@ {}: exit status {}\n{}\n", step.name, ran.status, ran.text);
        fs::write(&log, &text).with_context(|| format!("writing {}", log.display()))?;
        said.push(ran);
    }
    println!("Linux {}, QEMU {}, {}:", host.kernel, host.qemu, host.on);
    let cells = cells(host, scenarios, &said)?;
    if cells.iter().any(|cell| !cell.outcome.passed) {
        println!("  what it said is in {}", log.display());
    }
    Ok(cells)
}

/// Adds what was seen on somebody's machine.
fn add(file: &Path) -> Result<()> {
    let mut record = Record::read()?;
    for cell in Record::read_from(file)?.into_cells() {
        record.add(cell);
    }
    record.write()
}

fn steps(
    scenarios: &[&Scenario],
    programs: &Programs,
    has: &dyn Fn(Need) -> bool,
) -> Result<Vec<Step>> {
    let mut steps = Vec::new();
    for scenario in scenarios {
        steps.extend(scenario.steps(programs, has)?);
    }
    Ok(steps)
}

fn list() {
    println!("kernels    {}", kernel::all(Arch::X86_64).join(", "));
    println!("QEMU       {}", system::versions().join(", "));
    for scenario in &SCENARIOS {
        println!("scenario   {:<8} {}", scenario.name, scenario.about);
    }
}

fn scenarios(names: &[String]) -> Result<Vec<&'static Scenario>> {
    match names.is_empty() {
        true => USUAL.iter().map(|name| Scenario::named(name)).collect(),
        false => names.iter().map(|name| Scenario::named(name)).collect(),
    }
}

/// Builds what hosts run.
fn programs(scenarios: &[&Scenario], arch: Arch) -> Result<Programs> {
    let mut packages = vec!["-p", "zerosweep-cli", "-p", "zerosweep-agent"];
    if arch.has_kvm() {
        packages.extend(["-p", "zerosweep-vmm-example"]);
    }
    let (target, variables) = arch.cargo();
    let release = [&["build", RELEASE], &packages[..], &target].concat();
    ensure!(cargo(&release, variables)? == Outcome::Passed, "the program does not build");
    let tests = |arguments: &[&str]| -> Result<Vec<(String, Program)>> {
        let arguments = [&CHECKED[..], arguments].concat();
        let programs = build(&arguments, arch.on())?.context("tests do not build")?;
        let named = |program: Program| (program.file_name(), program);
        Ok(programs.into_iter().map(named).collect())
    };
    let linux = match scenarios.iter().any(|scenario| scenario.name == "linux") {
        true => tests(&["-p", "zerosweep-linux", "--lib", "--tests"])?,
        false => Vec::new(),
    };
    let real_guest = match scenarios.iter().any(|scenario| scenario.has_real_guests()) {
        true => tests(&["-p", "zerosweep-cli", "--test", "real_guest"])?.pop(),
        false => None,
    };
    let release = cargo::target().join(arch.release());
    let vmm = arch.has_kvm().then(|| release.join("zerosweep-vmm-example"));
    Ok(Programs { zerosweep: release.join("zerosweep"), vmm, linux, real_guest })
}

/// Where a host's output goes.
fn log(name: &str) -> Result<PathBuf> {
    let directory = cargo::target().join("hosts");
    fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    // Versions have dots: what follows the last one is not an extension.
    Ok(directory.join(format!("{name}.log")))
}

/// The commit that is built; `unknown` where git cannot tell.
fn commit() -> String {
    let Ok(said) = said_by("git", &["rev-parse", "--short", "HEAD"]) else {
        return "unknown".to_owned();
    };
    match said_by("git", &["status", "--porcelain", "--", "crates"]) {
        Ok(changed) if changed.is_empty() => said,
        _ => said + "-dirty",
    }
}
