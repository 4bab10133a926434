//! What virtual CPUs find at ports and at addresses without memory.

use std::fmt;
use std::io::{self, Stdout};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::balloon::Balloon;
use crate::layout;
use crate::virtio_mmio::{self, VirtioMmio};

/// The serial port's last register, seen from its first.
const SERIAL_LAST: u16 = layout::SERIAL + 7;
/// The keyboard controller's ports: it has nothing to say and is never busy.
const KEYBOARD: [u16; 2] = [0x60, layout::RESET];
const SLEEP_STATUS: u16 = layout::SLEEP + 1;

/// How the machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The guest powered off.
    PowerOff,
    /// The guest reset the machine.
    Reset,
    /// A fault in the handling of a fault: what a kernel does that knows no better way to reset.
    TripleFault,
    /// Somebody wrote `quit`.
    Asked,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PowerOff => "power-off",
            Self::Reset => "reset",
            Self::TripleFault => "triple-fault",
            Self::Asked => "asked",
        })
    }
}

/// An interrupt of the guest: KVM raises it when the descriptor is written to.
pub(crate) struct Interrupt(pub(crate) EventFd);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// All devices.
pub(crate) struct Devices {
    serial: Mutex<Serial<Interrupt, NoEvents, Stdout>>,
    balloon: Arc<VirtioMmio<Balloon>>,
    /// Written to when the guest may have changed the balloon's configuration.
    configured: EventFd,
}

impl Devices {
    /// A serial port whose output is ours, and a balloon.
    pub(crate) fn new(
        serial: Interrupt,
        balloon: &Arc<VirtioMmio<Balloon>>,
        configured: EventFd,
    ) -> Self {
        let serial = Mutex::new(Serial::new(serial, io::stdout()));
        Self { serial, balloon: Arc::clone(balloon), configured }
    }

    /// A virtual CPU writes to a port. Returns how the machine ends, if it does.
    ///
    /// # Errors
    /// The output cannot be written.
    pub(crate) fn write_port(&self, port: u16, data: &[u8]) -> Result<Option<Ending>> {
        match (port, data) {
            (layout::SERIAL..=SERIAL_LAST, _) => {
                let mut serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner);
                for &byte in data {
                    let written = serial.write((port - layout::SERIAL) as u8, byte);
                    written.map_err(|e| anyhow::anyhow!("{e:?}")).context("the serial port")?;
                }
            }
            (layout::RESET, &[layout::RESET_VALUE]) => return Ok(Some(Ending::Reset)),
            (layout::SLEEP, &[layout::SLEEP_OFF]) => return Ok(Some(Ending::PowerOff)),
            _ => {}
        }
        Ok(None)
    }

    /// A virtual CPU reads from a port. Where there is nothing, all bits are set.
    pub(crate) fn read_port(&self, port: u16, data: &mut [u8]) {
        data.fill(match port {
            layout::SERIAL..=SERIAL_LAST => {
                let mut serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner);
                serial.read((port - layout::SERIAL) as u8)
            }
            SLEEP_STATUS => 0,
            port if KEYBOARD.contains(&port) => 0,
            _ => 0xff,
        });
    }

    /// A virtual CPU writes to an address without memory.
    ///
    /// # Errors
    /// The first thread cannot be told.
    pub(crate) fn write(&self, address: u64, data: &[u8]) -> Result<()> {
        if let Some(offset) = balloon_offset(address) {
            self.balloon.write(offset, data);
            if offset >= virtio_mmio::CONFIG {
                self.configured.write(1)?;
            }
        }
        Ok(())
    }

    /// A virtual CPU reads from an address without memory.
    pub(crate) fn read(&self, address: u64, data: &mut [u8]) {
        match balloon_offset(address) {
            Some(offset) => self.balloon.read(offset, data),
            None => data.fill(0xff),
        }
    }
}

fn balloon_offset(address: u64) -> Option<u64> {
    address.checked_sub(layout::BALLOON).filter(|&offset| offset < layout::BALLOON_BYTES)
}
