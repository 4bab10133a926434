//! A small VMM on KVM that boots Linux on zerosweep's memory: an example to copy from.
//!
//! ```text
//! cargo run --release -p zerosweep-vmm-example -- --kernel vmlinuz --initrd initrd.img \
//!     --max-mem 512M --target 160M --vcpus 2 --cmdline "console=ttyS0 quiet"
//! ```
//!
//! The guest is an unmodified kernel of a distribution. It is told that it has `--max-mem`, and
//! holds `--target`: its balloon driver takes the rest while it runs. Its console is the standard
//! output. At the end a line of JSON with the figures goes to the standard error, or to a file.
//!
//! What is about zerosweep is in four files: [`ram`] makes the memory, [`vcpu`] names the threads
//! that may wait, [`balloon`] and [`target`] give pages back. The rest is what every VMM needs; each
//! file uses only those above it:
//!
//! | file | what |
//! | --- | --- |
//! | [`layout`] | guest physical addresses, ports, interrupts |
//! | [`virtio_mmio`] | a virtio device's registers |
//! | [`balloon`] | the balloon's queues and configuration |
//! | [`ram`] | guest memory, and what the balloon does with it |
//! | [`target`] | the target, and the size of the balloon |
//! | [`acpi`], [`boot`] | what the guest finds in its memory when it begins |
//! | [`devices`] | ports and addresses without memory |
//! | [`vcpu`] | virtual CPUs and their threads |
//! | [`commands`], [`figures`] | what people write and read |
//! | [`machine`] | all of it together |
//!
//! Known holes: no disk, no network, no input on the console; x86-64 only; the guest cannot restart
//! (a reset is an end).

#[cfg(target_arch = "x86_64")]
mod acpi;
#[cfg(target_arch = "x86_64")]
mod balloon;
#[cfg(target_arch = "x86_64")]
mod boot;
#[cfg(target_arch = "x86_64")]
mod commands;
#[cfg(target_arch = "x86_64")]
mod devices;
#[cfg(target_arch = "x86_64")]
mod figures;
#[cfg(target_arch = "x86_64")]
mod layout;
#[cfg(target_arch = "x86_64")]
mod machine;
#[cfg(target_arch = "x86_64")]
mod ram;
#[cfg(target_arch = "x86_64")]
mod target;
#[cfg(target_arch = "x86_64")]
mod vcpu;
#[cfg(target_arch = "x86_64")]
mod virtio_mmio;

#[cfg(target_arch = "x86_64")]
#[derive(clap::Parser)]
#[command(about = "Boots Linux under KVM on zerosweep's memory")]
struct Arguments {
    /// The kernel: a bzImage (vmlinuz)
    #[arg(long, value_name = "FILE")]
    kernel: std::path::PathBuf,
    /// The initramfs
    #[arg(long, value_name = "FILE")]
    initrd: Option<std::path::PathBuf>,
    /// The kernel's command line
    #[arg(long, value_name = "WORDS", default_value = "console=ttyS0 panic=-1")]
    cmdline: String,
    /// What the guest is told that it has, such as 512M
    #[arg(long, value_name = "SIZE", value_parser = commands::parse_size)]
    max_mem: u64,
    /// What it may hold; all of it unless given
    #[arg(long, value_name = "SIZE", value_parser = commands::parse_size)]
    target: Option<u64>,
    /// Virtual CPUs
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    vcpus: u8,
    /// Let the guest take pages from the balloon when it has no memory left
    #[arg(long)]
    deflate_on_oom: bool,
    /// Where the figures go at the end, instead of the standard error
    #[arg(long, value_name = "FILE")]
    figures: Option<std::path::PathBuf>,
}

#[cfg(target_arch = "x86_64")]
fn main() -> anyhow::Result<()> {
    use anyhow::Context as _;
    use clap::Parser as _;

    let arguments = Arguments::parse();
    let boot = boot::Boot {
        kernel: &arguments.kernel,
        initrd: arguments.initrd.as_deref(),
        command_line: &arguments.cmdline,
    };
    let options = machine::Options {
        max_mem: arguments.max_mem,
        target: arguments.target.unwrap_or(arguments.max_mem),
        vcpus: arguments.vcpus,
        deflate_on_oom: arguments.deflate_on_oom,
    };
    let figures = machine::Machine::new(&boot, &options)?.run()?;
    match &arguments.figures {
        Some(path) => std::fs::write(path, format!("{figures}\n"))
            .with_context(|| format!("writing {}", path.display()))?,
        None => eprintln!("{figures}"),
    }
    figures.audit().context("the recount found a difference")
}

#[cfg(not(target_arch = "x86_64"))]
fn main() -> anyhow::Result<()> {
    anyhow::bail!("the guest is a PC: this example needs x86-64")
}
