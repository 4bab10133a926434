//! Who waits for a frame at the target, who does not, and what ends it: a main loop that hangs, a
//! signal, a higher target.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]
#![expect(unsafe_code, reason = "sends signals, reads into the guest's memory, gives up rights")]

use std::io::Write;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use zerosweep_linux::{GuestMemory, MainLoop, Options, PAGE_BYTES, Region, thread_id};

const MIB: u64 = 1 << 20;
const TARGET: u64 = 8 * MIB;
/// Longer than a main loop may hang.
const LONG: Duration = Duration::from_secs(4);
/// Something that comes comes within this, on a busy machine too.
const LIMIT: Duration = Duration::from_secs(120);

fn memory(main_loop: MainLoop) -> Arc<GuestMemory> {
    let options = Options { main_loop, ..Options::new(TARGET) };
    GuestMemory::new(Region::new(32 * MIB).unwrap(), &options).unwrap()
}

/// A virtual CPU that fills the target with what is not zero, then does `last`, which stalls.
fn vcpu(
    memory: &Arc<GuestMemory>,
    last: impl FnOnce(&GuestMemory) + Send + 'static,
) -> (u32, JoinHandle<()>) {
    let memory = Arc::clone(memory);
    let (tell, thread) = channel();
    let vcpu = std::thread::spawn(move || {
        memory.add_vcpu(thread_id());
        for page in 0..TARGET / PAGE_BYTES {
            memory.guest().store_word(page * PAGE_BYTES, page + 1).unwrap();
        }
        tell.send(thread_id()).unwrap();
        last(&memory);
    });
    (thread.recv().unwrap(), vcpu)
}

/// A virtual CPU that stalls at a touch.
fn stalling(memory: &Arc<GuestMemory>) -> (u32, JoinHandle<()>) {
    let started = vcpu(memory, |memory| memory.guest().store_word(20 * MIB, 7).unwrap());
    let end = Instant::now() + LIMIT;
    while memory.snapshot().stalled == 0 && Instant::now() < end && !started.1.is_finished() {
        std::thread::sleep(Duration::from_millis(1));
    }
    started
}

fn ends_within<T>(thread: &JoinHandle<T>, limit: Duration) -> bool {
    let end = Instant::now() + limit;
    while Instant::now() < end && !thread.is_finished() {
        std::thread::sleep(Duration::from_millis(1));
    }
    thread.is_finished()
}

/// A thread in the VMM's main loop's place.
struct MainThread {
    id: u32,
    /// What it waits for.
    end: std::io::PipeWriter,
    thread: JoinHandle<()>,
}

impl MainThread {
    fn start(work: impl FnOnce(std::io::PipeReader) + Send + 'static) -> Self {
        let (reader, end) = std::io::pipe().unwrap();
        let (tell, id): (_, Receiver<u32>) = channel();
        let thread = std::thread::spawn(move || {
            tell.send(thread_id()).unwrap();
            work(reader);
        });
        Self { id: id.recv().unwrap(), end, thread }
    }

    /// One that hangs in a system call that is no lock and no wait for events.
    fn that_hangs() -> Self {
        Self::start(|mut pipe| {
            std::io::copy(&mut pipe, &mut std::io::sink()).unwrap();
        })
    }

