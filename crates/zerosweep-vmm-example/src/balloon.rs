//! The balloon: what its queues ask for, and its configuration.
//!
//! Everything in a queue was written by the guest. A page that is no memory, an odd length and a
//! buffer outside of memory are counted and left out; a ring that makes no sense is an error, after
//! which the device asks for a reset.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use virtio_queue::{DescriptorChain, Error, Queue, QueueOwnedT as _, QueueT as _};
use vm_memory::{Address as _, Bytes as _, GuestAddress, GuestMemory};
use zerosweep_linux::PAGE_BYTES;

use crate::virtio_mmio::Device;

/// The driver may deflate by itself when the guest has no memory left.
const DEFLATE_ON_OOM: u32 = 2;
/// The driver reports free pages.
const REPORTING: u32 = 5;

/// The most bytes of page numbers that one chain may have: Linux sends 1 KiB.
const CHAIN_BYTES: u32 = 64 << 10;
/// Page numbers that are read from memory at a time.
const NUMBERS: usize = 256;

/// What the guest's pages are taken from.
pub(crate) trait Pages {
    /// The guest gives this page back. Returns `false` if it is no memory.
    fn inflate(&self, page: GuestAddress) -> bool;
    /// The guest takes this page again. Returns `false` if it is no memory.
    fn deflate(&self, page: GuestAddress) -> bool;
    /// The guest does not need the content of these pages, whose address and length are multiples
    /// of 4 KiB. Returns `false` if they are no memory.
    fn report(&self, start: GuestAddress, bytes: u64) -> bool;
}

/// What a queue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Numbers of pages that are given back.
    Inflate,
    /// Numbers of pages that are taken again.
    Deflate,
    /// Free pages.
    Report,
}

impl Role {
    /// The role of each queue. The specification numbers the reporting queue 4 even if there are no
    /// queues 2 and 3 (statistics and hints, which this device does not have); Linux takes the next
    /// free number.
    pub(crate) const OF_QUEUE: [Self; 5] =
        [Self::Inflate, Self::Deflate, Self::Report, Self::Report, Self::Report];
}

/// The balloon's configuration, and what it has done. Both sides read and write it at any time.
#[derive(Debug, Default)]
pub(crate) struct Balloon {
    deflate_on_oom: bool,
    /// Pages that the driver shall take from the guest.
    wanted: AtomicU32,
    /// Pages that it has taken.
    actual: AtomicU32,
    /// Pages of chains, by role, and what was left out.
    pub(crate) inflated: AtomicU64,
    pub(crate) deflated: AtomicU64,
    pub(crate) reported: AtomicU64,
    pub(crate) refused: AtomicU64,
}

impl Balloon {
    /// A balloon. With `deflate_on_oom` the driver gives pages to a guest that has no memory left;
    /// Linux then shows memory that the balloon has as memory in use.
    pub(crate) fn new(deflate_on_oom: bool) -> Self {
        Self { deflate_on_oom, ..Self::default() }
    }

    /// Sets how many pages the driver shall take. Raise the configuration interrupt afterwards.
    pub(crate) fn want(&self, pages: u32) {
        self.wanted.store(pages, Ordering::Release);
    }

    /// How many pages the driver shall take.
    pub(crate) fn wanted(&self) -> u32 {
        self.wanted.load(Ordering::Acquire)
    }

    /// How many pages the driver says it has taken.
    pub(crate) fn actual(&self) -> u32 {
        self.actual.load(Ordering::Acquire)
    }

    /// Serves the chains that are available, at most one ring of them. Returns whether there was
    /// any.
    ///
    /// # Errors
    /// The ring makes no sense.
    pub(crate) fn serve<M: GuestMemory>(
        &self,
        role: Role,
        queue: &mut Queue,
        memory: &M,
        pages: &impl Pages,
    ) -> Result<bool, Error> {
        let ring = usize::from(queue.size());
        let chains = queue.iter(memory)?.take(ring).collect::<Vec<_>>();
        let found = !chains.is_empty();
        for chain in chains {
            let head = chain.head_index();
            match role {
                Role::Inflate => {
                    self.numbers(chain, memory, &self.inflated, |page| pages.inflate(page));
                }
                Role::Deflate => {
                    self.numbers(chain, memory, &self.deflated, |page| pages.deflate(page));
                }
                Role::Report => self.ranges(chain, pages),
            }
            // Nothing was written to its buffers.
            queue.add_used(memory, head, 0)?;
        }
        Ok(found)
    }

