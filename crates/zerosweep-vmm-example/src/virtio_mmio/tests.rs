//! A driver's way through the registers, and what a malicious one may write.

use vmm_sys_util::eventfd::EFD_NONBLOCK;

use super::*;

const ACKNOWLEDGED: u32 = 3;
const FEATURES_OK: u32 = ACKNOWLEDGED | VIRTIO_CONFIG_S_FEATURES_OK;
const RUNS: u32 = FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK;

/// A device that keeps what was last written to its configuration.
#[derive(Default)]
struct Noted {
    written: Mutex<(usize, Vec<u8>)>,
}

impl Device for Noted {
    const ID: u32 = 5;
    const QUEUES: usize = 3;

    fn features(&self) -> u64 {
        1 << 5
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        data.fill(offset as u8);
    }

    fn write_config(&self, offset: usize, data: &[u8]) {
        *self.written.lock().unwrap() = (offset, data.to_vec());
    }
}

fn device() -> VirtioMmio<Noted> {
    VirtioMmio::new(Noted::default(), EventFd::new(EFD_NONBLOCK).unwrap())
}

fn read(device: &VirtioMmio<Noted>, register: u32) -> u32 {
    let mut bytes = [0; 4];
    device.read(register.into(), &mut bytes);
    u32::from_le_bytes(bytes)
}

fn write(device: &VirtioMmio<Noted>, register: u32, value: u32) {
    device.write(register.into(), &value.to_le_bytes());
}

fn accept_features(device: &VirtioMmio<Noted>) {
    for half in [0, 1] {
        write(device, VIRTIO_MMIO_DEVICE_FEATURES_SEL, half);
        write(device, VIRTIO_MMIO_DRIVER_FEATURES_SEL, half);
        let offered = read(device, VIRTIO_MMIO_DEVICE_FEATURES);
        write(device, VIRTIO_MMIO_DRIVER_FEATURES, offered);
    }
    write(device, VIRTIO_MMIO_STATUS, FEATURES_OK);
}

/// Does what Linux does, with the first two queues.
fn start(device: &VirtioMmio<Noted>) {
    write(device, VIRTIO_MMIO_STATUS, 0);
    write(device, VIRTIO_MMIO_STATUS, ACKNOWLEDGED);
    accept_features(device);
    for queue in [0, 1] {
        write(device, VIRTIO_MMIO_QUEUE_SEL, queue);
        assert_eq!(read(device, VIRTIO_MMIO_QUEUE_READY), 0);
        write(device, VIRTIO_MMIO_QUEUE_NUM, read(device, VIRTIO_MMIO_QUEUE_NUM_MAX));
        write(device, VIRTIO_MMIO_QUEUE_DESC_LOW, 0x1000);
        write(device, VIRTIO_MMIO_QUEUE_DESC_HIGH, 1);
        write(device, VIRTIO_MMIO_QUEUE_AVAIL_LOW, 0x3000);
        write(device, VIRTIO_MMIO_QUEUE_USED_LOW, 0x5000);
        write(device, VIRTIO_MMIO_QUEUE_READY, 1);
        assert_eq!(read(device, VIRTIO_MMIO_QUEUE_READY), 1);
    }
    write(device, VIRTIO_MMIO_STATUS, RUNS);
}

#[test]
fn a_driver_sets_queues_up_and_resets() {
    let device = device();
    let identity = [VIRTIO_MMIO_MAGIC_VALUE, VIRTIO_MMIO_VERSION, VIRTIO_MMIO_DEVICE_ID];
    assert_eq!(identity.map(|register| read(&device, register)), [0x7472_6976, 2, 5]);
    start(&device);
    assert_eq!(read(&device, VIRTIO_MMIO_STATUS), RUNS);
    {
        let queues = device.queues();
        assert_eq!(queues.len(), Noted::QUEUES);
        assert_eq!((queues[1].desc_table(), queues[1].avail_ring()), (0x1_0000_1000, 0x3000));
        assert_eq!((queues[1].used_ring(), queues[1].size()), (0x5000, RING));
        assert!(queues[0].ready() && !queues[2].ready());
    }
    // A queue of a driver that runs is not changed.
    write(&device, VIRTIO_MMIO_QUEUE_DESC_LOW, 0x9000);
    write(&device, VIRTIO_MMIO_STATUS, RUNS);
    assert_eq!(device.queues()[1].desc_table(), 0x1_0000_1000);

    write(&device, VIRTIO_MMIO_STATUS, 0);
    assert!(device.queues().is_empty());
    assert_eq!(read(&device, VIRTIO_MMIO_STATUS), 0);
    start(&device);
    assert_eq!(device.queues().len(), Noted::QUEUES);
}