    /// One that waits for events.
    fn that_is_idle() -> Self {
        Self::start(|pipe| {
            let mut fds = libc::pollfd { fd: pipe.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one descriptor, for as long as the call lasts.
            assert_eq!(unsafe { libc::poll(&raw mut fds, 1, -1) }, 1);
        })
    }

    fn join(self) {
        drop(self.end);
        self.thread.join().unwrap();
    }
}

#[test]
#[ignore = "needs userfaultfd in kernel mode"]
fn a_thread_of_the_process_that_is_no_virtual_cpu_does_not_wait() {
    let memory = memory(MainLoop::None);
    let (_, vcpu) = stalling(&memory);
    let other = Arc::clone(&memory);
    let device = std::thread::spawn(move || other.guest().store_word(24 * MIB, 9).unwrap());
    assert!(ends_within(&device, LIMIT), "{:?}", memory.snapshot());
    assert!(!ends_within(&vcpu, LONG), "{:?}", memory.snapshot());
    assert_eq!(memory.snapshot().borrowed, 1);
    assert_eq!(memory.set_target(16 * MIB), Ok(()));
    assert!(ends_within(&vcpu, LIMIT), "{:?}", memory.snapshot());
    assert_eq!(memory.guest().load_word(20 * MIB), Ok(7));
    memory.stop();
}

/// The number of a process and an address in it, for [`write_to_another_process`].
const WRITES_TO: &str = "ZEROSWEEP_TEST_WRITES_TO";

/// Writes a word to another process' memory.
#[test]
#[ignore = "a helper of the other tests of this file"]
fn write_to_another_process() {
    let Ok(to) = std::env::var(WRITES_TO) else { return };
    let (process, address) = to.split_once(':').unwrap();
    let (process, address): (i32, usize) = (process.parse().unwrap(), address.parse().unwrap());
    let mut word = 9_u64;
    let local = libc::iovec { iov_base: (&raw mut word).cast(), iov_len: 8 };
    let iov_base = std::ptr::without_provenance_mut(address);
    let remote = libc::iovec { iov_base, iov_len: 8 };
    // SAFETY: reads our own word; what is written is the other process' affair.
    let written = unsafe { libc::process_vm_writev(process, &local, 1, &remote, 1, 0) };
    assert_eq!(written, 8);
}

/// As a KVM worker's fault: it is in the name of a thread that is none of this process.
#[test]
#[ignore = "needs userfaultfd in kernel mode"]
fn a_thread_of_another_process_waits_as_a_virtual_cpu_does() {
    let memory = memory(MainLoop::None);
    let (_, vcpu) = stalling(&memory);
    let at = memory.guest().as_ptr().addr() as u64 + 24 * MIB;
    let mut other = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "write_to_another_process", "--ignored"])
        .env(WRITES_TO, format!("{}:{at}", std::process::id()))
        .spawn()
        .unwrap();
    std::thread::sleep(LONG);
    assert_eq!(other.try_wait().unwrap(), None, "{:?}", memory.snapshot());
    let snapshot = memory.snapshot();
    assert_eq!((snapshot.borrowed, snapshot.stalled), (0, 2), "{snapshot:?}");
    assert_eq!(memory.set_target(16 * MIB), Ok(()));
    assert!(other.wait().unwrap().success());
    assert!(ends_within(&vcpu, LIMIT));
    assert_eq!(memory.guest().load_word(24 * MIB), Ok(9));
    memory.stop();
}

#[test]
#[ignore = "needs userfaultfd in kernel mode"]
fn memory_is_borrowed_when_the_main_loop_hangs_in_any_system_call() {
    let main = MainThread::that_hangs();
    let memory = memory(MainLoop::Thread(main.id));
    let (_, vcpu) = stalling(&memory);
    let began = Instant::now();
    assert!(ends_within(&vcpu, LIMIT), "{:?}", memory.snapshot());
    println!("went on after {:?}", began.elapsed());
    assert_eq!(memory.snapshot().borrowed, 1);
    memory.stop();
    main.join();
}

#[test]
#[ignore = "needs userfaultfd in kernel mode"]
fn no_memory_is_borrowed_while_the_main_loop_waits_for_events() {
    let main = MainThread::that_is_idle();
    let memory = memory(MainLoop::Thread(main.id));
    let (_, vcpu) = stalling(&memory);
    assert!(!ends_within(&vcpu, LONG), "{:?}", memory.snapshot());
    assert_eq!(memory.snapshot().borrowed, 0);
    assert_eq!(memory.set_target(16 * MIB), Ok(()));
    assert!(ends_within(&vcpu, LIMIT), "{:?}", memory.snapshot());
    memory.stop();
    main.join();
}

extern "C" fn nothing(_: libc::c_int) {}

/// A pending signal makes the kernel ask for the page again and again where it copies for the
/// thread: the signal is for something that must not wait for ever, such as QEMU's `stop`.
#[test]
#[ignore = "needs userfaultfd in kernel mode"]
fn a_thread_with_a_signal_that_faults_in_the_kernel_goes_on() {
    let memory = memory(MainLoop::None);
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(&7_u64.to_ne_bytes()).unwrap();
    // SAFETY: the handler does nothing.
    unsafe { libc::signal(libc::SIGUSR1, nothing as extern "C" fn(libc::c_int) as usize) };
    let (id, vcpu) = vcpu(&memory, move |memory| {
        let at = memory.guest().as_ptr().wrapping_add(20 << 20).cast_mut();
        // SAFETY: eight bytes of the guest's memory, as a device of the VMM's writes them.
        assert_eq!(unsafe { libc::read(reader.as_raw_fd(), at.cast(), 8) }, 8);
    });
    assert!(!ends_within(&vcpu, Duration::from_secs(1)), "it stalls");
    // SAFETY: a thread of this process; the handler does nothing.
    unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), id, libc::SIGUSR1) };
    let began = Instant::now();
    assert!(ends_within(&vcpu, LIMIT), "{:?}", memory.snapshot());
    println!("went on after {:?}", began.elapsed());
    assert_eq!(memory.snapshot().borrowed, 1);
    assert_eq!(memory.guest().load_word(20 * MIB), Ok(7));
    memory.stop();
}