    /// Serves a chain of page numbers, of 32 bits each.
    fn numbers<M: GuestMemory>(
        &self,
        chain: DescriptorChain<&M>,
        memory: &M,
        done: &AtomicU64,
        take: impl Fn(GuestAddress) -> bool,
    ) {
        let mut left = CHAIN_BYTES;
        for buffer in chain.readable() {
            let bytes = buffer.len().min(left);
            left -= bytes;
            // What is cut off, a part of a number, what cannot be read: each counts once.
            let mut is_odd = bytes < buffer.len() || !bytes.is_multiple_of(4);
            let mut numbers = [0; NUMBERS];
            for first in (0..bytes / 4).step_by(NUMBERS) {
                let count = NUMBERS.min((bytes / 4 - first) as usize);
                let at = buffer.addr().checked_add(u64::from(first) * 4);
                let read = at.and_then(|at| read_numbers(memory, at, &mut numbers[..count]));
                if read.is_none() {
                    is_odd = true;
                    break;
                }
                for &number in &numbers[..count] {
                    let taken = take(GuestAddress(u64::from(number) * PAGE_BYTES));
                    add(if taken { done } else { &self.refused }, 1);
                }
            }
            add(&self.refused, is_odd.into());
        }
    }

    /// Serves a chain whose buffers are the free pages themselves.
    fn ranges<M: GuestMemory>(&self, chain: DescriptorChain<&M>, pages: &impl Pages) {
        for range in chain.writable() {
            let (start, bytes) = (range.addr(), u64::from(range.len()));
            let is_whole = bytes > 0 && (start.0 | bytes).is_multiple_of(PAGE_BYTES);
            if is_whole && pages.report(start, bytes) {
                add(&self.reported, bytes / PAGE_BYTES);
            } else {
                add(&self.refused, 1);
            }
        }
    }

    /// The configuration space: `num_pages` and `actual`, little-endian.
    fn config(&self) -> [u8; 8] {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&self.wanted().to_le_bytes());
        bytes[4..].copy_from_slice(&self.actual().to_le_bytes());
        bytes
    }
}

impl Device for Balloon {
    const ID: u32 = VIRTIO_ID_BALLOON;
    const QUEUES: usize = Role::OF_QUEUE.len();

    fn features(&self) -> u64 {
        u64::from(self.deflate_on_oom) << DEFLATE_ON_OOM | 1 << REPORTING
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        data.fill(0);
        let config = self.config();
        for (byte, &value) in data.iter_mut().zip(config.iter().skip(offset)) {
            *byte = value;
        }
    }

    fn write_config(&self, offset: usize, data: &[u8]) {
        // The driver writes nothing but `actual`, and that as a whole.
        if let (4, Ok(bytes)) = (offset, data.try_into()) {
            self.actual.store(u32::from_le_bytes(bytes), Ordering::Release);
        }
    }
}

fn add(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

/// Reads little-endian numbers at `at`, or returns `None` if part of them is outside of memory.
fn read_numbers<M: GuestMemory>(memory: &M, at: GuestAddress, numbers: &mut [u32]) -> Option<()> {
    let mut bytes = [0; NUMBERS * 4];
    let bytes = &mut bytes[..numbers.len() * 4];
    memory.read_slice(bytes, at).ok()?;
    for (number, bytes) in numbers.iter_mut().zip(bytes.as_chunks().0) {
        *number = u32::from_le_bytes(*bytes);
    }
    Some(())
}

#[cfg(test)]
mod tests;
