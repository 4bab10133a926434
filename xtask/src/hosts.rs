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

mod boot;
mod kernel;
mod packages;
mod record;
mod scenario;
mod system;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use zerosweep_lab::image::GuestImage;

use self::boot::Said;
use self::kernel::HostKernel;
use self::packages::Packages;
use self::record::{Cell, Host, Record};
use self::scenario::{Programs, SCENARIOS, Scenario, Step};
use self::system::{Qemu, System};
use crate::cargo::{self, CHECKED, Outcome, RELEASE, cargo, said_by};
use crate::machine;
use crate::need::{self, Need, Needs};
use crate::tests::program::{On, Program, Ran, build};

/// Series of kernels that releases of Debian have, and the oldest that zerosweep allows, which
/// Ubuntu 24.04 has.
const KERNELS: [&str; 10] =
    ["6.8", "6.12", "6.16", "6.17", "6.18", "6.19", "7.0", "7.1", "7.2", "7.3"];
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

/// A processor's architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arch {
    X86_64,
}

impl Arch {
    /// As Debian calls it.
    fn debian(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
        }
    }

    /// What follows the name of a package of this architecture.
    fn suffix(self) -> String {
        format!(":{}", self.debian())
    }

    fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
        }
    }

    fn qemu(self) -> &'static str {
        match self {
            Self::X86_64 => "qemu-system-x86_64",
        }
    }

    fn qemu_package(self) -> &'static str {
        match self {
            Self::X86_64 => "qemu-system-x86",
        }
    }

    fn strip(self) -> &'static str {
        match self {
            Self::X86_64 => "strip",
        }
    }

    /// A machine with virtualisation. QEMU 7.2's software CPU damages a host with several threads.
    fn machine(self) -> &'static [&'static str] {
        match self {
            Self::X86_64 => &["-accel", "tcg,thread=single", "-cpu", "EPYC,+svm,+npt"],
        }
    }

    /// The port for what steps say.
    fn results(self, file: &Path) -> [String; 2] {
        match self {
            Self::X86_64 => ["-serial".to_owned(), format!("file:{}", file.display())],
        }
    }

    /// That port, in the host.
    fn port(self) -> &'static str {
        match self {
            Self::X86_64 => "/dev/ttyS1",
        }
    }

    fn command_line(self) -> String {
        match self {
            Self::X86_64 => "console=ttyS0 quiet panic=-1 no_timer_check".to_owned(),
        }
    }
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
    let kernels = match options.kernel.is_empty() {
        true => KERNELS.map(str::to_owned).to_vec(),
        false => options.kernel.clone(),
    };
    let arch = Arch::X86_64;
    let began = Instant::now();
    let missing = need::obtain(&Needs::from([Need::Qemu, Need::GuestImage]));
    if let Some(missing) = missing.first() {
        bail!("hosts need {missing}");
    }
    let packages = Packages::open()?;
    let programs = programs(&scenarios)?;
    let steps = steps(&scenarios, &programs, &scenario::has)?;
    let (mut all_passed, mut hosts) = (true, 0);
    for qemu in qemus {
        let image = GuestImage::find()?;
        let system = System::pack(&packages, qemu, arch, &programs.files(), Some(&image))?;
        for series in &kernels {
            hosts += 1;
            if series == THIS {
                let root = qemu.root(&packages, arch)?;
                let host = Host { qemu: qemu.version.to_owned(), ..this_host()? };
                let cells = run_here(&host, &scenarios, &programs, &steps, Some(&root))?;
                all_passed &= cells.iter().all(|cell| cell.outcome.passed);
                keep(cells, options)?;
                continue;
            }
            let kernel = match HostKernel::get(&packages, series, arch) {
                Ok(kernel) => kernel,
                Err(error) => {
                    println!("Linux {series} is not available: {error:#}");
                    all_passed = false;
                    continue;
                }
            };
            let cells = run_on(&kernel, qemu, arch, &system, &steps, &scenarios)?;
            all_passed &= cells.iter().all(|cell| cell.outcome.passed);
            keep(cells, options)?;
        }
    }
    println!("\n{hosts} hosts in {} s", began.elapsed().as_secs());
    Ok(all_passed)
}

