//! How much memory a guest holds, many times a second.
//!
//! ```text
//! held = the cgroup's usage − files' pages − the kernel's own − the VMM's own anonymous memory
//! ```
//!
//! The VMM's own is the sum of `Anonymous` in `/proc/PID/smaps` over all mappings but two: guest
//! RAM and zerosweep's pool, between which pages move. Both are known by their exact sizes. So
//! no sum is taken over the pages that move, and what the kernel keeps behind half-discarded huge
//! pages counts as held. zerosweep's tables and buffers count as the VMM's own, and show there.
//!
//! The VMM's own grows while QEMU translates code, so it is read before and after each look at the
//! usage: held lies between `low` (the larger one subtracted) and `high` (the smaller one). Further
//! errors: the kernel charges in batches (up to 256 KiB a CPU too much), and a page under
//! construction is charged before it is mapped (2 MiB too much for a moment, also for a page that
//! is not the guest's).

use std::fs;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use zerosweep::SUPERPAGE_BYTES;
use zerosweep_linux::GuestMemory;

use super::account::Account;
use super::cgroup::Charge;

/// Between two looks: some 100 a second.
const REST: Duration = Duration::from_millis(8);
/// The most that the VMM's own may grow, in bytes, during a look that counts as exact.
const STEADY_BYTES: u64 = 64 << 10;

/// Addresses of zerosweep's pool, in bytes.
const fn pool_bytes(guest_bytes: u64) -> u64 {
    GuestMemory::superslots(guest_bytes) * SUPERPAGE_BYTES
}

/// One look.
#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Instant,
    /// What is held at least.
    low: u64,
    /// What is held at most.
    high: u64,
}

/// Everything that was seen.
#[derive(Debug, Default)]
pub struct Held {
    samples: Vec<Sample>,
    /// Highest anonymous memory of the VMM's own.
    pub own_peak: u64,
    /// Highest memory of the kernel's own for the VMM: page tables.
    pub kernel_peak: u64,
    /// The highest usage by the kernel's own account: the VMM's, the kernel's and files included.
    pub usage_peak: Option<u64>,
    /// Huge pages in guest RAM at the last look.
    pub superpages: u64,
    /// Bytes of guest RAM with a frame of their own at the last look, huge pages included.
    pub guest_anonymous: u64,
    guest_bytes: u64,
    guest: Option<Range<u64>>,
    pool: Option<Range<u64>>,
}

impl Held {
    /// The highest figure that is certain, until `until`.
    #[must_use]
    pub fn peak(&self, until: Option<Instant>) -> u64 {
        let within = |sample: &&Sample| until.is_none_or(|until| sample.at <= until);
        self.samples.iter().filter(within).map(|sample| sample.low).max().unwrap_or(0)
    }

    /// The figure of the last look.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.samples.last().map_or(0, |sample| sample.low)
    }

    fn steady(&self) -> usize {
        let is_steady = |sample: &&Sample| sample.high - sample.low <= STEADY_BYTES;
        self.samples.iter().filter(is_steady).count()
    }

    /// Looks a second.
    fn rate(&self) -> f64 {
        let (Some(first), Some(last)) = (self.samples.first(), self.samples.last()) else {
            return 0.0;
        };
        (self.samples.len() - 1) as f64 / (last.at - first.at).as_secs_f64().max(1e-3)
    }

    /// Whether the figures can be believed.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, managed: bool) -> Result<(), String> {
        if self.guest.is_none() {
            return Err("guest RAM was not found among the VMM's mappings".into());
        }
        if self.pool.is_some() != managed {
            let found = if managed { "was not found" } else { "is" };
            return Err(format!("zerosweep's pool {found} among the VMM's mappings"));
        }
        let (count, steady) = (self.samples.len(), self.steady());
        if count <= 50 {
            return Err(format!("only {count} looks at the memory held"));
        }
        if 2 * steady <= count {
            return Err(format!("only {steady} of {count} looks are exact: QEMU's own grew"));
        }
        Ok(())
    }

    /// For people.
    #[must_use]
    pub fn summary(&self) -> String {
        let gaps = self.samples.windows(2).map(|pair| pair[1].at - pair[0].at);
        format!(
            "held: peak {:.1} MiB, last {:.1}; {} looks ({} exact), {:.0} a second, longest gap \
             {:.0} ms; VMM's own up to {:.1} MiB, kernel's {:.1}; usage of all together never above \
             {}",
            mib(self.peak(None)),
            mib(self.last()),
            self.samples.len(),
            self.steady(),
            self.rate(),
            gaps.max().unwrap_or_default().as_secs_f64() * 1e3,
            mib(self.own_peak),
            mib(self.kernel_peak),
            self.usage_peak.map_or("(not known)".to_owned(), |peak| format!("{:.1}", mib(peak))),
        )
    }
}

/// A thread that looks until it is finished.
#[derive(Debug)]
pub struct Sampler {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Held>>,
}

