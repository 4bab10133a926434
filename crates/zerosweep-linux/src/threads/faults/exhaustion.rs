//! What a VMM chooses for the moment when no frame can be found (rule [R15]).
//!
//! [R15]: zerosweep::rules#r15

/// What happens when no frame can be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnExhaustion {
    /// A virtual CPU waits, and so does a thread outside of this process: KVM's workers, at most 64
    /// for each virtual CPU. Other threads borrow.
    Stall,
    /// Memory beyond the target is taken, and counted.
    Borrow,
    /// The process is ended.
    Kill,
}

/// The thread that the VMM depends on. It is watched while a thread waits for a frame. If it hangs
/// in a system call that is no wait for events, the waiting thread may hold what it needs, and
/// memory is borrowed after 2 seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum MainLoop {
    /// The first thread of the process, as in QEMU.
    #[default]
    MainThread,
    /// The thread with this number (`gettid(2)`).
    Thread(u32),
    /// None: no thread that must go on ever waits for a virtual CPU. Right for a VMM whose first
    /// thread only waits for the others to end.
    None,
}
