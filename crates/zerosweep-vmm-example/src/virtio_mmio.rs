//! The registers of a virtio device (virtio 1.2, 4.2): a page of the guest's addresses that the
//! virtual CPUs read and write.
//!
//! The registers have a lock that is held for some instructions only. The queues of a driver that
//! runs are behind a second lock, held by the thread that serves them: to serve them it reads and
//! writes guest memory, which may take its time. A virtual CPU takes this lock only to reset the
//! device.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use virtio_bindings::bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::bindings::virtio_mmio::*;
use virtio_queue::{Queue, QueueT as _};
use vmm_sys_util::eventfd::EventFd;

/// The register that is notified, and what is written to it is the queue's number.
pub(crate) const NOTIFY: u64 = VIRTIO_MMIO_QUEUE_NOTIFY as u64;
/// The configuration of the device begins here.
pub(crate) const CONFIG: u64 = VIRTIO_MMIO_CONFIG as u64;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"zswp");
/// The most entries of a ring.
const RING: u16 = 256;

/// A device behind the registers.
pub(crate) trait Device {
    /// What kind of device it is.
    const ID: u32;
    /// How many queues it has.
    const QUEUES: usize;

    /// The features that it offers.
    fn features(&self) -> u64;
    /// The driver reads the configuration.
    fn read_config(&self, offset: usize, data: &mut [u8]);
    /// The driver writes to the configuration.
    fn write_config(&self, offset: usize, data: &[u8]);
}

/// A device with its registers.
pub(crate) struct VirtioMmio<D> {
    device: D,
    registers: Mutex<Registers>,
    /// The queues of a driver that runs, else none.
    queues: Mutex<Vec<Queue>>,
    interrupt: EventFd,
    /// Why the interrupt was raised.
    causes: AtomicU32,
    /// Changes with the configuration.
    generation: AtomicU32,
}

struct Registers {
    status: u32,
    /// Which 32 features are shown and set.
    device_features_half: u32,
    driver_features_half: u32,
    driver_features: u64,
    /// Which queue is shown and set.
    queue: usize,
    /// The queues that the driver sets up.
    queues: Vec<Queue>,
}

impl Registers {
    fn new(queues: usize) -> Self {
        Self {
            status: 0,
            device_features_half: 0,
            driver_features_half: 0,
            driver_features: 0,
            queue: 0,
            queues: (0..queues).map_while(|_| Queue::new(RING).ok()).collect(),
        }
    }
}

impl<D: Device> VirtioMmio<D> {
    /// A device that raises `interrupt`.
    pub(crate) fn new(device: D, interrupt: EventFd) -> Self {
        Self {
            device,
            registers: Mutex::new(Registers::new(D::QUEUES)),
            queues: Mutex::new(Vec::new()),
            interrupt,
            causes: AtomicU32::new(0),
            generation: AtomicU32::new(0),
        }
    }

    /// The device.
    pub(crate) const fn device(&self) -> &D {
        &self.device
    }

    /// The queues, none unless a driver runs.
    pub(crate) fn queues(&self) -> MutexGuard<'_, Vec<Queue>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the driver that buffers were used.
    pub(crate) fn tell_used(&self) -> io::Result<()> {
        self.raise(VIRTIO_MMIO_INT_VRING)
    }

    /// Tells the driver that the configuration has changed.
    pub(crate) fn tell_config(&self) -> io::Result<()> {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.raise(VIRTIO_MMIO_INT_CONFIG)
    }

    /// The driver has written nonsense to a ring: nothing goes on until it resets the device.
    pub(crate) fn ask_for_reset(&self, mut queues: MutexGuard<'_, Vec<Queue>>) -> io::Result<()> {
        queues.clear();
        // A virtual CPU that resets the device has the registers, and waits for the queues.
        drop(queues);
        self.registers().status |= VIRTIO_CONFIG_S_NEEDS_RESET;
        self.raise(VIRTIO_MMIO_INT_CONFIG)
    }