impl Sampler {
    /// Looks at the VMM of a guest that is told that it has `guest_bytes`.
    #[must_use]
    pub fn start(account: &Arc<Account>, guest_bytes: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, account) = (Arc::clone(&stop), Arc::clone(account));
        let thread = std::thread::spawn(move || look(&account, guest_bytes, &stopped));
        Self { stop, thread: Some(thread) }
    }

    /// Ends the looking. The VMM should still be running.
    #[must_use]
    pub fn finish(mut self) -> Held {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn look(account: &Account, guest_bytes: u64, stop: &AtomicBool) -> Held {
    let mut held = Held { guest_bytes, ..Held::default() };
    let mut pending: Option<(Instant, u64, Charge)> = None;
    while !stop.load(Ordering::Relaxed) {
        // A process that ends shows no mappings before its memory is gone: no look then.
        let own = own_anonymous(account, &mut held);
        if let (Some((at, before, charge)), Some(after)) = (pending, own) {
            let held_with = |own: u64| charge.anonymous().saturating_sub(own);
            let (low, high) = (held_with(before.max(after)), held_with(before.min(after)));
            held.samples.push(Sample { at, low, high });
            held.own_peak = held.own_peak.max(after);
            held.kernel_peak = held.kernel_peak.max(charge.kernel);
        }
        pending = own.and_then(|own| Some((Instant::now(), own, account.charge()?)));
        std::thread::sleep(REST);
    }
    held.usage_peak = account.peak();
    held
}

/// Anonymous memory of the VMM's own, in bytes; nothing while there is no VMM.
fn own_anonymous(account: &Account, held: &mut Held) -> Option<u64> {
    let process = account.process()?;
    let smaps = fs::read(format!("/proc/{process}/smaps")).ok()?;
    sum(std::str::from_utf8(&smaps).ok()?, held)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    Vmm,
    Guest,
    Pool,
}

fn sum(smaps: &str, held: &mut Held) -> Option<u64> {
    let mut owner = None;
    let (mut own_kib, mut huge_kib, mut guest_kib) = (0, 0, 0);
    for line in smaps.lines() {
        if let Some(range) = mapping(line) {
            let bytes = range.end - range.start;
            if bytes == held.guest_bytes && held.guest.is_none() {
                held.guest = Some(range.clone());
            }
            if bytes == pool_bytes(held.guest_bytes) && held.pool.is_none() {
                held.pool = Some(range.clone());
            }
            // A part of a mapping that was split belongs to the same owner.
            let is_in = |known: &Option<Range<u64>>| {
                known.as_ref().is_some_and(|k| k.start <= range.start && range.end <= k.end)
            };
            owner = Some(if is_in(&held.guest) {
                Owner::Guest
            } else if is_in(&held.pool) {
                Owner::Pool
            } else {
                Owner::Vmm
            });
        } else if owner == Some(Owner::Vmm) {
            own_kib += field_kib(line, "Anonymous:").unwrap_or(0);
        } else if owner == Some(Owner::Guest) {
            huge_kib += field_kib(line, "AnonHugePages:").unwrap_or(0);
            guest_kib += field_kib(line, "Anonymous:").unwrap_or(0);
        }
    }
    owner?;
    held.guest_anonymous = guest_kib << 10;
    held.superpages = (huge_kib << 10) / SUPERPAGE_BYTES;
    Some(own_kib << 10)
}

/// The addresses of a mapping's first line.
fn mapping(line: &str) -> Option<Range<u64>> {
    // The names of fields begin with capitals.
    if !line.starts_with(|c: char| c.is_ascii_digit() || c.is_ascii_lowercase()) {
        return None;
    }
    let (start, end) = line.split(' ').next()?.split_once('-')?;
    let address = |text| u64::from_str_radix(text, 16).ok();
    Some(address(start)?..address(end)?)
}

/// Bytes in MiB, for people.
fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1 << 20) as f64
}

fn field_kib(line: &str, name: &str) -> Option<u64> {
    line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mappings_that_are_neither_guest_ram_nor_pool_are_the_vmms() {
        let smaps = "7f0000000000-7f0080000000 rw-p 00000000 00:00 0\n\
                     Anonymous:        1000 kB\nAnonHugePages:     4096 kB\n\
                     7f0080000000-7f0188000000 rw-p 00000000 00:00 0\nAnonymous:        2000 kB\n\
                     7f0200000000-7f0200001000 rw-p 00000000 00:00 0   [heap]\n\
                     Size:                4 kB\nAnonymous:           4 kB\n";
        let mut held = Held { guest_bytes: 2 << 30, ..Held::default() };
        assert_eq!(sum(smaps, &mut held), Some(4096));
        assert_eq!((held.superpages, held.guest_anonymous), (2, 1000 << 10));
        assert_eq!(pool_bytes(2 << 30), 4224 << 20);
        let split = smaps.replace("7f0000000000-7f0080000000", "7f0000000000-7f0070000000");
        assert_eq!(sum(&split, &mut held), Some(4096));
        assert_eq!(sum("", &mut held), None);
    }
}
