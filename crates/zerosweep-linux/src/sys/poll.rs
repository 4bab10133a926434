//! Waiting for faults, and a call that ends the waiting.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::raw::{self, SysResult};

/// A wake-up call between threads: an eventfd. Calling allocates nothing and never blocks.
#[derive(Debug)]
pub struct WakeEvent {
    fd: OwnedFd,
}

impl WakeEvent {
    /// A new one, not called.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`, `ENOMEM`.
    pub fn new() -> SysResult<Self> {
        Ok(Self { fd: raw::eventfd()? })
    }

    /// Makes it ready. Idempotent until [`Self::clear`].
    pub fn call(&self) {
        // A full counter (EAGAIN) is ready too, so the answer does not matter.
        let _ = raw::write(self.fd.as_fd(), &1_u64.to_ne_bytes());
    }

    /// Takes the call; `true` if there was one.
    pub fn clear(&self) -> bool {
        raw::read(self.fd.as_fd(), &mut [0; 8]).is_ok()
    }
}

impl AsFd for WakeEvent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Which of two descriptors is ready for reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// The first one is.
    pub first: bool,
    /// The second one is.
    pub second: bool,
}

/// Waits until one of two descriptors can be read; at most `timeout_ms` milliseconds, or for ever
/// with `None`. After the time, or a signal, none is ready.
///
/// # Errors
/// `ENOMEM`.
pub fn wait_either(
    first: BorrowedFd<'_>,
    second: BorrowedFd<'_>,
    timeout_ms: Option<u32>,
) -> SysResult<Ready> {
    let entry =
        |fd: BorrowedFd<'_>| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let mut entries = [entry(first), entry(second)];
    raw::poll(&mut entries, timeout_ms)?;
    Ok(Ready { first: entries[0].revents != 0, second: entries[1].revents != 0 })
}

/// Waits until `fd` can be read; at most `timeout_ms` milliseconds, or for ever with `None`.
/// `false` after the time or a signal.
///
/// # Errors
/// `ENOMEM`.
pub fn wait_one(fd: BorrowedFd<'_>, timeout_ms: Option<u32>) -> SysResult<bool> {
    let mut entries = [libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
    Ok(raw::poll(&mut entries, timeout_ms)? > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_ends_the_waiting_once() {
        let (quiet, called) = (WakeEvent::new().unwrap(), WakeEvent::new().unwrap());
        called.call();
        called.call();
        let ready = wait_either(quiet.as_fd(), called.as_fd(), Some(1000)).unwrap();
        assert_eq!(ready, Ready { first: false, second: true });
        assert!(called.clear() && !called.clear());
        assert!(!wait_one(called.as_fd(), Some(1)).unwrap());
    }
}
