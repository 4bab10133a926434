//! Whether the main thread of the VMM makes progress.
//!
//! A virtual CPU may wait for a frame while it holds what this thread needs: a lock of the VMM, or
//! one of the kernel (KVM changes its memory slots only when no virtual CPU is in a fault). The
//! file `/proc/self/task/ID/syscall` names the system call in which a thread is blocked, with its
//! arguments, stack and instruction pointer. The same text in every sample means that the thread is
//! in one system call all the time. An idle event loop is in a call that waits for events, and in
//! no other.
//!
//! The file is opened when guest memory is adopted. A process that has changed its user or root
//! directory since, or that has no descriptor left, could not open it any more, but still reads it.
//! If it cannot be read, the thread counts as blocked: to borrow is safer than to wait for ever.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use super::exhaustion::MainLoop;
use crate::sys::raw;

/// The main thread may make no progress for this long while another thread stalls.
pub(super) const STUCK_LIMIT: Duration = Duration::from_secs(2);
/// Longer than any line of the file.
const LINE: usize = 256;

/// The main thread, sampled by another.
pub(super) struct MainThread {
    watched: bool,
    file: Option<OwnedFd>,
    last: [u8; LINE],
    since: Option<Instant>,
}

impl MainThread {
    pub(super) fn new(main_loop: MainLoop) -> Self {
        let thread = match main_loop {
            MainLoop::MainThread => Some(std::process::id()),
            MainLoop::Thread(thread) => Some(thread),
            MainLoop::None => None,
        };
        let path = thread.map(|thread| CString::new(format!("/proc/self/task/{thread}/syscall")));
        let path = path.and_then(Result::ok);
        let file = path.and_then(|path| raw::open(&path, libc::O_RDONLY).ok());
        Self { watched: thread.is_some(), file, last: [0; LINE], since: None }
    }

    /// Forgets the samples: nobody waits any more.
    pub(super) fn forget(&mut self) {
        self.since = None;
    }

    /// Samples the thread. Returns for how long every sample has found it in the same system call,
    /// other than one that waits for events. The first sample returns 0.
    pub(super) fn stuck_for(&mut self) -> Duration {
        if !self.watched {
            return Duration::ZERO;
        }
        let now = self.sample();
        if !is_blocked(&now) {
            self.since = None;
        } else if now != self.last || self.since.is_none() {
            self.since = Some(Instant::now());
        }
        self.last = now;
        self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Samples once more if the last sample found the thread blocked: the time between two samples
    /// counts.
    pub(super) fn sample_again(&mut self) {
        if self.since.is_some() {
            self.stuck_for();
        }
    }

    /// Reads the file; returns zeros if it cannot be read.
    fn sample(&self) -> [u8; LINE] {
        let mut text = [0; LINE];
        if let Some(file) = &self.file {
            let _ = raw::read_at_start(file.as_fd(), &mut text);
        }
        text
    }
}

/// Returns whether `line` of the file shows a system call that is no wait for events.
fn is_blocked(line: &[u8]) -> bool {
    let end = line.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(line.len());
    match core::str::from_utf8(&line[..end]).ok().and_then(|number| number.parse().ok()) {
        Some(number) => !WAITS_FOR_EVENTS.contains(&number),
        // `running`; or -1, blocked outside a system call: a page fault. Nothing at all: unknown.
        None => !line.starts_with(b"running"),
    }
}

/// System calls in which an event loop waits.
const WAITS_FOR_EVENTS: &[libc::c_long] = &[
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_select,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_pause,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_io_uring_enter,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_sigsuspend,
];

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn the_first_look_says_nothing() {
        let mut main = MainThread::new(MainLoop::MainThread);
        assert!(main.stuck_for() < STUCK_LIMIT);
    }

    #[test]
    fn nobody_is_watched_where_there_is_no_main_loop() {
        let mut main = MainThread::new(MainLoop::None);
        main.stuck_for();
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(main.stuck_for(), Duration::ZERO);
    }

    #[test]
    fn an_unreadable_thread_counts_as_blocked() {
        let mut main = MainThread::new(MainLoop::MainThread);
        main.file = None;
        main.stuck_for();
        std::thread::sleep(Duration::from_millis(2));
        assert!(main.stuck_for() >= Duration::from_millis(2));
    }

    #[test]
    fn only_a_wait_for_events_is_idle() {
        for number in [libc::SYS_ppoll, libc::SYS_epoll_pwait, libc::SYS_io_uring_enter] {
            assert!(!is_blocked(format!("{number} 0x1 0x2\n").as_bytes()), "{number}");
        }
        // A lock, a change of KVM's memory slots, a write to a terminal that is not read.
        for number in [libc::SYS_futex, libc::SYS_ioctl, libc::SYS_write] {
            assert!(is_blocked(format!("{number} 0x1 0x2\n").as_bytes()), "{number}");
        }
        assert!(!is_blocked(b"running\n"));
        assert!(is_blocked(b"-1 0x7ffe 0x7f00\n"), "in a page fault");
        assert!(is_blocked(&[0; LINE]), "unreadable");
    }

    /// Says for how long a thread that does `work` counts as stuck after some looks.
    fn seen(work: impl FnOnce(&std::io::PipeReader) + Send + 'static) -> Duration {
        let (reader, writer) = std::io::pipe().unwrap();
        let (tell, thread) = channel();
        let other = std::thread::spawn(move || {
            tell.send(raw::thread_id()).unwrap();
            work(&reader);
        });
        let mut main = MainThread::new(MainLoop::Thread(thread.recv().unwrap()));
        std::thread::sleep(Duration::from_millis(50));
        let mut stuck = Duration::ZERO;
        for _ in 0..20 {
            stuck = main.stuck_for();
            std::thread::sleep(Duration::from_millis(10));
        }
        drop(writer);
        other.join().unwrap();
        stuck
    }

    #[test]
    fn a_thread_that_hangs_in_any_call_is_stuck_and_one_that_polls_is_not() {
        let stuck = seen(|pipe| assert_eq!(raw::read(pipe.as_fd(), &mut [0]), Ok(0)));
        assert!(stuck >= Duration::from_millis(100), "{stuck:?}");
        let stuck = seen(|pipe| {
            let mut fds = [libc::pollfd { fd: pipe.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
            assert_eq!(raw::poll(&mut fds, None), Ok(1));
        });
        assert_eq!(stuck, Duration::ZERO);
    }
}