/// What `cargo xtask test` runs of all this where KVM has no processor's help: a guest under KVM in
/// a host with the kernel of Debian 13. `real_guest` and `zerosweep` were built before.
pub(crate) fn run_one(real_guest: &Program, zerosweep: &Path) -> Result<Ran> {
    let arch = Arch::X86_64;
    let (packages, qemu) = (Packages::open()?, Qemu::named("7.2")?);
    let kernel = HostKernel::get(&packages, "6.12", arch)?;
    let scenario = Scenario::named("guest")?;
    let programs = Programs::of(real_guest, zerosweep);
    let steps = steps(&[scenario], &programs, &scenario::has)?;
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
    let lines: String = steps.iter().map(Step::line).collect();
    let initramfs = system.initramfs(kernel, &scenario::settings(arch), &lines)?;
    let limit: Duration = steps.iter().map(|step| step.limit).sum();
    let log = log(&format!("{}-qemu-{}", kernel.version, qemu.version))?;
    let said = boot::boot(kernel, arch, &initramfs.path(), limit, &log);
    println!("Linux {}, QEMU {} ({} s):", kernel.version, qemu.version, began.elapsed().as_secs());
    let said = said.unwrap_or_else(|error| {
        println!("  it does not run: {error:#}");
        Vec::new()
    });
    let host = Host {
        arch: arch.name().to_owned(),
        kernel: kernel.version.clone(),
        qemu: qemu.version.to_owned(),
        on: "emulated".to_owned(),
    };
    let cells = cells(&host, scenarios, &said)?;
    if cells.iter().any(|cell| !cell.outcome.passed) {
        println!("  what it said is in {}", log.with_extension("results").display());
    }
    Ok(cells)
}

/// The cells of a host's row, which are printed.
fn cells(host: &Host, scenarios: &[&Scenario], said: &[Said]) -> Result<Vec<Cell>> {
    let (commit, date) = (commit()?, said_by("date", &["-u", "+%F"])?);
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
    let programs = programs(scenarios)?;
    let has = |need: Need| need.missing().is_none();
    let steps = steps(scenarios, &programs, &has)?;
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
    println!("kernels    {}", KERNELS.join(", "));
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
fn programs(scenarios: &[&Scenario]) -> Result<Programs> {
    let packages = ["zerosweep-cli", "zerosweep-agent", "zerosweep-vmm-example"];
    let packages = packages.iter().flat_map(|package| ["-p", package]);
    let release: Vec<_> = ["build", RELEASE].into_iter().chain(packages).collect();
    ensure!(cargo(&release, &[])? == Outcome::Passed, "the program does not build");
    let tests = |arguments: &[&str]| -> Result<Vec<(String, Program)>> {
        let arguments = [&CHECKED[..], arguments].concat();
        let programs = build(&arguments, On::Machine)?.context("tests do not build")?;
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
    let release = cargo::target().join("release");
    let (zerosweep, vmm) = (release.join("zerosweep"), Some(release.join("zerosweep-vmm-example")));
    Ok(Programs { zerosweep, vmm, linux, real_guest })
}

/// Where a host's output goes.
fn log(name: &str) -> Result<PathBuf> {
    let directory = cargo::target().join("hosts");
    fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    // Versions have dots: what follows the last one is not an extension.
    Ok(directory.join(format!("{name}.log")))
}

fn commit() -> Result<String> {
    let said = said_by("git", &["rev-parse", "--short", "HEAD"])?;
    let changed = said_by("git", &["status", "--porcelain", "--", "crates"])?;
    Ok(if changed.is_empty() { said } else { said + "-dirty" })
}