#[test]
fn features_that_are_not_offered_are_not_accepted() {
    let device = device();
    write(&device, VIRTIO_MMIO_STATUS, FEATURES_OK);
    assert_eq!(read(&device, VIRTIO_MMIO_STATUS), ACKNOWLEDGED, "without version 1");
    accept_features(&device);
    assert_eq!(read(&device, VIRTIO_MMIO_STATUS), FEATURES_OK);
    write(&device, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
    write(&device, VIRTIO_MMIO_DRIVER_FEATURES, 1);
    write(&device, VIRTIO_MMIO_STATUS, RUNS);
    assert_eq!(read(&device, VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_FEATURES_OK, 0);
    assert!(device.queues().is_empty(), "the driver does not run");
}

#[test]
fn interrupts_have_causes_until_they_are_acknowledged() {
    let device = device();
    start(&device);
    device.tell_used().unwrap();
    device.tell_config().unwrap();
    assert_eq!(device.interrupt.read().unwrap(), 2);
    assert_eq!(read(&device, VIRTIO_MMIO_INTERRUPT_STATUS), 3);
    assert_eq!(read(&device, VIRTIO_MMIO_CONFIG_GENERATION), 1);
    write(&device, VIRTIO_MMIO_INTERRUPT_ACK, 1);
    assert_eq!(read(&device, VIRTIO_MMIO_INTERRUPT_STATUS), 2);
}

#[test]
fn a_broken_driver_is_asked_to_reset() {
    let device = device();
    start(&device);
    device.ask_for_reset(device.queues()).unwrap();
    assert!(device.queues().is_empty());
    assert_eq!(read(&device, VIRTIO_MMIO_STATUS), RUNS | VIRTIO_CONFIG_S_NEEDS_RESET);
    write(&device, VIRTIO_MMIO_STATUS, RUNS);
    assert!(read(&device, VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET != 0);
    start(&device);
    assert_eq!(read(&device, VIRTIO_MMIO_STATUS), RUNS);
}

#[test]
fn the_configuration_is_the_devices_own() {
    let device = device();
    let mut bytes = [0; 3];
    device.read(CONFIG + 7, &mut bytes);
    assert_eq!(bytes, [7; 3]);
    device.write(CONFIG + 4, &[1, 2]);
    assert_eq!(*device.device().written.lock().unwrap(), (4, vec![1, 2]));
}

#[test]
fn nonsense_is_ignored() {
    let device = device();
    write(&device, VIRTIO_MMIO_QUEUE_SEL, u32::MAX);
    assert_eq!(read(&device, VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
    write(&device, VIRTIO_MMIO_QUEUE_READY, 1);
    write(&device, VIRTIO_MMIO_QUEUE_SEL, 0);
    for size in [0, 3, 257, 0x1_0010, u32::MAX] {
        write(&device, VIRTIO_MMIO_QUEUE_NUM, size);
    }
    write(&device, VIRTIO_MMIO_QUEUE_DESC_LOW, 0x1001);
    write(&device, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 7);
    write(&device, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 7);
    write(&device, VIRTIO_MMIO_DRIVER_FEATURES, u32::MAX);
    assert_eq!(read(&device, VIRTIO_MMIO_DEVICE_FEATURES), 0);
    assert_eq!(read(&device, 0xf8), 0);
    // Accesses of other widths, and behind the registers.
    let mut byte = [7];
    device.read(0, &mut byte);
    assert_eq!(byte, [0]);
    device.write(VIRTIO_MMIO_STATUS.into(), &[1]);
    let mut wide = [7; 8];
    device.read(VIRTIO_MMIO_MAGIC_VALUE.into(), &mut wide);
    assert_eq!((wide, read(&device, VIRTIO_MMIO_STATUS)), ([0; 8], 0));
    accept_features(&device);
    write(&device, VIRTIO_MMIO_STATUS, RUNS);
    let queues = device.queues();
    assert_eq!((queues[0].size(), queues[0].desc_table(), queues[0].ready()), (RING, 0, false));
}
