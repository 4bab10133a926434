//! What the kernel says of this host and of its processes.

use std::collections::HashMap;

use procfs::process::Process;
use procfs::{CpuInfo, Current as _, Meminfo};
use serde::{Deserialize, Serialize};

/// The machine that runs took place on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    /// `uname -r`.
    pub kernel: String,
    /// `uname -m`.
    pub architecture: String,
    /// Model of the processor.
    pub cpu: String,
    /// Processors that this process may use.
    pub cpus: u32,
    /// Memory, in bytes.
    pub memory_bytes: u64,
    /// Version of zerosweep.
    pub zerosweep: String,
}

impl HostFacts {
    /// Asks the kernel. A fact that it does not report stays empty.
    #[must_use]
    pub fn read() -> Self {
        let memory = Meminfo::current().map_or(0, |meminfo| meminfo.mem_total);
        let cpu = CpuInfo::current().ok().and_then(|cpus| model_of(cpus.cpus.first()?));
        Self {
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            architecture: std::env::consts::ARCH.to_owned(),
            cpu: cpu.unwrap_or_default(),
            cpus: std::thread::available_parallelism().map_or(1, |n| n.get() as u32),
            memory_bytes: memory,
            zerosweep: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// Its name; on aarch64, where the kernel has numbers for it only, the numbers.
fn model_of(cpu: &HashMap<String, String>) -> Option<String> {
    cpu.get("model name").cloned().or_else(|| {
        let (implementer, part) = (cpu.get("CPU implementer")?, cpu.get("CPU part")?);
        Some(format!("implementer {implementer}, part {part}"))
    })
}

/// Returns the bytes that the kernel says new programs can have (`MemAvailable`).
#[must_use]
pub fn available_bytes() -> Option<u64> {
    Meminfo::current().ok()?.mem_available
}

/// Returns the bytes of anonymous memory that a process has (`RssAnon`). `None` if there is no such
/// process.
#[must_use]
pub fn rss_anon_bytes(process: u32) -> Option<u64> {
    let process = Process::new(process.try_into().ok()?).ok()?;
    Some(process.status().ok()?.rssanon? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_without_a_name_has_numbers() {
        let cpu = |fields: &[(&str, &str)]| {
            let own = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
            model_of(&fields.iter().map(own).collect())
        };
        assert_eq!(cpu(&[("model name", "EPYC")]).as_deref(), Some("EPYC"));
        let numbers = cpu(&[("CPU implementer", "0x41"), ("CPU part", "0xd0c")]);
        assert_eq!(numbers.as_deref(), Some("implementer 0x41, part 0xd0c"));
        assert_eq!(cpu(&[]), None);
    }

    #[test]
    fn the_kernel_knows_this_host_and_this_process() {
        let facts = HostFacts::read();
        assert!(facts.memory_bytes > 64 << 20 && facts.cpus > 0, "{facts:?}");
        assert!(facts.kernel.starts_with(|c: char| c.is_ascii_digit()), "{facts:?}");
        assert!(available_bytes().is_some_and(|bytes| bytes <= facts.memory_bytes));
        assert!(rss_anon_bytes(std::process::id()).is_some_and(|bytes| bytes > 4096));
        assert_eq!(rss_anon_bytes(u32::MAX), None);
    }
}
