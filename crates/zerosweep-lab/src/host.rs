//! What the kernel says of this host and of its processes.

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
        let cpu = CpuInfo::current().ok().and_then(|cpus| Some(cpus.model_name(0)?.to_owned()));
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
    fn the_kernel_knows_this_host_and_this_process() {
        let facts = HostFacts::read();
        assert!(facts.memory_bytes > 64 << 20 && facts.cpus > 0, "{facts:?}");
        assert!(facts.kernel.starts_with(|c: char| c.is_ascii_digit()), "{facts:?}");
        assert!(available_bytes().is_some_and(|bytes| bytes <= facts.memory_bytes));
        assert!(rss_anon_bytes(std::process::id()).is_some_and(|bytes| bytes > 4096));
        assert_eq!(rss_anon_bytes(u32::MAX), None);
    }
}
