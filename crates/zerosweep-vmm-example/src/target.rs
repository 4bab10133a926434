//! The target of the memory and the size of the balloon: two numbers that belong together.

use std::sync::Arc;

use anyhow::Result;
use zerosweep_linux::{GuestMemory, PAGE_BYTES, SetTargetError};

use crate::balloon::Balloon;

/// What the guest may hold, and what it shall.
pub(crate) struct Target {
    max_mem: u64,
    /// What somebody asked for, in bytes.
    wanted: u64,
    /// What the engine was told, in bytes. Never more than `max_mem`.
    current: u64,
}

impl Target {
    /// Before the guest starts: it has nothing yet, so the target holds from the first moment, and
    /// the balloon is to leave it that.
    pub(crate) fn new(max_mem: u64, target: u64, balloon: &Balloon) -> Self {
        balloon.want(pages(max_mem - target));
        Self { max_mem, wanted: target, current: target }
    }

    /// Another target, in bytes, which is a multiple of 4 KiB. A higher one holds at once. A lower
    /// one holds when the balloon has taken the pages: a guest that had to go below what it has in
    /// use would wait for frames. Raise the configuration interrupt afterwards.
    ///
    /// # Errors
    /// See [`SetTargetError`].
    pub(crate) fn want(
        &mut self,
        bytes: u64,
        balloon: &Balloon,
        memory: &Arc<GuestMemory>,
    ) -> Result<(), SetTargetError> {
        self.wanted = bytes.min(self.max_mem);
        balloon.want(pages(self.max_mem - self.wanted));
        self.tell(self.wanted.max(self.current), memory)
    }

    /// The balloon has changed: the target follows it down.
    ///
    /// # Errors
    /// See [`SetTargetError`].
    pub(crate) fn follow(
        &mut self,
        balloon: &Balloon,
        memory: &Arc<GuestMemory>,
    ) -> Result<(), SetTargetError> {
        self.tell(self.followed(balloon.actual()), memory)
    }

    /// The target that goes with a balloon of `actual` pages, a number that the guest has written.
    fn followed(&self, actual: u32) -> u64 {
        let left = self.max_mem.saturating_sub(u64::from(actual) * PAGE_BYTES);
        left.max(self.wanted).min(self.current)
    }

    fn tell(&mut self, bytes: u64, memory: &Arc<GuestMemory>) -> Result<(), SetTargetError> {
        if bytes != self.current {
            // Returns at once: this thread serves the balloon, which the target may wait for.
            match memory.begin_target(bytes) {
                // The guest goes on without a cap, and its balloon as in any VMM.
                Ok(()) | Err(SetTargetError::Lifted(_)) => self.current = bytes,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The field has 32 bits: a balloon of 16 TiB at most.
fn pages(bytes: u64) -> u32 {
    u32::try_from(bytes / PAGE_BYTES).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio_mmio::Device as _;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_lower_target_waits_for_the_balloon() {
        let target = Target { max_mem: 512 * MIB, wanted: 160 * MIB, current: 300 * MIB };
        assert_eq!(target.followed(0), 300 * MIB, "never up");
        assert_eq!(target.followed(100 << 8), 300 * MIB);
        assert_eq!(target.followed(300 << 8), 212 * MIB);
        assert_eq!(target.followed(352 << 8), 160 * MIB);
        assert_eq!(target.followed(500 << 8), 160 * MIB, "not below what was asked for");
        assert_eq!(target.followed(u32::MAX), 160 * MIB);
    }

    #[test]
    fn the_balloon_is_told_what_to_take() {
        let balloon = Balloon::default();
        let target = Target::new(512 * MIB, 160 * MIB, &balloon);
        assert_eq!(balloon.wanted(), 352 << 8);
        assert_eq!(target.followed(0), 160 * MIB, "the first target holds at once");
    }

    #[test]
    #[ignore = "needs userfaultfd in kernel mode"]
    fn the_engine_is_told_until_the_cap_is_lifted() {
        let region = zerosweep_linux::Region::new(64 * MIB).unwrap();
        let memory = GuestMemory::new(region, &zerosweep_linux::Options::new(16 * MIB)).unwrap();
        let target_of = |memory: &GuestMemory| memory.quantities().target * PAGE_BYTES;
        let balloon = Balloon::default();
        let mut target = Target::new(64 * MIB, 16 * MIB, &balloon);
        target.want(32 * MIB, &balloon, &memory).unwrap();
        assert_eq!((target_of(&memory), balloon.wanted()), (32 * MIB, 32 << 8));
        target.want(8 * MIB, &balloon, &memory).unwrap();
        assert_eq!((target_of(&memory), balloon.wanted()), (32 * MIB, 56 << 8));
        balloon.write_config(4, &(44_u32 << 8).to_le_bytes());
        target.follow(&balloon, &memory).unwrap();
        assert_eq!(target_of(&memory), 20 * MIB);

        memory.lift("a test");
        target.want(40 * MIB, &balloon, &memory).unwrap();
        target.follow(&balloon, &memory).unwrap();
        assert_eq!(balloon.wanted(), 24 << 8, "the balloon goes on");
        memory.audit().unwrap();
        memory.stop();
    }
}
