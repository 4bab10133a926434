//! Waiting for faults, and a call that ends the waiting.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::raw::{self, SysResult};

/// A wake-up call between threads: an eventfd. To notify allocates nothing and never blocks.
#[derive(Debug)]
pub struct WakeEvent {
    fd: OwnedFd,
}

impl WakeEvent {
    /// Makes one that is not notified.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`, `ENOMEM`.
    pub fn new() -> SysResult<Self> {
        Ok(Self { fd: raw::eventfd()? })
    }

    /// Makes it ready. Idempotent until [`Self::clear`].
    pub fn notify(&self) {
        // A full counter (EAGAIN) is ready too, so the answer does not matter.
        let _ = raw::write(self.fd.as_fd(), &1_u64.to_ne_bytes());
    }

    /// Takes the notification; returns whether there was one.
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

/// Waits for one descriptor that it shares with others of its kind, and one of its own.
///
/// When the shared one becomes ready, one of those who wait for it is woken, not all.
#[derive(Debug)]
pub struct SharedWait {
    epoll: OwnedFd,
}

const SHARED: u64 = 0;
const OWN: u64 = 1;

impl SharedWait {
    /// Waits for `shared` and `own`.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`, `ENOMEM`, `ENOSPC`.
    pub fn new(shared: BorrowedFd<'_>, own: BorrowedFd<'_>) -> SysResult<Self> {
        let epoll = raw::epoll()?;
        let readable = libc::EPOLLIN as u32;
        let one = libc::EPOLLEXCLUSIVE as u32;
        raw::epoll_add(epoll.as_fd(), shared, readable | one, SHARED)?;
        raw::epoll_add(epoll.as_fd(), own, readable, OWN)?;
        Ok(Self { epoll })
    }

    /// Waits until one of both can be read; at most `timeout_ms` milliseconds, or for ever with
    /// `None`. After the time, or a signal, none is ready. `first` is the shared one.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn wait(&self, timeout_ms: Option<u32>) -> SysResult<Ready> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 2];
        let count = raw::epoll_wait(self.epoll.as_fd(), &mut events, timeout_ms)?;
        let has = |data| events.iter().take(count).any(|event| { event.u64 } == data);
        Ok(Ready { first: has(SHARED), second: has(OWN) })
    }
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
        called.notify();
        called.notify();
        let wait = SharedWait::new(quiet.as_fd(), called.as_fd()).unwrap();
        assert_eq!(wait.wait(Some(1000)).unwrap(), Ready { first: false, second: true });
        quiet.notify();
        assert_eq!(wait.wait(Some(1000)).unwrap(), Ready { first: true, second: true });
        assert!(called.clear() && !called.clear());
        assert!(!wait_one(called.as_fd(), Some(1)).unwrap());
    }
}
