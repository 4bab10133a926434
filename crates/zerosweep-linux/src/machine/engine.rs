//! The engine's interface to the machine.

use zerosweep::{
    Allocated, Content, Gfn, Machine, MapError, Mapped, Mfn, Order, OutOfFrames, Shown, Superframe,
    Unmapped,
};

use super::LinuxMachine;
use crate::addr::PAGE_BYTES;

/// The machine as one thread's operation uses it.
pub(crate) struct MachineRef<'a> {
    machine: &'a LinuxMachine,
    /// The index of this thread among the readers, once it has read.
    reader: Option<usize>,
}

impl<'a> MachineRef<'a> {
    pub(crate) const fn new(machine: &'a LinuxMachine) -> Self {
        Self { machine, reader: None }
    }

    /// Returns the machine for one call of the engine. Tests hold calls up here.
    fn called(&self) -> &'a LinuxMachine {
        #[cfg(test)]
        self.machine.hold.pass();
        self.machine
    }

    /// Reads the guest's memory at `gfn`, where the engine knows a frame, as an announced reader.
    fn read<R>(&mut self, gfn: Gfn, work: impl FnOnce(&LinuxMachine) -> R) -> R {
        let machine = self.machine;
        let reader = *self.reader.get_or_insert_with(|| machine.readers.join());
        machine.readers.read(reader, gfn, || work(machine))
    }
}

impl Drop for MachineRef<'_> {
    fn drop(&mut self) {
        if let Some(reader) = self.reader {
            self.machine.readers.leave(reader);
        }
    }
}

impl Machine for MachineRef<'_> {
    fn allocate(&mut self, order: Order) -> Result<Allocated, OutOfFrames> {
        let mfn = self.machine.frames().allocate(order)?;
        // A slot that was free has no memory: what it gets is zero.
        Ok(Allocated { mfn, content: Content::Zero })
    }

    fn allocate_in(&mut self, superframe: Superframe) -> Result<Allocated, OutOfFrames> {
        let mfn = self.machine.frames().allocate_in(superframe)?;
        Ok(Allocated { mfn, content: Content::Zero })
    }

    fn free(&mut self, mfn: Mfn, order: Order) {
        self.called().free_run(mfn, order);
    }

    fn map(&mut self, gfn: Gfn, mfn: Mfn, order: Order) -> Result<Mapped, MapError> {
        if order == Order::SUPERPAGE {
            self.called().map_superpage(gfn, mfn)
        } else {
            self.called().map_page(gfn, mfn)
        }
    }

    fn unmap(&mut self, gfn: Gfn, mfn: Mfn, order: Order) -> Unmapped {
        self.called().unmap_run(gfn, mfn, order)
    }

    fn flush(&mut self) {
        // UFFDIO_MOVE flushes before it returns.
    }

    fn quick_check(&mut self, gfn: Gfn, _mfn: Mfn, order: Order) -> Option<u32> {
        (0..order.pages()).find_map(|page| {
            let at = gfn.offset(page);
            let word = self.read(at, |machine| machine.quick_check_page(at))?;
            Some((page * PAGE_BYTES / 8) as u32 + word)
        })
    }

    fn peek(&mut self, gfn: Gfn, _mfn: Mfn, word: u32) -> u64 {
        self.read(gfn.offset(u64::from(word) * 8 / PAGE_BYTES), |machine| {
            let range = machine.range(gfn, Order::SUPERPAGE);
            range.and_then(|range| range.load_word(u64::from(word) * 8)).unwrap_or(1)
        })
    }

    fn zero_check(&mut self, mfn: Mfn, pages: u64) -> Option<u32> {
        self.called().first_nonzero(mfn, pages)
    }

    fn copy(&mut self, from: Mfn, to: Mfn) {
        self.called().copy_page(from, to);
    }

    fn scrub(&mut self, gfn: Gfn, _mfn: Mfn) -> Content {
        self.called();
        self.read(gfn, |machine| machine.scrub(gfn))
    }

    fn clear(&mut self, mfn: Mfn, order: Order) {
        self.called().clear_run(mfn, order);
    }

    fn show_zeros(&mut self, gfn: Gfn, pages: u64) -> Shown {
        self.called().show_zeros(gfn, pages)
    }

    fn is_written(&mut self, gfn: Gfn) -> bool {
        self.machine.is_written(gfn)
    }

    fn park(&mut self, superframe: Superframe) {
        self.called().park_superslot(superframe);
    }
}