    /// A virtual CPU reads `data.len()` bytes.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(CONFIG) {
            return self.device.read_config(offset as usize, data);
        }
        // All registers have 32 bits, and are read as a whole.
        if let (Ok(offset), Ok(data)) = (u32::try_from(offset), <&mut [u8; 4]>::try_from(data)) {
            *data = self.register(offset).to_le_bytes();
        }
    }

    fn register(&self, offset: u32) -> u32 {
        let registers = self.registers();
        let queue = registers.queues.get(registers.queue);
        match offset {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => D::ID,
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => half(self.features(), registers.device_features_half),
            VIRTIO_MMIO_QUEUE_NUM_MAX => queue.map_or(0, |queue| queue.max_size().into()),
            VIRTIO_MMIO_QUEUE_READY => queue.is_some_and(Queue::ready).into(),
            VIRTIO_MMIO_INTERRUPT_STATUS => self.causes.load(Ordering::Acquire),
            VIRTIO_MMIO_STATUS => registers.status,
            VIRTIO_MMIO_CONFIG_GENERATION => self.generation.load(Ordering::Acquire),
            _ => 0,
        }
    }

    /// A virtual CPU writes `data`.
    pub(crate) fn write(&self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            return self.device.write_config(offset as usize, data);
        }
        if let (Ok(offset), Ok(data)) = (u32::try_from(offset), data.try_into()) {
            self.set_register(offset, u32::from_le_bytes(data));
        }
    }

    fn set_register(&self, offset: u32, value: u32) {
        let mut registers = self.registers();
        let registers = &mut *registers;
        match offset {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => registers.device_features_half = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => registers.driver_features_half = value,
            VIRTIO_MMIO_DRIVER_FEATURES => match registers.driver_features_half {
                0 => {
                    registers.driver_features &= !u64::from(u32::MAX);
                    registers.driver_features |= u64::from(value);
                }
                1 => {
                    registers.driver_features &= u64::from(u32::MAX);
                    registers.driver_features |= u64::from(value) << 32;
                }
                _ => {}
            },
            VIRTIO_MMIO_QUEUE_SEL => registers.queue = value as usize,
            VIRTIO_MMIO_INTERRUPT_ACK => {
                self.causes.fetch_and(!value, Ordering::AcqRel);
            }
            VIRTIO_MMIO_STATUS => self.set_status(registers, value),
            _ => {
                // The queues of a driver that runs are no longer here.
                if let Some(queue) = registers.queues.get_mut(registers.queue) {
                    set_up(queue, offset, value);
                }
            }
        }
    }

    fn set_status(&self, registers: &mut Registers, value: u32) {
        if value == 0 {
            // Waits for the thread that serves the queues: it must not use them any more.
            self.queues().clear();
            *registers = Registers::new(D::QUEUES);
            self.causes.store(0, Ordering::Release);
            return;
        }
        let mut status = value;
        let features = registers.driver_features;
        let is_modern = features & (1 << VIRTIO_F_VERSION_1) != 0;
        if !is_modern || features & !self.features() != 0 {
            // The driver looks whether its features were accepted.
            status &= !VIRTIO_CONFIG_S_FEATURES_OK;
        }
        let runs = VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK;
        if status & runs == runs && registers.status & runs != runs {
            *self.queues() = std::mem::take(&mut registers.queues);
        }
        registers.status = status | registers.status & VIRTIO_CONFIG_S_NEEDS_RESET;
    }

    fn features(&self) -> u64 {
        self.device.features() | 1 << VIRTIO_F_VERSION_1
    }

    fn raise(&self, cause: u32) -> io::Result<()> {
        self.causes.fetch_or(cause, Ordering::AcqRel);
        self.interrupt.write(1)
    }

    fn registers(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// 32 of the features.
const fn half(features: u64, which: u32) -> u32 {
    match which {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

/// Addresses and sizes that make no sense are left as they were: such a queue is refused when it is
/// served.
fn set_up(queue: &mut Queue, offset: u32, value: u32) {
    match offset {
        VIRTIO_MMIO_QUEUE_NUM => queue.set_size(value.try_into().unwrap_or(0)),
        VIRTIO_MMIO_QUEUE_READY => queue.set_ready(value == 1),
        VIRTIO_MMIO_QUEUE_DESC_LOW => queue.set_desc_table_address(Some(value), None),
        VIRTIO_MMIO_QUEUE_DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
        VIRTIO_MMIO_QUEUE_AVAIL_LOW => queue.set_avail_ring_address(Some(value), None),
        VIRTIO_MMIO_QUEUE_AVAIL_HIGH => queue.set_avail_ring_address(None, Some(value)),
        VIRTIO_MMIO_QUEUE_USED_LOW => queue.set_used_ring_address(Some(value), None),
        VIRTIO_MMIO_QUEUE_USED_HIGH => queue.set_used_ring_address(None, Some(value)),
        _ => {}
    }
}

#[cfg(test)]
mod tests;