/// Signals that a thread gets to are no flood: a guest may have its VMM send them.
#[test]
#[ignore = "needs userfaultfd in kernel mode"]
fn a_stalled_thread_that_handles_its_signals_waits_on() {
    let memory = memory(MainLoop::None);
    // SAFETY: the handler does nothing.
    unsafe { libc::signal(libc::SIGUSR2, nothing as extern "C" fn(libc::c_int) as usize) };
    let (id, vcpu) = stalling(&memory);
    for _ in 0..1000 {
        // SAFETY: a thread of this process; the handler does nothing.
        unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), id, libc::SIGUSR2) };
        std::thread::sleep(Duration::from_micros(100));
    }
    assert!(!vcpu.is_finished(), "{:?}", memory.snapshot());
    let snapshot = memory.snapshot();
    assert_eq!((snapshot.borrowed, snapshot.stalled), (0, 1), "{snapshot:?}");
    assert_eq!(memory.set_target(16 * MIB), Ok(()));
    assert!(ends_within(&vcpu, LIMIT), "{:?}", memory.snapshot());
    memory.stop();
}

/// What a VMM gives up after it has started.
const GIVEN_UP: &str = "ZEROSWEEP_TEST_GIVES_UP";

fn in_a_process_that_gives_up(test: &str, what: &str) {
    if std::env::var_os(GIVEN_UP).is_none() {
        let program = std::env::current_exe().unwrap();
        let arguments = ["--exact", test, "--ignored", "--nocapture"];
        let child = Command::new(program).args(arguments).env(GIVEN_UP, what).output().unwrap();
        let text = String::from_utf8_lossy(&child.stdout).into_owned();
        assert!(child.status.success(), "{text}\n{}", String::from_utf8_lossy(&child.stderr));
        assert!(text.contains("1 passed"), "{text}");
        return;
    }
    let main = MainThread::that_hangs();
    let memory = memory(MainLoop::Thread(main.id));
    // SAFETY: this process is here for this test alone.
    unsafe {
        match what {
            "its user" => assert_eq!(libc::setuid(65534), 0),
            // Somewhere without /proc.
            "its root" => assert_eq!(libc::chroot(c"/sys".as_ptr()), 0),
            _ => {
                let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
                assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const none), 0);
            }
        }
    }
    let path = format!("/proc/self/task/{}/syscall", main.id);
    assert!(std::fs::File::open(path).is_err(), "{what} given up, it can still be opened");
    let (_, vcpu) = stalling(&memory);
    assert!(ends_within(&vcpu, LIMIT), "{:?}", memory.snapshot());
    assert_eq!(memory.snapshot().borrowed, 1);
    memory.audit().unwrap();
    memory.stop();
    main.join();
}

#[test]
#[ignore = "needs userfaultfd in kernel mode, root"]
fn a_main_loop_that_hangs_is_seen_by_a_process_that_gave_up_its_user() {
    let test = "a_main_loop_that_hangs_is_seen_by_a_process_that_gave_up_its_user";
    in_a_process_that_gives_up(test, "its user");
}

#[test]
#[ignore = "needs userfaultfd in kernel mode, root"]
fn a_main_loop_that_hangs_is_seen_by_a_process_that_gave_up_its_root() {
    let test = "a_main_loop_that_hangs_is_seen_by_a_process_that_gave_up_its_root";
    in_a_process_that_gives_up(test, "its root");
}

#[test]
#[ignore = "needs userfaultfd in kernel mode"]
fn a_main_loop_that_hangs_is_seen_by_a_process_without_descriptors() {
    let test = "a_main_loop_that_hangs_is_seen_by_a_process_without_descriptors";
    in_a_process_that_gives_up(test, "its descriptors");
}
